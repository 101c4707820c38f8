"""The worker: reports what it did, turns every error of the data into one clear line, and lives on."""

from __future__ import annotations

import pickle
import threading
from types import SimpleNamespace

import pytest

from nightstream.errors import CalibrationError, FileError
from nightstream.scheduler.messages import DetectorJob, WorkerSetup
from nightstream.scheduler.worker import DetectorWorker, Stages, is_fatal

SETUP = WorkerSetup(camera="fake", detector=3, output_dir="out", config={"isr": {}})
JOB = DetectorJob(visit=7, detector=3, path="raw/7_3.fits")


class CUDARuntimeError(Exception):
    """Named as CuPy's."""


def products():
    return SimpleNamespace(
        dia_sources={"is_negative": [True, False, False], "x": [1.0, 2.0, 3.0]},
        forced_sources={},
        summary={"psf_fwhm_pix": 4.5},
        timings_s={"isr": 0.25},
        provenance={"template": "t1"},
    )


def make_worker(tmp_path, *, build=None, read=None, process=None, write=None):
    """A worker of fake stages; any of them may be replaced."""

    def write_file(made):
        path = tmp_path / "product.h5"
        path.write_bytes(b"x" * 100)
        return path

    stages = Stages(read or (lambda job: "raw"), process or (lambda raw: products()), write or write_file)
    return DetectorWorker(SETUP, build or (lambda setup: stages))


def raiser(error):
    def fail(*args):
        raise error

    return fail


def test_report_tells_what_was_done(tmp_path):
    """Counts, sizes, stage seconds and the summary come back; nothing of the pixels does."""
    report = make_worker(tmp_path).process(JOB)
    assert (report.status, report.error, report.output_bytes) == ("done", "", 100)
    assert report.counts == {"dia_sources": 3, "negative": 1, "forced_sources": 0}
    assert report.timings_s["isr"] == 0.25 and {"prepare", "read", "write"} <= set(report.timings_s)
    assert report.summary == {"psf_fwhm_pix": 4.5} and report.template == "t1"
    assert pickle.loads(pickle.dumps(report)) == report


def test_failed_difference_is_a_failure_with_a_product(tmp_path):
    """What has a visit image and a reason for no difference is written, and reported as failed with that reason."""
    made = products()
    made.provenance["no_difference"] = "no usable star [visit 7, detector 3]"
    report = make_worker(tmp_path, process=lambda raw: made).process(JOB)
    assert (report.status, report.error) == ("failed", "no usable star [visit 7, detector 3]")
    assert report.output_bytes == 100 and report.summary == {"psf_fwhm_pix": 4.5}


def test_stages_are_built_once(tmp_path):
    """Calibrations stay resident from the first job on."""
    built = []
    worker = make_worker(tmp_path, build=lambda setup: built.append(setup) or make_worker(tmp_path)._build(setup))
    worker.process(JOB)
    worker.process(JOB)
    assert built == [SETUP]


def test_one_job_computes_while_the_next_is_read(tmp_path):
    """The second job is read before the first has computed, and computes after it."""
    order, second_is_read = [], threading.Event()

    def read(job):
        order.append(f"read {job.visit}")
        if job.visit == 8:
            second_is_read.set()
        return job.visit

    def process(visit):
        order.append(f"begin {visit}")
        if visit == 7:
            beside.start()
            assert second_is_read.wait(60)
        order.append(f"end {visit}")
        return products()

    worker = make_worker(tmp_path, read=read, process=process)
    beside = threading.Thread(target=worker.process, args=(DetectorJob(visit=8, detector=3, path="raw/8_3.fits"),))
    worker.process(JOB)
    beside.join(60)
    assert order == ["read 7", "begin 7", "read 8", "end 7", "begin 8", "end 8"]


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("read", FileError("truncated FITS file"), "truncated FITS file [visit 7, detector 3, file raw/7_3.fits]"),
        ("process", ZeroDivisionError("float\n division"), "ZeroDivisionError: float division [visit 7, detector 3, "),
        ("process", MemoryError(), "MemoryError [visit 7, detector 3, file raw/7_3.fits]"),
        ("write", OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device [visit 7"),
        ("build", CalibrationError("no bias", path="cal/3.h5"), "no bias [visit 7, detector 3, file cal/3.h5]"),
    ],
)
def test_any_error_is_one_line_with_file_visit_and_detector(tmp_path, where, error, message):
    """Whatever goes wrong, the report names it and its place, and no product is claimed."""
    report = make_worker(tmp_path, **{where: raiser(error)}).process(JOB)
    assert report.status == "failed" and report.output == ""
    assert report.error.startswith(message) and "\n" not in report.error


def test_worker_lives_on_after_a_failure(tmp_path):
    """A bad frame does not spoil the next one."""
    outcomes = iter([raiser(FileError("bad")), lambda raw: products()])
    worker = make_worker(tmp_path, process=lambda raw: next(outcomes)(raw))
    assert [worker.process(JOB).status for _ in range(2)] == ["failed", "done"]


def test_job_of_another_detector_is_refused(tmp_path):
    """A job handed to the wrong worker fails and says so."""
    report = make_worker(tmp_path).process(DetectorJob(visit=7, detector=4, path="a"))
    assert "this worker holds detector 3, got a job for 4" in report.error


def test_broken_gpu_context_is_raised(tmp_path):
    """After an illegal address only a new process helps: the executor must hear of it."""
    error = CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")
    with pytest.raises(CUDARuntimeError):
        make_worker(tmp_path, process=raiser(error)).process(JOB)


def test_ordinary_gpu_error_is_not_fatal():
    """Out of memory fails the frame, not the worker; a fatal cause counts even when wrapped."""
    assert not is_fatal(CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"))
    wrapped = RuntimeError("stage failed")
    wrapped.__cause__ = CUDARuntimeError("cudaErrorLaunchFailure")
    assert is_fatal(wrapped)
