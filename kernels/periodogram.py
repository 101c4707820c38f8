"""Periods of many unevenly sampled light curves at once: generalised Lomb-Scargle, by band and over bands.

Rows lie sorted by segment, one segment an (object, band). Direct sums, since a light curve has tens of points, not
thousands. Statistics without a period are `light_curve`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np

from nightstream.errors import InputError
from nightstream.kernels.periodogram_lanes import SINGULAR, scan_object
from nightstream.kernels.target import Launch, array_module, device_function, hot_loop, scipy_module

THREADS = 128  # that share the frequencies of one object on a GPU
MAX_BANDS = 8


class Periods(NamedTuple):
    """Result of `find_periods` for n objects and b bands. Column b of the first two is all bands together."""

    frequency: Any  # (n, b + 1) float64, cycles per unit of time; NaN without a search
    power: Any  # (n, b + 1) float64, 0 to 1: share of chi2 about the mean that a sinusoid of that frequency removes
    amplitude: Any  # (n, b) float64, of the sinusoid at frequency[:, b]; NaN in bands that were not used
    phase: Any  # (n, b) float64, 0 to 1: periods from the time 0 to its maximum


def find_periods(time, flux, err, start, first_frequency, step, n_steps, *, n_bands: int, min_points: int = 5) -> Periods:
    """Find the frequency of highest Lomb-Scargle power of each object, in each band and over all.

    ``time, flux, err`` (n_rows,) float64, finite, ``err`` > 0; the rows of band b of object k are ``start[k *
    n_bands + b]`` up to the next start (int64, (n * n_bands + 1,)). ``time`` should be small: counted from about
    the object's first row. The frequencies of object k are ``first_frequency[k] + i * step[k]`` for i below
    ``n_steps[k]`` (int32; 0 skips it), scanned in float32, since only the place of the maximum is kept; the best is
    then refined within one step in float64.

    In each band a sinusoid with its own mean, amplitude and phase is fitted with weights 1/err^2 (Zechmeister &
    Kuerster 2009, A&A 496, 577); over the bands the gains in chi2 are added (VanderPlas & Ivezic 2015, ApJ 812, 18,
    without a shared base). Bands of fewer than ``min_points`` rows (5 at least) or of constant flux take no part.
    Raises InputError for arrays that do not fit.
    """
    xp = array_module(flux)
    n = len(n_steps)
    if len(start) != n * n_bands + 1 or not time.shape == flux.shape == err.shape:
        raise InputError(f"wanted {n} x {n_bands} + 1 starts, got {len(start)}; rows {time.shape}, {flux.shape}, {err.shape}")
    if not 1 <= n_bands <= MAX_BANDS or min_points < 5:
        raise InputError(f"wanted 1 to {MAX_BANDS} bands and 5 points or more, got {n_bands}, {min_points}")
    time, first, step = (xp.ascontiguousarray(a, dtype=xp.float64) for a in (time, first_frequency, step))
    start = xp.ascontiguousarray(start, dtype=xp.int64)
    weight, residual = xp.empty(len(time)), xp.empty(len(time))
    chi2, scatter = xp.zeros(n * n_bands), xp.zeros(n * n_bands)
    flux, err = (xp.ascontiguousarray(a, dtype=xp.float64) for a in (flux, err))
    center_bands(
        Launch.over((n * n_bands,), (128,)), flux, err, start, weight, residual, chi2, scatter,
        np.int64(n * n_bands), np.int32(min_points),
    )  # fmt: skip
    out = xp.full((n, n_bands + 1, 2), xp.nan), xp.full((n, n_bands, 2), xp.nan)
    scan_frequencies(
        Launch((n,), (THREADS,)), time, residual, weight, start, chi2, first, step,
        xp.ascontiguousarray(n_steps, dtype=xp.int32), *out, np.int32(n), np.int32(n_bands),
    )  # fmt: skip
    return Periods(out[0][..., 0], out[0][..., 1], out[1][..., 0] * scatter.reshape(n, n_bands), out[1][..., 1])


def band_powers_reference(time, flux, err, frequency) -> np.ndarray:
    """Define the power of one band: the gain of a weighted least-squares sinusoid plus mean, over chi2 about the mean."""
    ones, w = np.ones_like(time), 1 / err
    chi2 = np.sum((w * (flux - np.average(flux, weights=w**2))) ** 2)
    powers = []
    for f in frequency:
        angle = 2 * np.pi * f * time
        design = np.stack([ones, np.cos(angle), np.sin(angle)], axis=1) * w[:, None]
        coefficients = np.linalg.lstsq(design, w * flux, rcond=None)[0]
        powers.append(1 - np.sum((w * flux - design @ coefficients) ** 2) / chi2)
    return np.array(powers)


def false_alarm_probability(power, n_points, n_bands, cycles):
    """Return how often noise alone would reach ``power`` somewhere on the grid: an upper bound, 0 to 1.

    ``power`` of `Periods`; ``n_points`` rows in ``n_bands`` bands took part; ``cycles`` is the highest frequency
    times sqrt(4 pi var(time)), about the number of independent frequencies. For one band it is Baluev (2008, MNRAS
    385, 1279, "standard" normalisation); for more, its form for a projection on 2 ``n_bands`` dimensions. Arrays or
    numbers; NaN power gives NaN.
    """
    xp = array_module(power)
    special = scipy_module(xp, "special")
    bands, spare = xp.asarray(n_bands, dtype=np.float64), xp.asarray(n_points - 3.0 * n_bands, dtype=np.float64)
    power = xp.clip(power, 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        left = xp.log1p(-power)
        single = special.betainc(spare / 2, bands, 1.0 - power)
        norm = special.gammaln(spare / 2 + bands) - special.gammaln(spare / 2 + 0.5) - special.gammaln(bands)
        log_upcrossings = norm + (bands - 0.5) * xp.log(power) + 0.5 * (spare - 1) * left
        upcrossings = cycles * xp.exp(log_upcrossings)
    return xp.clip(single - (1.0 - single) * xp.expm1(-upcrossings), 0.0, 1.0)


@hot_loop("periodogram")
def center_bands(flux, err, start, weight, residual, chi2, scatter, n_segments, min_points):
    """One segment a thread: weights of sum 1, residuals of mean 0 and square 1, chi2 (0: takes no part), scatter."""
    for k in numba.prange(n_segments):
        begin, end = start[k], start[k + 1]
        total = moved = summed = 0.0
        for row in range(begin, end):
            w = 1.0 / (err[row] * err[row])
            total += w
            moved += w * (flux[row] - flux[begin])
        for row in range(begin, end):
            w = 1.0 / (err[row] * err[row])
            residual[row] = flux[row] - flux[begin] - moved / total
            weight[row] = w / total
            summed += w * residual[row] * residual[row]
        chi2[k] = summed if end - begin >= min_points else 0.0
        scatter[k] = math.sqrt(summed / total)
        for row in range(begin, end):
            residual[row] /= scatter[k]


@device_function
def gain(c, s, yc, ys, cc, cs):
    """Return the weighted mean square that a sinusoid takes from residuals of mean 0; sums as in Zechmeister & Kuerster."""
    a = cc - c * c
    b = 1.0 - cc - s * s
    d = cs - c * s
    determinant = a * b - d * d
    return (b * yc * yc + a * ys * ys - 2.0 * d * yc * ys) / determinant if determinant > SINGULAR else 0.0


@device_function
def band_sums(time, residual, weight, begin, end, frequency, sums):
    """Sum one band at one frequency: w c, w s, w y c, w y s, w c^2, w c s."""
    sums[:] = 0.0
    for row in range(begin, end):
        cycles = frequency * time[row]
        angle = 2.0 * math.pi * (cycles - math.floor(cycles))
        c, s = math.cos(angle), math.sin(angle)
        w, wy = weight[row], weight[row] * residual[row]
        sums[0] += w * c
        sums[1] += w * s
        sums[2] += wy * c
        sums[3] += wy * s
        sums[4] += w * c * c
        sums[5] += w * c * s


@device_function
def power_at(time, residual, weight, start, chi2, first_band, last_band, frequency, sums):
    """Return the gain in chi2, over the chi2 about the means, in the given bands (segments) together."""
    gained = total = 0.0
    for band in range(first_band, last_band):
        if chi2[band] > 0.0:
            band_sums(time, residual, weight, start[band], start[band + 1], frequency, sums)
            gained += gain(sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]) * chi2[band]
            total += chi2[band]
    return gained / total


@device_function
def refined(time, residual, weight, start, chi2, first_band, last_band, frequency, width, sums):
    """Return the frequency and power of the peak next to ``frequency``: two parabolas, the second an eighth as wide."""
    best, power = frequency, power_at(time, residual, weight, start, chi2, first_band, last_band, frequency, sums)
    for _ in range(2):
        middle, height = best, power
        below = power_at(time, residual, weight, start, chi2, first_band, last_band, middle - width, sums)
        above = power_at(time, residual, weight, start, chi2, first_band, last_band, middle + width, sums)
        bend = below - 2.0 * height + above
        if bend < 0.0:
            moved = middle + min(max(0.5 * (below - above) / bend, -1.0), 1.0) * width
            reached = power_at(time, residual, weight, start, chi2, first_band, last_band, moved, sums)
            if reached > power:
                best, power = moved, reached
        width *= 0.125
    return best, power


@device_function
def write_object(time, residual, weight, start, chi2, base, n_bands, width, rough, peaks, waves):
    """Refine the best frequency of each band and of all, and fit the waves of the bands at the latter."""
    sums = np.empty(6)
    for slot in range(n_bands + 1):
        if not np.isnan(rough[slot]):
            first, last = (base, base + n_bands) if slot == n_bands else (base + slot, base + slot + 1)
            found = refined(time, residual, weight, start, chi2, first, last, rough[slot], width, sums)
            peaks[slot, 0], peaks[slot, 1] = found
    for band in range(n_bands):
        if chi2[base + band] > 0.0:
            band_sums(time, residual, weight, start[base + band], start[base + band + 1], peaks[n_bands, 0], sums)
            a, b = sums[4] - sums[0] * sums[0], 1.0 - sums[4] - sums[1] * sums[1]
            d = sums[5] - sums[0] * sums[1]
            determinant = a * b - d * d
            if determinant > SINGULAR:
                along, across = (b * sums[2] - d * sums[3]) / determinant, (a * sums[3] - d * sums[2]) / determinant
                phase = math.atan2(across, along) / (2.0 * math.pi)
                waves[band, 0], waves[band, 1] = math.sqrt(along * along + across * across), phase - math.floor(phase)


@hot_loop("periodogram")
def scan_frequencies(time, residual, weight, start, chi2, first, step, n_steps, peaks, waves, n, n_bands):
    """One object a thread: power at every frequency, the best of each band and of all, refined."""
    for k in numba.prange(n):
        base = k * n_bands
        total = 0.0
        for band in range(base, base + n_bands):
            total += chi2[band]
        if n_steps[k] > 0 and total > 0.0:
            rough = np.full(n_bands + 1, np.nan)
            scan_object(time, residual, weight, start, chi2, base, n_bands, first[k], step[k], n_steps[k], rough)
            write_object(time, residual, weight, start, chi2, base, n_bands, step[k], rough, peaks[k], waves[k])
