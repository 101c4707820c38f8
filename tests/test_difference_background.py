"""The background of a difference: found without bias, undisturbed by what changed."""

import numpy as np
import pytest

from nightstream.kernels.difference_background import fit_difference_background
from nightstream.kernels.mask import MaskPlane

SHAPE = (256, 300)


def fit(image, mask=None, variance=None, order=2):
    mask = np.zeros(SHAPE, np.int32) if mask is None else mask
    variance = np.full(SHAPE, 100, np.float32) if variance is None else variance
    return fit_difference_background(image, mask, variance, bin_pix=64, order=order, planes=MaskPlane.SAT)


def test_a_curved_background_is_found_to_its_statistical_error():
    """A paraboloid under noise of sigma 10 comes back within 5 sigma sqrt(6 / N), twice that at the
    corners."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    wanted = 5 + 0.02 * x - 1e-4 * (y - 100.0) ** 2
    image = (wanted + np.random.default_rng(1).normal(0, 10, SHAPE)).astype(np.float32)
    assert np.abs(fit(image) - wanted).max() < 10 * 10 * np.sqrt(6 / image.size) + 0.15  # and the curvature within bins


def test_the_skewness_of_poisson_noise_does_not_matter():
    """Poisson noise of mean 100 minus its mean has background 0 within 5 sigma / sqrt(N); its mode is -0.25
    lower."""
    image = (np.random.default_rng(2).poisson(100, SHAPE) - 100).astype(np.float32)
    assert np.mean(fit(image, order=0)) == pytest.approx(0, abs=5 * 10 / np.sqrt(image.size))


def test_outliers_masked_and_missing_pixels_do_not_matter():
    """Transients, a saturated patch and NaN leave the background of pure noise at 0."""
    image = np.random.default_rng(3).normal(0, 10, SHAPE).astype(np.float32)
    mask = np.zeros(SHAPE, np.int32)
    image[50:55, 50:55], image[200, :], image[100:150, 100:150] = 500, np.nan, 300
    mask[100:150, 100:150] = MaskPlane.SAT
    assert np.abs(fit(image, mask)).max() < 10 * 10 * np.sqrt(6 / image.size)


def test_without_usable_pixels_the_background_is_zero():
    """All masked: zeros, not NaN."""
    assert not fit(np.ones(SHAPE, np.float32), np.full(SHAPE, int(MaskPlane.SAT), np.int32)).any()
