"""``nightstream template``: visits of one field in, the template of each detector and band out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nightstream.commands.common import (
    Settings,
    choose_detectors,
    console,
    detector_progress,
    each_detector,
    errors_end_the_command,
    find_camera,
    load_settings,
    nothing_chosen,
    warn,
)

if TYPE_CHECKING:
    from nightstream.engine.values import ExposureInfo
    from nightstream.io.cameras import RawCamera

Task = tuple[int, str]  # detector, band


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateOptions:
    """The arguments of ``template``."""

    raws: list[Path]
    camera: str
    output: Path
    calibrations: Path | None = None
    reference: Path | None = None
    detectors: list[int]
    bands: list[str]
    visits: list[int]
    config: Path | None = None
    device: str = "auto"


def template_command(options: TemplateOptions) -> None:
    """Build the template of each detector and band that has visits; exit with 1 if any failed."""
    with errors_end_the_command():
        camera = find_camera(options.camera)
        settings = load_settings(options.config, camera)
        exposures = find_exposures(options, camera)
        make = _make_with(options, settings, camera, exposures)
    with detector_progress("templates", len(exposures)) as advance:
        failed = each_detector(sorted(exposures), make, advance)
    failed.stop_if_any()


def find_exposures(options: TemplateOptions, camera: RawCamera) -> dict[Task, list[ExposureInfo]]:
    """Return the science exposures asked for, by detector and band."""
    from nightstream.io.raw_folder import read_raw_folder

    folder = read_raw_folder(options.raws, camera)
    for problem in folder.problems:
        warn(f"left out: {problem}")
    detectors = choose_detectors(camera, options.detectors)
    found: dict[Task, list[ExposureInfo]] = {}
    for info in folder.select("science", detectors=detectors, bands=options.bands, visits=options.visits):
        found.setdefault((info.detector, info.band), []).append(info)
    if not found:
        raise nothing_chosen("science exposures", camera, options.raws, folder.select("science"))
    return found


def _make_with(
    options: TemplateOptions, settings: Settings, camera: RawCamera, found: dict[Task, list[ExposureInfo]]
) -> Callable[[Task], None]:
    """The function that makes and writes one template."""
    from nightstream.engine.pipeline import DetectorPipeline, calibrate_together
    from nightstream.engine.template import build_template
    from nightstream.io.calibrations import find_calibrations
    from nightstream.io.catalogues import read_reference
    from nightstream.io.raw import read_raw
    from nightstream.io.templates import write_template

    reference = read_reference(options.reference) if options.reference else None

    def make(task: Task) -> None:
        detector, band = task
        geometry, infos = camera.detectors[detector], found[task]
        calibrations = find_calibrations(options.calibrations, camera.name, geometry)
        pipeline = DetectorPipeline(geometry, calibrations, None, settings.config, options.device, reference=reference)
        calibrated = calibrate_together(pipeline, (read_raw(info.path, camera, detector) for info in infos))
        exposures = (done.exposure for done in calibrated)
        made = pipeline.memory.download(build_template(exposures, settings.config.template))
        path = write_template(options.output, detector, made)
        console.print(f"detector {detector}, band {band}: {len(infos)} visits -> {path}", markup=False)

    return make
