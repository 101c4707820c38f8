"""How much the noise of neighbouring pixels has in common, measured on the empty sky of one image."""

from __future__ import annotations

import numpy as np

from nightstream.kernels.target import array_module

SAMPLE_PIX = 1024  # side of the middle part that is looked at: a million pixels tell correlations of 0.001
CLIP_VARIANCE = 16.0  # 4 sigma, squared


def sky_correlation(image, mask, variance, *, planes, reach: int = 2) -> np.ndarray:
    """Return the (2 reach + 1, 2 reach + 1) autocorrelation of image / sqrt(variance), centre 1, host float64.

    Planes (ny, nx). Pixels with ``planes``, without value or further than 4 sigma from the median are left out, with all
    pairs they are in. NaN where there is no pair. The error of a lag is 1 / sqrt(pairs).
    """
    xp = array_module(image)
    middle = tuple(slice(max(0, (n - SAMPLE_PIX) // 2), (n + SAMPLE_PIX + 1) // 2) for n in image.shape)
    image, mask, variance = (plane[middle] for plane in (image, mask, variance))
    good = ((mask & np.int32(planes)) == 0) & xp.isfinite(image) & (variance > 0)
    pull = xp.where(good, image / xp.sqrt(xp.where(good, variance, 1)), 0).astype(xp.float64)
    level = xp.median(pull[good]) if bool(good.any()) else 0.0
    good = good & ((pull - level) ** 2 < CLIP_VARIANCE)
    pull, weight = xp.where(good, pull - level, 0.0), good.astype(xp.float64)
    stamp = np.full((2 * reach + 1,) * 2, np.nan)
    for dy in range(reach + 1):
        for dx in range(-reach, reach + 1):
            products, pairs = (_lagged_sum(plane, dy, dx) for plane in (pull, weight))
            if pairs > 0:
                stamp[reach + dy, reach + dx] = stamp[reach - dy, reach - dx] = products / pairs
    return stamp / stamp[reach, reach]


def _lagged_sum(plane, dy: int, dx: int) -> float:
    ny, nx = plane.shape
    here = plane[: ny - dy, max(0, -dx) : nx - max(0, dx)]
    there = plane[dy:, max(0, dx) : nx - max(0, -dx)]
    return float((here * there).sum())
