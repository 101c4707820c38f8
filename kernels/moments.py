"""Adaptive Gaussian-weighted moments of many sources at once: place, size, shape, flux."""

from __future__ import annotations

import math

import numba
import numpy as np

from nightstream.errors import InputError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch, array_module, hot_loop

MAX_HALF_SIZE = 32  # pixels; a CUDA thread keeps the weights of one row
COLUMNS = ("x", "y", "sigma_pix", "e1", "e2", "flux", "flux_err", "masked_fraction")


def gaussian_moments(
    image,
    mask,
    variance,
    x,
    y,
    *,
    half_size: int = 12,
    sigma_pix: float = 2.0,
    iterations: int = 30,
    planes: MaskPlane = MaskPlane.BAD | MaskPlane.SAT | MaskPlane.CR | MaskPlane.NO_DATA,
):
    """Measure every source at ``x, y`` (n,) with a round Gaussian weight that follows its position and size.

    ``image``, ``variance`` float32, ``mask`` int32, all (ny, nx), background subtracted. Starts at
    ``sigma_pix`` pixels and repeats ``iterations`` times over the pixels within ``half_size``. Returns a
    dict of (n,) float64 columns: ``x, y`` (pixels), ``sigma_pix`` (of the Gaussian that would have these
    moments), ``e1, e2`` (distortion of the weighted moments: half of the source's own where that is Gaussian and
    small), ``flux`` and ``flux_err`` (unit of the image, of that Gaussian) and ``masked_fraction`` (share of the
    weight on pixels with ``planes``, not finite, or off the image, which are skipped). A source that does not converge
    has NaN everywhere. Weight matching as in Bernstein & Jarvis (2002), section 3, with a round weight.
    """
    xp = array_module(image)
    if image.shape != mask.shape or image.shape != variance.shape:
        raise InputError(f"planes differ in shape: {image.shape}, {mask.shape}, {variance.shape}")
    if not 1 <= half_size <= MAX_HALF_SIZE:
        raise InputError(f"half_size must be 1 to {MAX_HALF_SIZE} pixels, got {half_size}")
    bad = (((mask & int(planes)) != 0) | ~xp.isfinite(image)).astype(xp.uint8)
    x, y = (xp.ascontiguousarray(value, dtype=xp.float64) for value in (x, y))
    out = xp.full((len(COLUMNS), x.size), xp.nan)
    sizes = (np.int32(image.shape[0]), np.int32(image.shape[1]), np.int32(x.size), np.int32(half_size))
    planes_in = (xp.ascontiguousarray(image, xp.float32), xp.ascontiguousarray(bad), xp.ascontiguousarray(variance, xp.float32))
    adaptive_moments(
        Launch.over((x.size,), (64,)),
        *planes_in, x, y, out, *sizes, np.float64(sigma_pix), np.int32(iterations),
    )  # fmt: skip
    return {name: out[row] for row, name in enumerate(COLUMNS)}


def gaussian_moments_reference(image, bad, x, y, sigma):
    """Return the weighted sums of one source for one weight: the definition that the hot loop repeats."""
    rows, columns = np.indices(image.shape)
    dx, dy = columns - x, rows - y
    light = np.where(bad, 0.0, np.exp(-0.5 * (dx * dx + dy * dy) / sigma**2) * image)
    total = light.sum()
    mean_x, mean_y = (light * dx).sum() / total, (light * dy).sum() / total
    second = [(light * a * b).sum() / total - c for a, b, c in
              ((dx, dx, mean_x**2), (dy, dy, mean_y**2), (dx, dy, mean_x * mean_y))]  # fmt: skip
    return total, mean_x, mean_y, *second


@hot_loop("moments")
def adaptive_moments(image, bad, variance, x, y, out, ny, nx, n, half, sigma_start, iterations):
    """One source a thread: repeat (weighted sums, new centre, new size), then write the columns."""
    for source in numba.prange(n):
        x_now, y_now, sigma = x[source], y[source], sigma_start
        along = np.empty(2 * half + 1)
        ok = True
        total = second_xx = second_yy = second_xy = noise = weight_all = weight_bad = 0.0
        for _ in range(iterations):
            total = sum_x = sum_y = sum_xx = sum_yy = sum_xy = noise = weight_all = weight_bad = 0.0
            x_mid, y_mid = int(math.floor(x_now + 0.5)), int(math.floor(y_now + 0.5))
            for k in range(2 * half + 1):
                dx = x_mid - half + k - x_now
                along[k] = math.exp(-0.5 * dx * dx / (sigma * sigma))
            for row in range(y_mid - half, y_mid + half + 1):
                dy = row - y_now
                across = math.exp(-0.5 * dy * dy / (sigma * sigma))
                for column in range(x_mid - half, x_mid + half + 1):
                    dx = column - x_now
                    weight = across * along[column - x_mid + half]
                    weight_all += weight
                    if row < 0 or row >= ny or column < 0 or column >= nx or bad[row, column] != 0:
                        weight_bad += weight
                        continue
                    light = weight * image[row, column]
                    total += light
                    sum_x += light * dx
                    sum_y += light * dy
                    sum_xx += light * dx * dx
                    sum_yy += light * dy * dy
                    sum_xy += light * dx * dy
                    noise += weight * weight * variance[row, column]
            if not total > 0.0:
                ok = False
                break
            mean_x, mean_y = sum_x / total, sum_y / total
            second_xx = sum_xx / total - mean_x * mean_x
            second_yy = sum_yy / total - mean_y * mean_y
            second_xy = sum_xy / total - mean_x * mean_y
            inverse = 2.0 / (second_xx + second_yy) - 1.0 / (sigma * sigma)
            # Away from matched, the Gaussian of the source and the weight's multiply: widths add inversely.
            if not inverse > 1.0 / (half * half):
                ok = False
                break
            x_now += min(max(2.0 * mean_x, -1.0), 1.0)
            y_now += min(max(2.0 * mean_y, -1.0), 1.0)
            sigma = max(1.0 / math.sqrt(inverse), 0.5)
            if abs(x_now - x[source]) > half or abs(y_now - y[source]) > half:
                ok = False
                break
        if ok:
            trace = second_xx + second_yy
            out[0, source], out[1, source], out[2, source] = x_now, y_now, sigma
            out[3, source], out[4, source] = (second_xx - second_yy) / trace, 2.0 * second_xy / trace
            out[5, source], out[6, source] = 2.0 * total, 2.0 * math.sqrt(noise)
            out[7, source] = weight_bad / weight_all
