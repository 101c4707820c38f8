"""Two star lists on one frame of reference: which star is which, and the affine map between them.

Owns matching and the linear fit. What the lists mean (catalogue, template, dither) is the caller's; smooth distortion is
`distortion`'s.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import gammainc

from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.pair_pattern import likely_poses
from nightstream.kernels.target import array_module

MAX_VOTERS = 200  # brightest stars of each list that vote for the offset
MAX_WORK = 1e8  # differences and bins of all trial poses; beyond, only those that pairs of stars suggest are tried
FALSE_MATCHES = 0.01  # accepted by chance, per pair of unrelated lists
LOCAL_BINS = 16  # half side of the box about the winning offset that says how many votes chance gives there


def match_stars(
    x1, y1, flux1, x2, y2, flux2, *, max_offset_pix: float, tolerance_pix: float,
    max_rotation_deg: float = 0.5, max_scale: float = 0.01, min_matches: int = 3,
):  # fmt: skip
    """Pair the stars of two lists that differ by an unknown shift, rotation and change of scale.

    ``x, y, flux`` (n1,), (n2,) float, pixels of one frame (project a catalogue first); stars with coordinates
    or flux that are not finite are left out. The limits say what is unknown: a rotation by up to ``max_rotation_deg``
    (180: any) about the middle of the first list's bounding box, a shift of that middle by up to ``max_offset_pix``
    along each axis, and a relative change of scale. A list and its mirror image do not match.

    The brightest `MAX_VOTERS` of each list vote: for each trial rotation and scale (in steps that move no star by
    more than half a bin) all coordinate differences within ``max_offset_pix`` go into a histogram of bins
    ``2 tolerance_pix`` wide. The fullest 2 x 2 bins give the first map. Where that is too much work, `likely_poses`
    says what to try. The map is then refined by an affine fit (of fewer than 6 pairs, a similarity) to the mutually
    nearest neighbours while the search radius shrinks to ``tolerance_pix``.

    Returns (index1, index2), int64 arrays of equal length, ordered by index1; each star occurs once. Raises
    UnprocessableError when chance would give as many votes somewhere among all bins and poses in more than one of 100
    pairs of unrelated lists (Poisson), or fewer than ``min_matches`` pairs remain.
    """
    xp = array_module(x1, x2)
    if not (max_offset_pix > 0 and tolerance_pix > 0):
        raise InputError(f"offsets must be positive, got max {max_offset_pix}, tolerance {tolerance_pix}")
    first, second = _Stars(xp, x1, y1, flux1), _Stars(xp, x2, y2, flux2)
    if min(len(first), len(second)) < min_matches:
        raise UnprocessableError(f"{len(first)} and {len(second)} stars to match, wanted at least {min_matches} of each")
    voters = [stars.voters(xp, tolerance_pix) for stars in (first, second)]
    limits = _Limits(max_offset_pix, tolerance_pix, math.radians(max_rotation_deg), max_scale)
    matrix = _first_map(xp, *voters, first.middle(), limits)
    for radius in (4 * tolerance_pix, 2 * tolerance_pix, tolerance_pix, tolerance_pix):
        i, j = mutual_neighbours(*apply_affine(matrix, first.x, first.y), second.x, second.y, radius)
        if len(i) < min_matches:
            raise UnprocessableError(
                f"matched {len(i)} of {len(first)} and {len(second)} stars within {radius:.3g} pixels, wanted {min_matches}"
            )
        pairs = first.x[i], first.y[i], second.x[j], second.y[j]
        matrix = fit_affine(*pairs)[0] if len(i) >= 6 else fit_similarity(*pairs)
    order = xp.argsort(first.index[i])
    return first.index[i][order], second.index[j][order]


class _Limits(NamedTuple):
    offset: float  # pixels
    tolerance: float  # pixels
    angle: float  # radians
    scale: float


class _Vote(NamedTuple):
    """The winning trial: how many pairs of stars agree, and on what map. The shift is that of the first list's middle."""

    votes: int
    angle: float
    scale: float
    shift: tuple[float, float]


class _Stars:
    """One list's finite stars, and their places in the list they came from."""

    def __init__(self, xp, x, y, flux):
        x, y, flux = (xp.asarray(v, dtype=np.float64) for v in (x, y, flux))
        self.index = xp.nonzero(xp.isfinite(x) & xp.isfinite(y) & xp.isfinite(flux))[0]
        self.x, self.y, self.flux = x[self.index], y[self.index], flux[self.index]

    def __len__(self) -> int:
        return len(self.index)

    def middle(self) -> tuple[float, float]:
        """Return the middle of the bounding box: unlike the mean, it is where the detector's is however the stars clump."""
        return tuple((float(c.min()) + float(c.max())) / 2 for c in (self.x, self.y))

    def voters(self, xp, tolerance: float):
        """Return x, y of the brightest; of stars that no bin tells apart only the first, or one star would vote often."""
        brightest = xp.argsort(-self.flux, kind="stable")[:MAX_VOTERS]
        x, y = self.x[brightest], self.y[brightest]
        rank = xp.arange(len(x))
        close = (x[:, None] - x[None, :]) ** 2 + (y[:, None] - y[None, :]) ** 2 <= tolerance**2
        alone = ~(close & (rank[None, :] < rank[:, None])).any(axis=1)
        return x[alone], y[alone]


