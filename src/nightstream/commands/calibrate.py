"""``nightstream calibrate``: raw biases, darks and flats in, a calibration store out."""

from __future__ import annotations

from collections.abc import Callable
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
    warn,
)
from nightstream.errors import ConfigError

if TYPE_CHECKING:
    from nightstream.io.cameras import RawCamera
    from nightstream.io.raw_folder import RawFolder

KINDS = ("bias", "dark", "flat")


def calibrate_command(
    raws: list[Path], camera_name: str, output: Path, *, detectors: list[int], band: str | None, config: Path | None
) -> None:
    """Build the calibrations of each detector that has frames; exit with 1 if any failed."""
    from nightstream.io.raw_folder import read_raw_folder

    with errors_end_the_command():
        camera = find_camera(camera_name)
        settings = load_settings(config, camera)
        wanted = choose_detectors(camera, detectors)
        folder = read_raw_folder(raws, camera)
        for problem in folder.problems:
            warn(f"left out: {problem}")
        present = sorted({info.detector for kind in KINDS for info in folder.select(kind, detectors=wanted)})
        if not present:
            raise ConfigError(f"no bias, dark or flat of {camera.name} in {', '.join(map(str, raws))}")
        band = band or the_one_band(folder)
    with detector_progress("calibrations", len(present)) as advance:
        failed = each_detector(present, _calibrate_with(folder, camera, settings, band, output), advance)
    failed.stop_if_any()


def the_one_band(folder: RawFolder) -> str | None:
    """The band of the flats; several are a usage error, since a store holds one flat a detector."""
    bands = sorted({info.band for info in folder.select("flat")})
    if len(bands) > 1:
        raise ConfigError(f"there are flats of the bands {', '.join(bands)}; choose one with --band, a store for each")
    return bands[0] if bands else None


def _calibrate_with(
    folder: RawFolder, camera: RawCamera, settings: Settings, band: str | None, output: Path
) -> Callable[[int], None]:
    """The function that makes and writes the calibrations of one detector."""
    from nightstream.engine.calibrate import build_calibrations
    from nightstream.io.calibrations import write_calibrations
    from nightstream.io.raw import read_raw

    def calibrate(detector: int) -> None:
        chosen = {kind: folder.select(kind, detectors=[detector]) for kind in KINDS}
        chosen["flat"] = [info for info in chosen["flat"] if info.band == band]
        frames = {kind: [read_raw(info.path, camera, detector) for info in infos] for kind, infos in chosen.items()}
        geometry, config = camera.detectors[detector], settings.config
        made = build_calibrations(frames["bias"], frames["dark"], frames["flat"], geometry, config.calibrate, config.isr)
        path = write_calibrations(output, camera.name, made)
        counts = ", ".join(f"{len(frames[kind])} {kind}" for kind in KINDS)
        console.print(f"detector {detector}: {counts} frames -> {path}", markup=False)

    return calibrate
