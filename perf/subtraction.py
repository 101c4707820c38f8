"""Subtract simulated pairs of images whose difference is known: how good it is, and how long and how much memory it takes.

    python perf/subtraction.py [--sizes 1024 2048 4096] [--seeds 20240501 ...] [--full] [--no-judge] [--runs 3] [--work DIR]

Judges every difference beside the noise-free template (oracle) and the best that a noisy one allows (bound), then times
the first seed of each size, in processes of their own: on one core, on two, and two detectors at a time on a core each.
Where hotpants (Becker 2015, ASCL 1504.004) is on the PATH it is judged and timed beside. All seeds at 1024 and 2048 pixels
and one at 4096, or ``--full`` for all. Samples are kept in --work for the next time. Writes perf/records/<name>.json.
Needs GalSim.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import record
from astropy.io import fits
from judge import Verdict, judge, oracle, pooled, template_noise_bound
from sample import SATURATION, SCIENCE, TEMPLATE, Sample, make_sample

from nightstream.engine.align import align
from nightstream.engine.blas import use_one_blas_thread
from nightstream.engine.config import DifferenceConfig, PrepareConfig, SubtractConfig
from nightstream.engine.difference import subtract_aligned
from nightstream.engine.prepare import PreparedImage, prepare_image
from nightstream.engine.subtraction import kernel_stars
from nightstream.engine.values import Exposure, MaskedImage, ReducedImage, WarpedTemplate
from nightstream.kernels.mask import MaskPlane

SIZES = (1024, 2048, 4096)
SEEDS = (20240501, 20240601, 20240701, 20240801)
CORES = {"ours, 1 core": ["0"], "ours, 2 cores": ["0,1"], "ours, 2 at a time": ["0", "1"]}  # of each process
UNUSABLE = MaskPlane.NO_DATA | MaskPlane.SAT | MaskPlane.BAD | MaskPlane.SAT_TEMPLATE | MaskPlane.EDGE
HOTPANTS = ["-c", "t", "-n", "i", "-tu", "60000", "-iu", "60000", "-tl", "-1000", "-il", "-1000"]
HOTPANTS += [
    "-ig",
    str(SCIENCE.gain),
    "-ir",
    str(SCIENCE.read_noise),
    "-tg",
    str(TEMPLATE.gain),
    "-tr",
    f"{TEMPLATE.read_noise:.2f}",
]
HOTPANTS_KERNELS = {"hotpants 21x21": [], "hotpants 31x31": ["-r", "15", "-rss", "20"]}
STAGES = ("fit", "convolve", "background", "decorrelate")
SHOWN = ("sky_noise", "bright_rms", "completeness_5", "false_positives", "negative_detections")
SHOWN += ("photometry_bias", "photometry_scatter")


class Pair(NamedTuple):
    """What `subtract_aligned` takes: the planes and nothing else."""

    science: Exposure
    warped: WarpedTemplate
    x: np.ndarray
    y: np.ndarray


def find_sample(work: Path, size: int, seed: int) -> Sample:
    """Make a sample, or find it from the last time."""
    path = work / f"sample_{size}_{seed}.npz"
    if not path.exists():
        make_sample(size, seed).save(path)
    return Sample.load(path)


def prepare(sample: Sample) -> Pair:
    """Both images ready to be subtracted, and the stars to fit the kernel on."""
    science, template = (_prepared(image, camera) for image, camera in ((sample.science, SCIENCE), (sample.template, TEMPLATE)))
    config = SubtractConfig()
    aligned = align(science, template, config.align, config.difference)
    return Pair(science.exposure, aligned.template, *kernel_stars(science, template, aligned, config))


def _prepared(image, camera) -> PreparedImage:
    return prepare_image(
        ReducedImage(image=image, gain=camera.gain, read_noise=camera.read_noise, saturation=SATURATION), PrepareConfig()
    )


def subtract(pair: Pair, *, decorrelate: bool) -> MaskedImage:
    return subtract_aligned(*pair, DifferenceConfig(decorrelate=decorrelate)).difference.pixels


def judge_all(sample: Sample, pair: Pair, work: Path) -> dict[str, Verdict]:
    """Our difference, hotpants' where there is one, and both bounds."""
    pixels = subtract(pair, decorrelate=False)
    verdicts = {"ours": judge(sample, pixels.image, (pixels.mask & int(UNUSABLE)) != 0)}
    if shutil.which("hotpants"):
        run_hotpants(sample, work, [])
        verdicts["hotpants 21x21"] = judge(sample, fits.getdata(work / "hotpants.fits"))
    return verdicts | {"bound": judge(sample, template_noise_bound(sample)), "oracle": judge(sample, oracle(sample))}


def check(name: str, ours: dict[str, float], bound: dict[str, float]) -> None:
    """The answer before the time: the noise of the sky, and sources found, right and wrong, as the template allows."""
    few = 3  # sources by which two equally good differences may differ
    wrong = abs(ours["sky_noise"] - 1) > 0.01
    wrong |= ours["completeness_5"] < bound["completeness_5"] - 0.02
    wrong |= any(ours[n] > bound[n] + few for n in ("false_positives", "negative_detections"))
    if wrong:
        raise SystemExit(f"wrong answer at {name}: " + ", ".join(f"{n} {ours[n]:.4g} (bound {bound[n]:.4g})" for n in SHOWN))


