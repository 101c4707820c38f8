"""Statistics of many light curves at once: measurements lie sorted by segment, one segment an (object, band).

Owns what one band says without a model of the variation. Periods are `periodogram`, positions `space_motion`.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from nightstream.errors import InputError
from nightstream.kernels.target import Launch, array_module, device_function, hot_loop

STATISTICS = (
    "mean", "mean_err", "sigma", "minimum", "maximum", "err_mean", "max_slope", "chi2", "mad", "skew",
    "percentile05", "percentile25", "percentile50", "percentile75", "percentile95", "stetson_j", "slope", "intercept",
)  # fmt: skip
QUANTILES = (0.05, 0.25, 0.50, 0.75, 0.95)
STETSON_STEPS = 20  # of the reweighted mean at most
STETSON_TOLERANCE = 1e-6  # standard errors by which a step must still move the mean for another to follow


def segment_statistics(flux, err, time, start, origin) -> dict:
    """Describe each segment of a set of light curves.

    ``flux, err, time`` (n,) float64, finite, ``err`` > 0, the rows of segment k being ``start[k]`` up to
    ``start[k + 1]`` (int64, (m + 1,)) in order of time; ``origin`` (m,) float64 is the time of the intercept. Units
    are the caller's.

    Returns (m,) float64 columns, NaN for what has too few rows: ``mean`` weighted by 1/err^2, its ``mean_err``,
    ``sigma`` (unweighted, ddof 1), ``minimum``, ``maximum``, ``err_mean``, ``max_slope`` (largest signed change over
    time between successive rows of different time), ``chi2`` about the mean, ``mad`` (median distance to the median,
    unscaled), ``skew`` (biased g1), percentiles as `numpy.percentile`, ``stetson_j`` (Stetson 1996, PASP 108, 851,
    of single observations, about his reweighted mean), ``slope`` and ``intercept`` (at ``origin``) of the weighted
    line. One row has everything but sigma, slopes, skew and Stetson's J. Raises InputError for unequal lengths.
    """
    xp = array_module(flux)
    flux, err, time, start = _checked(xp, flux, err, time, start)
    count = len(start) - 1
    segment = xp.searchsorted(start, xp.arange(len(flux)), side="right").astype(xp.float64)
    ranked = flux[xp.lexsort(xp.stack([flux, segment]))]
    out = xp.full((len(STATISTICS), count), xp.nan)
    origin = xp.ascontiguousarray(origin, dtype=xp.float64)
    describe_segments(
        Launch.over((count,), (128,)), flux, err, time, xp.ascontiguousarray(ranked), start, origin, out, np.int64(count)
    )
    return {name: out[row] for row, name in enumerate(STATISTICS)}


def weighted_means(value, err, start) -> tuple:
    """Return the mean of each segment weighted by 1/err^2, its error, and the unweighted scatter (ddof 1).

    Rows as for `segment_statistics`, in any order within a segment; (m,) float64 each. No row gives NaN; one row has
    no scatter.
    """
    xp = array_module(value)
    value, err, _, start = _checked(xp, value, err, value, start)
    out = xp.full((3, len(start) - 1), xp.nan)
    average_segments(Launch.over((len(start) - 1,), (128,)), value, err, start, out, np.int64(len(start) - 1))
    return out[0], out[1], out[2]


def segment_statistics_reference(flux, err, time, start, origin) -> dict:
    """Define `segment_statistics`: plain NumPy, one segment after the other."""
    table = {name: np.full(len(start) - 1, np.nan) for name in STATISTICS}
    for k in range(len(start) - 1):
        rows = slice(start[k], start[k + 1])
        if start[k + 1] > start[k]:
            for name, value in _statistics_of_one(flux[rows], err[rows], time[rows], origin[k]).items():
                table[name][k] = value
    return table


def _statistics_of_one(f, e, t, origin) -> dict:
    w, n = 1 / e**2, len(f)
    mean = np.average(f, weights=w)
    row = {"mean": mean, "mean_err": 1 / np.sqrt(w.sum()), "minimum": f.min(), "maximum": f.max(), "err_mean": e.mean()}
    row |= {"chi2": np.sum(w * (f - mean) ** 2), "mad": np.median(np.abs(f - np.median(f)))}
    row |= {f"percentile{round(100 * q):02d}": np.percentile(f, 100 * q) for q in QUANTILES}
    if n < 2:
        return row
    row |= {"sigma": f.std(ddof=1), "stetson_j": _stetson_j_of_one(f, e)}
    centred, moved, lever = f - f.mean(), np.diff(t) > 0, t - np.average(t, weights=w)
    if np.any(centred != 0):
        row["skew"] = np.mean(centred**3) / np.mean(centred**2) ** 1.5
    if moved.any():
        row["max_slope"] = np.max(np.diff(f)[moved] / np.diff(t)[moved])
        row["slope"] = np.sum(w * lever * (f - mean)) / np.sum(w * lever**2)
        row["intercept"] = mean + row["slope"] * (origin - np.average(t, weights=w))
    return row


def _stetson_j_of_one(f, e) -> float:
    bias, mean = np.sqrt(len(f) / (len(f) - 1)), np.average(f, weights=1 / e**2)
    for _ in range(STETSON_STEPS):
        before = mean
        mean = np.average(f, weights=1 / e**2 / (1 + (bias * (f - before) / e / 2) ** 2))
        if np.abs(mean - before) <= STETSON_TOLERANCE / np.sqrt(np.sum(1 / e**2)):
            break
    product = (bias * (f - mean) / e) ** 2 - 1
    return np.mean(np.sign(product) * np.sqrt(np.abs(product)))


def _checked(xp, flux, err, time, start):
    if not flux.shape == err.shape == time.shape or flux.ndim != 1:
        raise InputError(f"flux, err and time must be of one length, got {flux.shape}, {err.shape}, {time.shape}")
    columns = (xp.ascontiguousarray(column, dtype=xp.float64) for column in (flux, err, time))
    return *columns, xp.ascontiguousarray(start, dtype=xp.int64)


@device_function
def weighted_mean(value, err, begin, end):
    """Return the mean weighted by 1/err^2 and the sum of the weights, summed from the first value on."""
    total = moved = 0.0
    for row in range(begin, end):
        w = 1.0 / (err[row] * err[row])
        total += w
        moved += w * (value[row] - value[begin])
    return value[begin] + moved / total, total


@device_function
def plain_moments(value, begin, end):
    """Return the unweighted second and third sums of powers about the mean."""
    moved = second = third = 0.0
    for row in range(begin, end):
        moved += value[row] - value[begin]
    mean = moved / (end - begin)
    for row in range(begin, end):
        d = value[row] - value[begin] - mean
        second += d * d
        third += d * d * d
    return second, third


@device_function
def quantile_of(ranked, begin, end, q):
    """Return the quantile of ascending values, linear between ranks, with the rounding of `numpy.percentile`."""
    place = (end - begin - 1) * q
    low = int(math.floor(place))
    share = place - low
    a = ranked[begin + low]
    b = ranked[min(begin + low + 1, end - 1)]
    return b - (b - a) * (1.0 - share) if share >= 0.5 else a + (b - a) * share


@device_function
def median_distance(ranked, begin, end, middle):
    """Return the median of ``|ranked - middle|``: walks outwards from ``middle``, so needs no second sort."""
    n = end - begin
    right = begin
    while right < end and ranked[right] < middle:
        right += 1
    left = right - 1
    before = now = 0.0
    for _ in range(n // 2 + 1):
        before = now
        if left < begin or (right < end and ranked[right] - middle < middle - ranked[left]):
            now = ranked[right] - middle
            right += 1
        else:
            now = middle - ranked[left]
            left -= 1
    return now if n % 2 == 1 else 0.5 * (before + now)


@device_function
def stetson_j(flux, err, begin, end, mean, weight):
    """Return Stetson's J of two rows or more, starting from their weighted mean and its weight."""
    n = end - begin
    bias = math.sqrt(n / (n - 1.0))
    for _ in range(STETSON_STEPS):
        total = moved = 0.0
        for row in range(begin, end):
            half = 0.5 * bias * (flux[row] - mean) / err[row]
            w = 1.0 / (err[row] * err[row]) / (1.0 + half * half)
            total += w
            moved += w * (flux[row] - mean)
        mean += moved / total
        if abs(moved / total) <= STETSON_TOLERANCE / math.sqrt(weight):
            break
    summed = 0.0
    for row in range(begin, end):
        d = bias * (flux[row] - mean) / err[row]
        product = d * d - 1.0
        summed += math.sqrt(product) if product > 0.0 else -math.sqrt(-product)
    return summed / n


