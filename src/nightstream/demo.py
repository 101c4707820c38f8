"""The demonstration: a small survey with known truth, taken from raw frames to alerts and judged.

Simulate, calibrate, make the templates, stream the science visits through Ray actors, send the alerts, compare with the truth.
Nothing here knows the truth before the last step.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nightstream.engine.calibrate import build_calibrations
from nightstream.engine.pipeline import DetectorPipeline, calibrate_together
from nightstream.engine.template import build_template
from nightstream.engine.values import Table
from nightstream.io.alerts.files import read_alert_file
from nightstream.io.calibrations import read_calibrations, write_calibrations
from nightstream.io.cameras import engine_config
from nightstream.io.catalogues import read_reference
from nightstream.io.products import product_path, read_detector_products, write_visit_master
from nightstream.io.raw import read_raw
from nightstream.io.schema import snake_case
from nightstream.io.templates import write_template
from nightstream.report.alerts import accuracy_table as association_table
from nightstream.report.alerts import add_truth, alerts_table, of_outcome
from nightstream.report.evaluate import Evaluation, concatenate, evaluate
from nightstream.report.quicklook import save_quicklook
from nightstream.report.stamps import choose_alerts, save_alert_page
from nightstream.report.tables import accuracy_table, visit_table
from nightstream.scheduler.alert_stream import AlertOutcome, AlertStream
from nightstream.scheduler.alerts_config import AlertsConfig
from nightstream.scheduler.config import SchedulerConfig
from nightstream.scheduler.executor import make_executor, place_setups
from nightstream.scheduler.messages import DetectorReport, WorkerSetup
from nightstream.scheduler.run import RunHooks, RunSummary, Visit, run_visits
from nightstream.simulate.survey import Survey, simulate_survey
from nightstream.simulate.truth import read_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

CAMERA = "simulator"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demonstration did: its run, how it compares with the truth, and the pictures it left."""

    run: RunSummary
    alerts: AlertOutcome
    evaluation: Evaluation
    alert_sources: Table  # the sources of all alerts, with what they truly are
    pictures: tuple[Path, ...]
    seconds: dict[str, float]  # by step


@dataclass(slots=True)
class _Steps:
    """The progress bars, one a step, and the seconds each took."""

    progress: Progress
    seconds: dict[str, float]

    @contextmanager
    def step(self, name: str, total: int) -> Iterator:
        """Show a bar of ``total``; yields the function that moves it on by one."""
        task = self.progress.add_task(name, total=total)
        start = time.perf_counter()
        yield lambda *_: self.progress.advance(task)
        self.seconds[name] = time.perf_counter() - start
        self.progress.update(task, completed=self.progress.tasks[task].total)


def run_demo(
    output: str | Path,
    *,
    n_detectors: int = 2,
    n_template_visits: int = 4,
    n_science_visits: int = 4,
    seed: int = 1,
    device: str = "auto",
    scheduler: SchedulerConfig | None = None,
    console: Console | None = None,
) -> DemoResult:
    """Run everything into ``output``, print the tables and save the pictures there. Takes a few minutes on two cores."""
    from rich.console import Console

    console = console or Console()
    output = Path(output)
    scheduler = scheduler or SchedulerConfig()
    steps = _Steps(progress=_progress(console), seconds={})
    with steps.progress:
        survey = _simulate(output, steps, n_detectors=n_detectors, n_template_visits=n_template_visits,
                           n_science_visits=n_science_visits, seed=seed)  # fmt: skip
        _calibrate(survey, steps)
        _make_templates(survey, device, steps)
        run, alerts = _process(survey, device, scheduler, steps)
        with steps.step("compare with the truth", 1):
            packets = read_packets(survey)
            result = DemoResult(
                run=run,
                alerts=alerts,
                evaluation=evaluate_survey(survey, run),
                alert_sources=add_truth(alert_sources(packets), read_table(survey.truth_path, "changes")),
                pictures=save_pictures(survey, run, packets),
                seconds=steps.seconds,
            )
    _tell(console, survey, result)
    return result


def evaluate_survey(survey: Survey, run: RunSummary) -> Evaluation:
    """Compare all products of ``run`` with the truth of ``survey``; detectors that failed count as having found nothing."""
    tables = [read_detector_products(path).dia_sources for _, _, path in _products(survey, run)]
    sources = concatenate(tables) or {name: np.zeros(0) for name in ("visit", "detector", "x", "y", "snr")}
    return evaluate(sources, read_table(survey.truth_path, "changes"))


def read_packets(survey: Survey) -> list[dict]:
    """Return the alerts that were sent, visit by visit, decoded."""
    return [packet for path in sorted((_product_dir(survey) / "alerts").glob("visit=*.avro")) for packet in read_alert_file(path)]


def alert_sources(packets: list[dict]) -> Table:
    """Return where the alerts' sources are and what they were associated with; 0 for nothing."""
    columns = {"visit": np.int64, "ra": float, "dec": float, "snr": float, "diaObjectId": np.int64, "ssObjectId": np.int64}
    sources = [packet["diaSource"] for packet in packets]
    return {snake_case(name): np.array([source[name] or 0 for source in sources], dtype) for name, dtype in columns.items()}


def save_pictures(survey: Survey, run: RunSummary, packets: list[dict]) -> tuple[Path, ...]:
    """Draw the best alerts, and the first product as a quick look."""
    heading = "Nightstream: alerts of a simulated night"
    pictures = [save_alert_page(choose_alerts(packets), survey.output / "alerts.png", heading)]
    first = next((path for _, _, path in _products(survey, run)), None)
    if first is not None:
        pictures.append(save_quicklook(first, survey.output / "quicklook.png"))
    return tuple(pictures)


