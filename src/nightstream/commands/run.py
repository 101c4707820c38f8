"""``nightstream run``: raw visits in, HDF5 products out, with a line a visit and a table at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nightstream.commands.common import (
    FAILURE,
    Settings,
    choose_detectors,
    console,
    detector_progress,
    error_console,
    errors_end_the_command,
    find_camera,
    load_settings,
    nothing_chosen,
    warn,
)
from nightstream.commands.tables import alert_failures, failures_of, print_failures, stages_table, visit_line, visits_table
from nightstream.errors import NightstreamError
from nightstream.scheduler.executor import make_executor

if TYPE_CHECKING:
    from nightstream.io.cameras import RawCamera
    from nightstream.scheduler.alert_stream import AlertOutcome, AlertStream
    from nightstream.scheduler.messages import DetectorReport, WorkerSetup
    from nightstream.scheduler.run import RunSummary, Visit

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The arguments of ``run``."""

    raws: list[Path]
    camera: str
    output: Path
    calibrations: Path | None = None
    templates: Path | None = None
    reference: Path | None = None
    positions: Path | None = None
    detectors: list[int]
    bands: list[str]
    visits: list[int]
    config: Path | None = None
    device: str = "auto"
    scheduler: Mapping[str, Any]
    alerts: Mapping[str, Any] = field(default_factory=dict)
    with_alerts: bool = True
    steps_per_sigma: int | None = None


def run_command(options: RunOptions) -> None:
    """Process what was asked for; exit with 1 if anything failed."""
    logging.basicConfig(level=logging.INFO if options.scheduler.get("verbose") else logging.CRITICAL)
    with errors_end_the_command():
        camera = find_camera(options.camera)
        settings = load_settings(options.config, camera, options.scheduler, options.alerts)
        check_inputs(options, settings)
        visits, problems = find_visits(options, camera)
        detectors = sorted({detector for visit in visits for detector in visit.raw_paths})
        setups = {detector: make_setup(options, settings, detector) for detector in detectors}
        with open_alerts(options, settings, camera) as alerts:
            for line in alerts.warnings if alerts is not None else ():
                warn(line)
            summary, reports = stream_visits(visits, setups, settings, options.output, alerts) if visits else (None, [])
        finish(summary, reports, problems, alerts)


def open_alerts(options: RunOptions, settings: Settings, camera: RawCamera) -> AbstractContextManager[AlertStream | None]:
    """The alerts beside the run; nothing where no sources are found or no alerts are wanted."""
    if options.templates is None or not options.with_alerts:
        return nullcontext()
    from nightstream.scheduler.alert_stream import AlertStream

    return AlertStream(camera, options.output.resolve(), settings.config, settings.alerts)


def check_inputs(options: RunOptions, settings: Settings) -> None:
    """Raise now what would fail every detector alike; say what will be missing from the products."""
    from nightstream.engine.memory import resolve_device
    from nightstream.io.catalogues import read_positions, read_reference

    if options.reference is not None:
        read_reference(options.reference)
    if options.positions is not None:
        read_positions(options.positions)
    has_cupy, scheduler = find_spec("cupy") is not None, settings.scheduler
    if scheduler.executor == "local" or (scheduler.address == "local" and not has_cupy):
        resolve_device(options.device)  # not asked of Ray's cards: they are the workers' alone
    if options.calibrations is None:
        warn("no --calibrations: raw frames are used without bias, dark, flat and defects")
    if options.templates is None:
        warn("no --templates: no differences are made and no sources found")


def find_visits(options: RunOptions, camera: RawCamera) -> tuple[list[Visit], list[NightstreamError]]:
    """Return the science visits asked for, in the order of time, and the raw files that are none."""
    from nightstream.io.raw_folder import group_visits, read_raw_folder
    from nightstream.scheduler.run import Visit

    detectors = choose_detectors(camera, options.detectors)
    folder = read_raw_folder([path.absolute() for path in options.raws], camera)  # workers may run elsewhere
    chosen = folder.select("science", detectors=detectors, bands=options.bands, visits=options.visits)
    visits, doubles = group_visits(chosen)
    problems = [*folder.problems, *doubles]
    for problem in problems:
        logger.error("left out: %s", problem)
    if not visits and not problems:
        raise nothing_chosen("science exposures", camera, options.raws, folder.select("science"))
    wanted, where = expected_detectors(options, camera, detectors), ", ".join(map(str, options.raws))
    found = [Visit(visit, paths, dict.fromkeys(wanted - set(paths), where)) for visit, paths in visits.items()]
    return found, problems


