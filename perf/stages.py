"""Time every stage of one 4k x 4k detector, from the raw file to the HDF5 product, on the device it finds.

    python perf/stages.py [--device auto|cpu|gpu] [--runs 3] [--work DIR] [--name stages-cpu]

Simulates a 16-amplifier detector (kept in --work for the next time), builds its calibrations and template, checks the
answer, then times the science visit: its stages, once more with the steps inside them, and, if there is more than one run,
without each optional step.
Writes perf/records/<name>.json and the time line, <name>.png.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import record
from optional import measure_steps
from stopwatch import Span, Stopwatch, steps_timed
from timeline import save_timeline

from nightstream.engine.calibrate import build_calibrations
from nightstream.engine.memory import resolve_device
from nightstream.engine.pipeline import DetectorPipeline, calibrate_together
from nightstream.engine.template import build_template
from nightstream.engine.values import DetectorProducts
from nightstream.io.cameras import engine_config, load_camera
from nightstream.io.products import write_detector_products
from nightstream.io.raw import read_raw
from nightstream.kernels.target import release_freed_memory
from nightstream.simulate.survey import Survey, plan_survey, simulate_survey

CAMERA = Path(__file__).parent / "camera_4k.yaml"
COUNTS = {"bias": 3, "dark": 2, "flat": 2, "template": 3, "science": 1}


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
    stopwatch.start_run()
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
    release_freed_memory()  # of the calibrations' raws
    check(run_once(pipeline, science, chosen.work / "products", stopwatch))  # also warms up
    stopwatch.runs.clear()
    record.reset_peak_memory()
    for _ in range(chosen.runs):
        run_once(pipeline, science, chosen.work / "products", stopwatch)
    content = {
        "header": record.header(device),
        "shape": [4096, 4096],
        "runs": chosen.runs,
        "stages": report(stopwatch.runs),
        "peak_rss_gib": record.peak_memory_gib(),
        "resident_gib": round(pipeline.memory.resident_bytes / 2**30, 3),
    }
    with steps_timed(stopwatch):
        run_once(pipeline, science, chosen.work / "products", stopwatch)
    content["timeline"] = [rounded(span) for span in sorted(stopwatch.runs[-1], key=lambda span: (span.start_s, span.depth))]
    if chosen.runs > 1:  # one run knows nothing of its noise
        content["optional"] = measure_steps(pipeline, read_raw(science, plan.camera), stopwatch, chosen.runs)
    for step, cost in content.get("optional", {}).items():
        print(f"{step:34s} {cost['clock_s']:8.3f} s, {cost['core_s']:8.3f} core-seconds, {cost['core_range_s']}")
    path = record.write(chosen.name or f"stages-{device}", content)
    print(f"peak memory {content['peak_rss_gib']} GiB; record: {path}")
    if find_spec("matplotlib"):  # the extra 'plot'; `timeline.py` draws it from the record elsewhere
        print(f"time line: {save_timeline(content, path.with_suffix('.png'))}")


def report(runs: list[list[Span]]) -> dict[str, dict[str, float]]:
    """Print one line a stage; return what it took, by stage."""
    names = [span.name for span in sorted(runs[0], key=lambda span: (-span.depth, span.start_s))]
    stages = {name: summary([span for run in runs for span in run if span.name == name]) for name in names}
    for stage, row in stages.items():
        print(
            f"{stage:14s} 4096x4096 | {row['median_s']:8.3f} s  ({row['min_s']:.3f} to {row['max_s']:.3f}, "
            f"{len(runs)} runs) | {row['core_s']:8.3f} core-seconds"
        )
    return stages


def summary(spans: list[Span]) -> dict[str, float]:
    """Median and spread of the seconds on the clock, and the least core-seconds."""
    seconds = [span.clock_s for span in spans]
    numbers = {
        "median_s": median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "core_s": min(span.core_s for span in spans),
    }
    return {name: round(value, 4) for name, value in numbers.items()}


def rounded(span: Span) -> dict:
    """Return the span as a record keeps it."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in span._asdict().items()}


if __name__ == "__main__":
    main()
