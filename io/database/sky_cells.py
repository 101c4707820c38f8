"""Cells of the sky: one integer a position, such that neighbours mostly have near integers.

The sphere is projected on the six faces of a cube, each face cut in 2^LEVEL x 2^LEVEL cells of about 40" (equal steps
of the angle, so that sizes differ by less than a factor 1.5), numbered along a Z curve: the children of a cell are four
consecutive cells of the next level. Poles and the wrap of right ascension are nothing special.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nightstream.errors import InputError
from nightstream.kernels.sky_frames import unit_vectors

LEVEL = 13
ARCSEC = np.pi / 180 / 3600
# Columns of each face's frame: the axis through its middle, then the axes of u and v.
_FRAMES = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
        [[-1, 0, 0], [0, -1, 0], [0, 0, 1]],
        [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
        [[0, 0, 1], [0, 1, 0], [-1, 0, 0]],
        [[0, 0, -1], [0, 1, 0], [1, 0, 0]],
    ],
    dtype=np.float64,
)


def cells_of(ra: np.ndarray, dec: np.ndarray, level: int = LEVEL) -> np.ndarray:
    """Return the cell (int64) of each position (deg). Positions that are not finite are in cell -1."""
    vectors = unit_vectors(ra, dec)
    finite = np.isfinite(vectors).all(axis=-1)
    vectors[~finite] = (1, 0, 0)
    face = _face_of(vectors)
    local = np.einsum("nij,nj->ni", _FRAMES[face], vectors)
    steps = 2**level
    angle = np.arctan(local[:, 1:] / local[:, :1]) * (4 / np.pi)  # -1 to 1
    grid = np.clip(((angle + 1) * (steps / 2)).astype(np.int64), 0, steps - 1)
    cells = (face.astype(np.int64) << (2 * level)) | _spread(grid[:, 0]) | (_spread(grid[:, 1]) << 1)
    return np.where(finite, cells, -1)


def cell_centres(cells: np.ndarray, level: int = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Return the (n, 3) unit vectors of the cells' middles, and the radius (rad) that encloses each cell."""
    cells = np.asarray(cells, np.int64)
    face, inside = cells >> (2 * level), cells & ((1 << (2 * level)) - 1)
    grid = np.stack([_gather(inside), _gather(inside >> 1)], axis=-1)
    step = 2.0 ** (1 - level)
    corners = np.array([[0.5, 0.5], [0, 0], [0, 1], [1, 0], [1, 1]])
    angle = (grid[:, None, :] + corners) * step - 1
    local = np.concatenate([np.ones((*angle.shape[:2], 1)), np.tan(angle * (np.pi / 4))], axis=-1)
    local /= np.linalg.norm(local, axis=-1, keepdims=True)
    vectors = np.einsum("nji,nkj->nki", _FRAMES[face], local)
    chord = np.linalg.norm(vectors[:, 1:] - vectors[:, :1], axis=-1).max(axis=1)
    return vectors[:, 0], 2 * np.arcsin(np.minimum(chord / 2, 1))


def edge_normals(polygon: np.ndarray) -> np.ndarray:
    """Return the (k, 3) inward normals of a convex polygon's edges; corners (k, 2) in degrees, in either sense.

    Raises InputError for fewer than three corners or corners that are not finite.
    """
    polygon = np.asarray(polygon, np.float64)
    if polygon.ndim != 2 or polygon.shape[1] != 2 or len(polygon) < 3 or not np.isfinite(polygon).all():
        raise InputError(f"a footprint wants three or more corners (ra, dec), got {polygon.tolist()}")
    corners = unit_vectors(polygon[:, 0], polygon[:, 1])
    normals = np.cross(corners, np.roll(corners, -1, axis=0))
    lengths = np.linalg.norm(normals, axis=1)
    if (lengths == 0).any():
        raise InputError("a footprint has two equal corners in a row")
    normals /= lengths[:, None]
    return normals if normals.sum(axis=0) @ corners.sum(axis=0) >= 0 else -normals


def inside_polygon(ra: np.ndarray, dec: np.ndarray, polygon: np.ndarray, padding_arcsec: float = 0.0) -> np.ndarray:
    """Return whether each position (deg) is in the convex ``polygon``, or at most ``padding_arcsec`` outside its edges."""
    depth = edge_normals(polygon) @ unit_vectors(ra, dec).T
    return (depth >= -np.sin(padding_arcsec * ARCSEC)).all(axis=0)


