"""Time every stage of one 4k x 4k detector, from the raw file to the HDF5 product, on the device it finds.

    python perf/stages.py [--device auto|cpu|gpu] [--runs 3] [--work DIR] [--name stages-cpu]

Simulates a 16-amplifier detector (kept in --work for the next time), builds its calibrations and template, checks the
answer, then times the science visit. Writes perf/records/<name>.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import record

from nightstream.engine.calibrate import build_calibrations
from nightstream.engine.memory import DetectorMemory, resolve_device
from nightstream.engine.pipeline import DetectorPipeline, calibrate_together
from nightstream.engine.template import build_template
from nightstream.engine.values import DetectorProducts
from nightstream.io.cameras import engine_config, load_camera
from nightstream.io.products import write_detector_products
from nightstream.io.raw import read_raw
from nightstream.simulate.survey import Survey, plan_survey, simulate_survey

CAMERA = Path(__file__).parent / "camera_4k.yaml"
COUNTS = {"bias": 3, "dark": 2, "flat": 2, "template": 3, "science": 1}


class Cost(NamedTuple):
    """What a stage took: time on the clock, and of all cores together."""

    seconds: float
    core_seconds: float


class Stopwatch:
    """Cost of every stage, run by run; waits for the device before it reads the clock."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Cost]] = []
        self.synchronize = lambda: None

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.synchronize()
        start, busy = time.perf_counter(), time.process_time()
        yield
        self.synchronize()
        self.runs[-1][stage] = Cost(time.perf_counter() - start, time.process_time() - busy)


def survey(work: Path) -> Survey:
    """Simulate the detector's raw frames, or find them from the last time."""
    plan = plan_survey(work, camera=str(CAMERA), n_detectors=1, seed=1, counts=COUNTS)
    if plan.truth_path.exists():
        return plan
    counts = {f"n_{role}" + "_visits" * (role in ("template", "science")): number for role, number in COUNTS.items()}
    return simulate_survey(work, camera=str(CAMERA), n_detectors=1, seed=1, **counts)


def build_pipeline(plan: Survey, device: str, stopwatch: Stopwatch) -> DetectorPipeline:
    """Return the pipeline with calibrations and template made from the simulated raws."""
    config, detector = engine_config(plan.camera), plan.camera.detectors[0]
    frames = {role: [read_raw(path, plan.camera) for path in plan.raws(role)] for role in ("bias", "dark", "flat", "template")}
    calibrations = build_calibrations(frames["bias"], frames["dark"], frames["flat"], detector, config.calibrate, config.isr)
    visits = calibrate_together(DetectorPipeline(detector, calibrations, config=config, device="cpu"), frames["template"])
    template = build_template([done.exposure for done in visits], config.template)
    pipeline = DetectorPipeline(detector, calibrations, template, config, device, stage=stopwatch)
    stopwatch.synchronize = pipeline.memory.synchronize
    return pipeline


def run_once(pipeline: DetectorPipeline, path: Path, output: Path, stopwatch: Stopwatch) -> DetectorProducts:
    """Raw file to product file, every stage timed."""
    stopwatch.runs.append({})
    with stopwatch("total"):
        with stopwatch("read"):
            raw = read_raw(path, load_camera(str(CAMERA)))
        products = pipeline.process(raw)
        with stopwatch("write"):
            write_detector_products(output, products)
    return products


def check(products: DetectorProducts) -> None:
    """The answer before the time: sky noise of the difference as its variance says, and sources found."""
    import numpy as np

    pixels = products.difference.pixels
    good = pixels.mask == 0
    pull = pixels.image[good] / np.sqrt(pixels.variance[good])
    width = 1.4826 * float(np.median(np.abs(pull - np.median(pull))))
    if not 0.95 < width < 1.05 or len(products.dia_sources["x"]) == 0:
        raise SystemExit(f"wrong answer: pull width {width:.3f}, {len(products.dia_sources['x'])} sources")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"))
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "nightstream-perf")
    options.add_argument("--name", default=None)
    chosen = options.parse_args()
    device = resolve_device(chosen.device)
    stopwatch = Stopwatch()
    plan = survey(chosen.work)
    pipeline = build_pipeline(plan, device, stopwatch)
    science = plan.raws("science")[0]
    check(run_once(pipeline, science, chosen.work / "products", stopwatch))  # also warms up
    stopwatch.runs.clear()
    record.reset_peak_memory()
    for _ in range(chosen.runs):
        run_once(pipeline, science, chosen.work / "products", stopwatch)
    report(stopwatch.runs, device, chosen.name or f"stages-{device}", pipeline.memory)


def report(runs: list[dict[str, Cost]], device: str, name: str, memory: DetectorMemory) -> None:
    """Print one line a stage and write the record."""
    rows = {stage: [run[stage] for run in runs] for stage in runs[0]}
    stages = {stage: summary(costs) for stage, costs in rows.items()}
    for stage, row in stages.items():
        print(
            f"{stage:14s} 4096x4096 | {row['median_s']:8.3f} s  ({row['min_s']:.3f} to {row['max_s']:.3f}, "
            f"{len(runs)} runs) | {row['core_s']:8.3f} core-seconds"
        )
    content = {
        "header": record.header(device),
        "shape": [4096, 4096],
        "runs": len(runs),
        "stages": stages,
        "peak_rss_gib": record.peak_memory_gib(),
        "resident_gib": round(memory.resident_bytes / 2**30, 3),
    }
    print(f"peak memory {content['peak_rss_gib']} GiB; record: {record.write(name, content)}")


def summary(costs: list[Cost]) -> dict[str, float]:
    """Median and spread of the seconds on the clock, and the least core-seconds."""
    seconds = [cost.seconds for cost in costs]
    numbers = {
        "median_s": median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "core_s": min(cost.core_seconds for cost in costs),
    }
    return {name: round(value, 4) for name, value in numbers.items()}


if __name__ == "__main__":
    main()
