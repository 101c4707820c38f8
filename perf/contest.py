"""Time one kernel beside other packages and its floor, in one run, on the CPU or a card.

A script of a kernel family makes `Case`s and calls `main`. Correctness comes first: ours against the peers by the case's
own check, the same bits twice, and on a card the CPU's answer to the case's tolerance. Then every contender is timed in
turn, round after round, so that whatever else the machine does falls on all of them.

On the CPU ours runs on one thread and on all; ratios to peers are of core-seconds, ours on one thread. On a card the
peer is the same step as plain array expressions, and times are from events on its stream. The floor is the least time in
which the counted bytes can be moved, at the measured rate of a copy, or the counted operations done, at that of a
product of float32 matrices.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import median
from typing import Any

import numba
import numpy as np
import record

from nightstream.engine.blas import use_one_blas_thread
from nightstream.engine.memory import DetectorMemory, resolve_device
from nightstream.kernels.target import chunks, for_each

SIDE = 4096  # pixels, of a whole detector
COPY_BYTES = {"cpu": 2**28, "gpu": 2**30}
MATRIX_ROWS = {"cpu": 1024, "gpu": 8192}
ROWS_PER_COPY = 2**20  # elements that a thread copies at a time
OURS, OURS_ALONE, DIRECT = "ours", "ours, 1 thread", "arrays"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kernel on one size of input, and who else does that work."""

    name: str  # of the function
    size: str  # "16x2048x576 i32"
    arrays: dict[str, Any]  # host arrays, or values that hold such; on the device for `ours` and `direct`
    ours: Callable[..., Any]  # called with ``arrays`` by name
    moved_bytes: float  # read and written, at least
    operations: float = 0.0  # float32 additions and multiplications, at least
    direct: Callable[..., Any] | None = None  # the same as plain array expressions: direct(xp, **arrays)
    peers: dict[str, Callable[[], Any]] = field(default_factory=dict)  # packages, with what they need prepared
    check: Callable[[dict[str, Any]], None]  # raises AssertionError; gets host results by name of contender
    tolerance: float = 0.0  # of a card's floats against the CPU's, relative to the largest of the array; 0: same bits


