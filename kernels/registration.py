"""Two star lists on one frame of reference: which star is which, and the affine map between them.

Owns matching and the linear fit. What the lists mean (catalogue, template, dither) is the caller's.
"""

from __future__ import annotations

import math

import numpy as np

from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.target import array_module

MAX_VOTERS = 200  # brightest stars of each list that vote for the offset
CHANCE_SIGMA = 5.0  # how far the winning votes must stand above those that chance gives


def match_stars(
    x1, y1, flux1, x2, y2, flux2, *, max_offset_pix: float, tolerance_pix: float,
    max_rotation_deg: float = 0.5, max_scale: float = 0.01, min_matches: int = 3,
):  # fmt: skip
    """Pair the stars of two lists that differ by an unknown shift and a small rotation and change of scale.

    ``x, y, flux`` (n1,), (n2,) float, pixels of one frame (project a catalogue first); stars with coordinates
    or flux that are not finite are left out. The brightest `MAX_VOTERS` of each list vote: for each trial
    rotation and scale (in steps that move no star by more than half a bin) all coordinate differences within
    ``max_offset_pix`` go into a histogram of bins ``2 tolerance_pix`` wide. The fullest 2 x 2 bins give the
    first map; it is then refined by an affine fit to the mutually nearest neighbours while the search radius
    shrinks to ``tolerance_pix``.

    Returns (index1, index2), int64 arrays of equal length, ordered by index1; each star occurs once. Raises
    UnprocessableError when the vote is no better than chance or fewer than ``min_matches`` pairs remain.
    """
    xp = array_module(x1, x2)
    if not (max_offset_pix > 0 and tolerance_pix > 0):
        raise InputError(f"offsets must be positive, got max {max_offset_pix}, tolerance {tolerance_pix}")
    first, second = _Stars(xp, x1, y1, flux1), _Stars(xp, x2, y2, flux2)
    if min(len(first), len(second)) < min_matches:
        raise UnprocessableError(f"{len(first)} and {len(second)} stars to match, wanted at least {min_matches} of each")
    matrix = _vote(xp, first, second, max_offset_pix, tolerance_pix, max_rotation_deg, max_scale)
    for radius in (4 * tolerance_pix, 2 * tolerance_pix, tolerance_pix, tolerance_pix):
        i, j = mutual_neighbours(*apply_affine(matrix, first.x, first.y), second.x, second.y, radius)
        if len(i) < min_matches:
            raise UnprocessableError(
                f"matched {len(i)} of {len(first)} and {len(second)} stars within {radius:.3g} pixels, wanted {min_matches}"
            )
        if len(i) >= 6:
            matrix = fit_affine(first.x[i], first.y[i], second.x[j], second.y[j])[0]
    order = xp.argsort(first.index[i])
    return first.index[i][order], second.index[j][order]


class _Stars:
    """One list's finite stars, and their places in the list they came from."""

    def __init__(self, xp, x, y, flux):
        x, y, flux = (xp.asarray(v, dtype=np.float64) for v in (x, y, flux))
        self.index = xp.nonzero(xp.isfinite(x) & xp.isfinite(y) & xp.isfinite(flux))[0]
        self.x, self.y, self.flux = x[self.index], y[self.index], flux[self.index]

    def __len__(self) -> int:
        return len(self.index)

    def voters(self, xp):
        brightest = xp.argsort(-self.flux, kind="stable")[:MAX_VOTERS]
        return self.x[brightest], self.y[brightest]


def _vote(xp, first, second, max_offset, tolerance, max_rotation_deg, max_scale):
    """Return the 2x3 map (similarity) from the first list to the second with the most votes."""
    (x1, y1), (x2, y2) = first.voters(xp), second.voters(xp)
    x0, y0 = float(x1.mean()), float(y1.mean())
    reach = max(float(xp.hypot(x1 - x0, y1 - y0).max()), 1.0)
    best, winner = (-math.inf, 0), None
    for angle, scale in _poses(tolerance / reach, math.radians(max_rotation_deg), max_scale):
        a, b = (1 + scale) * math.cos(angle), (1 + scale) * math.sin(angle)
        x, y = a * (x1 - x0) - b * (y1 - y0), b * (x1 - x0) + a * (y1 - y0)
        dx = (x2[None, :] - (x + x0)[:, None]).ravel()
        dy = (y2[None, :] - (y + y0)[:, None]).ravel()
        votes, shift_x, shift_y, expected = _fullest_bin(xp, dx, dy, max_offset, 2 * tolerance)
        if (votes, -abs(angle) - abs(scale)) > best:
            best = votes, -abs(angle) - abs(scale)
            winner = (
                (a, -b, x0 + shift_x - a * x0 + b * y0),
                (b, a, y0 + shift_y - b * x0 - a * y0),
                expected,
            )
    votes, expected = best[0], winner[2]
    if votes < 3 or votes < expected + CHANCE_SIGMA * math.sqrt(expected):
        raise UnprocessableError(
            f"no common offset within {max_offset:.4g} pixels: {votes} of {len(x1)} and {len(x2)} stars "
            f"agree, chance gives {expected:.1f}"
        )
    return xp.asarray(winner[:2])


