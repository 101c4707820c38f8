"""Stream visits through an executor: the loop around the state machine, which alone decides what happens.

Holds one report a detector of each open visit and a few numbers a closed one, so memory stays flat.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from nightstream.errors import NightstreamError
from nightstream.scheduler.events import (
    CloseVisit,
    DetectorFailed,
    DetectorFinished,
    Event,
    FrameStatus,
    Instruction,
    RestartWorker,
    StartDetector,
    Tick,
    VisitArrived,
    WorkerDied,
    WorkerReady,
)
from nightstream.scheduler.executor import Died, Executor, Outcome, Reported, Setups
from nightstream.scheduler.latency import LatencyLog
from nightstream.scheduler.messages import DetectorJob, DetectorReport
from nightstream.scheduler.policy import AdmissionPolicy
from nightstream.scheduler.state import SchedulerState

logger = logging.getLogger(__name__)

WAIT_S = 1.0  # longest sleep between two looks at the clock


class Visit(NamedTuple):
    """A visit to process."""

    visit: int
    raw_paths: Mapping[int, str]  # detector: raw file
    missing: Mapping[int, str] = MappingProxyType({})  # detector that was expected: where a raw file was looked for
    positions: Mapping[int, str] = MappingProxyType({})  # detector: file of positions to force photometry at


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitSummary:
    """What is remembered of a visit once it is closed."""

    visit: int
    frames: tuple[FrameStatus, ...]
    seconds: float  # arrival to the end of its last detector and its master
    counts: Mapping[str, int]  # summed over detectors
    timings_s: Mapping[str, float]  # stage: seconds, summed over detectors
    output_bytes: int
    error: str = ""  # why the visit's master could not be written

    @property
    def failed(self) -> tuple[FrameStatus, ...]:
        """The detectors that failed, or had no raw file."""
        return tuple(frame for frame in self.frames if frame.status != "done")

    @property
    def is_complete(self) -> bool:
        """Did every detector and the master succeed?"""
        return not self.failed and not self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run did."""

    visits: tuple[VisitSummary, ...]
    seconds: float
    latency: LatencyLog
    peak_in_flight: int  # most jobs that were under way at once

    @property
    def is_complete(self) -> bool:
        """Did everything succeed?"""
        return all(visit.is_complete for visit in self.visits)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHooks:
    """Who is told while a run goes on, and who writes the master of a visit that has ended."""

    on_report: Callable[[DetectorReport], None] = lambda report: None
    on_visit: Callable[[VisitSummary], None] = lambda visit: None
    write_master: Callable[[int, list[DetectorReport]], object] = lambda visit, reports: None


@dataclass(slots=True)
class _Run:
    """The loop's own state: everything that is not a decision."""

    state: SchedulerState
    executor: Executor
    hooks: RunHooks
    clock: Callable[[], float]
    reports: dict[int, dict[int, DetectorReport]] = field(default_factory=dict)  # of open visits
    visits: dict[int, Visit] = field(default_factory=dict)  # of open visits
    closed: list[VisitSummary] = field(default_factory=list)
    latency: LatencyLog = field(default_factory=LatencyLog)
    peak_in_flight: int = 0

    def take(self, visit: Visit) -> None:
        """Feed a visit to the state machine, which deals with the raw files that are there; without any, the visit has ended."""
        self.visits[visit.visit] = visit
        if visit.raw_paths:
            self.tell(VisitArrived(time_s=self.clock(), visit=visit.visit, raw_paths=visit.raw_paths))
        else:
            self._close(CloseVisit(visit=visit.visit, frames=(), arrived_s=self.clock()))

    def tell(self, event: Event) -> None:
        """Feed one event to the state machine and carry out what follows."""
        for instruction in self.state.handle(event):
            self._carry_out(instruction)
        self.peak_in_flight = max(self.peak_in_flight, self.state.in_flight)

    def hear(self, outcome: Outcome) -> None:
        """Turn what an executor says into an event."""
        if isinstance(outcome, Reported):
            self._take_report(outcome)
        elif isinstance(outcome, Died):
            logger.warning("worker %d died: %s", outcome.worker, outcome.reason)
            self.tell(WorkerDied(time_s=self.clock(), worker=outcome.worker, reason=outcome.reason))
        else:
            self.tell(WorkerReady(time_s=self.clock(), worker=outcome.worker))

    def _take_report(self, outcome: Reported) -> None:
        job, report = outcome.job, outcome.report
        if self.state.expects(job.visit, job.detector, job.attempt):
            self.reports.setdefault(job.visit, {})[job.detector] = report
            self.hooks.on_report(report)
        self.tell(_ended(outcome, self.clock()))

    def _carry_out(self, instruction: Instruction) -> None:
        if isinstance(instruction, StartDetector):
            job = DetectorJob(
                visit=instruction.visit,
                detector=instruction.detector,
                path=instruction.path,
                attempt=instruction.attempt,
                positions=self.visits[instruction.visit].positions.get(instruction.detector, ""),
            )
            self.executor.submit(instruction.worker, job)
        elif isinstance(instruction, RestartWorker):
            self.executor.restart(instruction.worker)
        else:
            self._close(instruction)

    def _close(self, instruction: CloseVisit) -> None:
        reports = self.reports.pop(instruction.visit, {})
        missing = self.visits.pop(instruction.visit).missing.items()
        frames = (*instruction.frames, *(_missing_frame(detector, where) for detector, where in missing))
        for frame in frames:
            if frame.detector not in reports:
                reports[frame.detector] = _lost_report(instruction.visit, frame)
                self.hooks.on_report(reports[frame.detector])
        error = self._write_master(instruction.visit, list(reports.values()))
        summary = _summarize(instruction.visit, frames, reports, error, self.clock() - instruction.arrived_s)
        self.latency.add(instruction.frames)
        self.closed.append(summary)
        self.hooks.on_visit(summary)

    def _write_master(self, visit: int, reports: list[DetectorReport]) -> str:
        """Write the master; an error of this visit is told, not raised, since the others must go on."""
        try:
            self.hooks.write_master(visit, reports)
        except Exception as error:
            logger.error("visit %d: no master", visit, exc_info=error)
            return str(error) if isinstance(error, NightstreamError) else f"{type(error).__name__}: {error}"
        return ""


