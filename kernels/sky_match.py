"""Pairs of directions closer than a radius, anywhere on the sky: no seam in right ascension, nothing special at the poles.

Owns the search and the likelihood of a pair. Which pairs are kept is `nightstream.kernels.assignment`. Tables live on the
host, so these are NumPy programs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nightstream.errors import InputError
from nightstream.kernels.sky_frames import ARCSEC_PER_RADIAN, tangent_basis

MIN_RADIUS_ARCSEC, MAX_RADIUS_ARCSEC = 0.05, 3600.0  # the least for which cubes have numbers of their own
FILTER_BITS = 22  # of the table that says which cells may hold anything: 4 MB, which stays in the cache


class SkyPairs(NamedTuple):
    """Pairs ``first[k], second[k]`` (int64), sorted by first, then second, and how far apart they are (arcsec, float64)."""

    first: np.ndarray
    second: np.ndarray
    separation_arcsec: np.ndarray


def sky_pairs(first: np.ndarray, second: np.ndarray, radius_arcsec: float) -> SkyPairs:
    """Return all pairs of a direction of ``first`` and one of ``second`` at most ``radius_arcsec`` apart.

    Both are (n, 3) float64 unit vectors; rows with NaN match nothing. Quick where ``first`` is the short list: space is
    cut into cubes of side four times the radius, each row of ``first`` is entered into the 1 to 8 cubes that its ball may
    touch, and each row of ``second`` looks into its own. Raises InputError on a radius not in 0.05..3600.
    """
    if not MIN_RADIUS_ARCSEC <= radius_arcsec <= MAX_RADIUS_ARCSEC:
        raise InputError(f"radius must be in {MIN_RADIUS_ARCSEC}..{MAX_RADIUS_ARCSEC:.0f} arcsec, got {radius_arcsec}")
    reach = 2.0 * np.sin(0.5 * radius_arcsec / ARCSEC_PER_RADIAN)
    cell, owner = _entered_cells(first, reach)
    seekers, sought = _looking(second, reach, cell)
    low, high = np.searchsorted(cell, sought), np.searchsorted(cell, sought, side="right")
    count = high - low
    seeker = np.repeat(seekers, count)
    position = np.arange(len(seeker)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    i = owner[position]
    chord = np.linalg.norm(first[i] - second[seeker], axis=1)
    order = np.lexsort((seeker, i))
    order = order[chord[order] <= reach * (1.0 + 1e-12)]
    return SkyPairs(i[order], seeker[order], 2.0 * np.arcsin(0.5 * chord[order]) * ARCSEC_PER_RADIAN)


def _entered_cells(vectors, reach):
    """Return (cell number sorted, row): each row once for every cube that its ball of radius ``reach`` touches."""
    rows = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    margin = reach * (1.0 + 1e-9)
    low, high = (_cube(vectors[rows] + sign * margin, reach) for sign in (-1.0, 1.0))
    cells, owners = [], []
    for corner in np.ndindex(2, 2, 2):
        corner = np.array(corner, dtype=bool)
        is_new = ((low != high) | ~corner).all(axis=1)  # a cube that both ends share is entered once
        cells.append(_cell_number(np.where(corner, high, low)[is_new]))
        owners.append(rows[is_new])
    cell, owner = np.concatenate(cells), np.concatenate(owners)
    order = np.argsort(cell, kind="stable")
    return cell[order], owner[order]


def _looking(vectors, reach, cell):
    """Return (row, cell number) of the rows whose cube is, but for few that share its hash, in ``cell``."""
    number = _cell_number(_cube(vectors, reach))
    is_known = np.zeros(1 << FILTER_BITS, dtype=bool)
    is_known[_hash(cell)] = True
    rows = np.flatnonzero(is_known[_hash(number)])
    rows = rows[np.isfinite(vectors[rows]).all(axis=1)]
    return rows, number[rows]


def _cube(vectors, reach):
    """Return (n, 3) int64 counted from 0; NaN lands anywhere, and is left out by the caller."""
    with np.errstate(invalid="ignore"):
        return ((vectors + 1.001) / (4.0 * reach)).astype(np.int64)


def _cell_number(cube):
    """Return (n,) int64, one a cube: 21 bits an axis are enough from `MIN_RADIUS_ARCSEC` on."""
    return (cube[:, 0] << 42) ^ (cube[:, 1] << 21) ^ cube[:, 2]


def _hash(number):
    return ((number.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - FILTER_BITS)).astype(np.int64)


def gaussian_cost(offset: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return (n,) minus the log of the Gaussian density (arcsec^-2) of ``offset``: half chi^2 + half ln det + ln 2 pi.

    ``offset`` (n, 2) arcsec east and north; ``covariance`` (n, 3) arcsec^2: of east, of north, and their covariance, which
    must be positive definite. NaN gives NaN.
    """
    (dx, dy), (xx, yy, xy) = offset.T, covariance.T
    determinant = xx * yy - xy * xy
    chi2 = (yy * dx * dx - 2.0 * xy * dx * dy + xx * dy * dy) / determinant
    return 0.5 * (chi2 + np.log(determinant)) + np.log(2.0 * np.pi)


def turned_covariance(covariance: np.ndarray, from_ra, from_dec, to_ra, to_dec) -> np.ndarray:
    """Return ``covariance`` (n, 3: east, north, mixed), given along east and north of one direction, along those of another.

    The directions (deg) are near each other on the sky; next to a pole their axes may still be far from parallel.
    """
    from_east, from_north = tangent_basis(from_ra, from_dec)
    to_east, to_north = tangent_basis(to_ra, to_dec)
    ee, en, ne, nn = ((one * other).sum(axis=-1) for one in (to_east, to_north) for other in (from_east, from_north))
    xx, yy, xy = covariance.T
    return np.stack(
        [
            ee * ee * xx + en * en * yy + 2.0 * ee * en * xy,
            ne * ne * xx + nn * nn * yy + 2.0 * ne * nn * xy,
            ee * ne * xx + en * nn * yy + (ee * nn + en * ne) * xy,
        ],
        axis=-1,
    )
