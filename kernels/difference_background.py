"""The smooth background left in a difference image: a spline through clipped means of bins.

Means, not modes or medians: with static sources gone there is nothing left to be robust against but a few outliers,
while the skewness of Poisson noise moves a mode by 0.01 sigma a pixel, which is 0.08 sigma in the flux of every source.
How stiff the spline is, the bins say themselves (marginal likelihood, `matching_prior`): a flat difference gets a plane.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from scipy.interpolate import BSpline

from nightstream.kernels.convolution import tile_centres, tile_counts
from nightstream.kernels.matching_prior import Penalty, solve_shrunk
from nightstream.kernels.target import Launch, array_module, chunks, device_function, for_each, hot_loop

CLIP_SIGMA = 4.0  # of bins about the spline
CLIP_VARIANCE = np.float32(16.0)  # 4 sigma, squared, of pixels about the background of the round before
MAX_BIN_PIX = 1024  # one CUDA thread a column of a bin
ROUNDS = 2
ROWS_PER_CHUNK = 64  # in place of a plane of the image's size
DEGREE = 3
SMALLEST_KNOT_PIX, MOST_INTERVALS = 256, 10
MIN_BINS = 4  # along each axis; bins of small images are smaller
TILT = 1e-4  # weight of first differences beside second ones: where bins leave a slope open, there is none


class SmoothPlane(NamedTuple):
    """A plane (ny, nx) that is the product of ``down`` (ny, k) and ``along`` (k, nx), float32, k small."""

    down: Any
    along: Any

    def image(self):
        """Return all its pixels."""
        return self.down @ self.along

    def subtract_from(self, image) -> None:
        """Take it from ``image`` (ny, nx), in place and without ever being there as a whole."""

        def subtract_rows(rows: slice) -> None:
            image[rows] -= self.down[rows] @ self.along

        for_each(subtract_rows, chunks(len(image), ROWS_PER_CHUNK, array_module(image)), array_module(image))


def fit_difference_background(image, mask, variance, *, bin_pix, knot_pix=None, planes, start=None) -> SmoothPlane:
    """Return the background of a difference image (ny, nx) whose ``variance`` plane predicts its scatter.

    ``image`` and ``variance`` float32, ``mask`` int32. Pixels with ``planes``, NaN, or further than 4 sigma from the
    background of the round before at their bin's centre are left out of the means of bins of ``bin_pix`` pixels; in the
    first round that is ``start(x, y)``, by default 0. A cubic spline with knots ``knot_pix`` pixels apart (default: a
    tenth of the image, at least 256) is fitted to the means, held to a plane by a prior on its second differences.
    Without any usable pixel the background is 0.
    """
    xp = array_module(image)
    bin_pix = max(1, min(bin_pix, min(image.shape) // MIN_BINS, MAX_BIN_PIX))
    knot_pix = knot_pix or max(SMALLEST_KNOT_PIX, max(image.shape) // MOST_INTERVALS)
    x, y = tile_centres(image.shape, bin_pix, xp=xp)
    middle = xp.zeros(x.shape) if start is None else start(x.ravel(), y.ravel()).reshape(x.shape)
    table = None
    for _ in range(ROUNDS):
        count, total, noise = clipped_bin_sums(image, mask, variance, middle, bin_pix, planes)
        if not bool((count > 0).any()):
            break
        level, weight = total / xp.maximum(count, 1), xp.where(count > 0, count**2 / xp.maximum(noise, 1e-30), 0.0)
        table, middle = _fit_spline(level, weight, image.shape, bin_pix, knot_pix)
    if table is None:
        return SmoothPlane(*(xp.zeros(s, xp.float32) for s in ((image.shape[0], 1), (1, image.shape[1]))))
    rows, columns = (xp.asarray(spline_design(np.arange(n), n, knot_pix), dtype=xp.float32) for n in image.shape)
    return SmoothPlane(rows, table.astype(xp.float32) @ columns.T)


def clipped_bin_sums(image, mask, variance, middle, bin_pix, planes):
    """Return number, sum of values and sum of variances, float64 (rows, columns), of the usable pixels of bins of
    ``bin_pix`` pixels: without ``planes``, finite, of positive variance and within 4 sigma of the bin's ``middle``
    (rows, columns)."""
    xp = array_module(image)
    bins = tile_counts(image.shape, bin_pix)
    count, total, noise = (xp.zeros(bins) for _ in range(3))
    arrays = (
        xp.ascontiguousarray(plane, dtype)
        for plane, dtype in zip((image, mask, variance, middle), (xp.float32, xp.int32, xp.float32, xp.float32), strict=True)
    )
    sizes = (np.int32(n) for n in (int(planes), *image.shape, *bins, bin_pix))
    sum_bins(Launch(bins[::-1], (-(-bin_pix // 32) * 32,)), *arrays, *sizes, count, total, noise)
    return count, total, noise


@device_function
def _add_row(image, mask, variance, centre, planes, counts, totals, noises):
    """Add one row of a bin to the sums of its columns; without branches, so that it runs in vectors."""
    for x in range(len(image)):
        value, spread = image[x], variance[x]
        rest = value - centre
        inside = ((mask[x] & planes) == 0) & (spread > 0) & (rest * rest <= CLIP_VARIANCE * spread)
        counts[x] += 1.0 if inside else 0.0
        totals[x] += np.float64(value if inside else np.float32(0))
        noises[x] += np.float64(spread if inside else np.float32(0))


@hot_loop("difference_background")
def sum_bins(image, mask, variance, middle, planes, ny, nx, rows, columns, bin_pix, count, total, noise):
    """One bin a block. Sums run down columns, then across: one fixed order."""
    for index in prange(rows * columns):
        y0, x0 = index // columns * bin_pix, index % columns * bin_pix
        height, width = min(bin_pix, ny - y0), min(bin_pix, nx - x0)
        centre = middle[index // columns, index % columns]
        counts, totals, noises = np.zeros(width), np.zeros(width), np.zeros(width)
        for y in range(y0, y0 + height):
            row = slice(x0, x0 + width)
            _add_row(image[y, row], mask[y, row], variance[y, row], centre, planes, counts, totals, noises)
        for x in range(width):
            count[index // columns, index % columns] += counts[x]
            total[index // columns, index % columns] += totals[x]
            noise[index // columns, index % columns] += noises[x]


def sum_bins_reference(image, mask, variance, middle, bin_pix, planes):
    """The definition of `clipped_bin_sums` in plain NumPy."""
    ny, nx = image.shape
    background = np.repeat(np.repeat(middle, bin_pix, 0), bin_pix, 1)[:ny, :nx]
    with np.errstate(invalid="ignore"):
        inside = ((mask & int(planes)) == 0) & (variance > 0) & ((image - background) ** 2 <= CLIP_VARIANCE * variance)
    sums = []
    for plane in (np.ones(image.shape), image, variance):
        values = np.where(inside, plane, 0).astype(np.float64)
        rows = np.add.reduceat(values, np.arange(0, image.shape[0], bin_pix), axis=0)
        sums.append(np.add.reduceat(rows, np.arange(0, image.shape[1], bin_pix), axis=1))
    return tuple(sums)


def _fit_spline(level, weight, shape, bin_pix, knot_pix):
    """Return the coefficients (k, l) of the spline through ``level`` (rows, columns) with inverse variances ``weight``,
    and its values at the bins' centres."""
    xp = array_module(level)
    centres = tuple(np.minimum((np.arange(n) + 0.5) * bin_pix - 0.5, s - 1.0) for n, s in zip(level.shape, shape, strict=True))
    down, along = (xp.asarray(spline_design(c, s, knot_pix)) for c, s in zip(centres, shape, strict=True))
    table = down.shape[1], along.shape[1]
    penalty = Penalty(xp.arange(table[0] * table[1]), xp.asarray(_roughness(*table)))
    strengths = None
    for _ in range(ROUNDS):
        scale = float(xp.sqrt(1 / weight.max()))
        vector = (down.T @ (weight * level) @ along).ravel()
        solution = solve_shrunk(_normal_matrix(down, along, weight), vector, [penalty], scale=scale, strengths=strengths)
        strengths, coefficients = solution.strengths, solution.mean.reshape(table)
        fitted = down @ coefficients @ along.T
        residual = xp.abs(level - fitted) * xp.sqrt(weight)
        usual = xp.median(residual[weight > 0]) * 1.4826
        weight = xp.where(residual > CLIP_SIGMA * xp.maximum(usual, 1.0), 0.0, weight)
    return coefficients, fitted


