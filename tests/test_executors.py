"""The executors: one protocol, one answer, and workers that die are made again."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace

import pytest
from fake_hosts import FakeHost

from nightstream.errors import ConfigError
from nightstream.scheduler.config import SchedulerConfig
from nightstream.scheduler.events import FrameStatus
from nightstream.scheduler.executor import Died, Ready, Reported, place_setups
from nightstream.scheduler.local_executor import LocalExecutor, ThreadExecutor
from nightstream.scheduler.messages import DetectorJob, WorkerSetup
from nightstream.scheduler.policy import AdmissionPolicy
from nightstream.scheduler.run import RunHooks, Visit, run_visits

SETUPS = {d: WorkerSetup(camera="fake", detector=d, output_dir="out", device="cpu") for d in range(3)}
CONFIG = SchedulerConfig(executor="ray", threads_per_actor=1)


@pytest.fixture(params=["local", "thread", "lanes", pytest.param("ray", marks=pytest.mark.ray)])
def executor(request):
    """Each executor in turn, with fake hosts."""
    made = make_executor(request.param, request)
    yield made
    made.close()


def make_executor(kind, request):
    if kind == "local":
        return LocalExecutor(FakeHost)
    if kind in ("thread", "lanes"):
        return ThreadExecutor(2, FakeHost, lanes=1 if kind == "thread" else 3)
    request.getfixturevalue("ray_cluster")
    from nightstream.scheduler.ray_executor import RayExecutor

    return RayExecutor(CONFIG, FakeHost)


def wait_for(executor, kind, count=1):
    """Collect ``count`` outcomes of one kind; a minute of silence fails the test."""
    found = []
    for _ in range(60):
        found += [outcome for outcome in executor.wait(1.0) if isinstance(outcome, kind)]
        if len(found) >= count:
            return found
    raise AssertionError(f"waited in vain for {count} {kind.__name__}, got {found}")


def job(visit=1, detector=0, path="a.fits"):
    return DetectorJob(visit=visit, detector=detector, path=path)


def test_every_job_is_reported_by_its_worker(executor):
    """Jobs come back once each, with the worker that did them and the host's report."""
    executor.start(place_setups(SETUPS, 2))
    jobs = [(0, job(1, 0)), (1, job(1, 1)), (0, job(1, 2)), (1, job(2, 1))]
    for worker, each in jobs:
        executor.submit(worker, each)
    outcomes = wait_for(executor, Reported, len(jobs))
    assert sorted((o.worker, o.job.visit, o.job.detector) for o in outcomes) == sorted(
        (worker, each.visit, each.detector) for worker, each in jobs
    )
    assert all(o.report.counts["dia_sources"] == 10 * o.job.visit + o.job.detector for o in outcomes)


def test_broken_host_is_made_again(executor):
    """A host that raises is one death; after a restart it says that it is ready and works."""
    executor.start(place_setups(SETUPS, 1))
    executor.submit(0, job(path="raise"))
    (died,) = wait_for(executor, Died)
    assert died.worker == 0
    executor.restart(0)
    assert wait_for(executor, Ready) == [Ready(worker=0)]
    executor.submit(0, job(2))
    assert wait_for(executor, Reported)[0].report.status == "done"


def test_restart_of_a_living_worker_drops_its_jobs(executor):
    """A worker believed hung is replaced, and the new one works."""
    executor.start(place_setups(SETUPS, 1))
    executor.submit(0, job(1))
    wait_for(executor, Reported)
    executor.restart(0)
    wait_for(executor, Ready)
    executor.submit(0, job(2))
    assert wait_for(executor, Reported)[0].job.visit == 2


class MeetingHost(FakeHost):
    """Ends no job before two are under way."""

    meeting = threading.Barrier(2)

    def process(self, job):
        self.meeting.wait(60)
        return super().process(job)


def test_lanes_work_on_jobs_side_by_side():
    """Two jobs of one worker that wait for each other both end."""
    executor = ThreadExecutor(1, MeetingHost, lanes=2)
    executor.start(place_setups(SETUPS, 1))
    for visit in (1, 2):
        executor.submit(0, job(visit))
    assert {outcome.job.visit for outcome in wait_for(executor, Reported, 2)} == {1, 2}
    executor.close()


def test_lanes_that_break_together_are_one_death():
    """Both jobs raise; the worker died once, and is back after one restart."""
    executor = ThreadExecutor(1, FakeHost, lanes=2)
    executor.start(place_setups(SETUPS, 1))
    for visit in (1, 2):
        executor.submit(0, job(visit, path="raise"))
    wait_for(executor, Died)
    executor.restart(0)
    assert wait_for(executor, Ready) == [Ready(worker=0)]
    executor.submit(0, job(3))
    outcomes = executor.wait(60.0)
    assert [type(outcome) for outcome in outcomes] == [Reported]
    executor.close()


