"""The vocabulary of the state machine: events go in, instructions come out. Frozen values that validate
themselves.

Times are seconds on any clock that does not run backwards; the state machine only compares and subtracts
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, and when."""

    time_s: float

    def __post_init__(self) -> None:
        # Written so that NaN fails too.
        _require(self.time_s > float("-inf"), f"time_s must be a number, got {self.time_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitArrived(Event):
    """A visit is there to be processed: the raw file of each of its detectors."""

    visit: int
    raw_paths: Mapping[int, str]  # detector: raw file

    def __post_init__(self) -> None:
        Event.__post_init__(self)
        _require(len(self.raw_paths) > 0, f"visit {self.visit} has no detectors")
        _require(all(self.raw_paths.values()), f"visit {self.visit} has a detector without a raw path")


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorEnded(Event):
    """A worker reported on one detector of one visit; ``attempt`` counts from 1 and tells late answers."""

    visit: int
    detector: int
    worker: int
    attempt: int

    def __post_init__(self) -> None:
        Event.__post_init__(self)
        _require(self.attempt >= 1, f"attempts count from 1, got {self.attempt}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorFinished(DetectorEnded):
    """Its products are durable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorFailed(DetectorEnded):
    """The software says that it cannot be processed; trying again would fail again."""

    error: str

    def __post_init__(self) -> None:
        DetectorEnded.__post_init__(self)
        _require(bool(self.error), "a failure needs a message")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDied(Event):
    """A worker's process ended, and with it everything that it had in flight."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReady(Event):
    """A restarted worker answers again."""

    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick(Event):
    """Time has passed; nothing else happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameStatus:
    """How one detector of a visit ended."""

    detector: int
    path: str  # of the raw file
    status: str  # "done", "failed" or "missing" (there was no raw file)
    error: str = ""  # why it is not done
    attempts: int = 0  # times it was started
    latency_s: float = 0.0  # visit arrival to this end

    def __post_init__(self) -> None:
        _require(self.status in ("done", "failed", "missing"), f"status is done, failed or missing, got {self.status!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartDetector:
    """Hand this detector of this visit to this worker."""

    visit: int
    detector: int
    path: str
    worker: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseVisit:
    """Every detector of the visit has ended: write the master and forget the visit."""

    visit: int
    frames: tuple[FrameStatus, ...]  # by detector number
    arrived_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartWorker:
    """Bring this worker back (end it first if it still runs), then report `WorkerReady`."""

    worker: int


Instruction = StartDetector | CloseVisit | RestartWorker
