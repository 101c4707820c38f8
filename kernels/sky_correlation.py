"""How much the noise of neighbouring pixels has in common, measured on the empty sky of one image."""

from __future__ import annotations

import numpy as np

from nightstream.kernels.target import array_module, chunks, for_each

SAMPLE_PIX = 1024  # side of the middle part that is looked at: a million pixels tell correlations of 0.001
ROWS_PER_CHUNK = 128  # that a thread works on at a time
SAMPLE_STEP = 2  # every other row and column tell the median
CLIP_VARIANCE = 16.0  # 4 sigma, squared


def sky_correlation(image, mask, variance, *, planes, reach: int = 2) -> np.ndarray:
    """Return the (2 reach + 1, 2 reach + 1) autocorrelation of image / sqrt(variance), centre 1, host float64.

    Planes (ny, nx). Pixels with ``planes``, without value or further than 4 sigma from the median (of every other row and
    column) are left out, with all pairs they are in. NaN where there is no pair. The error of a lag is 1 / sqrt(pairs).
    """
    xp = array_module(image)
    middle = tuple(slice(max(0, (n - SAMPLE_PIX) // 2), (n + SAMPLE_PIX + 1) // 2) for n in image.shape)
    image, mask, variance = (plane[middle] for plane in (image, mask, variance))
    good, pull = xp.empty(image.shape, bool), xp.empty(image.shape)

    def divide_rows(rows: slice) -> None:
        good[rows] = ((mask[rows] & np.int32(planes)) == 0) & xp.isfinite(image[rows]) & (variance[rows] > 0)
        pull[rows] = xp.where(good[rows], image[rows] / xp.sqrt(xp.where(good[rows], variance[rows], 1)), 0)

    for_each(divide_rows, chunks(len(image), ROWS_PER_CHUNK, xp), xp)
    sample = good[::SAMPLE_STEP, ::SAMPLE_STEP]
    level = xp.median(pull[::SAMPLE_STEP, ::SAMPLE_STEP][sample]) if bool(sample.any()) else 0.0
    good = good & ((pull - level) ** 2 < CLIP_VARIANCE)
    pull, weight = xp.where(good, pull - level, 0.0), good.astype(xp.float64)
    stamp = np.full((2 * reach + 1,) * 2, np.nan)

    def correlate(lag: tuple[int, int]) -> None:
        dy, dx = lag
        products, pairs = (_lagged_sum(plane, dy, dx) for plane in (pull, weight))
        if pairs > 0:
            stamp[reach + dy, reach + dx] = stamp[reach - dy, reach - dx] = products / pairs

    for_each(correlate, [(dy, dx) for dy in range(reach + 1) for dx in range(-reach if dy else 0, reach + 1)], xp)
    return stamp / stamp[reach, reach]


def _lagged_sum(plane, dy: int, dx: int) -> float:
    ny, nx = plane.shape
    here = plane[: ny - dy, max(0, -dx) : nx - max(0, dx)]
    there = plane[dy:, max(0, dx) : nx - max(0, -dx)]
    return float((here * there).sum())
