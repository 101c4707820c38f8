"""How one star list is turned and scaled against another, whatever the shift: from the pattern that pairs of stars make."""

from __future__ import annotations

import math

import numpy as np

from nightstream.kernels.target import array_module, scipy_module

SPAN = 4.0  # longest pair over the shortest that takes part: short ones do not tell the angle
SMOOTH_HARMONICS = 8  # of the angle, taken out: pairs lie along the sides and diagonals of the fields, not only of the sky
MAX_POSES = 12  # peaks of the correlation that are returned, each with its two angles


def likely_poses(x1, y1, x2, y2, *, tolerance_pix: float, max_angle: float, max_scale: float):
    """Return the rotations and changes of scale that make most pairs of stars of two lists alike.

    ``x, y`` (n1,), (n2,) float64, pixels, finite, at least 2 of each. A map (1 + scale) R(angle) adds its angle to the
    position angle of every pair of stars and log(1 + scale) to the log of its length, and a shift does nothing. So both
    lists' pairs are counted on a grid of log length and position angle, and the peaks of the circular cross-correlation
    are the candidates. The cells are as wide as ``tolerance_pix`` per star moves the shortest pairs counted, a
    quarter of the longest. Costs two FFTs, however many stars there are. A pair has no direction: of each peak's two
    angles, half a turn apart, both are returned. A mirrored list has no peak.

    Returns (list of (angle in radians, scale), best first and at most ``2 MAX_POSES``; the width of a cell, radians and
    relative scale). Angles are within ``max_angle`` of 0, scales within ``max_scale``, give or take a cell; the list
    is empty when no pair is like another.
    """
    xp = array_module(x1, x2)
    first, second = _pairs(xp, x1, y1), _pairs(xp, x2, y2)
    longest = min(float(lengths.max()) for lengths, _ in (first, second))
    step = math.sqrt(2) * tolerance_pix * SPAN / longest
    n_angle = scipy_module(xp, "fft").next_fast_len(math.ceil(math.pi / step), real=True)
    reach = max(math.ceil(math.log1p(max_scale) / step), 1)
    rows = math.ceil(math.log(SPAN) / step)
    shape = scipy_module(xp, "fft").next_fast_len(rows + reach + 1, real=True), n_angle
    alike = _correlate(xp, *(_histogram(xp, *pairs, longest / SPAN, step, rows, shape) for pairs in (first, second)))
    alike = xp.concatenate([alike[-reach:], alike[: reach + 1]])
    alike = alike + xp.roll(alike, -1, axis=1)
    alike = alike[:-1] + alike[1:]
    return _poses(xp, _peaks(xp, alike), reach, step, n_angle, max_angle), step


def _pairs(xp, x, y):
    """Return length and position angle (radians, modulo pi) of all pairs of stars."""
    n = len(x)
    i, j = xp.nonzero(xp.arange(n)[:, None] < xp.arange(n)[None, :])
    dx, dy = x[j] - x[i], y[j] - y[i]
    return xp.hypot(dx, dy), xp.arctan2(dy, dx) % math.pi


def _histogram(xp, length, angle, shortest: float, step: float, rows: int, shape):
    """Return the number of pairs per cell of log length and angle; rows beyond ``rows`` are empty."""
    inside = (length >= shortest) & (length < shortest * math.exp(rows * step))
    row = (xp.log(length[inside] / shortest) / step).astype(np.int64)
    column = (angle[inside] * (shape[1] / math.pi)).astype(np.int64) % shape[1]
    cell = xp.clip(row, 0, rows - 1) * shape[1] + column
    return xp.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)


def _correlate(xp, first, second):
    """Return [k, a]: the sum over cells of first(r, t) second(r + k, t + a), without what is smooth in angle."""
    fft = scipy_module(xp, "fft")
    product = fft.rfft2(first).conj() * fft.rfft2(second)
    product[:, : min(SMOOTH_HARMONICS, first.shape[1] // 8) + 1] = 0.0
    return fft.irfft2(product, s=first.shape)


def _peaks(xp, alike):
    """Return ``alike`` at its local maxima, one a plateau, and 0 elsewhere. Angles go round; scales end."""
    padded = xp.pad(alike, ((1, 1), (0, 0)), constant_values=-np.inf)
    is_peak = alike > 0
    for row in (0, 1, 2):
        for turn in (-1, 0, 1):
            neighbour = xp.roll(padded[row : row + len(alike)], turn, axis=1)
            before = (row, turn) < (1, 0)
            if (row, turn) != (1, 0):
                is_peak &= alike > neighbour if before else alike >= neighbour
    return xp.where(is_peak, alike, 0.0)


def _poses(xp, peaks, reach: int, step: float, n_angle: int, max_angle: float) -> list[tuple[float, float]]:
    angle = (xp.arange(n_angle) + 0.5) * (math.pi / n_angle)  # columns a and a + 1 share what lies between their middles
    near = xp.minimum(angle, math.pi - angle) <= max_angle + step
    peaks = xp.where(near[None, :], peaks, 0.0).ravel()
    poses = []
    best = xp.argsort(-peaks, kind="stable")[:MAX_POSES]
    for cell, height in zip(best, peaks[best], strict=True):
        row, column = divmod(int(cell), n_angle)
        if float(height) > 0:
            angle, scale = (column + 0.5) * (math.pi / n_angle), math.expm1((row - reach + 0.5) * step)
            poses += [(turned, scale) for turned in (angle, angle - math.pi) if abs(turned) <= max_angle + step]
    return poses