def _first_map(xp, voters1, voters2, middle, limits: _Limits):
    """Return the 2x3 map (similarity) from the first list, turned about its ``middle``, to the second with the most votes."""
    if min(len(voters1[0]), len(voters2[0])) < 3:
        raise UnprocessableError(
            f"{len(voters1[0])} and {len(voters2[0])} stars at different places to match, wanted at least 3 of each"
        )
    x0, y0 = middle
    one, two = ((x - x0, y - y0) for x, y in (voters1, voters2))
    reach = max(float(xp.hypot(*one).max()), 1.0)
    n_poses = math.prod(2 * n + 1 for n in _steps(limits, reach))
    n_bins = _bins(limits.offset, 2 * limits.tolerance) ** 2
    if n_poses * (n_bins + len(one[0]) * len(two[0])) <= MAX_WORK:
        vote = _most_voted(xp, one, two, _poses(limits, reach), (0.0, 0.0), limits.offset, 2 * limits.tolerance)
    else:
        vote = _most_voted_of_pairs(xp, one, two, limits, reach)
    expected = _votes_by_chance(xp, one, two, vote, limits)
    if vote.votes == 0 or n_bins * n_poses * gammainc(vote.votes, expected) > FALSE_MATCHES:
        raise UnprocessableError(
            f"no common offset within {limits.offset:.4g} pixels: {vote.votes} of {len(one[0])} and {len(two[0])} stars "
            f"agree, chance gives {expected:.2g}"
        )
    a, b = (1 + vote.scale) * math.cos(vote.angle), (1 + vote.scale) * math.sin(vote.angle)
    shift_x, shift_y = x0 + vote.shift[0], y0 + vote.shift[1]
    return xp.asarray([(a, -b, shift_x - a * x0 + b * y0), (b, a, shift_y - b * x0 - a * y0)])


def _steps(limits: _Limits, reach: float) -> tuple[int, int]:
    """Return how many steps on either side of 0 cover the angles and the scales."""
    return math.ceil(limits.angle * reach / limits.tolerance), math.ceil(limits.scale * reach / limits.tolerance)


def _poses(limits: _Limits, reach: float) -> list[tuple[float, float]]:
    """Return trial (rotation in radians, relative scale change), (0, 0) first, larger ones later."""
    angles, scales = (
        [limit * k / max(n, 1) for k in range(-n, n + 1)]
        for limit, n in zip((limits.angle, limits.scale), _steps(limits, reach), strict=True)
    )
    return sorted(((angle, scale) for angle in angles for scale in scales), key=lambda pose: abs(pose[0]) + abs(pose[1]))


def _most_voted_of_pairs(xp, one, two, limits: _Limits, reach: float) -> _Vote:
    """Try the poses that pairs of stars suggest, in bins as wide as these are uncertain, and then near the best of them."""
    poses, step = likely_poses(*one, *two, tolerance_pix=limits.tolerance, max_angle=limits.angle, max_scale=limits.scale)
    width = 2 * (limits.tolerance + step * reach / math.sqrt(2))  # half a cell of angle and of scale, at the farthest star
    best = _most_voted(xp, one, two, poses, (0.0, 0.0), limits.offset, width)
    near = _poses(limits._replace(angle=step, scale=step), reach)
    poses = [(best.angle + angle, best.scale + scale) for angle, scale in near]
    return _most_voted(xp, one, two, poses, best.shift, 2 * width, 2 * limits.tolerance)


def _most_voted(xp, one, two, poses, about, max_offset: float, width: float) -> _Vote:
    """Return the first pose of those with the most votes, and its shift, within ``max_offset`` of ``about``."""
    best = _Vote(0, 0.0, 0.0, about)
    for angle, scale in poses:
        dx, dy = _differences(xp, one, two, angle, scale, about)
        votes, shift_x, shift_y = _fullest_bin(xp, dx, dy, max_offset, width)
        if votes > best.votes:
            best = _Vote(votes, angle, scale, (about[0] + shift_x, about[1] + shift_y))
    return best


def _differences(xp, one, two, angle: float, scale: float, about):
    """Return dx, dy of every star of the second list to every one of the first, turned, scaled and moved by ``about``."""
    a, b = (1 + scale) * math.cos(angle), (1 + scale) * math.sin(angle)
    x, y = a * one[0] - b * one[1] + about[0], b * one[0] + a * one[1] + about[1]
    return (two[0][None, :] - x[:, None]).ravel(), (two[1][None, :] - y[:, None]).ravel()


