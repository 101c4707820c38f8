"""A variance that comes with an image: its scale is put right by the sky, where the sky can tell."""

import numpy as np
import pytest
from scipy import ndimage
from skyscene import add_gaussians

from nightstream.engine.config import PrepareConfig
from nightstream.engine.prepare import prepare_image
from nightstream.engine.values import ReducedImage

SHAPE = (400, 400)
SKY_VARIANCE = 50.0


def scene(seed=5, smooth=0.0, factor=1.0):
    """Twenty stars on a flat sky of gain 2, and a variance plane wrong by ``factor``; ``smooth`` ties pixels together."""
    rng = np.random.default_rng(seed)
    light = np.zeros(SHAPE)
    add_gaussians(light, rng.uniform(30, 370, 20), rng.uniform(30, 370, 20), 10 ** rng.uniform(4, 5, 20), 2.0)
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
