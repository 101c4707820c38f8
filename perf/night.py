"""Simulated raws with the calibrations and templates made of them, on disk, for the benchmarks that stream visits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nightstream.scheduler.messages import WorkerSetup
from nightstream.simulate.survey import Survey, plan_survey, simulate_survey


def prepared_survey(work: Path, camera: str, detectors: int, counts: dict[str, int]) -> Survey:
    """Simulate and calibrate ``detectors``, or find what was made the last time; ``counts`` of visits by role."""
    plan = plan_survey(work, camera=camera, n_detectors=detectors, seed=1, counts=counts)
    if not plan.truth_path.exists():
        options = {f"n_{role}" + "_visits" * (role in ("template", "science")): number for role, number in counts.items()}
        plan = simulate_survey(work, camera=camera, n_detectors=detectors, seed=1, **options)
    if not (work / "templates").is_dir():
        common = ["--camera", camera]
        raw, made = work / "raw", work / "calibrations"
        _nightstream("calibrate", raw / "bias", raw / "dark", raw / "flat", *common, "--output", made)
        _nightstream("template", raw / "template", *common, "--calibrations", made, "--reference", work / "reference.h5",
                     "--output", work / "templates")  # fmt: skip
    return plan


def worker_setup(plan: Survey, camera: str, detector: int, output: Path, device: str, **options) -> WorkerSetup:
    """What makes the worker of one detector."""
    paths = {f"{name}_dir": str(plan.output / f"{name}s") for name in ("calibration", "template")}
    return WorkerSetup(camera=camera, detector=detector, output_dir=str(output), device=device, **paths, **options)


def _nightstream(*arguments) -> None:
    command = [sys.executable, "-c", "from nightstream.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"nightstream {arguments[0]}: {done.stdout}{done.stderr}")
