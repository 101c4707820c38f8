"""Run the benchmarks of a device, one after the other, and say what each took.

    python perf/bench.py [--device auto|cpu|gpu] [--only NAME ...] [--list]

CPU: every family of kernels, a whole detector, decoding, association and alerts, in less than 10 minutes on two cores. GPU: the
families, a whole detector and 189 of them streamed, in less than 8 minutes. Longer ones, with a visit or a night in them, are
run by hand (README.md), and so is the detector where a record of several runs is wanted. Each is a process of its own and
writes its own record; one that fails stops no other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from nightstream.engine.memory import resolve_device

HERE = Path(__file__).parent
FAMILIES = tuple(sorted(path.stem for path in HERE.glob("kernel_*.py")))
SUITES: dict[str, dict[str, list[str]]] = {
    "cpu": {
        **{family: ["--device", "cpu"] for family in FAMILIES},
        "stages": ["--device", "cpu", "--runs", "1", "--name", "stages-cpu-once"],
        "decode": ["--runs", "3"],
        "association": [],
        "dia_objects": [],
        "cutouts": [],
        "filters": [],
        "alerts": [],
    },
    "gpu": {
        **{family: ["--device", "gpu"] for family in FAMILIES},
        "stages": ["--device", "gpu"],
        "lanes": ["--device", "gpu", "--visits", "2", "--detectors", "189"],
    },
}


def run(name: str, options: list[str]) -> tuple[int, float]:
    """Run one script; return its exit status and how long it took."""
    print(f"== {name}", flush=True)
    start = time.monotonic()
    status = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *options], check=False).returncode
    return status, time.monotonic() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"))
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    args = parser.parse_args()
    suite = SUITES[resolve_device(args.device)]
    unknown = set(args.only or ()) - suite.keys()
    if unknown:
        parser.error(f"got {', '.join(sorted(unknown))}, wanted some of {', '.join(suite)}")
    chosen = args.only or list(suite)
    if args.list:
        print("\n".join(chosen))
        return 0
    done = {name: run(name, suite[name]) for name in chosen}
    for name, (status, seconds) in done.items():
        print(f"{name:<24} {seconds:6.0f} s{'' if status == 0 else f'  FAILED with exit status {status}'}")
    print(f"{'all':<24} {sum(seconds for _, seconds in done.values()):6.0f} s")
    return int(any(status for status, _ in done.values()))


if __name__ == "__main__":
    sys.exit(main())
