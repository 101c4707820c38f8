"""The smooth background left in a difference image: a spline through clipped means of bins.

Means, not modes or medians: with static sources gone there is nothing left to be robust against but a few outliers,
while the skewness of Poisson noise moves a mode by 0.01 sigma a pixel, which is 0.08 sigma in the flux of every source.
How stiff the spline is, the bins say themselves (marginal likelihood, `matching_prior`): a flat difference gets a plane.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import BSpline

from nightstream.kernels.convolution import tile_counts
from nightstream.kernels.matching_prior import Penalty, solve_shrunk
from nightstream.kernels.target import array_module

CLIP_SIGMA = 4.0  # of pixels about the background of the round before, and of bins about the spline
ROUNDS = 2
DEGREE = 3
MIN_BINS = 4  # along each axis; bins of small images are smaller
TILT = 1e-4  # weight of first differences beside second ones: where bins leave a slope open, there is none


def fit_difference_background(image, mask, variance, *, bin_pix, knot_pix, planes):
    """Return the background, float32 (ny, nx), of a difference image whose ``variance`` plane predicts its scatter.

    ``image`` and ``variance`` float32, ``mask`` int32. Pixels with ``planes``, NaN, or further than 4 sigma from the
    background of the round before are left out of the means of bins of ``bin_pix`` pixels; a cubic spline with knots
    ``knot_pix`` pixels apart is fitted to them, held to a plane by a prior on its second differences. Without any usable
    pixel the background is 0.
    """
    xp = array_module(image)
    bin_pix = max(1, min(bin_pix, min(image.shape) // MIN_BINS))
    good = ((mask & np.int32(planes)) == 0) & xp.isfinite(image) & (variance > 0)
    limit = CLIP_SIGMA * xp.sqrt(xp.where(good, variance, 0))
    background = xp.zeros(image.shape, xp.float32)
    for _ in range(ROUNDS):
        inside = good & (xp.abs(image - background) <= limit)
        count, total, noise = (_bin_sums(xp.where(inside, plane, 0), bin_pix) for plane in (xp.float32(1), image, variance))
        if not bool((count > 0).any()):
            break
        level, weight = total / xp.maximum(count, 1), xp.where(count > 0, count**2 / xp.maximum(noise, 1e-30), 0.0)
        background = _fit_spline(level, weight, image.shape, bin_pix, knot_pix)
    return background


def _fit_spline(level, weight, shape, bin_pix, knot_pix):
    """Return the spline through ``level`` (rows, columns) with inverse variances ``weight``, as an image."""
    xp = array_module(level)
    centres = tuple(np.minimum((np.arange(n) + 0.5) * bin_pix - 0.5, s - 1.0) for n, s in zip(level.shape, shape, strict=True))
    down, along = (xp.asarray(spline_design(c, s, knot_pix)) for c, s in zip(centres, shape, strict=True))
    design = (down[:, None, :, None] * along[None, :, None, :]).reshape(level.size, -1)
    penalty = Penalty(xp.arange(design.shape[1]), xp.asarray(_roughness(down.shape[1], along.shape[1])))
    level, weight = level.ravel(), weight.ravel()
    for _ in range(ROUNDS):
        weighted = design * weight[:, None]
        scale = float(xp.sqrt(1 / weight.max()))
        solution = solve_shrunk(weighted.T @ design, weighted.T @ level, [penalty], scale=scale).mean
        residual = xp.abs(level - design @ solution) * xp.sqrt(weight)
        usual = xp.median(residual[weight > 0]) * 1.4826
        weight = xp.where(residual > CLIP_SIGMA * xp.maximum(usual, 1.0), 0.0, weight)
    table = solution.reshape(down.shape[1], along.shape[1]).astype(xp.float32)
    rows, columns = (xp.asarray(spline_design(np.arange(n), n, knot_pix), dtype=xp.float32) for n in shape)
    return rows @ table @ columns.T


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


def _bin_sums(plane, bin_pix):
    """Sums over bins, (rows, columns) float64."""
    xp = array_module(plane)
    rows, columns = tile_counts(plane.shape, bin_pix)
    pad = tuple((0, n * bin_pix - s) for n, s in zip((rows, columns), plane.shape, strict=True))
    tiles = xp.pad(plane, pad).reshape(rows, bin_pix, columns, bin_pix)
    return tiles.sum(axis=(1, 3), dtype=xp.float64)