def run_visits(
    visits: Iterable[Visit],
    workers: Mapping[int, Setups],
    executor: Executor,
    policy: AdmissionPolicy,
    hooks: RunHooks | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> RunSummary:
    """Process all visits; return when each has ended.

    ``visits`` may be endless and is read only as fast as the policy admits. A detector that fails never
    stops its visit, and a visit never stops another. The executor is started and closed here.
    """
    placement = {worker: tuple(setup.detector for setup in setups) for worker, setups in workers.items()}
    run = _Run(SchedulerState(placement, policy), executor, hooks or RunHooks(), clock)
    start = clock()
    try:
        executor.start(workers)
        _stream(run, iter(visits))
    finally:
        executor.close()
    return RunSummary(
        visits=tuple(run.closed),
        seconds=clock() - start,
        latency=run.latency,
        peak_in_flight=run.peak_in_flight,
    )


def _stream(run: _Run, visits: Iterator[Visit]) -> None:
    """Feed visits while they are wanted and listen to the executor while there is something to wait for."""
    is_exhausted = False
    while True:
        while not is_exhausted and run.state.wants_visit:
            visit = next(visits, None)
            if visit is None:
                is_exhausted = True
            else:
                run.take(visit)
        if is_exhausted and run.state.is_idle:
            return
        for outcome in run.executor.wait(WAIT_S):
            run.hear(outcome)
        run.tell(Tick(time_s=run.clock()))


def _ended(outcome: Reported, time_s: float) -> DetectorFinished | DetectorFailed:
    job = outcome.job
    identity = {
        "visit": job.visit,
        "detector": job.detector,
        "worker": outcome.worker,
        "attempt": job.attempt,
    }
    if outcome.report.status == "done":
        return DetectorFinished(time_s=time_s, **identity)
    return DetectorFailed(time_s=time_s, error=outcome.report.error or "failed without a message", **identity)


def _missing_frame(detector: int, where: str) -> FrameStatus:
    """The status of a detector that nobody could process."""
    return FrameStatus(detector=detector, path=where, status="missing", error="no readable raw file of this detector")


def _lost_report(visit: int, frame: FrameStatus) -> DetectorReport:
    """The report of a detector that no worker could write, or lived to write."""
    error = str(NightstreamError(frame.error, visit=visit, detector=frame.detector, path=frame.path))
    return DetectorReport(visit=visit, detector=frame.detector, path=frame.path, status=frame.status, error=error)


def _summarize(
    visit: int, frames: tuple[FrameStatus, ...], reports: Mapping[int, DetectorReport], error: str, seconds: float
) -> VisitSummary:
    return VisitSummary(
        visit=visit,
        frames=frames,
        seconds=seconds,
        error=error,
        counts=_summed(report.counts for report in reports.values()),
        timings_s=_summed(report.timings_s for report in reports.values()),
        output_bytes=sum(report.output_bytes for report in reports.values()),
    )


def _summed(mappings: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for mapping in mappings:
        for name, value in mapping.items():
            total[name] = total.get(name, 0) + value
    return total