def _normal_matrix(down, along, weight):
    """Return sum_yx weight (y, x) D_yi A_xj D_yk A_xl as a matrix of the pairs (i, j) and (k, l): one axis after the other,
    for the splines are products."""
    rows, columns = down.shape[1], along.shape[1]
    pairs_down, pairs_along = ((d[:, :, None] * d[:, None, :]).reshape(len(d), -1) for d in (down, along))
    matrix = (pairs_down.T @ weight @ pairs_along).reshape(rows, rows, columns, columns)
    return matrix.transpose(0, 2, 1, 3).reshape(rows * columns, rows * columns)


def spline_design(position, n, knot_pix) -> np.ndarray:
    """Return (len(position), k) float64 values of the cubic B-splines on ``n`` pixels at ``position`` within them."""
    intervals = max(1, round(n / knot_pix))
    inner = np.linspace(0, max(n - 1, 1), intervals + 1)
    step = inner[1] - inner[0]
    before, after = inner[0] - step * np.arange(DEGREE, 0, -1), inner[-1] + step * np.arange(1, DEGREE + 1)
    return BSpline.design_matrix(np.asarray(position, float), np.r_[before, inner, after], DEGREE).toarray()


def _roughness(rows, columns) -> np.ndarray:
    """Squared second differences along both axes of a table of spline coefficients, flattened by rows."""
    along_rows, along_columns = (
        sum(weight * d.T @ d for weight, d in ((1.0, np.diff(np.eye(n), 2, axis=0)), (TILT, np.diff(np.eye(n), axis=0))))
        for n in (rows, columns)
    )
    return np.kron(along_rows, np.eye(columns)) + np.kron(np.eye(rows), along_columns)