def expected_detectors(options: RunOptions, camera: RawCamera, detectors: list[int]) -> set[int]:
    """The detectors that each visit should have a raw file of: those with calibrations, where a folder was given.

    Who names files rather than a folder has chosen, and expects nothing else.
    """
    from nightstream.io.calibrations import calibrated_detectors

    if options.calibrations is None or not any(path.is_dir() for path in options.raws):
        return set()
    return calibrated_detectors(options.calibrations, camera.name).intersection(detectors)


def make_setup(options: RunOptions, settings: Settings, detector: int) -> WorkerSetup:
    """What the worker of one detector needs. Paths are made absolute, since workers run elsewhere."""
    from nightstream.scheduler.messages import WorkerSetup

    is_file = options.camera.endswith((".yaml", ".yml"))
    return WorkerSetup(
        camera=str(Path(options.camera).resolve()) if is_file else options.camera,
        detector=detector,
        output_dir=str(options.output.resolve()),
        calibration_dir=_absolute(options.calibrations),
        template_dir=_absolute(options.templates),
        config=settings.engine,
        device=options.device,
        reference=_absolute(options.reference),
        forced_positions=_absolute(options.positions),
        steps_per_sigma=options.steps_per_sigma,
        max_computing=settings.scheduler.max_computing,
    )


def stream_visits(
    visits: list[Visit],
    setups: Mapping[int, WorkerSetup],
    settings: Settings,
    output: Path,
    alerts: AlertStream | None = None,
) -> tuple[RunSummary, list[DetectorReport]]:
    """Run the visits behind a progress bar; return the summary and the reports of what failed."""
    from nightstream.io.products import write_visit_master
    from nightstream.scheduler.executor import place_setups
    from nightstream.scheduler.run import RunHooks, run_visits

    executor = make_executor(settings.scheduler)
    actors = settings.scheduler.actors or max(1, min(len(setups), executor.slots()))
    failed: list[DetectorReport] = []
    total = sum(len(visit.raw_paths) + len(visit.missing) for visit in visits)
    with detector_progress("detectors", total) as advance:

        def on_report(report: DetectorReport) -> None:
            advance()
            failed.extend([report] if report.status != "done" else [])

        def on_end(visit: int, reports: list[DetectorReport]) -> None:
            try:
                write_visit_master(output, visit, reports)
            finally:
                if alerts is not None:
                    alerts.ended(visit, reports)

        hooks = RunHooks(
            on_report=on_report,
            on_visit=lambda visit: console.print(visit_line(visit), markup=False),
            write_master=on_end,
        )
        arriving = alerts.arriving(visits, skipped=advance) if alerts is not None else visits
        summary = run_visits(arriving, place_setups(setups, actors), executor, settings.scheduler.policy(), hooks)
    return summary, failed


def finish(
    summary: RunSummary | None, failed: list[DetectorReport], problems: list[NightstreamError], alerts: AlertStream | None = None
) -> None:
    """Print the tables and what failed; exit with 1 if anything did."""
    if summary is not None and summary.visits:
        console.print(visits_table(summary), stages_table(summary))
    failures = failures_of(summary, failed, problems)
    if alerts is not None:
        print_alerts(alerts.outcome)
        failures += alert_failures(alerts.outcome)
    if failures:
        print_failures(error_console, failures)
        raise typer.Exit(FAILURE)


def print_alerts(outcome: AlertOutcome) -> None:
    """Print the table of alerts, and how much was done already."""
    from nightstream.report.alerts import alerts_table, of_outcome

    if outcome.visits:
        console.print(alerts_table(of_outcome(outcome)))
    if outcome.n_skipped:
        what = "1 detector was" if outcome.n_skipped == 1 else f"{outcome.n_skipped} detectors were"
        console.print(f"{what} stored by an earlier run and left alone")


def _absolute(path: Path | None) -> str | None:
    return str(path.resolve()) if path is not None else None
