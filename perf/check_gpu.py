"""Check a machine with a GPU in one command: what is there, the tests that need a card, and the benchmarks on it.

    python perf/check_gpu.py [--wheels DIR] [--tests-limit 240] [--bench-limit 300]

Needs no network, no Ray and no installed Nightstream; packages that are not installed are taken from the wheels in DIR.
Leaves check_gpu.log, gpu-tests.xml and records.tar.gz in $OUT (default: build/check_gpu), the records in perf/records/ too.
The last line is the verdict. Exit status: 0 all is well, 1 something failed, 2 no card works here and nothing was run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import tomllib
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, TextIO
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "perf" / "records"
SUITE = ROOT / "perf" / "bench.py"
PASSED, FAILED, NO_CARD = 0, 1, 2
CARD_LIMIT_S = 120.0
GRACE_S = 15.0  # between asking a step to end and killing it
CARD = """
import json, sys, record
from nightstream.engine.memory import gpu_problem
problem = gpu_problem()
if problem:
    sys.exit(f"no card works here: {problem}")
print(json.dumps(record.header("gpu"), indent=1))
"""


class Outcome(NamedTuple):
    """What became of the tests: how many, and how many bad ones a file."""

    counts: dict[str, int]
    bad: Counter[str]

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """Read pytest's JUnit file; a run that was ended before it wrote one has no tests."""
        cases = list(ElementTree.parse(path).iter("testcase")) if path.exists() else []
        kinds = [next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed") for case in cases]
        files = [case.get("classname") or case.get("name") for case in cases]
        bad = Counter(file for file, kind in zip(files, kinds, strict=True) if kind in ("failure", "error"))
        return cls(dict(Counter(kinds)), bad)


class Check:
    """Runs one step after the other, prints and logs all of it, and remembers what failed."""

    def __init__(self, log: TextIO, environment: dict[str, str]) -> None:
        self.log, self.environment, self.failures = log, environment, []

    def say(self, text: str) -> None:
        print(text, flush=True)
        print(text, file=self.log, flush=True)

    def run(self, step: str, command: list, limit_s: float) -> bool:
        """Run ``command``, say what it prints, and return whether it succeeded.

        After ``limit_s`` it is interrupted, and killed with all that it started if it does not end then.
        """
        self.say(f"== {step}")
        start = time.monotonic()
        status, is_late = self._follow(command, limit_s)
        self.say(f"== {step}: exit status {status} after {time.monotonic() - start:.0f} s")
        if status:
            self.failures.append(f"{step} (not done in {limit_s:g} s)" if is_late else f"{step} (exit status {status})")
        return status == 0

    def _follow(self, command: list, limit_s: float) -> tuple[int, bool]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        with subprocess.Popen(command, cwd=ROOT, env=self.environment, process_group=0, **pipes) as process:
            late = threading.Timer(limit_s, os.killpg, (process.pid, signal.SIGINT))
            too_late = threading.Timer(limit_s + GRACE_S, os.killpg, (process.pid, signal.SIGKILL))
            late.start(), too_late.start()
            try:
                for line in process.stdout:
                    self.say(line.rstrip("\n"))
                return process.wait(), late.finished.is_set()
            finally:
                late.cancel(), too_late.cancel()
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    out = Path(os.environ.get("OUT") or ROOT / "build" / "check_gpu").absolute()
    out.mkdir(parents=True, exist_ok=True)
    with (out / "check_gpu.log").open("w") as log, tempfile.TemporaryDirectory() as site:
        check = Check(log, environment(site))
        status, verdict = run_all(check, options, out, site)
        check.say(f"GPU CHECK {verdict}; log: {log.name}")
    return status


def parse(arguments: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--wheels", type=Path, help="folder of wheels for packages that are not installed")
    options.add_argument("--tests-limit", type=float, default=240.0, help="seconds for the tests")
    options.add_argument("--bench-limit", type=float, default=300.0, help="seconds for the benchmarks")
    return options.parse_args(arguments)


def environment(site: str) -> dict[str, str]:
    """This process's environment, in which the checkout is found, and then what was unpacked into ``site``."""
    paths = filter(None, [str(ROOT / "src"), str(ROOT / "perf"), site, os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}


def run_all(check: Check, options: argparse.Namespace, out: Path, site: str) -> tuple[int, str]:
    """Run every step that the machine allows; return the exit status and the verdict."""
    began = time.time()
    if options.wheels and (wheels := absent_wheels(options.wheels)):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-cache-dir", "--target", site]
        check.run("wheels", [*pip, *wheels], CARD_LIMIT_S)
    check.say(f"== not installed: {', '.join(missing([site, *sys.path])) or 'nothing'}")
    if shutil.which("nvidia-smi"):
        check.run("driver", ["nvidia-smi"], CARD_LIMIT_S)
    if not check.run("card", [sys.executable, "-c", CARD], CARD_LIMIT_S):
        return NO_CARD, "NOT RUN: no card works here (see above)"
    counts = run_tests(check, out / "gpu-tests.xml", options.tests_limit)
    check.run("benchmarks", [sys.executable, SUITE, "--device", "gpu"], options.bench_limit)
    records = pack_records(out / "records.tar.gz", began)
    if not records:
        check.failures.append("no benchmark left a record")
    done = f"{counts}; {len(records)} records; {time.time() - began:.0f} s"
    return (FAILED, f"FAILED: {'; '.join(check.failures)} ({done})") if check.failures else (PASSED, f"PASSED: {done}")


def absent_wheels(folder: Path) -> list[Path]:
    """The wheels in ``folder`` whose package is not installed."""
    wheels = sorted(folder.absolute().glob("*.whl"))
    return [wheel for wheel in wheels if not is_installed(wheel.name.partition("-")[0], sys.path)]


def missing(paths: list[str]) -> list[str]:
    """Those of the project's packages, Ray among them, that are on none of ``paths``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["check"]
    names = [re.match(r"[\w.-]+", requirement)[0] for requirement in wanted]
    return [name for name in names if not is_installed(name, paths)]


def is_installed(name: str, paths: list[str]) -> bool:
    return any(metadata.distributions(name=name, path=paths))


def run_tests(check: Check, report: Path, limit_s: float) -> str:
    """Run the tests that need a card and return their counts.

    A kernel that reads past its array spoils the card for all that its process does afterwards. So when tests fail, each of
    their files runs once more in a process of its own; those that fail there too are the ones to look at.
    """
    end = time.monotonic() + limit_s
    report.unlink(missing_ok=True)
    succeeded = check.run("tests", testing(report, gpu_test_files()), limit_s)
    outcome = Outcome.read(report)
    if succeeded and not outcome.counts.get("passed"):
        check.failures.append("no test ran")
    for name in outcome.bad if len(outcome.bad) > 1 else ():
        alone = report.with_name("alone.xml")
        check.run(f"{name} alone", testing(alone, [ROOT / f"{name.replace('.', '/')}.py"]), max(end - time.monotonic(), 1.0))
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(outcome.counts.items()))
    return f"tests: {counts or 'none'}"


def gpu_test_files() -> list[Path]:
    """Test files that name the fixture `target` or the mark; the others may need packages that are not here."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [file for file in files if re.search(r"\btarget\b|\bmark\.gpu\b", file.read_text())]


def testing(report: Path, files: list[Path]) -> list:
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=60", "--durations=10"]
    return [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *(file.relative_to(ROOT) for file in files)]


def pack_records(path: Path, began: float) -> list[Path]:
    """Pack the records written since ``began`` into one file and return them."""
    records = [record for record in sorted(RECORDS.glob("*.json")) if record.stat().st_mtime >= began]
    with tarfile.open(path, "w:gz") as archive:
        for record in records:
            archive.add(record, record.name)
    return records


if __name__ == "__main__":
    sys.exit(main())
