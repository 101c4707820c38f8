"""The electronic pedestal and the read noise, from pixels that saw no light.

Array programs over a stack of overscan strips; nothing here knows where on the detector a strip lies.
"""

from __future__ import annotations

from typing import Any

from nightstream.kernels.target import array_module, scipy_module

CLIP_SIGMA = 3.0  # rejection of outliers around a row's median
NOISE_CLIP_SIGMA = 5.0  # cuts 6e-7 of a Gaussian, so the noise is not biased by its own clipping
SMOOTHING_ROWS = 101  # a level averaged over this many rows has negligible noise
SIGMA_OF_MAD = 1.4826  # standard deviation of a Gaussian whose median absolute deviation is 1


def row_median_levels(strips) -> Any:
    """Return the median of each row, (n_amp, ny) float32, of overscan strips (n_amp, ny, nx) in adu.

    Rows without a finite pixel take the median level of their amplifier; an amplifier without any gives NaN.
    The median of whole counts is itself a half count at best; `row_mean_levels` has no such steps.
    """
    xp = array_module(strips)
    return _fill_rows(_masked_median(strips, xp.isfinite(strips), axis=2)).astype(xp.float32)


def row_mean_levels(strips) -> Any:
    """Return the mean of each row, (n_amp, ny) float32, without pixels over 3 sigma from the row's median.

    Same shapes, unit and degenerate cases as `row_median_levels`; the scatter of a level is sigma / sqrt(nx).
    """
    xp = array_module(strips)
    usable = _without_outliers(strips)
    total = xp.where(usable, strips, 0).sum(axis=2, dtype=xp.float64)
    count = usable.sum(axis=2)
    means = xp.where(count > 0, total / xp.maximum(count, 1), xp.nan)
    return _fill_rows(means).astype(xp.float32)


def adaptive_row_levels(strips) -> Any:
    """Return row levels (n_amp, ny) float32 that follow each row only as far as its drift exceeds the noise.

    A row's own mean scatters by sigma / sqrt(nx), which all its pixels then share. Between the means m and their
    running mean s over `SMOOTHING_ROWS` rows, the level ``s + w (m - s)`` has the least mean square error with
    ``w = 1 - var(noise of m - s) / var(m - s)``, never below 0 (Wiener): 1 where rows jump about, 0 where they do not.
    """
    xp = array_module(strips)
    smooth = scipy_module(xp, "ndimage").uniform_filter1d
    means = row_mean_levels(strips).astype(xp.float64)
    window = min(SMOOTHING_ROWS, means.shape[1])
    running = smooth(means, window, axis=1, mode="nearest")
    noise = measure_read_noise(strips).astype(xp.float64)
    if strips.dtype.kind in "iu":
        noise = xp.sqrt(noise**2 + 1 / 12)
    expected = noise**2 / strips.shape[2] * (1 - 1 / window)
    found = ((means - running) ** 2).mean(axis=1)
    follow = xp.where(found > 0, xp.maximum(1 - expected / xp.where(found > 0, found, 1), 0), 0)
    return (running + follow[:, None] * (means - running)).astype(xp.float32)


def amplifier_levels(strips) -> Any:
    """Return one clipped mean an amplifier, repeated for each row: (n_amp, ny) float32, adu.

    For readouts whose pedestal does not drift along the frame: its scatter is sigma / sqrt(ny nx).
    """
    xp = array_module(strips)
    levels = row_mean_levels(strips.reshape(strips.shape[0], 1, -1))
    return xp.ascontiguousarray(xp.broadcast_to(levels, strips.shape[:2]))


def replace_outlying_levels(levels, max_deviation: float) -> Any:
    """Return ``levels`` (n_amp, n) with those over ``max_deviation`` above the amplifier's median set to it.

    Charge bleeding into a parallel overscan is always positive, so only high levels are doubted.
    """
    xp = array_module(levels)
    middle = _masked_median(levels, xp.isfinite(levels), axis=1)[:, None]
    return xp.where(levels - middle > max_deviation, middle, levels).astype(xp.float32)


def measure_read_noise(strips) -> Any:
    """Return the read noise of each amplifier, (n_amp,) float32, adu, from strips (n_amp, ny, nx >= 2).

    Half the mean square of differences of neighbours in a row, clipped at 5 sigma: neither drift from row to row nor
    a hot column moves it. For integer strips the quantisation variance, 1/12, is taken off, as it is no read noise.
    An amplifier without two finite neighbours gives NaN.
    """
    xp = array_module(strips)
    step = 1.0 if strips.dtype.kind in "iu" else 0.0
    values = strips.astype(xp.float32)
    differences = (values[:, :, 1:] - values[:, :, :-1]).reshape(values.shape[0], -1)
    usable = xp.isfinite(differences)
    differences = xp.where(usable, differences, 0)
    sigma = SIGMA_OF_MAD * _masked_median(xp.abs(differences), usable, axis=1)[:, None]
    usable &= xp.abs(differences) <= xp.maximum(NOISE_CLIP_SIGMA * sigma, 1.5 * step)
    total = xp.where(usable, differences.astype(xp.float64) ** 2, 0).sum(axis=1)
    count = usable.sum(axis=1)
    variance = 0.5 * total / xp.maximum(count, 1) - step / 12
    return xp.where(count > 0, xp.sqrt(xp.maximum(variance, 0)), xp.nan).astype(xp.float32)


def _without_outliers(strips) -> Any:
    """Which pixels are finite and within 3 sigma of their row's median; sigma is the amplifier's."""
    xp = array_module(strips)
    usable = xp.isfinite(strips)
    middle = _masked_median(strips, usable, axis=2)[:, :, None]
    deviation = xp.abs(xp.where(usable, strips - middle, 0))
    flat = deviation.reshape(len(strips), -1)
    sigma = SIGMA_OF_MAD * _masked_median(flat, usable.reshape(flat.shape), axis=1)[:, None, None]
    return usable & (deviation <= xp.maximum(CLIP_SIGMA * sigma, 1.0))


def _fill_rows(levels) -> Any:
    xp = array_module(levels)
    known = xp.isfinite(levels)
    return xp.where(known, levels, _masked_median(levels, known, axis=1)[:, None])


def _masked_median(values, usable, axis: int) -> Any:
    """Median along ``axis`` of the usable values, float32; NaN where there is none."""
    xp = array_module(values)
    ordered = xp.sort(xp.where(usable, values, xp.inf).astype(xp.float32), axis=axis)
    count = usable.sum(axis=axis, keepdims=True)
    low = xp.take_along_axis(ordered, xp.maximum(count - 1, 0) // 2, axis=axis)
    high = xp.take_along_axis(ordered, xp.minimum(count // 2, values.shape[axis] - 1), axis=axis)
    return xp.where(count > 0, xp.float32(0.5) * low + xp.float32(0.5) * high, xp.nan).squeeze(axis)
