"""Claims about the cells of the sky."""

from __future__ import annotations

import numpy as np
import pytest

from nightstream.errors import InputError
from nightstream.io.database.sky_cells import (
    LEVEL,
    cell_centres,
    cells_of,
    cover,
    fill_gaps,
    inside_polygon,
    is_in_ranges,
    merge_ranges,
    rows_in_ranges,
)
from nightstream.kernels.sky_frames import unit_vectors

PLACES = [(10.0, -20.0), (0.0, 0.0), (359.99, 5.0), (45.0, 35.26), (123.0, 89.95), (200.0, -89.99), (135.0, 0.0)]


def everywhere(n: int = 20000) -> tuple[np.ndarray, np.ndarray]:
    """Positions spread evenly over the sphere."""
    rng = np.random.default_rng(1)
    return rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))


def square(ra: float, dec: float, half_deg: float, n: int = 0) -> np.ndarray:
    """Corners (4, 2) of a square on the tangent plane at a place; or ``n`` random positions within it."""
    east = np.array([-np.sin(np.radians(ra)), np.cos(np.radians(ra)), 0])
    centre = unit_vectors(np.array([ra]), np.array([dec]))[0]
    north = np.cross(centre, east)
    corners = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]])
    offsets = np.random.default_rng(2).uniform(-1, 1, (n, 2)) if n else corners
    step = np.tan(np.radians(half_deg))
    vectors = centre + step * (offsets[:, :1] * east + offsets[:, 1:] * north)
    return np.stack(
        [
            np.degrees(np.arctan2(vectors[:, 1], vectors[:, 0])) % 360,
            np.degrees(np.arctan2(vectors[:, 2], np.hypot(*vectors[:, :2].T))),
        ],
        axis=-1,
    )


def whole_cover(polygon: np.ndarray, padding_arcsec: float = 0.0) -> np.ndarray:
    return merge_ranges(np.concatenate(cover(polygon, padding_arcsec)))


@pytest.mark.parametrize("level", [0, 1, 5, LEVEL, 20])
def test_a_position_lies_within_its_cell(level):
    """The enclosing circle of a position's cell holds the position, and the middle of a cell lies in that cell."""
    ra, dec = everywhere()
    cells = cells_of(ra, dec, level)
    centres, radius = cell_centres(cells, level)
    separation = np.linalg.norm(unit_vectors(ra, dec) - centres, axis=1)
    assert (separation <= 2 * np.sin(radius / 2) + 1e-12).all()
    x, y, z = centres.T
    np.testing.assert_array_equal(cells_of(np.degrees(np.arctan2(y, x)), np.degrees(np.arcsin(z)), level), cells)


def test_cells_are_numbered_without_gaps_and_children_follow_their_parent():
    """All 6 x 4^3 cells of level 3 occur, and a cell divided by four is its parent."""
    ra, dec = everywhere()
    cells = cells_of(ra, dec, 3)
    np.testing.assert_array_equal(np.unique(cells), np.arange(6 * 4**3))
    np.testing.assert_array_equal(cells >> 2, cells_of(ra, dec, 2))


def test_cells_have_nearly_one_size():
    """Enclosing circles at the working level are 24" to 33" in radius everywhere: the cells are about 40" wide."""
    _, radius = cell_centres(cells_of(*everywhere()), LEVEL)
    arcsec = np.degrees(radius) * 3600
    assert arcsec.min() > 24 and arcsec.max() < 33


@pytest.mark.parametrize("place", PLACES)
def test_cover_holds_every_position_of_a_detector(place):
    """No position of the footprint or of its padding is outside the cover, at poles, face borders and the RA wrap."""
    polygon, positions = square(*place, 0.115), square(*place, 0.115 + 20 / 3600, n=5000)
    padded = inside_polygon(*positions.T, polygon, 20.0)
    assert padded.mean() > 0.9
    assert is_in_ranges(cells_of(*positions.T), whole_cover(polygon, 20.0))[padded].all()


@pytest.mark.parametrize("place", PLACES)
def test_cover_is_not_much_larger_than_the_detector(place):
    """The cells of the cover, each about 40" wide, go at most two cells beyond a 14' detector: less than half more area."""
    ranges = whole_cover(square(*place, 0.115))
    area = (ranges[:, 1] - ranges[:, 0] + 1).sum() * 4 * np.pi / (6 * 4.0**LEVEL) * np.degrees(1) ** 2
    assert 0.7 < area / 0.23**2 < 1.9  # cells differ by up to 1.35 in area from their mean


@pytest.mark.parametrize("place", PLACES)
def test_cells_inside_hold_only_positions_inside(place):
    """Nothing in the inner cells needs a look at its position; and most of a detector's cells are inner ones."""
    polygon, positions = square(*place, 0.115), square(*place, 0.13, n=5000)
    inside, border = cover(polygon, 20.0)
    is_inner = is_in_ranges(cells_of(*positions.T), inside)
    assert inside_polygon(*positions[is_inner].T, polygon, 20.0).all()
    assert is_inner.sum() > is_in_ranges(cells_of(*positions.T), border).sum()


def test_few_ranges_still_cover():
    """Filling gaps to get eight ranges loses nothing."""
    ranges = merge_ranges(np.concatenate([whole_cover(square(*place, 0.115), 5.0) for place in PLACES[:3]]))
    few = fill_gaps(ranges, 8)
    assert len(few) == 8 < len(ranges) and fill_gaps(few, 8) is few
    assert is_in_ranges(ranges, few).all()


def test_membership_of_ranges_is_that_of_their_cells():
    """Both ways to find cells in ranges agree with looking at each range."""
    ranges, cells = np.array([[2, 4], [7, 7], [9, 12]]), np.arange(-1, 15)
    expected = ((cells[:, None] >= ranges[:, 0]) & (cells[:, None] <= ranges[:, 1])).any(axis=1)
    np.testing.assert_array_equal(is_in_ranges(cells, ranges), expected)
    np.testing.assert_array_equal(rows_in_ranges(cells, ranges), np.flatnonzero(expected))
    assert not is_in_ranges(cells, ranges[:0]).any() and len(rows_in_ranges(cells, ranges[:0])) == 0


@pytest.mark.parametrize("place", PLACES)
def test_inside_polygon_is_the_tangent_plane_square(place):
    """Positions within the square are inside, in either sense of the corners; those beyond it are not."""
    polygon, positions = square(*place, 0.1), square(*place, 0.1, n=500)
    assert inside_polygon(*positions.T, polygon).all() and inside_polygon(*positions.T, polygon[::-1]).all()
    beyond = square(*place, 0.11)
    assert not inside_polygon(*beyond.T, polygon).any()
    assert inside_polygon(*beyond.T, polygon, 0.01 * 3600 * 1.01).all()


def test_a_position_that_is_not_finite_has_no_cell():
    """NaN is in cell -1, and the others keep theirs."""
    cells = cells_of(np.array([np.nan, 10.0]), np.array([0.0, 10.0]))
    assert cells[0] == -1 and cells[1] >= 0


def test_bad_footprints_are_refused():
    """Two corners, or NaN corners, are no footprint."""
    with pytest.raises(InputError, match="three or more corners"):
        cover(np.array([[0.0, 0.0], [1.0, 1.0]]))
    with pytest.raises(InputError, match="three or more corners"):
        cover(np.array([[0.0, 0.0], [1.0, 1.0], [np.nan, 0.0]]))