def cover(polygon: np.ndarray, padding_arcsec: float = 0.0, level: int = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted ranges (m, 2) [first, last] of the cells within a convex polygon (deg) and its padding, and on its border.

    No other cell touches the polygon or its padding; some on the border may not either.
    """
    normals, padding = edge_normals(polygon), padding_arcsec * ARCSEC
    cells, inside = np.arange(6, dtype=np.int64), []
    for depth_level in range(level + 1):
        vectors, radius = cell_centres(cells, depth_level)
        depth = np.arcsin(np.clip(normals @ vectors.T, -1, 1)).min(axis=0) + padding
        whole = depth >= radius
        inside.append(_descendants(cells[whole], level - depth_level))
        border = cells[(depth >= -radius) & ~whole]
        cells = (4 * border[:, None] + np.arange(4)).ravel()
    return merge_ranges(np.concatenate(inside)), merge_ranges(np.stack([border, border], axis=-1))


def fill_gaps(ranges: np.ndarray, most: int) -> np.ndarray:
    """Return at most ``most`` ranges that hold all of the sorted ``ranges``: the shortest gaps are filled."""
    if len(ranges) <= most:
        return ranges
    gaps = ranges[1:, 0] - ranges[:-1, 1]
    cuts = np.sort(np.argsort(gaps, kind="stable")[len(gaps) - (most - 1) :])
    return np.stack([ranges[np.r_[0, cuts + 1], 0], ranges[np.r_[cuts, len(ranges) - 1], 1]], axis=-1)


def is_in_ranges(cells: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """Return whether each cell is in any of the merged ``ranges``."""
    edges = (ranges + [0, 1]).ravel()
    return (np.searchsorted(edges, cells, side="right") & 1).astype(bool)


def rows_in_ranges(sorted_cells: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """Return the indices of those sorted cells that are in any of the merged ``ranges``."""
    starts = np.searchsorted(sorted_cells, ranges[:, 0], side="left")
    ends = np.searchsorted(sorted_cells, ranges[:, 1], side="right")
    return np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)] or [np.empty(0, np.int64)])


def is_in_any(cells, ra, dec, polygons: Sequence, covers: Sequence[tuple], padding_arcsec: float) -> np.ndarray:
    """Return whether each position (deg), of which ``cells`` are the cells, is in any of the polygons and its padding.

    ``covers`` are the polygons' `cover`. Positions are looked at only in cells on a border.
    """
    found = is_in_ranges(cells, merge_ranges(np.concatenate([inside for inside, _ in covers] or [np.empty((0, 2), int)])))
    order = np.flatnonzero(~found)
    order = order[np.argsort(cells[order], kind="stable")]
    for polygon, (_, border) in zip(polygons, covers, strict=True):
        rows = order[rows_in_ranges(cells[order], border)]
        found[rows[inside_polygon(ra[rows], dec[rows], polygon, padding_arcsec)]] = True
    return found


def merge_ranges(ranges: np.ndarray) -> np.ndarray:
    """Return sorted ranges in which touching and overlapping ones of (m, 2) ``ranges`` are one."""
    if len(ranges) == 0:
        return ranges
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    ends = np.maximum.accumulate(ranges[:, 1])
    starts = np.r_[True, ranges[1:, 0] > ends[:-1] + 1]
    return np.stack([ranges[starts, 0], ends[np.r_[starts[1:], True]]], axis=-1)


def _descendants(cells: np.ndarray, levels: int) -> np.ndarray:
    """Ranges of the cells so many levels further down."""
    first = cells << (2 * levels)
    return np.stack([first, first + (1 << (2 * levels)) - 1], axis=-1)


def _face_of(vectors: np.ndarray) -> np.ndarray:
    """The face of each vector: 0 to 3 around the equator, 4 north, 5 south."""
    size = np.abs(vectors)
    axis = np.argmax(size, axis=1)
    negative = np.take_along_axis(vectors, axis[:, None], axis=1)[:, 0] < 0
    return np.array([[0, 2], [1, 3], [4, 5]])[axis, negative.astype(int)]


def _spread(values: np.ndarray) -> np.ndarray:
    """Put a zero bit between the bits of ``values`` (below 2^29)."""
    for shift, mask in ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F), (2, 0x3333333333333333)):
        values = (values | (values << shift)) & mask
    return (values | (values << 1)) & 0x5555555555555555


def _gather(values: np.ndarray) -> np.ndarray:
    """Take every second bit of ``values``: the inverse of `_spread`."""
    values = values & 0x5555555555555555
    masks = (0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0x00FF00FF00FF00FF, 0x0000FFFF0000FFFF, 0x00000000FFFFFFFF)
    for shift, mask in zip((1, 2, 4, 8, 16), masks, strict=True):
        values = (values | (values >> shift)) & mask
    return values
