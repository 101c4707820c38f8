"""Who belongs to whom: the one-to-one assignment of least total cost, where staying alone has a price too.

A sparse linear assignment problem (Jonker & Volgenant 1987; SciPy's LAPJVsp). Each connected component of the candidate
pairs is decided by its own costs alone.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

from nightstream.errors import InputError

BATCH_PAIRS = 500  # the solver's time grows faster than the problem: components are solved in groups of about this many pairs


def assign(rows: np.ndarray, columns: np.ndarray, cost: np.ndarray, no_match_cost: float) -> np.ndarray:
    """Return which of the candidate pairs ``rows[k], columns[k]`` are kept: ascending int64 indices.

    ``rows`` and ``columns`` (n,) integers name the partners; each pair occurs once. Of all ways to keep pairs so that no
    row and no column is in two of them, the kept ones have the least sum of ``cost`` (n,) plus ``no_match_cost`` for every
    row left alone. A pair that costs ``no_match_cost`` or more, or NaN, is never kept. Among ways of equal sum the names
    alone decide, not the order in which the pairs are given. Raises InputError when a pair is given twice.
    """
    candidates = np.flatnonzero(cost < no_match_cost)
    row, column = (np.unique(names[candidates], return_inverse=True)[1] for names in (rows, columns))
    component = _components(row, column)
    order = np.lexsort((column, row, component))
    candidates, row, column, component = candidates[order], row[order], column[order], component[order]
    if ((np.diff(row) == 0) & (np.diff(column) == 0)).any():
        raise InputError("a candidate pair is given twice")
    size = np.bincount(component)[component]
    kept = [candidates[size == 1]]
    contested = np.flatnonzero(size > 1)
    starts = np.flatnonzero(np.diff(component[contested], prepend=-1))
    cuts = starts[1:][np.diff(starts // BATCH_PAIRS) > 0]
    for pairs in np.split(contested, cuts):
        kept.append(candidates[pairs[_solved(row[pairs], column[pairs], cost[candidates[pairs]], no_match_cost)]])
    return np.sort(np.concatenate(kept))


def _components(row, column):
    """Return (n,) the number of the connected component of each pair."""
    if len(row) == 0:
        return np.zeros(0, dtype=np.int64)
    n, m = row.max() + 1, column.max() + 1
    graph = csr_array((np.ones(len(row), dtype=bool), (row, n + column)), shape=(n + m, n + m))
    return connected_components(graph, directed=False)[1][row]


def _solved(row, column, cost, no_match_cost):
    """Return the indices of the pairs in the least assignment; every row has a column of its own that means "alone"."""
    if len(row) == 0:
        return np.zeros(0, dtype=np.int64)
    row, column = np.unique(row, return_inverse=True)[1], np.unique(column, return_inverse=True)[1]
    n, m = row.max() + 1, column.max() + 1
    every = np.arange(n)
    weight = np.concatenate([cost, np.full(n, no_match_cost)])
    weight = weight - weight.min() + 1.0  # the same for every row's one choice, so that no weight is 0, which would mean no edge
    where = np.concatenate([row, every]), np.concatenate([column, m + every])
    matched_row, matched_column = min_weight_full_bipartite_matching(csr_array((weight, where), shape=(n, m + n)))
    choice = np.empty(n, dtype=np.int64)
    choice[matched_row] = matched_column
    return np.flatnonzero(choice[row] == column)
