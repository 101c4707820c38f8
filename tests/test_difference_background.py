"""The background of a difference: found without bias, as stiff as it should be, undisturbed by what changed."""

import numpy as np
import pytest

from nightstream.kernels.convolution import tile_counts
from nightstream.kernels.difference_background import clipped_bin_sums, fit_difference_background, sum_bins_reference
from nightstream.kernels.mask import MaskPlane

SHAPE = (512, 600)
SIGMA = 10.0


def fit(target, image, mask=None):
    mask = np.zeros(SHAPE, np.int32) if mask is None else mask
    planes = (target.array(a) for a in (image, mask, np.full(SHAPE, SIGMA**2, np.float32)))
    return target.host(fit_difference_background(*planes, bin_pix=64, knot_pix=128, planes=MaskPlane.SAT).image())


def noise(seed=1):
    return np.random.default_rng(seed).normal(0, SIGMA, SHAPE)


def places():
    return np.mgrid[: SHAPE[0], : SHAPE[1]] / 512


@pytest.mark.parametrize("shape, bin_pix", [((40, 50), 16), ((33, 70), 33), ((1, 1), 1), ((5, 130), 4)])
def test_all_targets_sum_the_same_pixels(target, shape, bin_pix):
    """Masked, missing and far-off pixels left out: counts equal, sums to float64 rounding."""
    rng = np.random.default_rng(8)
    image, variance = rng.normal(0, 2, shape).astype(np.float32), np.full(shape, 1, np.float32)
    mask = (rng.random(shape) < 0.1).astype(np.int32) * int(MaskPlane.SAT)
    image[rng.random(shape) < 0.1], variance[rng.random(shape) < 0.1] = np.nan, 0
    middle = rng.normal(0, 1, tile_counts(shape, bin_pix)).astype(np.float32)
    got = clipped_bin_sums(*(target.array(a) for a in (image, mask, variance, middle)), bin_pix, MaskPlane.SAT)
    for one, wanted in zip(got, sum_bins_reference(image, mask, variance, middle, bin_pix, MaskPlane.SAT), strict=True):
        np.testing.assert_allclose(target.host(one), wanted, rtol=1e-13, atol=1e-12)


def test_a_flat_background_costs_no_more_than_a_plane(target):
    """Pure noise: the rms error is that of the 4 terms which no prior holds, sigma sqrt(4 / N), within a factor 2."""
    background = fit(target, noise().astype(np.float32))
    assert np.sqrt(np.mean(background**2)) < 2 * SIGMA * np.sqrt(4 / background.size)


@pytest.mark.parametrize("shape_of", [
    lambda y, x: 5 + 10 * x - 20 * (y - 0.3) ** 2,
    lambda y, x: 4 * np.sin(6 * x) * np.cos(5 * y),
], ids=["paraboloid", "waves"])  # fmt: skip
def test_a_curved_background_is_found_to_its_statistical_error(target, shape_of):
    """The rms error is below that of a spline with all its coefficients free, sigma sqrt(coefficients / N)."""
    wanted = shape_of(*places())
    error = fit(target, (wanted + noise()).astype(np.float32)) - wanted
    coefficients = (4 + 3) * (5 + 3)
    assert np.sqrt(np.mean(error**2)) < 1.2 * SIGMA * np.sqrt(coefficients / error.size)


def test_the_skewness_of_poisson_noise_does_not_matter(target):
    """Poisson noise of mean 100 minus its mean has background 0 within 5 sigma / sqrt(N); its mode is -0.25 lower."""
    image = (np.random.default_rng(2).poisson(100, SHAPE) - 100).astype(np.float32)
    assert np.mean(fit(target, image)) == pytest.approx(0, abs=5 * SIGMA / np.sqrt(image.size))


def test_outliers_masked_and_missing_pixels_do_not_matter(target):
    """Transients, a saturated patch and NaN change the background of pure noise by less than its error."""
    image, mask = noise(3).astype(np.float32), np.zeros(SHAPE, np.int32)
    clean = fit(target, image)
    image[50:55, 50:55], image[200, :], image[100:150, 100:150] = 500, np.nan, 300
    mask[100:150, 100:150] = MaskPlane.SAT
    assert np.abs(fit(target, image, mask) - clean).max() < SIGMA * np.sqrt(4 / image.size) * 5


def test_a_bin_full_of_residue_is_left_out(target):
    """A bright star's halo over one bin moves the background there by less than a tenth of it."""
    image = noise(4).astype(np.float32)
    clean = fit(target, image)
    image[128:192, 256:320] += 0.5 * SIGMA
    assert np.abs(fit(target, image) - clean).max() < 0.05 * SIGMA


def test_without_usable_pixels_the_background_is_zero(target):
    """All masked: zeros, not NaN."""
    assert not fit(target, np.ones(SHAPE, np.float32), np.full(SHAPE, int(MaskPlane.SAT), np.int32)).any()


def test_an_image_smaller_than_a_bin_has_a_background(target):
    """40 x 30 pixels: the mean of what is there."""
    image = np.full((40, 30), 3.0, np.float32)
    planes = [target.array(a) for a in (image, np.zeros(image.shape, np.int32), np.ones(image.shape, np.float32))]
    got = target.host(fit_difference_background(*planes, bin_pix=64, knot_pix=256, planes=MaskPlane.SAT).image())
    np.testing.assert_allclose(got, 3.0, rtol=1e-3)