def _bins(max_offset: float, width: float) -> int:
    return 2 * math.ceil(max_offset / width) + 1


def _fullest_bin(xp, dx, dy, max_offset, width):
    """Return (votes, dx, dy) of the fullest 2 x 2 bins of differences."""
    near = (xp.abs(dx) <= max_offset) & (xp.abs(dy) <= max_offset)
    dx, dy = dx[near], dy[near]
    if len(dx) == 0:
        return 0, 0.0, 0.0
    n = _bins(max_offset, width)
    column, row = (xp.rint(v / width).astype(np.int64) + n // 2 for v in (dx, dy))
    counts = xp.bincount(row * n + column, minlength=n * n).reshape(n, n)
    four = xp.pad(counts, ((0, 1), (0, 1)))
    four = four[:-1, :-1] + four[1:, :-1] + four[:-1, 1:] + four[1:, 1:]
    peak = int(xp.argmax(four))
    row, column = row - peak // n, column - peak % n
    inside = (row >= 0) & (row <= 1) & (column >= 0) & (column <= 1)
    return int(inside.sum()), float(xp.median(dx[inside])), float(xp.median(dy[inside]))


def _votes_by_chance(xp, one, two, vote: _Vote, limits: _Limits) -> float:
    """Return how many votes chance gives 2 x 2 bins at the winner: those all around it, or everywhere when these are more."""
    dx, dy = _differences(xp, one, two, vote.angle, vote.scale, vote.shift)
    width = 2 * limits.tolerance
    around = _count(xp, dx, dy, LOCAL_BINS * width) - vote.votes
    everywhere = _count(xp, dx + vote.shift[0], dy + vote.shift[1], limits.offset)
    return 4 * max(around / (2 * LOCAL_BINS) ** 2, everywhere / _bins(limits.offset, width) ** 2)


def _count(xp, dx, dy, limit: float) -> int:
    return int(((xp.abs(dx) <= limit) & (xp.abs(dy) <= limit)).sum())


def mutual_neighbours(x1, y1, x2, y2, radius: float):
    """Return (i, j) index pairs that are each other's nearest star, within ``radius``; ordered by i."""
    xp = array_module(x1)
    near2 = _nearest(xp, x1, y1, x2, y2, radius)
    near1 = _nearest(xp, x2, y2, x1, y1, radius)
    i = xp.arange(len(x1))
    good = (near2 >= 0) & (near1[near2] == i)
    return i[good], near2[good]


def _nearest(xp, x1, y1, x2, y2, radius: float):
    """Return the nearest star of list 2 to each of list 1, the earlier of two as near; -1 where none is within ``radius``.

    List 2 is sorted into cells as large as the radius, so that the three that matter in a row lie side by side.
    """
    left, bottom = (xp.minimum(a.min(), b.min()) - radius for a, b in ((x1, x2), (y1, y2)))
    width = int((xp.maximum(x1.max(), x2.max()) - left) / radius) + 3
    home, cell = (((y - bottom) // radius).astype(np.int64) * width + ((x - left) // radius).astype(np.int64)
                  for x, y in ((x1, y1), (x2, y2)))  # fmt: skip
    order = xp.argsort(cell, kind="stable")
    cell = cell[order]
    nearest, least = xp.full(len(x1), -1), xp.full(len(x1), xp.inf)
    for row in (-width, 0, width):
        first = xp.searchsorted(cell, home + (row - 1), side="left")
        last = xp.searchsorted(cell, home + (row + 1), side="right")
        for step in range(int((last - first).max())):
            star = order[xp.minimum(first + step, len(x2) - 1)]
            distance = (x1 - x2[star]) ** 2 + (y1 - y2[star]) ** 2
            better = (distance < least) | ((distance == least) & (star < nearest))
            closer = (first + step < last) & (distance <= radius * radius) & better
            nearest, least = xp.where(closer, star, nearest), xp.where(closer, distance, least)
    return nearest


def apply_affine(matrix, x, y):
    """Return (x, y) mapped by ``matrix`` (2, 3): A (x, y, 1)."""
    return tuple(row[0] * x + row[1] * y + row[2] for row in matrix)


def fit_similarity(x_from, y_from, x_to, y_to):
    """Return the 2x3 map of shift, rotation and scale of least squares: z_to = c + s z_from with complex z = x + iy, c, s."""
    xp = array_module(x_from)
    mid = [float(values.mean()) for values in (x_from, y_from, x_to, y_to)]
    x, y, u, v = (values - m for values, m in zip((x_from, y_from, x_to, y_to), mid, strict=True))
    norm = max(float((x * x + y * y).sum()), 1e-300)
    a, b = float((x * u + y * v).sum()) / norm, float((x * v - y * u).sum()) / norm
    return xp.asarray([(a, -b, mid[2] - a * mid[0] + b * mid[1]), (b, a, mid[3] - b * mid[0] - a * mid[1])])


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