def run_hotpants(sample: Sample, work: Path, options: list[str]) -> dict[str, float]:
    """Run hotpants on one core; return what it cost."""
    science, template = sample.write_images(work)
    command = ["hotpants", "-inim", science, "-tmplim", template, "-outim", work / "hotpants.fits", *HOTPANTS, *options]
    return _in_process("cost_of.py", *command)


def run_ours(pair: Pair, work: Path, cores: list[str], runs: int) -> dict[str, float]:
    """Time the subtraction in processes that hold the pair and nothing else, one for each set of ``cores``, all at once;
    the numbers are those of the slower."""
    path = work / "pair.pickle"
    with path.open("wb") as file:
        pickle.dump(tuple(pair), file, protocol=5)
    with ThreadPoolExecutor(len(cores)) as pool:
        done = list(pool.map(lambda own: _in_process("subtraction_run.py", path, own, runs), cores))
    cost = max(done, key=lambda cost: cost["clock"])
    return cost | {"detectors_per_s": round(len(cores) / cost["clock"], 3)}


def _in_process(script: str, *arguments) -> dict:
    """Run a script of this folder and return what it prints."""
    command = [sys.executable, Path(__file__).with_name(script), *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def time_all(sample: Sample, pair: Pair, work: Path, runs: int) -> dict[str, dict]:
    """Cost of our subtraction on one core and on two, and of hotpants; the least of all runs."""
    one_core = len(os.sched_getaffinity(0)) == 1
    costs = {who: run_ours(pair, work, cores, runs) for who, cores in CORES.items() if not one_core or cores == ["0"]}
    if len({cost.pop("bits") for cost in costs.values()}) > 1:
        raise SystemExit(f"wrong answer at {sample.size}: the number of cores changes bits")
    for name, options in HOTPANTS_KERNELS.items() if shutil.which("hotpants") else ():
        tries = [run_hotpants(sample, work, options) for _ in range(min(runs, 2))]
        costs[name] = {key: min(t[key] for t in tries) for key in tries[0]}
    return costs


def print_verdicts(name: str, verdicts: dict[str, Verdict]) -> None:
    for who, verdict in verdicts.items():
        print(f"{name:<21} | {who:<14} | " + " ".join(f"{key} {verdict.numbers[key]:.3f}" for key in SHOWN), flush=True)


def print_pools(pools: dict[str, dict]) -> None:
    """Pulls of the photometry of all samples of a size, and of all."""
    for name, by_who in pools.items():
        for who, places in by_who.items():
            row = " ".join(f"{p} {v['median']:+.3f} {v['mad']:.3f} {v['std']:.3f} ({v['n']})" for p, v in places.items())
            print(f"pulls {name:<9} | {who:<14} | median mad std (n) | {row}")


def print_costs(name: str, costs: dict[str, dict]) -> None:
    for who, cost in costs.items():
        stages = " ".join(f"{stage} {cost[stage]:.2f}" for stage in STAGES if stage in cost)
        ratio = cost["total"] / costs["ours, 1 core"]["total"]
        rate = cost.get("detectors_per_s", 1 / cost["clock"])
        print(
            f"subtract {name} f32 | {who:<15} | {cost['total']:6.2f} core s ({ratio:.2f}x) {cost['clock']:6.2f} s "
            f"{rate:.2f} / s | {cost['peak_gib']:.2f} GiB | {stages}", flush=True,
        )  # fmt: skip


def pool(verdicts: dict[tuple[int, int], dict[str, Verdict]]) -> dict[str, dict]:
    """Pulls of every tool over all samples of each size, and over all."""
    if not verdicts:
        return {}
    groups = {
        str(size): [v for case, v in verdicts.items() if case[0] == size] for size in sorted({case[0] for case in verdicts})
    }
    groups["all"] = list(verdicts.values())
    return {name: {who: pooled([v[who] for v in group]) for who in group[0]} for name, group in groups.items()}


def cases(sizes, seeds, full: bool) -> list[tuple[int, int]]:
    """Which samples: of the largest size only the first seed, unless ``full``."""
    return [(size, seed) for size in sizes for seed in (seeds if full or size < max(SIZES) else seeds[:1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--full", action="store_true", help="all seeds at all sizes")
    parser.add_argument("--no-judge", action="store_true", help="only time")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "nightstream-perf")
    parser.add_argument("--name", default="subtraction-cpu")
    args = parser.parse_args()
    use_one_blas_thread()
    args.work.mkdir(parents=True, exist_ok=True)
    verdicts, costs = {}, {}
    for size, seed in cases(args.sizes, args.seeds, args.full):
        sample = find_sample(args.work, size, seed)
        pair = prepare(sample)
        name = f"{size}x{size}"
        if not args.no_judge:
            verdicts[size, seed] = judge_all(sample, pair, args.work)
            print_verdicts(f"{name} {seed}", verdicts[size, seed])
            check(f"{name} {seed}", verdicts[size, seed]["ours"].numbers, verdicts[size, seed]["bound"].numbers)
        if seed == args.seeds[0]:
            costs[name] = time_all(sample, pair, args.work, args.runs)
            print_costs(name, costs[name])
    pools = pool(verdicts)
    print_pools(pools)
    judged = {f"{n}x{n} {seed}": {who: v.numbers for who, v in row.items()} for (n, seed), row in verdicts.items()}
    content = {"header": record.header("cpu"), "runs": args.runs, "costs": costs, "pulls": pools, "judged": judged}
    print(record.write(args.name, content))


if __name__ == "__main__":
    main()