@hot_loop("light_curve")
def average_segments(value, err, start, out, n_segments):
    """One segment a thread: weighted mean, its error, scatter."""
    for k in numba.prange(n_segments):
        begin, end = start[k], start[k + 1]
        if end > begin:
            mean, weight = weighted_mean(value, err, begin, end)
            out[0, k], out[1, k] = mean, 1.0 / math.sqrt(weight)
            if end > begin + 1:
                out[2, k] = math.sqrt(plain_moments(value, begin, end)[0] / (end - begin - 1))


@hot_loop("light_curve")
def describe_segments(flux, err, time, ranked, start, origin, out, n_segments):
    """One segment a thread: every row of ``STATISTICS``; ``ranked`` are the fluxes of each segment ascending."""
    for k in numba.prange(n_segments):
        begin, end = start[k], start[k + 1]
        if end == begin:
            continue
        n = end - begin
        mean, weight = weighted_mean(flux, err, begin, end)
        mean_time, _ = weighted_mean(time, err, begin, end)
        chi2 = errors = lever = cross = 0.0
        steepest = -np.inf
        for row in range(begin, end):
            w = 1.0 / (err[row] * err[row])
            d = flux[row] - mean
            since = time[row] - mean_time
            chi2 += w * d * d
            lever += w * since * since
            cross += w * since * d
            errors += err[row]
            if row > begin and time[row] > time[row - 1]:
                steepest = max(steepest, (flux[row] - flux[row - 1]) / (time[row] - time[row - 1]))
        out[0, k], out[1, k] = mean, 1.0 / math.sqrt(weight)
        out[3, k], out[4, k], out[5, k] = ranked[begin], ranked[end - 1], errors / n
        out[7, k] = chi2
        middle = quantile_of(ranked, begin, end, 0.5)
        out[8, k] = median_distance(ranked, begin, end, middle)
        out[10, k], out[11, k] = quantile_of(ranked, begin, end, 0.05), quantile_of(ranked, begin, end, 0.25)
        out[12, k], out[13, k] = middle, quantile_of(ranked, begin, end, 0.75)
        out[14, k] = quantile_of(ranked, begin, end, 0.95)
        if n > 1:
            second, third = plain_moments(flux, begin, end)
            out[2, k] = math.sqrt(second / (n - 1))
            if second > 0.0:
                out[9, k] = third / n / (second / n * math.sqrt(second / n))
            out[15, k] = stetson_j(flux, err, begin, end, mean, weight)
            if steepest > -np.inf:
                out[6, k] = steepest
                out[16, k] = cross / lever
                out[17, k] = mean + cross / lever * (origin[k] - mean_time)
