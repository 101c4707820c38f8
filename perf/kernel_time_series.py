"""Periods of light curves, and who belongs to whom on the sky, beside Astropy, SciPy and plain array expressions.

    python perf/kernel_time_series.py [--device auto|cpu|gpu] [--runs 3] [--name kernel-time-series-cpu]

Astropy takes one light curve at a time, so it gets 64 of them, and ours too. Pairs and their assignment are of one detector,
whose lists are about as long as each other, and are found on the host whatever the device; `association.py` has a visit
with a million objects. Writes perf/records/<name>.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import contest
import numpy as np
from contest import OURS, Case, installed
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from nightstream.kernels.assignment import assign
from nightstream.kernels.periodogram import find_periods
from nightstream.kernels.sky_frames import ARCSEC_PER_RADIAN, unit_vectors
from nightstream.kernels.sky_match import sky_pairs

DAYS, POINTS = 300.0, 100  # of a light curve
HIGHEST_FREQUENCY, PER_PEAK = 3.0, 5  # per day, and frequencies on the grid within 1 / DAYS
AMPLITUDE, NOISE = 1000.0, 300.0
PEERS_CURVES = 64
PIXELS_PER_CURVE, PIXELS_PER_SOURCE = 2**14, 1600  # of the detector
OPERATIONS = 18  # a point and frequency: the wave turned by a step, and six sums of products
FIELD_DEG, RADIUS_ARCSEC = 0.23, 5.0
NO_MATCH_COST = 1.0


class Curves(NamedTuple):
    """Light curves (n, points) of one band and the frequencies to try, those of all of them."""

    time: np.ndarray
    flux: np.ndarray
    err: np.ndarray
    true_frequency: np.ndarray  # (n,)
    step: float
    n_steps: int

    @property
    def grid(self) -> np.ndarray:
        return self.step * (1 + np.arange(self.n_steps))

    def columns(self) -> dict[str, np.ndarray]:
        """As `find_periods` takes them."""
        n = len(self.time)
        rows = {"time": self.time.ravel(), "flux": self.flux.ravel(), "err": self.err.ravel()}
        step = np.full(n, self.step)
        scan = {"start": POINTS * np.arange(n + 1), "first_frequency": step, "step": step}
        return rows | scan | {"n_steps": np.full(n, self.n_steps, np.int32)}


def make_curves(count: int) -> Curves:
    """Sinusoids at random times, faint enough that a few points do not tell the period."""
    rng = np.random.default_rng(1)
    frequency = rng.uniform(0.05, 0.9 * HIGHEST_FREQUENCY, count)
    time = np.sort(rng.uniform(0, DAYS, (count, POINTS)), axis=1)
    flux = AMPLITUDE * np.sin(2 * np.pi * frequency[:, None] * time) + rng.normal(0, NOISE, time.shape)
    step = 1 / (DAYS * PER_PEAK)
    return Curves(time, flux, np.full(time.shape, NOISE), frequency, step, int(HIGHEST_FREQUENCY / step))


def cases(side: int) -> Iterator[Case]:
    """As many objects as a detector of ``side`` pixels may have."""
    count = max(side**2 // PIXELS_PER_CURVE, 1)
    yield periods(make_curves(count))
    yield periods_beside_others(make_curves(min(count, PEERS_CURVES)))
    rng, n = np.random.default_rng(2), side**2 // PIXELS_PER_SOURCE
    first, second = (unit_vectors(*rng.uniform(0, FIELD_DEG, (2, n))) for _ in range(2))
    yield pairs(first, second)
    yield assignment(side // 2)


def periods(curves: Curves) -> Case:
    """All objects."""
    n = len(curves.time)

    def check(results) -> None:
        """The grid has five frequencies a peak, so the best is within a step of the truth, whoever finds it.

        The true frequency's own error is sqrt(6 / POINTS) NOISE / (pi DAYS AMPLITUDE) (Montgomery & O'Donoghue 1999), a
        tenth of a step.
        """
        for name, found in results.items():
            frequency = found["frequency"][:, 0] if isinstance(found, dict) else found
            assert (np.abs(frequency - curves.true_frequency) <= curves.step).all(), name

    columns = curves.columns()
    return Case(
        name="find_periods",
        size=f"{n} of {POINTS} at {curves.n_steps}",
        arrays=columns,
        ours=lambda **columns: find_periods(**columns, n_bands=1)._asdict(),
        moved_bytes=sum(column.nbytes for column in columns.values()) + 48 * n,
        operations=float(OPERATIONS * n * POINTS * curves.n_steps),
        check=check,
        tolerance=1e-9,  # float64, but for sin() and cos() of either library, and the peak that a parabola tells of them
    )


def periods_beside_others(curves: Curves) -> Case:
    """The same few for everybody."""

    def by_astropy():
        from astropy.timeseries import LombScargle

        def best(time, flux, err):
            power = LombScargle(time, flux, err).power(curves.grid, assume_regular_frequency=True)
            return curves.grid[power.argmax()]

        return np.array([best(*curve) for curve in zip(curves.time, curves.flux, curves.err, strict=True)])

    return replace(periods(curves), direct=scan_by_arrays, peers=installed({"astropy": by_astropy}))


def scan_by_arrays(xp, time, flux, err, start, first_frequency, step, n_steps):
    """Generalised Lomb-Scargle power of one object after the other, all sines and cosines of it at once."""
    del start
    n, best = len(n_steps), []
    grid = first_frequency[0] + step[0] * xp.arange(int(n_steps[0]))
    for t, y, e in zip(*(column.reshape(n, POINTS) for column in (time, flux, err)), strict=True):
        weight = 1 / e**2 / (1 / e**2).sum()
        y = y - (weight * y).sum()
        angle = (2 * np.pi) * grid[:, None] * t
        c, s = xp.cos(angle), xp.sin(angle)
        mean_c, mean_s, yc, ys = c @ weight, s @ weight, c @ (weight * y), s @ (weight * y)
        cc, ss, cs = (c * c) @ weight - mean_c**2, (s * s) @ weight - mean_s**2, (c * s) @ weight - mean_c * mean_s
        power = (ss * yc**2 + cc * ys**2 - 2 * cs * yc * ys) / (cc * ss - cs**2)
        best.append(grid[xp.argmax(power)])
    return xp.stack(best)


def pairs(first, second) -> Case:
    """Two lists of directions of one field, about as long as each other."""
    reach = 2 * np.sin(RADIUS_ARCSEC / ARCSEC_PER_RADIAN / 2)
    found = sky_pairs(first, second, RADIUS_ARCSEC)

    def by_tree():
        near = cKDTree(first).sparse_distance_matrix(cKDTree(second), reach, output_type="coo_matrix")
        return near.row, near.col

    def by_astropy():
        from astropy import units
        from astropy.coordinates import SkyCoord, search_around_sky

        lists = (SkyCoord(*vectors.T, representation_type="cartesian") for vectors in (first, second))
        return search_around_sky(*lists, RADIUS_ARCSEC * units.arcsec)[:2]

    def check(results) -> None:
        """The same pairs, in any order; none lies within rounding, 1e-10 of the radius, of it."""
        wanted = set(zip(results[OURS].first, results[OURS].second, strict=True))
        for name, other in results.items():
            assert set(zip(*other[:2], strict=True)) == wanted, name

    return Case(
        name="sky_pairs",
        size=f"{len(first)} x {len(second)}",
        arrays={},  # tables live on the host
        ours=lambda: sky_pairs(first, second, RADIUS_ARCSEC),
        moved_bytes=first.nbytes + second.nbytes + 24 * len(found.first),
        peers={"scipy cKDTree": by_tree} | installed({"astropy": by_astropy}),
        check=check,
    )


def assignment(count: int) -> Case:
    """Rows and columns on a square, near enough for three candidates a row; SciPy needs the whole matrix."""
    rng = np.random.default_rng(3)
    places = rng.uniform(0, np.sqrt(count), (2, count, 2))
    near = cKDTree(places[0]).sparse_distance_matrix(cKDTree(places[1]), 1.0, output_type="coo_matrix")
    gain = np.zeros((count, count))  # by not being alone
    gain[near.row, near.col] = np.minimum(near.data - NO_MATCH_COST, 0.0)

    def by_scipy():
        rows, columns = linear_sum_assignment(gain)
        return gain[rows, columns].sum()

    def check(results) -> None:
        """The same least cost, to the rounding of ``count`` sums."""
        kept = results[OURS]
        assert len(set(near.row[kept])) == len(set(near.col[kept])) == len(kept), "a partner is in two pairs"
        least = (near.data[kept] - NO_MATCH_COST).sum()
        for name in results.keys() - {OURS}:
            np.testing.assert_allclose(results[name], least, rtol=count * np.finfo(float).eps, err_msg=name)

    return Case(
        name="assign",
        size=f"{count} x {count}, {near.nnz} pairs",
        arrays={},  # tables live on the host
        ours=lambda: assign(near.row, near.col, near.data, NO_MATCH_COST),
        moved_bytes=16.0 * near.nnz,
        peers={"scipy dense": by_scipy},
        check=check,
    )


if __name__ == "__main__":
    contest.main("kernel-time-series", cases, __doc__)