def _simulate(output: Path, steps: _Steps, **numbers: int) -> Survey:
    from nightstream.scheduler.config import usable_cores

    with steps.step("simulate raw frames", 1) as advance:

        def progress(done: int, total: int) -> None:
            steps.progress.update(steps.progress.task_ids[-1], total=total)
            advance()

        return simulate_survey(output, camera=CAMERA, workers=min(usable_cores(), 8), progress=progress, **numbers)


def _calibrate(survey: Survey, steps: _Steps) -> None:
    """Build and store bias, dark, flat and defects of every detector."""
    config = engine_config(survey.camera)
    with steps.step("build calibrations", len(survey.detectors)) as advance:
        for detector in survey.detectors:
            frames = {
                role: [read_raw(path, survey.camera, detector) for path in survey.raws(role, detector)]
                for role in ("bias", "dark", "flat")
            }
            calibrations = build_calibrations(
                frames["bias"], frames["dark"], frames["flat"], survey.camera.detectors[detector], config.calibrate, config.isr
            )
            write_calibrations(_calibration_dir(survey), survey.camera.name, calibrations)
            advance()


def _make_templates(survey: Survey, device: str, steps: _Steps) -> None:
    """Register the template visits on the reference catalogue, combine and store them."""
    config = engine_config(survey.camera)
    reference = read_reference(survey.reference_path)
    total = len(survey.raws("template")) + len(survey.detectors)
    with steps.step("make templates", total) as advance:
        for detector in survey.detectors:
            geometry = survey.camera.detectors[detector]
            calibrations = read_calibrations(_calibration_dir(survey), survey.camera.name, geometry)
            pipeline = DetectorPipeline(geometry, calibrations, None, config, device, reference=reference)
            raws = (read_raw(path, survey.camera, detector) for path in survey.raws("template", detector))
            exposures = []
            for characterized in calibrate_together(pipeline, raws):
                exposures.append(characterized.exposure)
                advance()
            write_template(_template_dir(survey), detector, build_template(exposures, config.template))
            advance()


def _process(survey: Survey, device: str, scheduler: SchedulerConfig, steps: _Steps) -> tuple[RunSummary, AlertOutcome]:
    """Stream the science visits through the executor, and their alerts out."""
    setups = {detector: _worker_setup(survey, detector, device) for detector in survey.detectors}
    science = [visit for visit in survey.visits if visit.role == "science"]
    visits = [Visit(v.id, {d: str(survey.raw_path(v, d)) for d in survey.detectors}) for v in science]
    shutil.rmtree(_product_dir(survey), ignore_errors=True)  # of an earlier demonstration, whose alerts are sent already
    config = AlertsConfig(ephemerides=survey.ephemerides_path)
    with steps.step("process science visits", len(science) * len(survey.detectors)) as advance:
        executor = make_executor(scheduler)
        workers = place_setups(setups, min(scheduler.actors or executor.slots(), len(setups)))
        with AlertStream(survey.camera, _product_dir(survey), engine_config(survey.camera), config) as alerts:

            def on_end(visit: int, reports: list[DetectorReport]) -> None:
                try:
                    write_visit_master(_product_dir(survey), visit, reports)
                finally:
                    alerts.ended(visit, reports)

            hooks = RunHooks(on_report=advance, write_master=on_end)
            run = run_visits(alerts.arriving(visits), workers, executor, scheduler.policy(), hooks)
    return run, alerts.outcome


def _worker_setup(survey: Survey, detector: int, device: str) -> WorkerSetup:
    return WorkerSetup(
        camera=survey.camera.name, detector=detector, output_dir=str(_product_dir(survey)), device=device,
        calibration_dir=str(_calibration_dir(survey)), template_dir=str(_template_dir(survey)),
    )  # fmt: skip


def _products(survey: Survey, run: RunSummary) -> Iterator[tuple[int, int, Path]]:
    """Visit, detector and file of everything that ``run`` finished, in order of visit, then detector."""
    for visit in sorted(run.visits, key=lambda summary: summary.visit):
        for frame in visit.frames:
            if frame.status == "done":
                yield visit.visit, frame.detector, product_path(_product_dir(survey), visit.visit, frame.detector)


def _tell(console: Console, survey: Survey, result: DemoResult) -> None:
    run, evaluation, seconds = result.run, result.evaluation, result.seconds
    scores = {visit.visit: evaluation.score(visit.visit) for visit in run.visits}
    console.print(visit_table(sorted(run.visits, key=lambda visit: visit.visit), scores))
    console.print(accuracy_table(evaluation))
    console.print(alerts_table(of_outcome(result.alerts)))
    console.print(association_table(result.alert_sources, read_table(survey.truth_path, "asteroids")))
    for visit in run.visits:
        for frame in visit.failed:
            console.print(f"[red]failed:[/red] {frame.error}")
    for visit, message in result.alerts.failed.items():
        console.print(f"[red]visit {visit} was not stored:[/red] {message}")
    took = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    console.print(f"Took {sum(seconds.values()):.0f} s: {took}.")
    console.print(f"Products and alerts: {_product_dir(survey)}; pictures: {', '.join(str(path) for path in result.pictures)}")


def _progress(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console)


def _calibration_dir(survey: Survey) -> Path:
    return survey.output / "calibrations"


def _template_dir(survey: Survey) -> Path:
    return survey.output / "templates"


def _product_dir(survey: Survey) -> Path:
    return survey.output / "products"
