"""Pixels unlike their neighbours, and bad columns."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from nightstream.kernels.defects import find_outliers, merge_columns


def plane(seed=0, shape=(60, 90)):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def test_only_significant_pixels_over_the_limit_are_outliers():
    """Both the limit and the noise have to be exceeded; hot, cold, missing pixels and a column are found."""
    image = plane() + 100
    image[10, 20], image[11, 70], image[12, 3] = 150, 50, np.nan
    image[:, 40] += 30
    expected = np.zeros(image.shape, bool)
    expected[[10, 11, 12], [20, 70, 3]] = expected[:, 40] = True
    ones = np.ones_like(image)
    np.testing.assert_array_equal(find_outliers(image, ones, limit=20, sigma=5, window_pix=31), expected)
    noisy = find_outliers(image, 1e4 * ones, limit=20, sigma=5, window_pix=31)
    np.testing.assert_array_equal(np.argwhere(noisy), [[12, 3]])


def test_a_smooth_gradient_is_no_defect():
    """Vignetting changes slowly, so its pixels are like their neighbours."""
    image = np.linspace(0.2, 1.5, 90, dtype=np.float32)[None, :] * np.ones((60, 1), np.float32)
    assert not find_outliers(image, 0 * image, limit=0.25, sigma=5, window_pix=31).any()


def test_gaps_are_filled_only_in_bad_columns():
    """A column with many bad pixels is filled over short gaps, not over long ones, nor beyond its ends."""
    is_bad = np.zeros((100, 3), bool)
    is_bad[10:40:2, 0] = is_bad[80:90, 0] = True
    is_bad[[10, 12], 1] = True
    merged = merge_columns(is_bad, min_pixels=20, max_gap_pix=30)
    expected = is_bad.copy()
    expected[10:39, 0] = True
    np.testing.assert_array_equal(merged, expected)


def test_short_gaps_at_the_border_are_filled():
    """The border of the amplifier does not keep a gap open; masks only grow."""
    is_bad = np.zeros((50, 1), bool)
    is_bad[[0, 5, 44, 49]] = True
    merged = merge_columns(is_bad, min_pixels=4, max_gap_pix=6)
    np.testing.assert_array_equal(np.flatnonzero(merged), [*range(6), *range(44, 50)])
    assert ndimage.label(merged)[1] == 2
