"""The states of frames and workers, what can happen to them and where it leads: two tables, no more."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class Frame(Enum):
    """Where one detector of one visit stands."""

    HELD = "held"  # its visit is not admitted yet
    QUEUED = "queued"  # waits for a worker
    RUNNING = "running"  # with a worker
    DONE = "done"
    FAILED = "failed"


class Worker(Enum):
    """Where a worker stands."""

    UP = "up"
    DOWN = "down"  # died; asked to restart
    LOST = "lost"  # given up


class Move(Enum):
    """What can happen to a frame or a worker."""

    ADMIT = "admit"
    START = "start"
    FINISH = "finish"
    FAIL = "fail"
    LOSE = "lose its worker"
    GIVE_UP = "give up"
    DIE = "die"
    RETURN = "return"


FRAME_TRANSITIONS: Mapping[Frame, Mapping[Move, Frame]] = {
    Frame.HELD: {Move.ADMIT: Frame.QUEUED},
    Frame.QUEUED: {Move.START: Frame.RUNNING, Move.GIVE_UP: Frame.FAILED},
    Frame.RUNNING: {Move.FINISH: Frame.DONE, Move.FAIL: Frame.FAILED, Move.LOSE: Frame.QUEUED},
    Frame.DONE: {},
    Frame.FAILED: {},
}

WORKER_TRANSITIONS: Mapping[Worker, Mapping[Move, Worker]] = {
    Worker.UP: {Move.DIE: Worker.DOWN},
    # A restart may fail: dying while down is a further death.
    Worker.DOWN: {Move.DIE: Worker.DOWN, Move.RETURN: Worker.UP, Move.GIVE_UP: Worker.LOST},
    # Late words of a worker given up are heard and change nothing.
    Worker.LOST: {Move.DIE: Worker.LOST, Move.RETURN: Worker.LOST},
}

TERMINAL = frozenset({Frame.DONE, Frame.FAILED})
