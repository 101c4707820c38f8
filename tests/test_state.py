"""The scheduler's state machine: every claim of its theory of operation, in milliseconds and without Ray."""

from __future__ import annotations

import pickle
import random

import pytest

from nightstream.scheduler.events import (
    CloseVisit,
    DetectorFailed,
    DetectorFinished,
    FrameStatus,
    RestartWorker,
    StartDetector,
    Tick,
    VisitArrived,
    WorkerDied,
    WorkerReady,
)
from nightstream.scheduler.policy import AdmissionPolicy
from nightstream.scheduler.state import IllegalTransition, SchedulerState
from nightstream.scheduler.transitions import FRAME_TRANSITIONS, WORKER_TRANSITIONS, Frame, Move, Worker


def arrive(visit, detectors=(0,), time_s=0.0):
    return VisitArrived(time_s=time_s, visit=visit, raw_paths={d: f"{visit}_{d}.fits" for d in detectors})


def finish(start, time_s=1.0):
    return DetectorFinished(time_s=time_s, visit=start.visit, detector=start.detector, worker=start.worker, attempt=start.attempt)


def fail(start, error="no stars", time_s=1.0):
    return DetectorFailed(
        time_s=time_s,
        visit=start.visit,
        detector=start.detector,
        worker=start.worker,
        attempt=start.attempt,
        error=error,
    )


def die(worker, time_s=1.0):
    return WorkerDied(time_s=time_s, worker=worker, reason="killed")


def ready(worker, time_s=2.0):
    return WorkerReady(time_s=time_s, worker=worker)


def of_kind(kind, instructions):
    return [instruction for instruction in instructions if isinstance(instruction, kind)]


def test_visit_runs_to_its_close():
    """A visit's detectors start at once, and its last answer closes it with every status."""
    state = SchedulerState({0: (0,), 1: (1,)})
    starts = state.handle(arrive(7, (0, 1), time_s=10.0))
    assert [(s.visit, s.detector, s.path, s.worker, s.attempt) for s in starts] == [
        (7, 0, "7_0.fits", 0, 1),
        (7, 1, "7_1.fits", 1, 1),
    ]
    assert state.handle(finish(starts[0], 12.0)) == []
    (close,) = state.handle(fail(starts[1], time_s=13.0))
    assert close == CloseVisit(
        visit=7,
        arrived_s=10.0,
        frames=(
            FrameStatus(detector=0, path="7_0.fits", status="done", attempts=1, latency_s=2.0),
            FrameStatus(detector=1, path="7_1.fits", status="failed", error="no stars", attempts=1, latency_s=3.0),
        ),
    )
    assert state.is_idle


def test_second_delivery_of_a_visit_changes_nothing():
    """The same visit arriving twice, open or closed, is processed once."""
    state = SchedulerState({0: (0,)})
    (start,) = state.handle(arrive(1))
    assert state.handle(arrive(1)) == []
    assert of_kind(CloseVisit, state.handle(finish(start)))
    assert state.handle(arrive(1)) == []
    assert state.is_idle


def test_second_answer_changes_nothing():
    """A report delivered again, even with another verdict, leaves the first one standing."""
    state = SchedulerState({0: (0,), 1: (1,)})
    first, second = state.handle(arrive(1, (0, 1)))
    state.handle(finish(first))
    assert state.handle(finish(first)) == state.handle(fail(first)) == []
    (close,) = state.handle(finish(second))
    assert [frame.status for frame in close.frames] == ["done", "done"]
    assert state.handle(fail(first)) == []  # after the visit is closed, too


def test_application_error_is_not_retried():
    """What a living worker reports as failed is final."""
    state = SchedulerState({0: (0,)})
    (start,) = state.handle(arrive(1))
    instructions = state.handle(fail(start))
    assert not of_kind(StartDetector, instructions)
    assert instructions[0].frames[0].attempts == 1


def test_worker_gets_no_more_than_its_share():
    """Beyond max_in_flight jobs wait in the queue, and each answer lets exactly one follow."""
    state = SchedulerState({0: (0,)}, AdmissionPolicy(max_in_flight=2, max_open_visits=5))
    starts = [start for visit in range(5) for start in state.handle(arrive(visit))]
    assert [start.visit for start in starts] == [0, 1]
    (follow,) = of_kind(StartDetector, state.handle(finish(starts[0])))
    assert follow.visit == 2
    assert state.in_flight == 2


