"""The scheduler's state machine: events in, instructions out.

Rule 1: everything that decides what happens to a visit, a frame or a worker is here, with the two tables of
`transitions`.
Rule 2: nothing here knows Ray, a clock, a file or a pixel. Time arrives in the events, so a night can be
replayed from its event log and a whole survey runs in a test in milliseconds.

Theory of operation
-------------------
A *frame* is one detector of one visit; (visit, detector) is its identity. A *worker* holds the calibrations
and templates of one or several detectors and works its jobs off in the order in which it got them. A visit
that arrives is HELD until the policy admits it; its frames are then QUEUED, and go to the least busy living
worker that holds their detector, oldest visit first.

Exactly once: a frame is counted when the answer to its *current* attempt arrives. Any other answer (a second
delivery, or a late word from a worker believed dead) changes nothing. A visit that arrives twice changes
nothing.

A dead worker loses all its frames. Several of them may have been under way, one being read, one computed, one
written; the oldest gets a strike, and a frame with a strike has its worker to itself when it is started again.
So one that was blamed for another's doing ends well and is gone, each death brings one frame nearer to its limit,
and a frame that kills workers is given up after 1 + retries deaths of its own, alone. An error reported by a living
worker is an answer, never retried.

A worker that dies again and again without one answer in between, or does not come back, is LOST; frames that
no other worker can take fail with that reason, so a visit always ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from nightstream.errors import NightstreamError
from nightstream.scheduler.events import (
    CloseVisit,
    DetectorEnded,
    DetectorFailed,
    DetectorFinished,
    Event,
    Instruction,
    RestartWorker,
    StartDetector,
    Tick,
    VisitArrived,
    WorkerDied,
    WorkerReady,
)
from nightstream.scheduler.policy import AdmissionPolicy
from nightstream.scheduler.records import FrameRecord, VisitRecord, WorkerRecord, frame_status
from nightstream.scheduler.transitions import (
    FRAME_TRANSITIONS,
    TERMINAL,
    WORKER_TRANSITIONS,
    Frame,
    Move,
    Worker,
)


class IllegalTransition(NightstreamError, RuntimeError):
    """An event that cannot happen in the present state: a bug in whoever sent it."""


class SchedulerState:
    """Decide what to do next. Feed every event to `handle` and carry out what it returns, in order.

    Parameters
    ----------
    placement
        worker: the detectors it holds. Several workers may hold the same detector.
    policy
        back-pressure and patience.
    """

    def __init__(self, placement: Mapping[int, tuple[int, ...]], policy: AdmissionPolicy | None = None) -> None:
        if not placement:
            raise ValueError("placement needs at least one worker")
        self.policy = policy or AdmissionPolicy()
        self._workers = {worker: WorkerRecord(frozenset(held)) for worker, held in sorted(placement.items())}
        self._held: dict[int, VisitRecord] = {}
        self._open: dict[int, VisitRecord] = {}
        self._closed: dict[int, frozenset[int]] = {}
        self._queue: dict[int, deque[FrameRecord]] = {}  # detector: frames, oldest first
        self._handlers = {
            VisitArrived: self._visit_arrived,
            DetectorFinished: self._detector_ended,
            DetectorFailed: self._detector_ended,
            WorkerDied: self._worker_died,
            WorkerReady: self._worker_ready,
            Tick: self._tick,
        }

    # -- questions -------------------------------------------------------------------------------------------

    @property
    def wants_visit(self) -> bool:
        """Would a visit that arrived now be admitted at once?"""
        return not self._held and self.policy.can_admit(len(self._open))

    @property
    def is_idle(self) -> bool:
        """Is there nothing left to wait for?"""
        return not self._held and not self._open

    @property
    def in_flight(self) -> int:
        """Number of jobs handed to workers and not yet answered."""
        return sum(len(worker.in_flight) for worker in self._workers.values())

    def expects(self, visit: int, detector: int, attempt: int) -> bool:
        """Is this attempt the one whose answer will count?"""
        record = self._open.get(visit)
        frame = record.frames.get(detector) if record else None
        return frame is not None and frame.state is Frame.RUNNING and frame.attempt == attempt

    def check_integrity(self) -> None:
        """Assert our own invariants: every open frame is in exactly one place, and every bound holds."""
        frames = [frame for visit in self._open.values() for frame in visit.frames.values()]
        queued = sorted((f.visit, f.detector) for queue in self._queue.values() for f in queue)
        flying = sorted(key for worker in self._workers.values() for key in worker.in_flight)
        assert queued == sorted((f.visit, f.detector) for f in frames if f.state is Frame.QUEUED), queued
        assert flying == sorted((f.visit, f.detector) for f in frames if f.state is Frame.RUNNING), flying
        assert len(self._open) <= self.policy.max_open_visits
        for worker in self._workers.values():
            assert len(worker.in_flight) <= self.policy.max_in_flight
            assert worker.state is Worker.UP or not worker.in_flight

    # -- events ----------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Instruction]:
        """Take one event; return the instructions that follow from it, in order."""
        handler = self._handlers.get(type(event))
        if handler is None:
            raise TypeError(f"not an event of the scheduler: {event!r}")
        instructions: list[Instruction] = list(handler(event))
        return instructions + self._close_and_admit(event) + self._start_frames(event)

    def _visit_arrived(self, event: VisitArrived) -> list[Instruction]:
        known = self._known_detectors(event.visit)
        if known is None:
            order = len(self._held) + len(self._open) + len(self._closed)
            frames = {d: FrameRecord(event.visit, d, path, order) for d, path in sorted(event.raw_paths.items())}
            self._held[event.visit] = VisitRecord(event.time_s, frames)
        elif not known.issuperset(event.raw_paths):
            added = sorted(set(event.raw_paths) - known)
            raise IllegalTransition(
                f"visit {event.visit} arrived again with further detectors {added}; it has {sorted(known)}",
                visit=event.visit,
                detector=added[0],
            )
        return []

    def _detector_ended(self, event: DetectorFinished | DetectorFailed) -> list[Instruction]:
        frame = self._frame(event)
        if frame is None:
            return []  # its visit is closed: a second delivery
        move = Move.FINISH if isinstance(event, DetectorFinished) else Move.FAIL
        if event.attempt > frame.attempt:
            raise self._illegal(frame, f"{move.value} of attempt {event.attempt}; it was started {frame.attempt} times")
        if event.attempt < frame.attempt or frame.state is not Frame.RUNNING:
            return []  # a second delivery, or the late answer of a worker believed dead
        if event.worker != frame.worker:
            raise self._illegal(frame, f"{move.value} by worker {event.worker}; it is with worker {frame.worker}")
        self._move(frame, move, event)
        frame.ended_s, frame.error = event.time_s, getattr(event, "error", "")
        worker = self._workers[event.worker]
        worker.in_flight.remove((frame.visit, frame.detector))
        worker.since_s, worker.deaths = event.time_s, 0
        return []

    def _worker_died(self, event: WorkerDied) -> list[Instruction]:
        worker = self._worker(event)
        self._move_worker(event.worker, Move.DIE, event)
        if worker.state is Worker.LOST:
            return []
        worker.deaths, worker.reason, worker.since_s = worker.deaths + 1, event.reason, event.time_s
        self._take_back(worker, event)
        if worker.deaths >= self.policy.max_worker_deaths:
            self._move_worker(event.worker, Move.GIVE_UP, event)
            return []
        return [RestartWorker(worker=event.worker)]

    def _worker_ready(self, event: WorkerReady) -> list[Instruction]:
        worker = self._worker(event)
        if worker.state is not Worker.UP:  # a second word that it is up changes nothing
            self._move_worker(event.worker, Move.RETURN, event)
        return []

    def _tick(self, event: Tick) -> list[Instruction]:
        instructions: list[Instruction] = []
        for number, worker in self._workers.items():
            silent_s = event.time_s - worker.since_s
            if worker.state is Worker.UP and worker.in_flight and silent_s > self.policy.job_timeout_s:
                reason = f"no answer for {silent_s:.0f} s"
                instructions += self._worker_died(WorkerDied(time_s=event.time_s, worker=number, reason=reason))
            elif worker.state is Worker.DOWN and silent_s > self.policy.restart_timeout_s:
                self._move_worker(number, Move.GIVE_UP, event)
        return instructions

    # -- consequences ----------------------------------------------------------------------------------------

    def _take_back(self, worker: WorkerRecord, event: WorkerDied) -> None:
        """Queue the frames of a dead worker again, in front and in order; blame the oldest alone."""
        for position, (visit, detector) in reversed(list(enumerate(worker.in_flight))):
            frame = self._open[visit].frames[detector]
            self._move(frame, Move.LOSE, event)
            self._queue.setdefault(detector, deque()).appendleft(frame)
            frame.worker = None
            if position == 0:
                frame.strikes += 1
                if not self.policy.may_retry(frame.strikes):
                    self._give_up(frame, f"its worker died {frame.strikes} times, last: {event.reason}", event)
        worker.in_flight.clear()

    def _give_up(self, frame: FrameRecord, error: str, event: Event) -> None:
        self._queue[frame.detector].remove(frame)
        self._move(frame, Move.GIVE_UP, event)
        frame.ended_s, frame.error = event.time_s, error

    def _give_up_orphans(self, event: Event) -> None:
        """Fail the queued frames whose detector no worker holds, or whose workers are all lost."""
        for detector, queue in self._queue.items():
            holders = [w for w in self._workers.values() if detector in w.detectors]
            if all(worker.state is Worker.LOST for worker in holders):
                reason = f"its worker is lost: {holders[0].reason}" if holders else "no worker holds this detector"
                for frame in tuple(queue):
                    self._give_up(frame, reason, event)

    def _close_and_admit(self, event: Event) -> list[Instruction]:
        """Close what has ended and admit what may be, until neither changes anything."""
        closed: list[Instruction] = []
        while True:
            self._give_up_orphans(event)
            ended = self._close_visits()
            closed += ended
            if not self._admit_visit(event) and not ended:
                return closed

    def _close_visits(self) -> list[Instruction]:
        closed: list[Instruction] = []
        for visit, record in tuple(self._open.items()):
            if all(frame.state in TERMINAL for frame in record.frames.values()):
                del self._open[visit]
                self._closed[visit] = frozenset(record.frames)
                frames = tuple(frame_status(frame, record.arrived_s) for frame in record.frames.values())
                closed.append(CloseVisit(visit=visit, frames=frames, arrived_s=record.arrived_s))
        return closed

    def _admit_visit(self, event: Event) -> bool:
        if not self._held or not self.policy.can_admit(len(self._open)):
            return False
        visit = next(iter(self._held))
        record = self._open[visit] = self._held.pop(visit)
        for frame in record.frames.values():
            self._move(frame, Move.ADMIT, event)
            self._queue.setdefault(frame.detector, deque()).append(frame)
        return True

    def _start_frames(self, event: Event) -> list[Instruction]:
        """Start all that may be started, oldest visit first."""
        started: list[Instruction] = []
        while (choice := self._next_start()) is not None:
            frame, number = choice
            self._queue[frame.detector].remove(frame)
            self._move(frame, Move.START, event)
            frame.attempt, frame.worker = frame.attempt + 1, number
            worker = self._workers[number]
            worker.since_s = worker.since_s if worker.in_flight else event.time_s
            worker.in_flight.append((frame.visit, frame.detector))
            started.append(
                StartDetector(
                    visit=frame.visit,
                    detector=frame.detector,
                    path=frame.path,
                    worker=number,
                    attempt=frame.attempt,
                )
            )
        return started

    def _next_start(self) -> tuple[FrameRecord, int] | None:
        """The oldest queued frame that a worker can take, with the least busy such worker."""
        heads = sorted((queue[0] for queue in self._queue.values() if queue), key=lambda f: (f.order, f.detector))
        reserved: set[int] = set()  # workers that get nothing more until they are free for a frame with a strike
        for frame in heads:
            holders = {n: w for n, w in self._workers.items() if frame.detector in w.detectors and w.state is Worker.UP}
            able = [(len(w.in_flight), n) for n, w in holders.items() if n not in reserved and self._can_take(w, frame)]
            if able:
                return frame, min(able)[1]
            if frame.strikes:
                reserved |= holders.keys()
        return None

    def _can_take(self, worker: WorkerRecord, frame: FrameRecord) -> bool:
        """May a worker have one more frame? Frames with a strike share it with no other."""
        struck = frame.strikes or any(self._open[visit].frames[detector].strikes for visit, detector in worker.in_flight)
        return not worker.in_flight if struck else self.policy.can_start(len(worker.in_flight))

    # -- records ---------------------------------------------------------------------------------------------

    def _known_detectors(self, visit: int) -> frozenset[int] | None:
        record = self._open.get(visit) or self._held.get(visit)
        return frozenset(record.frames) if record else self._closed.get(visit)

    def _frame(self, event: DetectorEnded) -> FrameRecord | None:
        """The frame that the event speaks of; None if its visit is closed."""
        known = self._known_detectors(event.visit)
        if known is None or event.detector not in known:
            raise IllegalTransition(
                f"{type(event).__name__} for a frame that never arrived",
                visit=event.visit,
                detector=event.detector,
            )
        if event.visit in self._closed:
            return None
        return (self._open.get(event.visit) or self._held[event.visit]).frames[event.detector]

    def _worker(self, event: WorkerDied | WorkerReady) -> WorkerRecord:
        if event.worker not in self._workers:
            raise IllegalTransition(f"{type(event).__name__} of worker {event.worker}; there are {list(self._workers)}")
        return self._workers[event.worker]

    def _move(self, frame: FrameRecord, move: Move, event: Event) -> None:
        target = FRAME_TRANSITIONS[frame.state].get(move)
        if target is None:
            raise self._illegal(frame, move.value)
        frame.state = target
        frame.story.append(f"{event.time_s:.3f} {move.value} -> {target.value}")

    def _move_worker(self, number: int, move: Move, event: Event) -> None:
        worker = self._workers[number]
        target = WORKER_TRANSITIONS[worker.state].get(move)
        if target is None:
            raise IllegalTransition(
                f"worker {number} is {worker.state.value} and cannot {move.value}; its story: {'; '.join(worker.story) or 'none'}"
            )
        worker.state = target
        worker.story.append(f"{event.time_s:.3f} {move.value} -> {target.value}")

    @staticmethod
    def _illegal(frame: FrameRecord, what: str) -> IllegalTransition:
        return IllegalTransition(
            f"frame is {frame.state.value} and cannot {what}; its story: {'; '.join(frame.story) or 'none'}",
            visit=frame.visit,
            detector=frame.detector,
        )
