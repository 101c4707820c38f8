"""The worker: one detector's resident calibrations, templates and pipeline; a job in, a report out. No Ray
here.

An error of the data becomes a failed report and the worker lives on; where only the difference could not be made, the
visit image is written all the same. An error that breaks the process (a GPU context that is gone) is raised: the
executor then ends the worker and has it made anew.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from nightstream.engine.values import NO_DIFFERENCE
from nightstream.errors import NightstreamError
from nightstream.scheduler.messages import DetectorJob, DetectorReport, WorkerSetup

logger = logging.getLogger(__name__)

# After one of these the CUDA context answers nothing but errors; only a new process helps.
FATAL_CUDA_ERRORS = (
    "IllegalAddress",
    "ECCUncorrectable",
    "LaunchFailure",
    "HardwareStackError",
    "IllegalInstruction",
    "MisalignedAddress",
    "InvalidPc",
    "Assert",
)


class Stages(NamedTuple):
    """What a worker calls, in order; injected so that it can be tested without files and pixels."""

    read: Callable[[DetectorJob], Any]  # -> raw pixels and positions to force photometry at
    process: Callable[[Any], Any]  # what was read -> DetectorProducts, on the device
    write: Callable[[Any], Path]  # DetectorProducts -> product file


class DetectorWorker:
    """Own one detector's pipeline and work jobs off: threads may bring several at once.

    ``build`` makes the `Stages` from the setup, once, when the first job comes or `prepare` is called. If it
    fails (a calibration is missing), every job fails with that message. A job computes while it holds ``turn``; the
    files of the others are read and written meanwhile.
    """

    def __init__(
        self,
        setup: WorkerSetup,
        build: Callable[[WorkerSetup], Stages] | None = None,
        turn: threading.Semaphore | None = None,
    ) -> None:
        self.setup = setup
        self._build = build or _build_stages
        self._turn = turn or threading.Semaphore()
        self._building = threading.Lock()
        self._stages: Stages | None = None

    def prepare(self) -> Stages:
        """Load what stays resident, unless it is."""
        with self._building:
            if self._stages is None:
                self._stages = self._build(self.setup)
            return self._stages

    def process(self, job: DetectorJob) -> DetectorReport:
        """Process one job. Never raises for the job's sake; nothing partial stays on disk."""
        timings: dict[str, float] = {}
        try:
            return self._process(job, timings)
        except Exception as error:
            if is_fatal(error):
                raise
            return self._failed(job, error, timings)

    def _process(self, job: DetectorJob, timings: dict[str, float]) -> DetectorReport:
        if job.detector != self.setup.detector:
            raise NightstreamError(f"this worker holds detector {self.setup.detector}, got a job for {job.detector}")
        with _timed(timings, "prepare"):
            stages = self.prepare()
        with _timed(timings, "read"):
            given = stages.read(job)
        with self._turn:
            products = stages.process(given)
        for stage, seconds in products.timings_s.items():
            timings[stage] = timings.get(stage, 0.0) + seconds
        with _timed(timings, "write"):
            output = Path(stages.write(products))
        return self._done(job, products, output, timings)

    def _done(self, job: DetectorJob, products: Any, output: Path, timings: Mapping[str, float]) -> DetectorReport:
        size, reason = output.stat().st_size, products.provenance.get(NO_DIFFERENCE, "")
        for stage, seconds in timings.items():
            logger.info("visit %d detector %d %s %.3f s", job.visit, job.detector, stage, seconds)
        logger.info("visit %d detector %d wrote %d bytes to %s", job.visit, job.detector, size, output)
        if reason:
            logger.error("%s", reason)
        return DetectorReport(
            visit=job.visit,
            detector=job.detector,
            path=job.path,
            status="failed" if reason else "done",
            error=reason,
            output=str(output),
            output_bytes=size,
            counts=_counts(products),
            timings_s=timings,
            summary={name: float(value) for name, value in products.summary.items()},
            template=products.provenance.get("template", ""),
        )

    def _failed(self, job: DetectorJob, error: Exception, timings: Mapping[str, float]) -> DetectorReport:
        message = describe(error, job)
        logger.error("%s", message)
        if not isinstance(error, NightstreamError):  # unforeseen: whoever mends it needs the traceback
            logger.error("traceback of the above", exc_info=error)
        return DetectorReport(
            visit=job.visit,
            detector=job.detector,
            path=job.path,
            status="failed",
            error=message,
            timings_s=timings,
        )


class WorkerHost:
    """The detectors that share one process or actor: hands each job to the worker of its detector."""

    def __init__(self, setups: tuple[WorkerSetup, ...]) -> None:
        turn = threading.Semaphore(max(setup.max_computing for setup in setups))
        self._workers = {setup.detector: DetectorWorker(setup, turn=turn) for setup in setups}

    def process(self, job: DetectorJob) -> DetectorReport:
        """Process one job with the worker that holds its detector."""
        return self._workers[job.detector].process(job)


def describe(error: Exception, job: DetectorJob) -> str:
    """One line that says what went wrong and names file, visit and detector."""
    if not isinstance(error, NightstreamError):
        text = " ".join(str(error).split())
        error = NightstreamError(f"{type(error).__name__}: {text}" if text else type(error).__name__)
    return str(error.locate(visit=job.visit, detector=job.detector, path=job.path))


def is_fatal(error: BaseException | None) -> bool:
    """Did the error, or one that caused it, break this process for good?"""
    while error is not None:
        if type(error).__name__ == "CUDARuntimeError" and any(name in str(error) for name in FATAL_CUDA_ERRORS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - start


def _counts(products: Any) -> dict[str, int]:
    sources = products.dia_sources
    negative = sources.get("is_negative", ())
    return {
        "dia_sources": _rows(sources),
        "negative": int(sum(map(bool, negative))),
        "forced_sources": _rows(products.forced_sources),
    }


def _rows(table: Mapping[str, Any]) -> int:
    return len(next(iter(table.values()))) if table else 0


def _build_stages(setup: WorkerSetup) -> Stages:
    from nightstream.scheduler.resident import build_stages

    return build_stages(setup)