def test_visits_beyond_the_policy_are_held():
    """No more than max_open_visits are open; the next is admitted when one closes, oldest first."""
    state = SchedulerState({0: (0,)}, AdmissionPolicy(max_in_flight=9, max_open_visits=2))
    assert state.wants_visit
    starts = [start for visit in (30, 10, 20) for start in state.handle(arrive(visit))]
    assert [start.visit for start in starts] == [30, 10]
    assert not state.wants_visit
    assert [start.visit for start in of_kind(StartDetector, state.handle(finish(starts[1])))] == [20]


def test_dead_workers_detector_is_done_again_elsewhere():
    """With a second worker that holds the detector, the lost frame starts there at once."""
    state = SchedulerState({0: (0,), 1: (0,)})
    (start,) = state.handle(arrive(1))
    restart, again = state.handle(die(start.worker))
    assert restart == RestartWorker(worker=start.worker)
    assert (again.visit, again.worker, again.attempt) == (1, 1 - start.worker, 2)


def test_dead_workers_detector_is_done_again_after_restart():
    """Without another holder the frame waits until the worker is back."""
    state = SchedulerState({0: (0,)})
    (start,) = state.handle(arrive(1))
    assert state.handle(die(0)) == [RestartWorker(worker=0)]
    (again,) = state.handle(ready(0))
    assert (again.worker, again.attempt) == (0, 2)
    assert of_kind(CloseVisit, state.handle(finish(again)))[0].frames[0].attempts == 2


def test_late_answer_of_a_dead_worker_changes_nothing():
    """Attempt 1 answering after attempt 2 began does not count, nor while the frame waits."""
    state = SchedulerState({0: (0,)})
    (start,) = state.handle(arrive(1))
    state.handle(die(0))
    assert state.handle(finish(start)) == []
    (again,) = state.handle(ready(0))
    assert not state.expects(1, 0, 1) and state.expects(1, 0, 2)
    assert state.handle(fail(start)) == []
    assert of_kind(CloseVisit, state.handle(finish(again)))[0].frames[0].status == "done"


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_frame_that_kills_workers_is_given_up(retries):
    """A frame is started 1 + retries times, then fails and says why; the visit closes."""
    state = SchedulerState({0: (0,)}, AdmissionPolicy(retries=retries))
    state.handle(arrive(1))
    for _ in range(retries):
        assert state.handle(die(0)) == [RestartWorker(worker=0)]
        assert len(of_kind(StartDetector, state.handle(ready(0)))) == 1
    (close,) = of_kind(CloseVisit, state.handle(die(0)))
    assert close.frames[0].attempts == retries + 1
    assert close.frames[0].error == f"its worker died {retries + 1} times, last: killed"


def test_only_the_oldest_frame_is_blamed():
    """Frames behind it get no strike."""
    state = SchedulerState({0: (0,)}, AdmissionPolicy(retries=0))
    state.handle(arrive(1))
    state.handle(arrive(2))
    (close,) = of_kind(CloseVisit, state.handle(die(0)))
    assert close.visit == 1
    (again,) = state.handle(ready(0))
    assert (again.visit, again.attempt) == (2, 2)


def test_a_frame_with_a_strike_has_its_worker_to_itself():
    """Blamed for what another did that was under way beside it, it ends well alone, and the other is given up in the end."""
    state = SchedulerState({0: (0,)}, AdmissionPolicy(retries=1))
    first, *_ = state.handle(arrive(1)) + state.handle(arrive(2)) + state.handle(arrive(3))
    state.handle(die(0))  # 2 killed it, 1 was being written
    (first,) = state.handle(ready(0))
    assert (first.visit, first.attempt) == (1, 2)
    started = of_kind(StartDetector, state.handle(finish(first)))
    assert [start.visit for start in started] == [2, 3]
    state.handle(die(0))
    (alone,) = state.handle(ready(0))
    assert (alone.visit, alone.attempt) == (2, 3)
    assert [close.visit for close in of_kind(CloseVisit, state.handle(die(0)))] == [2]
    assert [start.visit for start in state.handle(ready(0))] == [3]


def test_a_frame_with_a_strike_is_not_passed_by():
    """A busy worker gets nothing more until it is free for it."""
    state = SchedulerState({0: (0,), 1: (0, 1)})
    state.handle(arrive(1))
    (other,) = state.handle(arrive(2, detectors=(1,)))
    state.handle(die(0))  # its frame waits for worker 1, which has a frame of detector 1
    assert state.handle(arrive(3, detectors=(1,))) == []
    struck, *more = of_kind(StartDetector, state.handle(finish(other)))
    assert (struck.visit, struck.worker, more) == (1, 1, [])
    assert [start.visit for start in of_kind(StartDetector, state.handle(finish(struck)))] == [3]


