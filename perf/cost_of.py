"""Run a command on one core and print, as JSON, its core-seconds, seconds on the clock and peak memory.

    python perf/cost_of.py COMMAND [ARGUMENT ...]

In a process of its own because a child counts the memory of the process that it was forked from as its own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time


def main() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    start = time.perf_counter()
    subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    clock, usage = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = {"total": usage.ru_utime + usage.ru_stime, "clock": clock, "peak_gib": usage.ru_maxrss / 2**20}
    print(json.dumps({name: round(value, 3) for name, value in cost.items()}))


if __name__ == "__main__":
    main()
