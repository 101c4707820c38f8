"""Benchmark records: what ran where, how long it took, written as JSON under perf/records/."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median

RECORDS = Path(__file__).parent / "records"
PACKAGES = ("numpy", "scipy", "numba", "astropy", "h5py", "ray", "cupy-cuda12x", "cupy-cuda13x", "nightstream")


def header(device: str) -> dict:
    """Return the machine, the versions and the commit that a record belongs to."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "rev-parse", "--short", "HEAD") + ("+" if _output("git", "status", "--porcelain") else ""),
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "device": device,
        "gpu": _gpu() if device == "gpu" else None,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def measure(run: Callable[[], object], repeats: int, synchronize: Callable[[], None] = lambda: None) -> dict:
    """Time ``run``: one warm-up, then ``repeats`` runs. Return median, minimum and maximum in seconds."""
    run()
    synchronize()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return {"median_s": median(seconds), "min_s": min(seconds), "max_s": max(seconds), "runs": repeats}


def write(name: str, record: dict) -> Path:
    """Write ``record`` to perf/records/<name>.json and return the path."""
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _cores() -> int:

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu() -> dict:
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    return {
        "name": properties["name"].decode(),
        "memory_gib": round(properties["totalGlobalMem"] / 2**30, 1),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
    }