def test_worker_that_never_comes_back_is_given_up():
    """Deaths in a row without an answer end a worker; its frames fail rather than wait for ever."""
    state = SchedulerState({0: (0,)}, AdmissionPolicy(max_worker_deaths=3, retries=9))
    state.handle(arrive(1))
    state.handle(die(0))
    assert state.handle(die(0)) == [RestartWorker(worker=0)]
    (close,) = state.handle(die(0))
    assert close.frames[0].error == "its worker is lost: killed"
    (next_close,) = state.handle(arrive(2))  # a later visit ends at once
    assert next_close.frames[0].status == "failed"
    assert state.handle(ready(0)) == []  # too late


def test_silent_worker_counts_as_dead():
    """Time in a Tick, not a clock, declares a hung worker dead."""
    state = SchedulerState({0: (0,)}, AdmissionPolicy(job_timeout_s=60.0, restart_timeout_s=30.0))
    state.handle(arrive(1, time_s=100.0))
    assert state.handle(Tick(time_s=159.0)) == []
    assert state.handle(Tick(time_s=161.0)) == [RestartWorker(worker=0)]
    assert state.handle(Tick(time_s=190.0)) == []
    (close,) = state.handle(Tick(time_s=192.0))
    assert "no answer for 61 s" in close.frames[0].error


def test_waiting_job_is_not_counted_as_silent():
    """The second job's clock runs from the first one's answer."""
    state = SchedulerState({0: (0,)}, AdmissionPolicy(job_timeout_s=60.0))
    (first,) = state.handle(arrive(1, time_s=0.0))
    state.handle(arrive(2, time_s=0.0))
    state.handle(finish(first, time_s=50.0))
    assert state.handle(Tick(time_s=100.0)) == []
    assert state.handle(Tick(time_s=111.0)) == [RestartWorker(worker=0)]


def test_detector_that_no_worker_holds_fails_alone():
    """The others of its visit are processed."""
    state = SchedulerState({0: (0,)})
    (start,) = state.handle(arrive(1, (0, 5)))
    (close,) = state.handle(finish(start))
    assert [(f.detector, f.status) for f in close.frames] == [(0, "done"), (5, "failed")]
    assert close.frames[1].error == "no worker holds this detector"


def test_visits_of_unknown_detectors_all_close():
    """Visits that nothing can be done for close at once and hold up nobody behind them."""
    state = SchedulerState({0: (0,)}, AdmissionPolicy(max_open_visits=1))
    (start,) = state.handle(arrive(1))
    for visit in (2, 3):
        assert state.handle(arrive(visit, (9,))) == []
    closes = of_kind(CloseVisit, state.handle(finish(start)))
    assert [close.visit for close in closes] == [1, 2, 3]


def test_least_busy_worker_is_chosen():
    """Frames spread over the workers that hold their detector."""
    state = SchedulerState({0: (0,), 1: (0,)}, AdmissionPolicy(max_in_flight=2))
    assert [s.worker for visit in range(4) for s in state.handle(arrive(visit))] == [0, 1, 0, 1]


def test_illegal_event_tells_its_story():
    """An answer to a job never started raises with visit, detector, state, event and history."""
    state = SchedulerState({0: (0,)}, AdmissionPolicy(max_in_flight=1))
    state.handle(arrive(1))
    state.handle(arrive(2))
    answer = DetectorFinished(time_s=1.0, visit=2, detector=0, worker=0, attempt=1)
    with pytest.raises(IllegalTransition, match=r"frame is queued and cannot finish of attempt 1.*admit -> queued"):
        state.handle(answer)
    with pytest.raises(IllegalTransition, match=r"never arrived \[visit 9, detector 0\]"):
        state.handle(DetectorFinished(time_s=1.0, visit=9, detector=0, worker=0, attempt=1))
    with pytest.raises(IllegalTransition, match="cannot fail by worker 3; it is with worker 0"):
        state.handle(DetectorFailed(time_s=1.0, visit=1, detector=0, worker=3, attempt=1, error="x"))
    with pytest.raises(IllegalTransition, match="WorkerDied of worker 8"):
        state.handle(die(8))
    with pytest.raises(IllegalTransition, match="arrived again with further detectors"):
        state.handle(arrive(1, (0, 4)))


def test_error_survives_pickling():
    """Errors cross processes."""
    error = pickle.loads(pickle.dumps(IllegalTransition("frame is done", visit=1, detector=2)))
    assert str(error) == "frame is done [visit 1, detector 2]"


