"""What the steps of the engine cost that a facility may leave out: the stages that each is part of, with it and without."""

from __future__ import annotations

from copy import copy
from statistics import median
from typing import Any, NamedTuple

from stopwatch import Span, Stopwatch

from nightstream.engine.characterize import Characterized
from nightstream.engine.config import EngineConfig
from nightstream.engine.isr import remove_signature
from nightstream.engine.pipeline import DetectorPipeline
from nightstream.engine.values import RawDetector


class Step(NamedTuple):
    """How a step is left out."""

    section: str  # of EngineConfig
    without: dict[str, Any]  # settings of that section


STEPS = {
    "overscan that follows rows": Step("isr", {"serial_overscan": "amplifier"}),
    "parallel overscan": Step("isr", {"parallel_overscan": False}),
    "kernel order by cross-validation": Step("difference", {"spatial_order": 2}),
    "difference background": Step("difference", {"subtract_background": False}),
    "decorrelation": Step("difference", {"decorrelate": False}),
    "forced photometry at sources": Step("force", {"at_sources": False}),
}
# Stages that a section's steps can make longer: its own, and those that work on what it leaves.
JUDGED_BY = {"isr": ("isr",), "difference": ("difference", "measure", "force", "cutouts"), "force": ("force",)}

Spans = dict[str, Span]  # of one run, by stage


def measure_steps(pipeline: DetectorPipeline, raw: RawDetector, stopwatch: Stopwatch, runs: int) -> dict[str, dict]:
    """Return what each of `STEPS` costs (see `saving`), from ``runs`` rounds: with all of them, then without each in turn.

    ``stopwatch`` is the pipeline's. Of the visit, only what `JUDGED_BY` asks for is run again.
    """
    stopwatch.start_run()
    science, raw = pipeline.calibrate(raw), pipeline.memory.upload(raw)

    def run(pipeline: DetectorPipeline, section: str) -> Spans:
        stopwatch.start_run()
        if section == "isr":
            with stopwatch("isr"):
                remove_signature(raw, pipeline.detector, pipeline.calibrations, pipeline.config.isr)
        else:
            _resumed(pipeline, science).process(raw)
        return {span.name: span for span in stopwatch.runs[-1]}

    complete: list[Spans] = []
    without: dict[str, list[Spans]] = {name: [] for name in STEPS}
    for _ in range(runs):
        complete.append(run(pipeline, "isr") | run(pipeline, "difference"))
        for name, step in STEPS.items():
            without[name].append(run(leave_out(pipeline, step), step.section))
    return {name: saving(complete, without[name], JUDGED_BY[step.section]) for name, step in STEPS.items()}


def leave_out(pipeline: DetectorPipeline, step: Step) -> DetectorPipeline:
    """Return a pipeline with the same calibrations and template, but without ``step``."""
    changed, settings = copy(pipeline), pipeline.config.model_dump()
    changed.config = EngineConfig.model_validate(settings | {step.section: settings[step.section] | step.without})
    return changed


def saving(complete: list[Spans], without: list[Spans], stages: tuple[str, ...]) -> dict[str, Any]:
    """Return what runs ``without`` a step save in ``stages``, on the clock and of all cores: the difference of the medians,
    and the range of it, from the dearest of them beside the cheapest complete run to the other way round."""
    numbers: dict[str, Any] = {}
    for kind in ("clock", "core"):
        more, less = ([sum(getattr(run[stage], f"{kind}_s") for stage in stages) for run in runs] for runs in (complete, without))
        numbers[f"{kind}_s"] = round(median(more) - median(less), 4)
        numbers[f"{kind}_range_s"] = [round(min(more) - max(less), 4), round(max(more) - min(less), 4)]
    return numbers


def _resumed(pipeline: DetectorPipeline, science: Characterized) -> DetectorPipeline:
    """Return a pipeline that has its visit image already."""
    resumed = copy(pipeline)
    resumed.calibrate = lambda raw: science
    return resumed
