"""The benchmarks of the kernels: answers are checked before they are timed, on the CPU and as a card would have it."""

import dataclasses
from importlib import import_module
from pathlib import Path

import contest
import numpy as np
import pytest
from cudashim import loader
from strict_cupy import strict_cupy

from nightstream.engine.blas import use_one_blas_thread

FAMILIES = sorted(path.stem for path in Path(contest.__file__).parent.glob("kernel_*.py"))
SIDE = 256  # pixels


@pytest.fixture(autouse=True)
def one_blas_thread():
    """As the scripts have it: on a busy machine small products wait for each other's threads."""
    use_one_blas_thread()


def doubling(**changes) -> contest.Case:
    """The smallest kernel: twice an array."""
    case = contest.Case(
        name="double",
        size="1000 f32",
        arrays={"values": np.arange(1000, dtype=np.float32)},
        ours=lambda values: values * 2,
        moved_bytes=8000,
        direct=lambda xp, values: values + values,
        peers={"sum": lambda: np.arange(1000, dtype=np.float32) * np.float32(2)},
        check=lambda results: [np.testing.assert_array_equal(results["ours"], other) for other in results.values()],
    )
    return dataclasses.replace(case, **changes)


def test_every_contender_is_timed_and_held_against_the_floor():
    """Eight thousand bytes at 8 GB/s are a microsecond; ratios are to ours on one thread."""
    rates = contest.Rates(8e9, 1e9)
    row = contest.result(doubling(), contest.compete(doubling(), "cpu", runs=2), rates)
    assert row["floor_s"] == pytest.approx(1e-6)
    assert row["costs"].keys() == {"ours", "ours, 1 thread", "arrays", "sum"}
    assert row["times_ours"].keys() == {"arrays", "sum"}
    assert "GB/s" in contest.line(row, rates)


def test_the_slower_of_both_floors_counts():
    """Two thousand operations at 1 Gflop/s take longer than the bytes do."""
    assert contest.Rates(8e9, 1e9).floor_s(doubling(operations=2000)) == pytest.approx(2e-6)


def test_a_wrong_answer_is_not_timed():
    """A peer that disagrees ends the run with the case's name."""
    with pytest.raises(SystemExit, match="wrong answer: double 1000 f32"):
        contest.verify(doubling(peers={"sum": lambda: np.zeros(1000, np.float32)}), "cpu")


def test_an_answer_that_changes_is_not_timed():
    """Ours must give the same bits twice."""
    calls = iter(range(9))
    with pytest.raises(SystemExit, match="wrong answer"):
        contest.verify(doubling(ours=lambda values: values + next(calls), check=lambda results: None), "cpu")


def test_a_peer_that_is_not_installed_is_left_out():
    """The first word of a peer's name is its package."""
    assert contest.installed({"numpy sum": np.sum, "nopackage sum": np.sum}).keys() == {"numpy sum"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_checks_its_answers_against_its_peers(family):
    """All contenders, on a small detector."""
    for case in import_module(family).cases(SIDE):
        contest.verify(case, "cpu")


@pytest.mark.skipif(not loader.has_compiler(), reason="g++ is absent, so the .cu sources cannot run on the CPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_runs_where_arrays_do_not_mix_with_numpys(family):
    """Ours and the direct way on strict arrays, held against the CPU's answer."""
    made = list(import_module(family).cases(SIDE))
    with strict_cupy():
        for case in made:
            contest.verify(case, "gpu")
