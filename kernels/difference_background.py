"""The smooth background left in a difference image: a polynomial through clipped means of bins.

Means, not modes or medians: with static sources gone there is nothing left to be robust against but a few
outliers, while the skewness of Poisson noise moves a mode by 0.01 sigma a pixel, which is 0.08 sigma in the
flux of every source.
"""

from __future__ import annotations

import numpy as np

from nightstream.kernels.convolution import tile_centres, tile_counts
from nightstream.kernels.psf import polynomial_terms
from nightstream.kernels.psf_matching import polynomial_image, unit_coordinates
from nightstream.kernels.target import array_module

CLIP_SIGMA = 4.0
ROUNDS = 2


def fit_difference_background(image, mask, variance, *, bin_pix, order, planes):
    """Return the background, float32 (ny, nx), of a difference image whose ``variance`` plane predicts its
    scatter.

    Pixels with ``planes``, NaN, or further than 4 sigma from the background of the round before are left out.
    ``order`` of the polynomial comes down when there are few bins; without any usable pixel the background is
    0.
    """
    xp = array_module(image)
    x, y = (c.ravel() for c in tile_centres(image.shape, bin_pix, xp=xp))
    order = min(order, *(n - 1 for n in tile_counts(image.shape, bin_pix)))
    terms = polynomial_terms(*unit_coordinates(x, y, image.shape, xp), order)
    good = ((mask & np.int32(planes)) == 0) & xp.isfinite(image) & (variance > 0)
    limit = CLIP_SIGMA * xp.sqrt(xp.where(good, variance, 0))
    background = xp.zeros(image.shape, xp.float32)
    for _ in range(ROUNDS):
        inside = good & (xp.abs(image - background) <= limit)
        count, total = (_bin_sums(xp.where(inside, plane, 0), bin_pix) for plane in (xp.float32(1), image))
        weight = xp.sqrt(count)
        level = total / xp.maximum(count, 1)
        solution = xp.linalg.lstsq(terms * weight[:, None], level * weight, rcond=None)[0]
        background = polynomial_image(_surface(solution, order, image.shape, xp), image.shape, xp)
    return background


def _surface(solution, order, shape, xp):
    return lambda x, y: polynomial_terms(*unit_coordinates(x, y, shape, xp), order) @ solution


def _bin_sums(plane, bin_pix):
    """Sums over bins in raster order, float64."""
    xp = array_module(plane)
    rows, columns = tile_counts(plane.shape, bin_pix)
    pad = tuple((0, n * bin_pix - s) for n, s in zip((rows, columns), plane.shape, strict=True))
    tiles = xp.pad(plane, pad).reshape(rows, bin_pix, columns, bin_pix)
    return tiles.sum(axis=(1, 3), dtype=xp.float64).ravel()