@pytest.mark.parametrize(
    "make",
    [
        lambda: VisitArrived(time_s=0.0, visit=1, raw_paths={}),
        lambda: VisitArrived(time_s=0.0, visit=1, raw_paths={0: ""}),
        lambda: Tick(time_s=float("nan")),
        lambda: DetectorFinished(time_s=0.0, visit=1, detector=0, worker=0, attempt=0),
        lambda: DetectorFailed(time_s=0.0, visit=1, detector=0, worker=0, attempt=1, error=""),
        lambda: FrameStatus(detector=0, path="a", status="unsure"),
        lambda: AdmissionPolicy(max_in_flight=0),
        lambda: AdmissionPolicy(job_timeout_s=0.0),
        lambda: SchedulerState({}),
    ],
)
def test_invalid_values_cannot_exist(make):
    """Events and policies check themselves on construction."""
    with pytest.raises(ValueError):
        make()


def test_only_events_are_handled():
    """An instruction fed back is a bug."""
    with pytest.raises(TypeError, match="not an event"):
        SchedulerState({0: (0,)}).handle(RestartWorker(worker=0))


def test_tables_cover_every_state():
    """Each state has a row; each move leads to a state of the same table; ends have no way out."""
    assert set(FRAME_TRANSITIONS) == set(Frame) and set(WORKER_TRANSITIONS) == set(Worker)
    assert FRAME_TRANSITIONS[Frame.DONE] == FRAME_TRANSITIONS[Frame.FAILED] == {}
    used = {move for table in (FRAME_TRANSITIONS, WORKER_TRANSITIONS) for row in table.values() for move in row}
    assert used == set(Move)


def random_night(seed):
    """Drive a state machine through a random night; return its event log, instructions and closed visits.

    Answers are lost, repeated and late; workers die while working, idle and while being restarted.
    """
    rng = random.Random(seed)
    placement = {0: (0, 1), 1: (1, 2), 2: (2, 3), 3: (0, 3)}
    state = SchedulerState(placement, AdmissionPolicy(max_open_visits=3, retries=2, max_worker_deaths=1000))
    visits, log, told = list(range(40)), [], []
    jobs, old, down, now = [], [], set(), 0.0

    def tell(event):
        log.append(event)
        instructions = state.handle(event)
        told.extend(instructions)
        jobs.extend(of_kind(StartDetector, instructions))
        down.update(instruction.worker for instruction in of_kind(RestartWorker, instructions))
        state.check_integrity()

    while visits or not state.is_idle:
        now += rng.random()
        choice = rng.random()
        if choice < 0.25 and visits and state.wants_visit:
            tell(arrive(visits.pop(0), rng.sample(range(4), rng.randint(1, 4)), now))
        elif choice < 0.70 and jobs:
            job = jobs.pop(rng.randrange(len(jobs)))
            old.append(job)
            tell(finish(job, now) if rng.random() < 0.8 else fail(job, time_s=now))
        elif choice < 0.80 and old:
            tell(finish(rng.choice(old), now))  # delivered again
        elif choice < 0.87:
            worker = rng.randrange(4)
            old.extend(job for job in jobs if job.worker == worker)
            jobs[:] = [job for job in jobs if job.worker != worker]
            tell(die(worker, now))
        elif down:
            tell(ready(down.pop(), now))
    return log, told, of_kind(CloseVisit, told)


@pytest.mark.parametrize("seed", range(20))
def test_no_frame_is_lost_or_done_twice(seed):
    """Whatever dies, repeats or comes late, each visit closes once, with each of its detectors once."""
    log, told, closed = random_night(seed)
    arrived = {event.visit: sorted(event.raw_paths) for event in log if isinstance(event, VisitArrived)}
    assert sorted(close.visit for close in closed) == sorted(arrived) == list(range(40))
    assert all([frame.detector for frame in close.frames] == arrived[close.visit] for close in closed)
    starts = [(s.visit, s.detector, s.attempt) for s in of_kind(StartDetector, told)]
    assert len(starts) == len(set(starts))


def test_replaying_the_event_log_gives_the_same_instructions():
    """A crash can be replayed: the machine knows nothing but its events."""
    log, told, _ = random_night(3)
    placement = {0: (0, 1), 1: (1, 2), 2: (2, 3), 3: (0, 3)}
    state = SchedulerState(placement, AdmissionPolicy(max_open_visits=3, retries=2, max_worker_deaths=1000))
    assert [instruction for event in log for instruction in state.handle(event)] == told
