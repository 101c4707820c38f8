"""Clipped mean of aligned frames, pixel by pixel: bias, dark and flat frames, and warped visit images.

Outliers are judged against the noise that the variance planes predict, not the scatter of the few values at hand: of
n values none lies further than (n - 1) / sqrt(n) of their own standard deviations from their mean, so clipping at 3
sigma of the scatter never rejects anything for n < 11.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from nightstream.errors import InputError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch, array_module, device_function, hot_loop

NO_DATA = int(MaskPlane.NO_DATA)
DEFAULT_PLANES = MaskPlane.BAD | MaskPlane.SAT | MaskPlane.CR | MaskPlane.NO_DATA
MAX_FRAMES = 64  # the median costs n^2 comparisons a pixel
BLOCK_PIX = 4096  # that a CPU's thread combines at a time


class Combined(NamedTuple):
    """The clipped mean, (ny, nx): ``image`` float32, ``mask`` int32, ``variance`` of the mean float32, ``n_used``."""

    image: Any
    mask: Any
    variance: Any
    n_used: Any  # int32, how many frames entered the pixel


@device_function
def _gather(images, masks, variances, scales, weights, planes, n, p, value, noise, weight, bits):
    """Copy the usable values of pixel ``p``, in the order of the frames, and return how many they are."""
    count = 0
    for k in range(n):
        if (masks[k, p] & planes) == 0 and np.isfinite(images[k, p]) and np.isfinite(variances[k, p]):
            value[count], noise[count] = images[k, p] * scales[k], variances[k, p] * (scales[k] * scales[k])
            weight[count], bits[count] = weights[k], masks[k, p]
            count += 1
    return count


@device_function
def _middle(value, count, order):
    """Index of the (lower) median of the first ``count`` values: of equal ones the earlier comes first."""
    for k in range(count):
        place = k
        while place > 0 and value[order[place - 1]] > value[k]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = k
    return order[(count - 1) // 2]


@device_function
def _combine_pixels(
    first,
    last,
    images,
    masks,
    variances,
    scales,
    weights,
    planes,
    clip_sigma,
    tolerance,
    iterations,
    image,
    mask,
    variance,
    n_used,
    n,
):
    """Fill the outputs of the pixels from ``first`` to ``last``."""
    value, noise, weight = np.empty(n), np.empty(n), np.empty(n)
    bits, order = np.empty(n, np.int32), np.empty(n, np.int64)
    for p in range(first, last):
        count = _gather(images, masks, variances, scales, weights, planes, n, p, value, noise, weight, bits)
        centre, centre_variance = 0.0, 0.0
        if count > 0:
            middle = _middle(value, count, order)
            centre, centre_variance = value[middle], noise[middle] / max(count - 1, 1)
        used, kept_planes, mean_variance = 0, 0, 0.0
        for _ in range(iterations):
            used, kept_planes = 0, 0
            total, total_weight, total_variance = 0.0, 0.0, 0.0
            for k in range(count):
                limit = clip_sigma * math.sqrt(noise[k] + centre_variance) + tolerance * abs(centre)
                if abs(value[k] - centre) <= limit:
                    used += 1
                    kept_planes |= bits[k]
                    total += weight[k] * value[k]
                    total_weight += weight[k]
                    total_variance += weight[k] * weight[k] * noise[k]
            if used == 0:
                break
            centre, centre_variance = total / total_weight, 0.0
            mean_variance = total_variance / (total_weight * total_weight)
        n_used[p] = used
        image[p], mask[p], variance[p] = centre, kept_planes, mean_variance
        if used == 0:
            image[p], mask[p], variance[p] = np.nan, NO_DATA, np.nan
            for k in range(n):
                mask[p] |= masks[k, p]


@hot_loop("combine")
def clipped_mean(
    images,
    masks,
    variances,
    scales,
    weights,
    planes,
    clip_sigma,
    tolerance,
    iterations,
    image,
    mask,
    variance,
    n_used,
    n,
    size,
):
    """Fill the outputs from stacks (n, size); the arithmetic is that of `combine_frames_reference`, in float64."""
    for block in prange((size + BLOCK_PIX - 1) // BLOCK_PIX):
        first = block * BLOCK_PIX
        _combine_pixels(
            first, min(first + BLOCK_PIX, size), images, masks, variances, scales, weights, planes, clip_sigma, tolerance,
            iterations, image, mask, variance, n_used, n,
        )  # fmt: skip


def combine_frames(
    images,
    masks,
    variances,
    *,
    scales=None,
    weights=None,
    planes: MaskPlane = DEFAULT_PLANES,
    clip_sigma: float = 4.0,
    tolerance: float = 0.0,
    iterations: int = 3,
) -> Combined:
    """Return the clipped weighted mean of ``n`` <= 64 aligned frames.

    ``images`` and ``variances`` are (n, ny, nx) float32, ``masks`` int32; frame k is multiplied by ``scales[k]``
    (default 1) and enters with ``weights[k]`` (default 1; a number a frame, because weights that follow the pixels'
    own Poisson variances pull the mean down). Pixels with any of ``planes``, and those not finite, do not enter.

    The first centre is the median (of an even number the lower one: stars and cosmic rays only add). Values further
    from the centre than ``clip_sigma`` times the noise of the difference plus ``tolerance`` times the centre are left
    out of a mean, which becomes the next centre; ``iterations`` times. The mask is the OR over the frames that
    entered; a pixel that none entered is NaN with NO_DATA and all the frames' planes.

    Raises InputError for no frame, more than 64, or shapes that differ.
    """
    xp = array_module(images)
    _check(images, masks, variances)
    n, size = len(images), images[0].size
    per_frame = [np.ones(n) if v is None else v for v in (scales, weights)]
    out = [xp.empty(images.shape[1:], dtype) for dtype in (xp.float32, xp.int32, xp.float32, xp.int32)]
    clipped_mean(
        Launch.over((size,), (256,)),
        *(
            xp.ascontiguousarray(a, dtype).reshape(n, size)
            for a, dtype in zip((images, masks, variances), (xp.float32, xp.int32, xp.float32), strict=True)
        ),
        *(xp.asarray(v, xp.float64) for v in per_frame),
        np.int32(planes),
        np.float64(clip_sigma),
        np.float64(tolerance),
        np.int32(iterations),
        *(plane.reshape(size) for plane in out),
        np.int32(n),
        np.int32(size),
    )
    return Combined(*out)


def _check(images, masks, variances) -> None:
    if images.ndim != 3 or not 1 <= len(images) <= MAX_FRAMES:
        raise InputError(f"frames to combine have shape {images.shape}, wanted (1 to {MAX_FRAMES}, ny, nx)")
    if not images.shape == masks.shape == variances.shape:
        raise InputError(f"planes to combine differ: {images.shape}, {masks.shape}, {variances.shape}")


def combine_frames_reference(
    images,
    masks,
    variances,
    *,
    scales=None,
    weights=None,
    planes: MaskPlane = DEFAULT_PLANES,
    clip_sigma: float = 4.0,
    tolerance: float = 0.0,
    iterations: int = 3,
) -> Combined:
    """Definition of `combine_frames`: plain NumPy in float64, one pixel after the other."""
    n, shape = len(images), images.shape[1:]
    scales, weights = (np.ones(n) if v is None else np.asarray(v, float) for v in (scales, weights))
    out = Combined(*(np.empty(shape, t) for t in (np.float32, np.int32, np.float32, np.int32)))
    for at in np.ndindex(shape):
        pixel = (slice(None), *at)
        bits = masks[pixel]
        usable = (bits & int(planes)) == 0
        usable &= np.isfinite(images[pixel]) & np.isfinite(variances[pixel])
        result = _combine_pixel(
            images[pixel][usable] * scales[usable],
            variances[pixel][usable] * (scales[usable] * scales[usable]),
            weights[usable],
            bits[usable],
            (clip_sigma, tolerance, iterations),
        )
        nothing = (np.nan, np.bitwise_or.reduce(bits) | NO_DATA, np.nan, 0)
        for plane, value in zip(out, result or nothing, strict=True):
            plane[at] = value
    return out


def _combine_pixel(values, noise, weights, bits, clipping) -> tuple | None:
    """Mean, mask, variance and number of the values that survive; None without any."""
    if len(values) == 0:
        return None
    clip_sigma, tolerance, iterations = clipping
    middle = np.argsort(values, kind="stable")[(len(values) - 1) // 2]
    centre, centre_variance = values[middle], noise[middle] / max(len(values) - 1, 1)
    for _ in range(iterations):
        limit = clip_sigma * np.sqrt(noise + centre_variance) + tolerance * abs(centre)
        kept = np.flatnonzero(abs(values - centre) <= limit)
        if len(kept) == 0:
            return None
        # running sums, not np.sum: the order of additions is part of the definition
        total = sum(weights[k] * values[k] for k in kept)
        total_weight = sum(weights[k] for k in kept)
        total_variance = sum(weights[k] * weights[k] * noise[k] for k in kept)
        centre, centre_variance = total / total_weight, 0.0
    variance = total_variance / (total_weight * total_weight)
    return centre, np.bitwise_or.reduce(bits[kept]), variance, len(kept)