def visits(tmp_path=None):
    """Three visits: one clean, one with a bad frame, one that (with ``tmp_path``) kills its worker once."""
    paths = {(2, 1): "bad.fits"}
    if tmp_path is not None:
        paths[3, 2] = str(tmp_path / "kill-once")
    return [Visit(v, {d: paths.get((v, d), f"{v}_{d}.fits") for d in SETUPS}) for v in (1, 2, 3)]


def run_with(executor, stream, workers=2):
    """Run and return, by frame, what was reported and how it ended."""
    reports = []
    summary = run_visits(stream, place_setups(SETUPS, workers), executor, AdmissionPolicy(), RunHooks(on_report=reports.append))
    frames = {(v.visit, f.detector): replace(f, latency_s=0.0) for v in summary.visits for f in v.frames}
    told = {(r.visit, r.detector): (r.status, r.error, dict(r.counts)) for r in reports}
    assert len(reports) == len(told) == len(frames)
    return frames, told


@pytest.mark.ray
def test_local_threads_and_ray_give_identical_results(request):
    """The same visits through all executors end the same, failures included."""
    results = [run_with(make_executor(kind, request), visits()) for kind in ("local", "thread", "lanes", "ray")]
    assert results[0] == results[1] == results[2] == results[3]
    assert results[0][0][2, 1] == FrameStatus(detector=1, path="bad.fits", status="failed", error="unreadable", attempts=1)


@pytest.mark.ray
def test_killed_actors_detector_is_done_again(request, tmp_path):
    """A process that ends under a detector costs one more attempt; every detector is done."""
    frames, told = run_with(make_executor("ray", request), visits(tmp_path))
    assert {key for key, frame in frames.items() if frame.status == "failed"} == {(2, 1)}
    assert frames[3, 2].attempts == 2
    assert told[3, 2][0] == "done"


@pytest.mark.ray
def test_idle_actor_killed_from_outside_comes_back(request):
    """An actor killed while idle is found dead at its next job, which is then done by its successor."""
    executor = make_executor("ray", request)
    import ray

    killed = []

    def stream():
        yield visits()[0]
        pid = ray.get(executor._actors[0].health.remote())
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        yield visits()[2]

    frames, _ = run_with(executor, stream(), workers=1)
    assert killed and all(frame.status == "done" for frame in frames.values())


@pytest.mark.ray
def test_actor_gets_its_share_of_threads(request):
    """NUMBA_NUM_THREADS in the actor is what the configuration says."""
    executor = make_executor("ray", request)
    executor.start(place_setups(SETUPS, 1))
    executor.submit(0, job())
    assert wait_for(executor, Reported)[0].report.summary["threads"] == 1.0
    executor.close()


@pytest.mark.ray
def test_more_gpus_than_there_are_is_one_clear_error(ray_cluster):
    """Actors that could never start are refused at once instead of waiting for ever."""
    from nightstream.scheduler.ray_executor import RayExecutor

    executor = RayExecutor(SchedulerConfig(num_gpus_per_actor=1.0), FakeHost)
    assert executor.slots() == 2
    with pytest.raises(ConfigError, match="need 3 GPUs; the cluster has 2"):
        executor.start(place_setups(SETUPS, 3))


@pytest.mark.parametrize(
    ("configured", "device", "actors", "cards", "expected"),
    [
        (None, "auto", 4, 0, 0.0),
        (None, "auto", 1, 2, 1.0),
        (None, "gpu", 3, 1, 0.3333),  # three of them fit
        (None, "cpu", 4, 8, 0.0),
        (0.5, "auto", 4, 1, 0.5),
        (0.0, "auto", 4, 8, 0.0),
    ],
)
def test_cards_are_shared_out_unless_told_otherwise(configured, device, actors, cards, expected):
    """Nobody has to know of an option for the cards of a machine to be used."""
    from nightstream.scheduler.ray_executor import gpu_share

    setups = [replace(setup, device=device) for setup in SETUPS.values()]
    assert gpu_share(SchedulerConfig(num_gpus_per_actor=configured), actors, setups, cards) == expected


@pytest.mark.parametrize(
    ("workers", "expected"),
    [(1, {0: [0, 1, 2]}), (2, {0: [0, 2], 1: [1]}), (5, {0: [0], 1: [1], 2: [2], 3: [0], 4: [1]})],
)
def test_detectors_are_dealt_to_workers(workers, expected):
    """Fewer workers share the detectors; more workers double them."""
    placed = place_setups(SETUPS, workers)
    assert {worker: [setup.detector for setup in setups] for worker, setups in placed.items()} == expected


def test_nothing_to_place_is_an_error():
    """No detectors or no workers cannot run."""
    with pytest.raises(ValueError, match="at least one detector and one worker"):
        place_setups({}, 1)
