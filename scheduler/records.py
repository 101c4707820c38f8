"""What the state machine remembers of a frame, a visit and a worker. Only `state` changes these."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from nightstream.scheduler.events import FrameStatus
from nightstream.scheduler.transitions import Frame, Worker

Key = tuple[int, int]  # (visit, detector)
STORY_LENGTH = 20  # happenings remembered of a frame or worker, for the message of an illegal transition


@dataclass(slots=True, eq=False)
class FrameRecord:
    """One detector of one visit. Compared by identity."""

    visit: int
    detector: int
    path: str
    order: int  # arrival of its visit
    state: Frame = Frame.HELD
    attempt: int = 0  # times started
    strikes: int = 0  # workers that died while running it
    worker: int | None = None
    ended_s: float = 0.0
    error: str = ""
    story: deque[str] = field(default_factory=lambda: deque(maxlen=STORY_LENGTH))


@dataclass(slots=True)
class VisitRecord:
    """A visit that is held or open."""

    arrived_s: float
    frames: dict[int, FrameRecord]


@dataclass(slots=True)
class WorkerRecord:
    """A worker and what it has in flight."""

    detectors: frozenset[int]
    state: Worker = Worker.UP
    in_flight: deque[Key] = field(default_factory=deque)  # oldest first: the head is running
    since_s: float = 0.0  # when the head could start, or when the worker went down
    deaths: int = 0  # in a row, without an answer
    reason: str = ""  # of the last death
    story: deque[str] = field(default_factory=lambda: deque(maxlen=STORY_LENGTH))


def frame_status(frame: FrameRecord, arrived_s: float) -> FrameStatus:
    """What is told of a frame that has ended."""
    return FrameStatus(
        detector=frame.detector,
        path=frame.path,
        status=frame.state.value,
        error=frame.error,
        attempts=frame.attempt,
        latency_s=frame.ended_s - arrived_s,
    )
