"""`perf/check_gpu.py`: all that a machine allows is run, whatever fails, and the verdict says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import check_gpu
import pytest

PYTHON = sys.executable
# What a machine with a card need not have: only CPU tests, the alerts, the databases and other packages' comparisons use it.
NOT_NEEDED = ("ray", "duckdb", "fastavro", "pyarrow", "sqlglot", "isal", "matplotlib", "psycopg", "confluent_kafka", "galsim")
NOT_NEEDED += ("ccdproc", "reproject", "cuda")
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="t1"/><testcase classname="tests.test_a" name="t2"><failure>1 != 2</failure></testcase>
<testcase classname="tests.test_b" name="t3"><skipped/></testcase><testcase classname="" name="tests.test_c"><error/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def check(tmp_path):
    with (tmp_path / "log").open("w") as log:
        yield check_gpu.Check(log, dict(os.environ))


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """A card that works, a test that passes, and a benchmark that leaves a record."""
    record = tmp_path / "records" / "a-gpu.json"
    record.parent.mkdir()
    (tmp_path / "bench.py").write_text(f"open({str(record)!r}, 'w').write('1')")
    report = "import sys; open(sys.argv[1], 'w').write('<testsuite><testcase name=\"t\"/></testsuite>')"
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(check_gpu, "CARD", "print('a card')")
    monkeypatch.setattr(check_gpu, "RECORDS", record.parent)
    monkeypatch.setattr(check_gpu, "SUITE", tmp_path / "bench.py")
    monkeypatch.setattr(check_gpu, "testing", lambda path, files: [PYTHON, "-c", report, path])
    return monkeypatch


def test_without_a_card_nothing_is_run(tmp_path):
    """It ends at once with status 2, and says why."""
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OUT": str(tmp_path)}
    done = subprocess.run([PYTHON, check_gpu.__file__], capture_output=True, text=True, env=hidden, timeout=60)
    assert done.returncode == 2 and "no card works here: CuPy" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("GPU CHECK NOT RUN: no card works here")
    assert (tmp_path / "check_gpu.log").read_text() == done.stdout


def test_a_good_machine_passes(stand_ins, tmp_path, capfd):
    """The verdict counts tests and records; the records lie packed beside the log."""
    assert check_gpu.main([]) == 0
    assert "GPU CHECK PASSED: tests: 1 passed; 1 records" in capfd.readouterr().out.splitlines()[-1]
    with tarfile.open(tmp_path / "out" / "records.tar.gz") as archive:
        assert archive.getnames() == ["a-gpu.json"]


def test_failed_tests_do_not_keep_the_benchmarks_from_running(stand_ins, tmp_path, capfd):
    """The verdict names the step that failed; the record is there all the same."""
    stand_ins.setattr(check_gpu, "testing", lambda path, files: [PYTHON, "-c", "raise SystemExit(3)"])
    assert check_gpu.main([]) == 1
    assert "GPU CHECK FAILED: tests (exit status 3) (tests: none; 1 records" in capfd.readouterr().out.splitlines()[-1]


def test_tests_that_all_skip_are_a_failure(stand_ins, capfd):
    """A check that tested nothing must not pass."""
    stand_ins.setattr(check_gpu, "testing", lambda path, files: [PYTHON, "-c", "pass"])
    assert check_gpu.main([]) == 1 and "no test ran" in capfd.readouterr().out.splitlines()[-1]


def test_a_step_past_its_limit_is_ended(check):
    """It is interrupted, as by Ctrl-C, so that it can still say how far it came."""
    assert not check.run("endless", [PYTHON, "-c", "import signal; signal.pause()"], limit_s=0.5)
    assert check.failures == ["endless (not done in 0.5 s)"]


def test_files_with_failures_run_once_more_alone(check, tmp_path, monkeypatch):
    """A kernel that spoilt the card for the tests after it is told from those that it spoilt."""
    ran = []
    monkeypatch.setattr(check_gpu, "testing", lambda report, files: ran.append([file.name for file in files]) or ["true"])
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok: None)
    (tmp_path / "gpu-tests.xml").write_text(JUNIT)
    assert check_gpu.run_tests(check, tmp_path / "gpu-tests.xml", 60.0) == "tests: 1 error, 1 failure, 1 passed, 1 skipped"
    assert ran[1:] == [["test_a.py"], ["test_c.py"]]


def test_only_absent_packages_come_from_wheels(tmp_path):
    """What is installed is left alone."""
    for name in ("numpy-1.0-py3-none-any.whl", "certainly_absent-1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    assert [wheel.name for wheel in check_gpu.absent_wheels(tmp_path)] == ["certainly_absent-1.0-py3-none-any.whl"]


def test_missing_packages_are_named(tmp_path):
    """Where nothing is installed, all that Nightstream depends on and what tests need."""
    assert {"numpy", "astropy", "ray", "pytest"} <= set(check_gpu.missing([str(tmp_path)]))


def test_gpu_tests_need_few_packages():
    """All of them are collected where neither Ray nor the packages of alerts, databases and comparisons can be imported."""
    files = [str(path) for path in check_gpu.gpu_test_files()]
    code = f"""
import sys, pytest
sys.modules.update(dict.fromkeys({NOT_NEEDED!r}))
sys.exit(pytest.main(["-m", "gpu", "-q", "--collect-only", "-p", "no:cacheprovider", *{files!r}]))"""
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, cwd=check_gpu.ROOT)
    assert done.returncode == 0, done.stdout[-2000:]
    assert int(re.search(r"(\d+)/\d+ tests collected", done.stdout)[1]) > 200