def _poses(step: float, max_angle: float, max_scale: float) -> list[tuple[float, float]]:
    """Return trial (rotation in radians, relative scale change), including (0, 0)."""
    n_angle, n_scale = (math.ceil(limit / step) for limit in (max_angle, max_scale))
    angles = [max_angle * k / max(n_angle, 1) for k in range(-n_angle, n_angle + 1)]
    scales = [max_scale * k / max(n_scale, 1) for k in range(-n_scale, n_scale + 1)]
    return [(angle, scale) for angle in angles for scale in scales]


def _fullest_bin(xp, dx, dy, max_offset, width):
    """Return (votes, dx, dy, votes that chance gives) of the fullest 2 x 2 bins of differences."""
    near = (xp.abs(dx) <= max_offset) & (xp.abs(dy) <= max_offset)
    dx, dy = dx[near], dy[near]
    n = 2 * math.ceil(max_offset / width) + 1
    column, row = (xp.rint(v / width).astype(np.int64) + n // 2 for v in (dx, dy))
    counts = xp.bincount(row * n + column, minlength=n * n).reshape(n, n)
    four = xp.pad(counts, ((0, 1), (0, 1)))
    four = four[:-1, :-1] + four[1:, :-1] + four[:-1, 1:] + four[1:, 1:]
    peak = int(xp.argmax(four))
    inside = xp.isin(row, xp.asarray([peak // n, peak // n + 1])) & xp.isin(column, xp.asarray([peak % n, peak % n + 1]))
    if len(dx) == 0:
        return 0, 0.0, 0.0, 0.0
    return (
        int(inside.sum()),
        float(xp.median(dx[inside])),
        float(xp.median(dy[inside])),
        4 * len(dx) / (n * n),
    )


def mutual_neighbours(x1, y1, x2, y2, radius: float):
    """Return (i, j) index pairs that are each other's nearest star, within ``radius``; ordered by i."""
    xp = array_module(x1)
    near2, distance2 = _nearest(xp, x1, y1, x2, y2)
    near1, _ = _nearest(xp, x2, y2, x1, y1)
    i = xp.arange(len(x1))
    good = (near1[near2] == i) & (distance2 <= radius * radius)
    return i[good], near2[good]


def _nearest(xp, x1, y1, x2, y2, block: int = 1024):
    """Return the nearest star of list 2 to each of list 1, and the squared distance; by brute force."""
    index, distance = [], []
    for start in range(0, len(x1), block):
        part = slice(start, start + block)
        d2 = (x1[part, None] - x2[None, :]) ** 2 + (y1[part, None] - y2[None, :]) ** 2
        index.append(d2.argmin(axis=1))
        distance.append(d2.min(axis=1))
    return xp.concatenate(index), xp.concatenate(distance)


def apply_affine(matrix, x, y):
    """Return (x, y) mapped by ``matrix`` (2, 3): A (x, y, 1)."""
    return tuple(row[0] * x + row[1] * y + row[2] for row in matrix)


def fit_affine(x_from, y_from, x_to, y_to, *, weights=None, clip_sigma: float = 3.0, iterations: int = 5):
    """Fit the affine map that takes ``x_from, y_from`` to ``x_to, y_to`` (n,), clipping outliers.

    Weighted least squares (``weights`` (n,), default 1). After each fit, pairs farther off than
    ``clip_sigma`` times the one-coordinate scatter (from the median distance) are left out of the next, until
    nothing changes.

    Returns (matrix (2, 3) float64, rms per coordinate of the used pairs in pixels, used (n,) bool).
    Raises UnprocessableError when fewer than 3 pairs remain.
    """
    xp = array_module(x_from)
    x_from, y_from, x_to, y_to = (xp.asarray(v, dtype=np.float64) for v in (x_from, y_from, x_to, y_to))
    used = xp.isfinite(x_from + y_from + x_to + y_to)
    weights = xp.where(used, 1.0 if weights is None else xp.asarray(weights, dtype=np.float64), 0.0)
    for _ in range(iterations):
        matrix = _solve_affine(xp, x_from, y_from, x_to, y_to, xp.where(used, weights, 0.0), used)
        mapped_x, mapped_y = apply_affine(matrix, x_from, y_from)
        distance = xp.hypot(mapped_x - x_to, mapped_y - y_to)
        # the median distance of a 2-D Gaussian is 1.1774 sigma
        limit = clip_sigma * math.sqrt(2) * float(xp.median(distance[used])) / 1.1774 + 1e-9
        kept = used & (distance <= limit)
        if bool((kept == used).all()) or int(kept.sum()) < 3:
            break
        used = kept
    return matrix, math.sqrt(float((distance[used] ** 2).mean()) / 2), used


def _solve_affine(xp, x_from, y_from, x_to, y_to, weights, used):
    n_used = int(used.sum())
    if n_used < 3:
        raise UnprocessableError(f"an affine map needs at least 3 pairs of stars, got {n_used}")
    x_mid, y_mid = float(x_from[used].mean()), float(y_from[used].mean())
    zero = xp.where(used, 1.0, 0.0)
    columns = [xp.where(used, v, 0.0) for v in (x_from - x_mid, y_from - y_mid)] + [zero]
    design = xp.stack(columns, axis=1)
    root = xp.sqrt(weights)[:, None]
    wanted = xp.stack([xp.where(used, v, 0.0) for v in (x_to, y_to)], axis=1)
    solution = xp.linalg.lstsq(design * root, wanted * root, rcond=None)[0].T
    constant = solution[:, 2] - solution[:, 0] * x_mid - solution[:, 1] * y_mid
    return xp.stack([solution[:, 0], solution[:, 1], constant], axis=1)
