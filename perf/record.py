"""Benchmark records: what ran where, how long it took, written as JSON under perf/records/."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

RECORDS = Path(__file__).parent / "records"
PACKAGES = ("numpy", "scipy", "numba", "astropy", "h5py", "isal", "duckdb", "psycopg", "ray")
PACKAGES += ("astroscrappy", "ccdproc", "photutils", "reproject", "sep")  # what kernels are timed beside
PACKAGES += ("cupy-cuda12x", "cupy-cuda13x", "nightstream")


THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def header(device: str) -> dict:
    """Return the machine, the versions and the commit that a record belongs to."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "rev-parse", "--short", "HEAD") + ("+" if _output("git", "status", "--porcelain") else ""),
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "threads": {name: os.environ.get(name, "default") for name in THREADS},
        "load_average": [round(load, 2) for load in os.getloadavg()],  # 1, 5, 15 minutes; the benchmark's own included
        "device": device,
        "gpu": _gpu() if device == "gpu" else None,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def reset_peak_memory() -> None:
    """Forget the peak so far, where the kernel can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gib() -> float:
    """Return the largest resident memory of this process since the last reset."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    kib = peaks[0] if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kib / 2**20, 2)


def write(name: str, record: dict) -> Path:
    """Write ``record`` to perf/records/<name>.json and return the path."""
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def _output(*command: str) -> str:
    """What ``command`` prints; nothing where it is not installed."""
    with suppress(FileNotFoundError):
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
        return done.stdout.strip()
    return ""


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
