"""Masked pixels get honest values, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from nightstream.errors import InputError
from nightstream.kernels.interpolation import bridge_gap_reference, interpolate_masked
from nightstream.kernels.mask import MaskPlane

BAD, CR, INTRP, NO_DATA = (int(p) for p in (MaskPlane.BAD, MaskPlane.CR, MaskPlane.INTRP, MaskPlane.NO_DATA))


def plane(shape=(40, 50)):
    """A tilted sky without noise, no mask, variance 4."""
    rows, columns = np.indices(shape)
    image = (100 + 0.5 * columns - 0.25 * rows).astype(np.float32)
    return image, np.zeros(shape, np.int32), np.full(shape, 4, np.float32)


def messy(seed=1):
    """Noise with scattered bad pixels, a bad column, a trail along the border, NaN and a NO_DATA corner."""
    rng = np.random.default_rng(seed)
    image, mask, variance = plane()
    image += rng.normal(0, 2, image.shape).astype(np.float32)
    mask[rng.uniform(size=mask.shape) < 0.05] = BAD
    mask[:, 20:23] |= BAD
    mask[0:2, 5:15] |= CR
    mask[30:, 40:] |= NO_DATA
    image[30:, 40:], variance[30:, 40:] = np.nan, np.nan
    image[10, 10] = np.nan
    return image, mask, variance


def test_a_plane_is_restored_exactly():
    """Straight lines across gaps restore a tilted sky: float32 rounding of numbers near 100."""
    truth, mask, variance = plane()
    mask[5:9, 6:12], mask[:, 30:33] = BAD, BAD
    image = np.where(mask != 0, np.float32(-1e6), truth)
    filled, new_mask, new_variance = interpolate_masked(image, mask, variance, planes=MaskPlane.BAD)
    np.testing.assert_allclose(filled, truth, atol=4 * 6e-8 * 130)
    np.testing.assert_array_equal(new_mask, np.where(mask != 0, BAD | INTRP, 0))
    np.testing.assert_allclose(new_variance, 4, rtol=1e-6)


def test_only_the_given_planes_are_filled():
    """Other masked pixels keep value and planes, and good pixels keep their bits; inputs are unchanged."""
    image, mask, variance = plane()
    mask[3, 3], mask[8, 8] = CR, BAD
    image[3, 3] = image[8, 8] = 5e4
    before = image.copy()
    filled, new_mask, _ = interpolate_masked(image, mask, variance, planes=MaskPlane.CR)
    assert filled[8, 8] == 5e4 and new_mask[8, 8] == BAD and new_mask[3, 3] == CR | INTRP
    np.testing.assert_array_equal(filled[mask == 0], before[mask == 0])
    np.testing.assert_array_equal(image, before)


def test_nan_never_leaks():
    """After filling, whatever is not NO_DATA is finite in both planes; NO_DATA stays NaN."""
    filled, mask, variance = interpolate_masked(*messy(), planes=MaskPlane.BAD | MaskPlane.CR)
    no_data = (mask & NO_DATA) != 0
    assert np.isfinite(filled[~no_data]).all() and np.isfinite(variance[~no_data]).all()
    assert np.isnan(filled[no_data]).all() and no_data.sum() == 100


def test_gaps_too_large_stay_masked():
    """A pixel out of reach on both axes keeps its planes and gains no INTRP; a NaN there becomes NO_DATA."""
    image, mask, variance = plane((60, 60))
    mask[10:50, 10:50] = BAD
    image[30, 30] = np.nan
    filled, new_mask, _ = interpolate_masked(image, mask, variance, planes=MaskPlane.BAD, reach_pix=8)
    assert new_mask[31, 31] == BAD and filled[31, 31] == image[31, 31]
    assert new_mask[30, 30] == BAD | NO_DATA and np.isnan(filled[30, 30])


def test_a_border_column_takes_its_neighbour():
    """Where there is no other side the nearest good pixel counts, and the column's own line joins in."""
    image, mask, variance = plane()
    mask[:, 0] = BAD
    filled, new_mask, _ = interpolate_masked(image, mask, variance, planes=MaskPlane.BAD)
    np.testing.assert_array_equal(filled[:, 0], image[:, 1])
    assert (new_mask[:, 0] & INTRP).all()


def test_variance_covers_the_error():
    """Errors of filled pixels over their predicted sigma have a width of at most 1: noise 2, 3-pixel columns."""
    rng = np.random.default_rng(3)
    truth, mask, variance = plane((200, 200))
    image = truth + rng.normal(0, 2, truth.shape).astype(np.float32)
    mask[:, 10::10] = BAD
    filled, new_mask, spread = interpolate_masked(image, mask, variance, planes=MaskPlane.BAD)
    pulls = ((filled - truth) / np.sqrt(spread))[(new_mask & INTRP) != 0]
    assert pulls.std() < 1 and (spread[mask != 0] >= 4).all()


def test_shapes_must_agree():
    """Planes of different shapes are refused."""
    image, mask, variance = plane()
    with pytest.raises(InputError, match="planes differ in shape"):
        interpolate_masked(image, mask[1:], variance, planes=MaskPlane.BAD)


def test_every_target_follows_the_definition(target):
    """Each gap pixel is what the reference says (float32 rounding), and all targets give Numba's very bits."""
    planes, chosen = messy(), MaskPlane.BAD | MaskPlane.CR
    expected = interpolate_masked(*planes, planes=chosen, reach_pix=6)
    with target.running():
        found = interpolate_masked(*map(target.array, planes), planes=chosen, reach_pix=6)
    for here, there in zip(found, expected, strict=True):
        np.testing.assert_array_equal(target.host(here), there)
    image, mask, variance = planes
    gap = ((mask & int(chosen)) != 0) | ~np.isfinite(image)
    state = np.where((mask & NO_DATA) != 0, 2, np.where(gap, 1, 0))
    for row, column in np.argwhere(state == 1):
        wanted = bridge_gap_reference(image, variance, state, row, column, 6)
        assert (wanted is not None) == bool(expected[1][row, column] & INTRP)
        if wanted is not None:
            values = expected[0][row, column], expected[2][row, column]
            np.testing.assert_allclose(values, wanted, rtol=1e-6)
