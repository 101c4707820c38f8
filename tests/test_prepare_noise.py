"""The noise of a reduced image: what is given, what the sky says of it, and what resampling has done to it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from skyscene import add_gaussians

from nightstream.engine.config import DifferenceConfig, PrepareConfig, SubtractConfig
from nightstream.engine.prepare import prepare_image
from nightstream.engine.subtraction import subtract_images
from nightstream.engine.values import ReducedImage

SHAPE = (400, 400)
SKY_VARIANCE = 50.0


def scene(seed=5, smooth=0.0, factor=1.0, places=5):
    """Twenty stars on a flat sky of gain 2, and a variance plane wrong by ``factor``; ``smooth`` ties pixels together."""
    light, rng = np.zeros(SHAPE), np.random.default_rng(places)
    add_gaussians(light, rng.uniform(30, 370, 20), rng.uniform(30, 370, 20), 10 ** rng.uniform(4, 5, 20), 2.0)
    rng = np.random.default_rng(seed)
    variance = SKY_VARIANCE + light / 2
    noise = rng.normal(0, np.sqrt(variance))
    if smooth:
        noise = ndimage.gaussian_filter(noise, smooth)
    return ReducedImage(image=(light + noise + 100).astype(np.float32), variance=(variance * factor).astype(np.float32))


@pytest.mark.parametrize("factor", [0.5, 0.93, 1.0, 2.0])
def test_a_scale_that_is_off_is_put_right(factor):
    """The prepared variance of the sky is the true one within 5 sqrt(2 / N), N = 150,000 pixels, and 1 % for faint wings."""
    prepared = prepare_image(scene(factor=factor), PrepareConfig())
    assert prepared.summary["variance_scale"] == pytest.approx(1 / factor, rel=5 * np.sqrt(2 / 150_000) + 0.01)
    assert np.median(prepared.exposure.pixels.variance) == pytest.approx(SKY_VARIANCE, rel=0.03)


def test_noise_that_neighbours_share_says_nothing():
    """Smoothed pixels scatter by a third of the sigma they came with: the given variance is kept as it is."""
    reduced = scene(smooth=0.8)
    prepared = prepare_image(reduced, PrepareConfig())
    assert prepared.summary["variance_scale"] == 1.0
    np.testing.assert_array_equal(prepared.exposure.pixels.variance, reduced.variance)


def test_it_can_be_switched_off():
    """With ``scale_variance`` off a variance of twice the truth stays."""
    reduced = scene(factor=2.0)
    prepared = prepare_image(reduced, PrepareConfig(scale_variance=False))
    np.testing.assert_array_equal(prepared.exposure.pixels.variance, reduced.variance)


@pytest.mark.parametrize("gain", [2.0, None])
def test_a_sky_that_was_subtracted_does_not_make_the_photons_noisy(gain):
    """Sky 0.4 +- 7: the sky's variance is what is measured; a bright star has its photons' on top, or none without a gain."""
    given = scene()
    image = given.image - 99.6
    variance = prepare_image(ReducedImage(image=image, gain=gain), PrepareConfig()).exposure.pixels.variance
    sky = np.median(variance)
    assert sky == pytest.approx(SKY_VARIANCE, rel=0.03)
    y, x = np.unravel_index(np.argmax(image), SHAPE)
    photons = (variance[y, x] - sky) * (gain or 1.0)
    assert photons == pytest.approx(image[y, x] if gain else 0.0, rel=0.01, abs=1.0)


def test_resampled_noise_is_white_in_the_difference():
    """Both inputs smoothed by 0.5 pixel (neighbours at +0.3): lags of the whitened difference vanish, the pull is 1."""
    pair = [tied(seed) for seed in (7, 8)]
    done = subtract_images(*pair, SubtractConfig(difference=DifferenceConfig(decorrelate=True)))
    assert prepare_image(pair[0], PrepareConfig()).noise_correlation[5, 6] == pytest.approx(0.3, abs=0.05)
    for axis in "xy":  # 5 / sqrt(N), N = 100,000, and 0.01 for the correlation itself being measured
        assert abs(done.diagnostics[f"noise_correlation_{axis}"]) < 0.016 + 0.01
    assert done.diagnostics["noise_ratio"] == pytest.approx(1.0, abs=0.03)


def tied(seed, smooth=0.5):
    """A scene with smoothed noise whose variance plane says what its pixels scatter by."""
    one = np.zeros((15, 15))
    one[7, 7] = 1.0
    left = (ndimage.gaussian_filter(one, smooth) ** 2).sum()
    reduced = scene(smooth=smooth, seed=seed, places=9)
    return replace(reduced, variance=reduced.variance * np.float32(left))


def test_stars_on_the_light_of_a_galaxy_do_not_make_the_psf():
    """Three stars in the halo of a large galaxy and one outside: the PSF has the width of stars to 5 %."""
    light = np.zeros(SHAPE)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    light += 3000 * np.exp(-np.hypot(x - 200, y - 200) / 15)
    places = np.array([(240.0, 200.0), (200.0, 165.0), (170.0, 230.0), (330.0, 60.0)])
    add_gaussians(light, places[:, 0], places[:, 1], np.full(4, 2e4), 1.8)
    variance = SKY_VARIANCE + light / 2
    image = light + np.random.default_rng(6).normal(0, np.sqrt(variance)) + 100
    prepared = prepare_image(ReducedImage(image=image.astype(np.float32), variance=variance.astype(np.float32)), PrepareConfig())
    assert prepared.fwhm_pix == pytest.approx(1.8 * 2.3548, rel=0.05)
