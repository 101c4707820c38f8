"""The one-to-one assignment of least cost. Enumeration of every assignment is the oracle."""

from itertools import product

import numpy as np
import pytest

from nightstream.errors import InputError
from nightstream.kernels.assignment import assign


def total(kept, rows, cost, no_match):
    return cost[kept].sum() + no_match * (len(np.unique(rows)) - len(kept))


def least_total(rows, columns, cost, no_match):
    """The least sum over every choice of at most one column a row that uses no column twice."""
    options = [[None, *np.flatnonzero(rows == row)] for row in np.unique(rows)]
    best = np.inf
    for choice in product(*options):
        kept = np.array([k for k in choice if k is not None], dtype=int)
        if len(set(columns[kept])) == len(kept):
            best = min(best, total(kept, rows, cost, no_match))
    return best


def problem(rng, n=5, m=5, density=0.6):
    rows, columns = np.nonzero(rng.random((n, m)) < density)
    return rows * 10, columns * 7, rng.normal(0, 2, len(rows))


@pytest.mark.parametrize("seed", range(20))
def test_the_sum_is_the_least(seed):
    """No assignment of a random problem costs less, and none uses a row or column twice."""
    rows, columns, cost = problem(np.random.default_rng(seed))
    kept = assign(rows, columns, cost, 1.0)
    assert len(set(rows[kept])) == len(set(columns[kept])) == len(kept)
    np.testing.assert_allclose(total(kept, rows, cost, 1.0), least_total(rows, columns, cost, 1.0))


def test_beats_taking_the_cheapest_first():
    """Row 0 gives up its cheapest column so that row 1 gets one: 2 + 2 is less than 1 + alone."""
    rows, columns = np.array([0, 0, 1]), np.array([0, 1, 0])
    assert assign(rows, columns, np.array([1.0, 2.0, 2.0]), 100.0).tolist() == [1, 2]


def test_dear_pairs_stay_alone():
    """A pair at or above the price of staying alone, or NaN, is not kept."""
    rows, columns = np.arange(4), np.arange(4)
    assert assign(rows, columns, np.array([2.9, 3.0, 3.1, np.nan]), 3.0).tolist() == [0]


def test_contention_leaves_one_alone():
    """Three rows that want two columns: the one that costs most stays alone."""
    rows, columns = np.repeat([0, 1, 2], 2), np.tile([0, 1], 3)
    kept = assign(rows, columns, np.array([1.0, 5.0, 4.0, 4.0, 5.0, 1.0]), 10.0)
    assert rows[kept].tolist() == [0, 2]


def test_ties_do_not_depend_on_the_order_of_pairs():
    """With many equal costs, every order of the same pairs keeps the same ones."""
    rng = np.random.default_rng(3)
    rows, columns = np.nonzero(rng.random((40, 40)) < 0.1)
    cost = rng.integers(0, 3, len(rows)).astype(float)
    first = assign(rows, columns, cost, 2.5)
    wanted = set(zip(rows[first], columns[first], strict=True))
    for _ in range(10):
        order = rng.permutation(len(rows))
        kept = order[assign(rows[order], columns[order], cost[order], 2.5)]
        assert set(zip(rows[kept], columns[kept], strict=True)) == wanted


def test_many_components_are_decided_by_themselves():
    """A thousand copies of one contested problem, far more than one batch, all end as the one does."""
    rng = np.random.default_rng(4)
    rows, columns, cost = problem(rng)
    copies = np.repeat(np.arange(1000), len(rows))
    kept = assign(np.tile(rows, 1000) + 1000 * copies, np.tile(columns, 1000) + 1000 * copies, np.tile(cost, 1000), 1.0)
    one = assign(rows, columns, cost, 1.0)
    np.testing.assert_array_equal(kept, (np.arange(1000)[:, None] * len(rows) + one).ravel())


def test_nothing_to_assign():
    """No pairs give no pairs."""
    nothing = np.zeros(0, dtype=np.int64)
    assert assign(nothing, nothing, np.zeros(0), 1.0).tolist() == []


def test_a_pair_given_twice_is_refused():
    """The same pair twice is an error, not a coin toss."""
    with pytest.raises(InputError, match="twice"):
        assign(np.array([1, 1]), np.array([2, 2]), np.zeros(2), 1.0)
