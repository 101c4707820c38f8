"""Streaming visits: bounded work, each visit closed once, one failure never another's."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
from fake_hosts import FakeHost

from nightstream.scheduler.config import SchedulerConfig
from nightstream.scheduler.events import FrameStatus
from nightstream.scheduler.executor import place_setups
from nightstream.scheduler.latency import LatencyLog
from nightstream.scheduler.local_executor import LocalExecutor
from nightstream.scheduler.messages import WorkerSetup
from nightstream.scheduler.policy import AdmissionPolicy
from nightstream.scheduler.run import RunHooks, Visit, run_visits

SETUPS = {d: WorkerSetup(camera="fake", detector=d, output_dir="out") for d in range(2)}
WORKERS = place_setups(SETUPS, 2)


def visit(number, name="good"):
    return Visit(number, {d: f"{name}-{number}-{d}.fits" for d in SETUPS})


def test_fifty_visits_keep_work_in_flight_flat():
    """However many visits come, open visits and jobs under way stay within the policy, and none is lost."""
    taken, closed, backlog = itertools.count(), [], deque()

    def stream():
        for number in range(50):
            backlog.append(next(taken) - len(closed))
            yield visit(number)

    policy = AdmissionPolicy(max_in_flight=2, max_open_visits=3)
    summary = run_visits(stream(), WORKERS, LocalExecutor(FakeHost), policy, RunHooks(on_visit=closed.append))
    assert [v.visit for v in summary.visits] == list(range(50)) and summary.is_complete
    assert max(backlog) < policy.max_open_visits
    assert summary.peak_in_flight <= len(WORKERS) * policy.max_in_flight
    assert len(summary.latency) == 100


def test_failed_detector_never_stops_its_visit():
    """The other detector of the visit and the other visits are done; the summary says what failed."""
    mixed = Visit(2, {0: "bad.fits", 1: "good.fits"})
    summary = run_visits([visit(1), mixed, visit(3)], WORKERS, LocalExecutor(FakeHost), AdmissionPolicy())
    assert [[frame.status for frame in v.frames] for v in summary.visits] == [
        ["done", "done"],
        ["failed", "done"],
        ["done", "done"],
    ]
    assert not summary.is_complete and summary.visits[1].failed[0].error == "unreadable"
    assert summary.visits[1].counts == {"dia_sources": 20 + 21}  # what a failed report counted is shown, too


def test_detector_without_a_raw_file_is_reported():
    """It takes no worker, and ends in the summary and in the master as missing, with where it was looked for."""
    written = []
    hooks = RunHooks(write_master=lambda number, reports: written.extend(reports))
    expected = Visit(4, {0: "good.fits"}, {1: "raws"})
    summary = run_visits([expected, visit(5)], WORKERS, LocalExecutor(FakeHost), AdmissionPolicy(), hooks)
    assert [(frame.detector, frame.status) for frame in summary.visits[0].failed] == [(1, "missing")]
    (missing,) = [report for report in written if report.status == "missing"]
    assert missing.error == "no readable raw file of this detector [visit 4, detector 1, file raws]"
    assert summary.visits[1].is_complete and not summary.is_complete


def test_frame_that_breaks_its_worker_gets_a_report():
    """A detector that no worker lived to report is reported by the scheduler, with file, visit and detector."""
    reports, poison = [], Visit(5, {0: "raise.fits", 1: "good.fits"})
    run_visits([poison], WORKERS, LocalExecutor(FakeHost), AdmissionPolicy(retries=1), RunHooks(on_report=reports.append))
    (failed,) = [report for report in reports if report.status == "failed"]
    assert failed.error == (
        "its worker died 2 times, last: RuntimeError: the context is gone [visit 5, detector 0, file raise.fits]"
    )


def test_master_is_written_once_for_each_visit():
    """The master gets a report of every detector, the lost ones included."""
    written = []

    def write(number, reports):
        written.append((number, sorted((report.detector, report.status) for report in reports)))

    stream = [visit(1), visit(1), visit(2, "bad"), Visit(3, {0: "raise.fits"})]
    run_visits(stream, WORKERS, LocalExecutor(FakeHost), AdmissionPolicy(), RunHooks(write_master=write))
    done, failed = [(0, "done"), (1, "done")], [(0, "failed"), (1, "failed")]
    assert sorted(written) == [(1, done), (2, failed), (3, [(0, "failed")])]


def test_master_that_cannot_be_written_is_told():
    """A full disk at the master fails that visit in the summary, not the run."""

    def full(number, reports):
        if number == 1:
            raise OSError(28, "No space left on device")

    hooks = RunHooks(write_master=full)
    summary = run_visits([visit(1), visit(2)], WORKERS, LocalExecutor(FakeHost), AdmissionPolicy(), hooks)
    assert "No space left" in summary.visits[0].error
    assert [v.is_complete for v in summary.visits] == [False, True]


def test_executor_is_closed_when_the_stream_breaks():
    """An error of the caller's stream comes through, and no worker is left behind."""
    executor = LocalExecutor(FakeHost)

    def broken():
        yield visit(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_visits(broken(), WORKERS, executor, AdmissionPolicy())
    assert executor._hosts == {}


def test_no_visits_is_no_error():
    """An empty stream gives an empty, complete summary."""
    summary = run_visits([], WORKERS, LocalExecutor(FakeHost), AdmissionPolicy())
    assert summary.visits == () and summary.is_complete


def test_latency_quantile_is_the_smallest_sufficient_value():
    """Of 1, 2, 3, 4 s the median is 2 s and the maximum 4 s; failures are not counted."""
    log = LatencyLog()
    log.add(FrameStatus(detector=d % 2, path="a", status="done", latency_s=d) for d in (1.0, 2.0, 3.0, 4.0))
    log.add([FrameStatus(detector=0, path="a", status="failed", latency_s=99.0)])
    assert [log.quantile(q) for q in (0.0, 0.5, 0.75, 1.0)] == [1.0, 2.0, 3.0, 4.0]
    assert log.quantile(1.0, detector=1) == 3.0
    assert log.quantile(0.5, detector=7) != log.quantile(0.5, detector=7)  # NaN
    with pytest.raises(ValueError, match=r"0\.\.1"):
        log.quantile(2.0)


def test_config_gives_the_policy_and_knows_its_fields():
    """Numbers pass through; timeouts do not apply in process; an unknown field is an error."""
    policy = SchedulerConfig(max_in_flight=5, retries=0).policy()
    assert (policy.max_in_flight, policy.retries, policy.job_timeout_s) == (5, 0, 1800.0)
    assert SchedulerConfig(executor="local").policy().job_timeout_s == float("inf")
    with pytest.raises(ValueError, match="Extra inputs"):
        SchedulerConfig(max_inflight=3)