def installed(peers: dict[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    """Those whose package, the first word of their names, is there."""
    return {name: peer for name, peer in peers.items() if find_spec(name.split()[0])}


@dataclass(frozen=True, slots=True)
class Rates:
    """What the device does at best."""

    copy_bytes_per_s: float
    operations_per_s: float

    def floor_s(self, case: Case) -> float:
        """Least time that a case can take."""
        return max(case.moved_bytes / self.copy_bytes_per_s, case.operations / self.operations_per_s)


class Clock:
    """Seconds, of the clock and of all cores, that a call takes on a device."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, work: Callable[[], Any]) -> tuple[float, float]:
        return self._on_card(work) if self.device == "gpu" else self._on_cores(work)

    def _on_cores(self, work) -> tuple[float, float]:
        start, busy = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - start, time.process_time() - busy

    def _on_card(self, work) -> tuple[float, float]:
        import cupy

        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        busy = time.process_time()
        begin.record()
        work()
        end.record()
        end.synchronize()
        return cupy.cuda.get_elapsed_time(begin, end) / 1e3, time.process_time() - busy


def measure_rates(device: str, runs: int = 5) -> Rates:
    """Copy float32 on all threads, bytes read and written counted, and multiply float32 matrices on all of them."""
    memory, clock = DetectorMemory(device), Clock(device)
    xp = array_library(device)
    source = memory.upload(np.ones(COPY_BYTES[device] // 4, np.float32))
    out, rows = xp.empty_like(source), MATRIX_ROWS[device]
    left = memory.upload(np.ones((rows, rows), np.float32))
    parts = chunks(source.size, ROWS_PER_COPY, xp)

    def copy() -> None:
        for_each(lambda part: xp.copyto(out[part], source[part]), parts, xp)

    def multiply() -> None:
        for_each(lambda _: xp.matmul(left, left), products, xp)

    products = range(numba.get_num_threads() if device == "cpu" else 1)
    copy_s, multiply_s = (min(clock(work)[0] for _ in range(runs + 1)) for work in (copy, multiply))
    return Rates(2 * source.nbytes / copy_s, 2 * rows**3 * len(products) / multiply_s)


def array_library(device: str):
    """NumPy or CuPy."""
    if device == "cpu":
        return np
    import cupy

    return cupy


def verify(case: Case, device: str) -> None:
    """Raise SystemExit unless every contender's answer passes the case's check, ours twice to the bit."""
    memory = DetectorMemory(device)
    given = memory.upload(case.arrays)
    results = {OURS: memory.download(case.ours(**given))}
    if case.direct:
        results[DIRECT] = memory.download(case.direct(array_library(device), **given))
    if device == "cpu":
        results |= {name: peer() for name, peer in case.peers.items()}
    try:
        case.check(results)
        same_values(results[OURS], memory.download(case.ours(**given)), 0.0)
        if device == "gpu":
            same_values(results[OURS], case.ours(**case.arrays), case.tolerance)
    except AssertionError as error:
        raise SystemExit(f"wrong answer: {case.name} {case.size}: {error}") from None


def same_values(left: Any, right: Any, tolerance: float) -> None:
    """Raise AssertionError unless two results are the same: floats to ``tolerance`` of the largest, the rest to the bit."""
    left, right = list(leaves(left)), list(leaves(right))
    assert len(left) == len(right), f"got {len(left)} values, wanted {len(right)}"
    for a, b in zip(left, right, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, f"got shape {a.shape}, wanted {b.shape}"
        if tolerance and a.dtype.kind in "fc":
            largest = np.nanmax(np.abs(b)) if np.isfinite(b).any() else 0.0
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest)
        else:
            np.testing.assert_array_equal(a, b)


def leaves(value: Any) -> Iterator[Any]:
    """All arrays and numbers inside a result."""
    if dataclasses.is_dataclass(value):
        value = tuple(getattr(value, f.name) for f in dataclasses.fields(value))
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, np.ndarray | np.generic | float | int):
        yield value


def contenders(case: Case, device: str) -> dict[str, Callable[[], Any]]:
    """Everyone who does the work, ready to be called."""
    given = DetectorMemory(device).upload(case.arrays)
    calls = {OURS: lambda: case.ours(**given)}
    if device == "cpu":
        calls[OURS_ALONE] = lambda: on_one_thread(calls[OURS])
    if case.direct:
        calls[DIRECT] = lambda: case.direct(array_library(device), **given)
    return calls | (case.peers if device == "cpu" else {})


def on_one_thread(work: Callable[[], Any]) -> Any:
    """Call ``work`` with Numba, and what follows it, on one thread."""
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        return work()
    finally:
        numba.set_num_threads(threads)


def compete(case: Case, device: str, runs: int) -> dict[str, dict[str, float]]:
    """Seconds of every contender: median, least and most on the clock, and the least core-seconds. All have run before."""
    clock, calls = Clock(device), contenders(case, device)
    rows = {name: [] for name in calls}
    for _ in range(runs + 1):
        for name, work in calls.items():
            rows[name].append(clock(work))
    return {name: summary(row[1:]) for name, row in rows.items()}


def summary(row: list[tuple[float, float]]) -> dict[str, float]:
    seconds, core_seconds = zip(*row, strict=True)
    numbers = {"median_s": median(seconds), "min_s": min(seconds), "max_s": max(seconds), "core_s": min(core_seconds)}
    return {name: float(f"{value:.4g}") for name, value in numbers.items()}


def result(case: Case, costs: dict[str, dict[str, float]], rates: Rates) -> dict[str, Any]:
    """One row of a record."""
    floor, ours = rates.floor_s(case), costs[OURS]["min_s"]
    measure, base = ("core_s", OURS_ALONE) if OURS_ALONE in costs else ("min_s", OURS)
    ratios = {n: float(f"{c[measure] / costs[base][measure]:.3g}") for n, c in costs.items() if n not in (OURS, OURS_ALONE)}
    return {
        "name": case.name,
        "size": case.size,
        "moved_bytes": case.moved_bytes,
        "operations": case.operations,
        "floor_s": float(f"{floor:.3g}"),
        "share_of_floor": round(floor / ours, 4),
        "gb_per_s": round(case.moved_bytes / ours / 1e9, 2),
        "costs": costs,
        "times_ours": ratios,
    }


def line(row: dict[str, Any], rates: Rates) -> str:
    """The row as people read it."""
    ours = row["costs"][OURS]
    spread = (ours["max_s"] - ours["min_s"]) / 2
    parts = [f"{row['name']:<22} {row['size']:<20}", f"{1e3 * ours['median_s']:9.3f} ms +- {1e3 * spread:.3f}"]
    if OURS_ALONE in row["costs"]:
        parts.append(f"{ours['median_s'] and row['costs'][OURS_ALONE]['median_s'] / ours['median_s']:.2f}x of one thread")
    share = 1e9 * row["gb_per_s"] / rates.copy_bytes_per_s
    parts.append(f"{row['gb_per_s']:7.2f} GB/s ({share:.1%} of copy, {row['share_of_floor']:.1%} of floor)")
    parts.append("  ".join(f"{ratio:.3g}x {name}" for name, ratio in row["times_ours"].items()) or "no peer")
    return " | ".join(parts)


def run(family: str, cases: list[Case], device: str, runs: int) -> dict[str, Any]:
    """Verify and time all cases, print a line each, and return the record."""
    rates, rows = measure_rates(device), []
    print(f"{family} on {device}: copy {rates.copy_bytes_per_s / 1e9:.1f} GB/s, {rates.operations_per_s / 1e9:.0f} Gflop/s")
    for case in cases:
        verify(case, device)
        rows.append(result(case, compete(case, device, runs), rates))
        print(line(rows[-1], rates), flush=True)
    header = record.header(device) | {"cpu_threads": numba.get_num_threads()}
    return {"header": header, "rates": dataclasses.asdict(rates), "runs": runs, "rows": rows}


def main(family: str, cases: Callable[[int], Iterator[Case]], description: str) -> None:
    """Run one family's script: ``cases(side)`` makes the cases for a detector of so many pixels a side."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--name", default=None)
    chosen = parser.parse_args()
    use_one_blas_thread()
    device = resolve_device(chosen.device)
    content = run(family, list(cases(SIDE)), device, chosen.runs)
    print(f"record: {record.write(chosen.name or f'{family}-{device}', content)}")
