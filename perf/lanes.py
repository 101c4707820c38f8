"""Stream visits of one 4096 x 4096 detector through one worker of this process, without Ray: how many jobs at once are best.

    python perf/lanes.py [--device auto|cpu|gpu] [--visits 4] [--detectors 0] [--work DIR] [--name lanes-cpu]

A job reads its raw file, computes and writes its product, each in the lane of its own thread: ``jobs`` are under way at once,
``computing`` of them compute. Checks first that lanes give the products of one job at a time, bit for bit. Rates are between
the reports of the first and of the last jobs. ``--detectors 189`` then streams so many at the best of the settings, as a
visit of LSSTCam has. Writes perf/records/<name>.json.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import record
from astropy.io import fits
from night import prepared_survey, worker_setup
from stages import CAMERA, COUNTS

from nightstream.engine.memory import resolve_device
from nightstream.io.products import product_path
from nightstream.kernels.target import release_freed_memory
from nightstream.scheduler.executor import Died, place_setups
from nightstream.scheduler.local_executor import ThreadExecutor
from nightstream.scheduler.messages import DetectorJob, DetectorReport
from nightstream.simulate.survey import Survey

PATIENCE_S = 600.0


class Setting(NamedTuple):
    """How many jobs are under way at once, and how many of them compute."""

    jobs: int
    computing: int


SETTINGS = {
    "cpu": (Setting(1, 1), Setting(2, 1), Setting(3, 1)),
    "gpu": (Setting(1, 1), Setting(2, 1), Setting(4, 1), Setting(8, 1), Setting(8, 2)),
}


def copies(raw: Path, folder: Path, number: int) -> dict[int, Path]:
    """The raw as so many visits, by visit."""
    folder.mkdir(parents=True, exist_ok=True)
    first = fits.getval(raw, "VISIT")
    paths = {first + i: folder / f"{first + i}.fits" for i in range(number)}
    for visit, path in paths.items():
        if not path.exists():
            shutil.copy(raw, path)
            fits.setval(path, "VISIT", value=visit)
    return paths


def stream(
    plan: Survey, raws: list[tuple[int, Path]], setting: Setting, output: Path, device: str
) -> list[tuple[float, DetectorReport]]:
    """Process the raws with one worker; return when each was reported, seconds from the start, and its report."""
    detector = plan.detectors[0]
    setup = worker_setup(plan, str(CAMERA), detector, output, device, max_computing=setting.computing)
    executor = ThreadExecutor(1, lanes=setting.jobs)
    executor.start(place_setups({detector: setup}, 1))
    start, reports = time.perf_counter(), []
    for visit, path in raws:
        executor.submit(0, DetectorJob(visit=visit, detector=detector, path=str(path)))
    while len(reports) < len(raws):
        outcomes = executor.wait(PATIENCE_S)
        for outcome in outcomes:
            if isinstance(outcome, Died) or outcome.report.status != "done" or not outcome.report.counts["dia_sources"]:
                raise SystemExit(f"wrong answer: {outcome}")
            reports.append((time.perf_counter() - start, outcome.report))
        if not outcomes:
            raise SystemExit(f"no answer for {PATIENCE_S:.0f} s")
    executor.close()
    return reports


def rate(reports: list[tuple[float, DetectorReport]], setting: Setting) -> dict[str, float]:
    """Detectors a second once every lane has reported, and the seconds that one takes from raw to product."""
    times = [seconds for seconds, _ in reports]
    own = sorted(sum(report.timings_s.values()) for _, report in reports[setting.jobs :])
    return {
        "detectors_per_s": round((len(times) - setting.jobs) / (times[-1] - times[setting.jobs - 1]), 3),
        "median_s_each": round(own[len(own) // 2], 4),
    }


def contents(path: Path) -> dict[str, bytes]:
    """All data of a product but the seconds that it took."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: np.asarray(item[()]).tobytes()}) if isinstance(item, h5py.Dataset) else None
        )
    return {name: data for name, data in found.items() if "timings" not in name}


def check(alone: Path, together: Path, plan: Survey, visits: list[int]) -> None:
    """Raise SystemExit unless both folders have the same products."""
    for visit in visits:
        left, right = (contents(product_path(folder, visit, plan.detectors[0])) for folder in (alone, together))
        differ = [name for name in left if left[name] != right.get(name)]
        if differ or left.keys() != right.keys():
            raise SystemExit(f"wrong answer: visit {visit} of several at once differs in {differ}")


def device_memory_gib(device: str) -> float | None:
    if device == "cpu":
        return None
    import cupy

    return round(cupy.get_default_memory_pool().total_bytes() / 2**30, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"))
    parser.add_argument("--visits", type=int, default=4, help="a lane of every setting")
    parser.add_argument("--detectors", type=int, default=0, help="to stream in the end, at the best setting")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "nightstream-perf")
    parser.add_argument("--name", default=None)
    args = parser.parse_args()
    if args.visits < 2:
        parser.error(f"got {args.visits} visits a lane, wanted at least 2: the first of each lane is not timed")
    device = resolve_device(args.device)
    settings = SETTINGS[device]
    plan = prepared_survey(args.work, str(CAMERA), 1, COUNTS)
    raw = next(plan.raw_path(visit, plan.detectors[0]) for visit in plan.visits if visit.role == "science")
    visits = copies(raw, args.work / "copies", args.visits * max(setting.jobs for setting in settings))
    content = {"header": record.header(device), "shape": [4096, 4096], "settings": []}
    for setting in settings:
        output, raws = args.work / f"lanes-{setting.jobs}", list(visits.items())[: args.visits * setting.jobs]
        shutil.rmtree(output, ignore_errors=True)
        release_freed_memory()
        record.reset_peak_memory()
        done = rate(stream(plan, raws, setting, output, device), setting)
        memory = {"peak_rss_gib": record.peak_memory_gib(), "device_gib": device_memory_gib(device)}
        check(args.work / "lanes-1", output, plan, list(visits)[: args.visits])
        content["settings"].append(setting._asdict() | done | memory)
        speed = f"{done['detectors_per_s']:7.3f} detectors / s | {done['median_s_each']:7.3f} s each"
        speed += f" | {memory['peak_rss_gib']:.2f} GiB"
        print(f"lanes 4096x4096 | {setting.jobs:2d} jobs, {setting.computing} computing | {speed}", flush=True)
    if args.detectors:
        best = Setting(*(max(content["settings"], key=lambda row: row["detectors_per_s"])[name] for name in Setting._fields))
        raws = [list(visits.items())[i % len(visits)] for i in range(args.detectors)]
        seconds = stream(plan, raws, best, args.work / "lanes-best", device)[-1][0]
        content["stream"] = best._asdict() | {"detectors": args.detectors, "seconds": round(seconds, 2)}
        print(f"lanes 4096x4096 | {args.detectors} detectors in {seconds:.1f} s, the first of all included")
    print(record.write(args.name or f"lanes-{device}", content))


if __name__ == "__main__":
    main()
