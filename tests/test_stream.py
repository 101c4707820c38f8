"""The real pipeline as a stream: the same bits whoever runs it, and memory that stays flat."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from small_survey import CAMERA, SmallSurvey

from nightstream.io.products import product_path, write_visit_master
from nightstream.scheduler.config import SchedulerConfig
from nightstream.scheduler.executor import Executor, place_setups
from nightstream.scheduler.local_executor import LocalExecutor
from nightstream.scheduler.messages import WorkerSetup
from nightstream.scheduler.policy import AdmissionPolicy
from nightstream.scheduler.run import RunHooks, RunSummary, Visit, run_visits

FRAME_BYTES = 9 * 256 * 256 * 4  # image, mask, variance of visit image, matched template and difference
STATM = Path("/proc/self/statm")


def setups_of(survey: SmallSurvey, output: Path, detectors=(0, 1)) -> dict[int, WorkerSetup]:
    return {
        detector: WorkerSetup(
            camera=str(CAMERA), detector=detector, output_dir=str(output), device="cpu",
            calibration_dir=str(survey.calibrations), template_dir=str(survey.templates),
            forced_positions=str(survey.positions),
        )
        for detector in detectors
    }  # fmt: skip


def process(survey: SmallSurvey, output: Path, executor: Executor) -> RunSummary:
    """Run all science visits."""
    visits = [Visit(visit, {d: str(survey.raw(visit, d)) for d in (0, 1)}) for visit in survey.visits]
    hooks = RunHooks(write_master=lambda visit, reports: write_visit_master(output, visit, reports))
    return run_visits(visits, place_setups(setups_of(survey, output), 2), executor, AdmissionPolicy(), hooks)


def contents(path: Path) -> dict[str, object]:
    """Every dataset and attribute of a product, by name; seconds are not results."""
    found: dict[str, object] = {}

    def take(name: str, node) -> None:
        if name != "timings":
            found.update({f"{name}@{key}": value for key, value in node.attrs.items()})
        if isinstance(node, h5py.Dataset):
            found[name] = node[()]

    with h5py.File(path) as file:
        file.visititems(take)
    return found


def same_bits(one: object, other: object) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool((one == other).all()) if one.dtype.hasobject else one.tobytes() == other.tobytes()


@pytest.mark.ray
def test_both_executors_give_the_same_bits(small_survey, tmp_path, ray_cluster):
    """Every plane, table and attribute of every product is the same from this process and from Ray actors."""
    from nightstream.scheduler.ray_executor import RayExecutor

    ray_executor = RayExecutor(SchedulerConfig(executor="ray", threads_per_actor=1))
    summaries = [
        process(small_survey, tmp_path / "local", LocalExecutor()),
        process(small_survey, tmp_path / "ray", ray_executor),
    ]
    assert all(summary.is_complete for summary in summaries)
    for visit in small_survey.visits:
        for detector in (0, 1):
            one, other = (contents(product_path(tmp_path / name, visit, detector)) for name in ("local", "ray"))
            assert one.keys() == other.keys() and {"difference/image", "dia_sources", "forced_sources"} <= one.keys()
            assert [name for name in one if not same_bits(one[name], other[name])] == []
            assert len(one["dia_sources"]) > 0 and len(one["forced_sources"]) > 0


def resident_bytes() -> int:
    """Memory that this process holds now."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * 4096


def renumbered(raw: Path, folder: Path, numbers: range) -> Iterator[Visit]:
    """One raw file again and again, each time as another visit."""
    for number in numbers:
        path = folder / f"{number}.fits"
        shutil.copy(raw, path)
        fits.setval(path, "VISIT", value=number)
        yield Visit(number, {0: str(path)})


@pytest.mark.skipif(not STATM.exists(), reason="the memory of a process is read from /proc")
def test_memory_is_flat_over_fifty_visits(small_survey, tmp_path, one_thread):
    """After 10 visits that fill caches and the allocator's pools, 40 more grow the process by nothing that is kept."""
    held = []
    visits = renumbered(small_survey.raw(small_survey.visits[0], 0), tmp_path, range(1, 51))
    workers = place_setups(setups_of(small_survey, tmp_path / "out", (0,)), 1)
    hooks = RunHooks(on_visit=lambda visit: held.append(resident_bytes()))
    summary = run_visits(visits, workers, LocalExecutor(), AdmissionPolicy(), hooks)
    assert summary.is_complete and len(summary.visits) == 50
    assert held[-1] - held[9] < 40 * 0.02 * FRAME_BYTES  # a plane that is kept of each visit would be 0.11 of it
