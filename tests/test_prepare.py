"""A reduced image made ready: its sky, noise, sources and PSF are found, whatever the file forgot to say."""

from dataclasses import replace

import numpy as np
import pytest
from reduced_pair import SHAPE, Stars, expose, field

from nightstream.engine.config import PrepareConfig
from nightstream.engine.prepare import estimate_fwhm, prepare_image
from nightstream.engine.values import ReducedImage
from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.psf import FWHM_PER_SIGMA

STARS, CONFIG = field(), PrepareConfig()
SKY = 400.0  # electrons: noise of 20


def prepare(image):
    return prepare_image(image, CONFIG)


def empty(prepared):
    return (prepared.exposure.pixels.mask & (MaskPlane.DETECTED | MaskPlane.DETECTED_NEGATIVE | MaskPlane.NO_DATA)) == 0


@pytest.mark.parametrize("fwhm", [2.5, 4.0, 7.0])
def test_sky_noise_and_seeing_are_found(fwhm):
    """The sky within 5 sigma of its mean over the image's empty pixels and faint wings, noise and FWHM within 3 %."""
    got = prepare(expose(STARS, fwhm=fwhm))
    assert got.summary["sky_background"] == pytest.approx(SKY, abs=0.05 * 20)
    assert got.summary["sky_noise"] == pytest.approx(20, rel=0.03)
    assert got.fwhm_pix == pytest.approx(fwhm, rel=0.03)
    assert abs(np.mean(got.exposure.pixels.image[empty(got)])) < 0.05 * 20


def test_galaxies_do_not_set_the_seeing():
    """Two thirds of the sources are wider than stars, each by another factor: the PSF stays that of the stars."""
    image, blobs = expose(field(30, low=1e4, high=1e5, seed=8), fwhm=4.0), field(60, seed=7, low=1e4, high=1e5)
    for i, fwhm in enumerate(np.linspace(4.6, 9.0, 6)):
        part = Stars(*(c[i::6] for c in blobs))
        image = replace(image, image=image.image + expose(part, fwhm=fwhm, sky=0.0, depth=1e9).image)
    assert prepare(image).fwhm_pix == pytest.approx(4.0, rel=0.05)


def test_the_first_guess_of_the_seeing_does_not_matter():
    """From a guess of 2 or of 9 pixels, the same FWHM within 2 %."""
    image = expose(STARS, fwhm=4.0)
    mask = np.zeros(SHAPE, np.int32)
    got = [estimate_fwhm(image.image, mask, PrepareConfig(initial_fwhm_pix=guess)) for guess in (2.0, 4.0, 9.0)]
    np.testing.assert_allclose(got, got[1], rtol=0.02)


def test_the_variance_is_the_skys_and_the_photons():
    """Gain 0.5 electron a unit: sky and stars / 0.5, within the noise that pixels of 1e4 electrons have of themselves."""
    image = expose(STARS, scale=2.0)
    got = prepare(image).exposure.pixels
    clean = expose(STARS, scale=2.0, depth=1e9).image - 2 * SKY
    bright = clean > 2e4
    assert got.variance[bright].sum() == pytest.approx((clean[bright] + 2 * SKY).sum() / 0.5, rel=0.02)
    assert np.median(got.variance) == pytest.approx(2 * SKY / 0.5, rel=0.03)


def test_the_variance_of_empty_sky_has_no_noise():
    """No pixel below 2 sigma differs from the sky's smooth variance: 97 % of the empty ones."""
    got = prepare(expose(STARS))
    variance = got.exposure.pixels.variance[empty(got)]
    assert np.mean(np.abs(variance / np.median(variance) - 1) < 0.03) > 0.96


def test_read_noise_adds_to_the_variance():
    """Photons of the stars over the sum of sky and read noise, as the file says."""
    image = replace(expose(STARS), read_noise=15.0)
    image.image[...] += np.random.default_rng(5).normal(0, 15.0, SHAPE).astype(np.float32)
    got = prepare(image)
    assert got.summary["variance_scale"] == pytest.approx(1, abs=0.03)
    assert np.median(got.exposure.pixels.variance) == pytest.approx(SKY + 225, rel=0.03)


def test_an_unknown_gain_is_taken_from_the_sky():
    """Scatter^2 = sky / gain: stars have the variance of gain 1 within 5 %."""
    got = prepare(replace(expose(STARS), gain=None)).exposure.pixels
    bright = got.image > 5e3
    np.testing.assert_allclose(got.variance[bright], got.image[bright] + SKY, rtol=0.05)


def test_a_sky_that_was_taken_off_leaves_the_scatter():
    """Without sky and gain the variance is what the pixels scatter with, everywhere."""
    image = expose(STARS)
    got = prepare(replace(image, image=image.image - np.float32(SKY), gain=None))
    assert np.median(got.exposure.pixels.variance) == pytest.approx(SKY, rel=0.05)
    assert got.summary["sky_background"] == pytest.approx(0, abs=1)


def test_values_that_are_none_are_no_data():
    """NaN, infinity and variances that are none: NaN with NO_DATA, and nowhere else."""
    image = replace(expose(STARS), variance=np.full(SHAPE, SKY, np.float32))
    image.image[10, 10], image.image[20, 20], image.variance[30, 30], image.variance[40, 40] = np.nan, np.inf, 0, np.nan
    got = prepare(image).exposure.pixels
    lost = np.zeros(SHAPE, bool)
    lost[[10, 20, 30, 40], [10, 20, 30, 40]] = True
    np.testing.assert_array_equal(np.isnan(got.image), lost)
    np.testing.assert_array_equal((got.mask & MaskPlane.NO_DATA) != 0, lost)


def test_saturation_is_flagged():
    """Pixels at the level or above are SAT; the mask that came along stays."""
    image = replace(expose(STARS, saturation=5e3), mask=np.zeros(SHAPE, np.int32))
    image.mask[5, 5] = MaskPlane.BAD
    mask = prepare(image).exposure.pixels.mask
    np.testing.assert_array_equal((mask & MaskPlane.SAT) != 0, image.image >= 5e3)
    assert mask[5, 5] & MaskPlane.BAD


def test_every_bright_star_is_found():
    """Lone stars of S/N 33, too faint for PSF stars where there are better ones; nothing else above 6 sigma."""
    y, x = (c.ravel().astype(float) for c in np.mgrid[40:360:40, 40:360:40])
    found = prepare(expose(Stars(x, y, np.full(x.size, 5e3)))).found
    distance = np.hypot(found.x[:, None] - x, found.y[:, None] - y)
    assert (distance.min(axis=0) < 1.5).all() and (found.snr[distance.min(axis=1) > 12] < 6).all()


def test_the_psf_is_that_of_the_stars():
    """Its width in the middle and at the sides follows a seeing that grows by 20 %, to 2 %."""
    psf = prepare(expose(field(150, low=1e4), gradient=0.2)).exposure.psf
    got = psf.fwhm_pix(np.array([60.0, 191.5, 320.0]), np.full(3, 191.5))
    np.testing.assert_allclose(got, 4.0 * (1 + 0.2 * (np.array([60.0, 191.5, 320.0]) / 383 - 0.5)), rtol=0.02)
    assert psf.centred(191, 191).sum() == pytest.approx(1, abs=1e-5)
    assert psf.sigma_pix * FWHM_PER_SIGMA == pytest.approx(4.0, rel=0.02)


def test_inputs_stay_unchanged_and_the_result_repeats():
    """Same input, same bits; nothing is written into the caller's arrays."""
    image = expose(STARS, saturation=5e4)
    before = image.image.copy()
    first, second = prepare(image), prepare(image)
    np.testing.assert_array_equal(image.image, before)
    np.testing.assert_array_equal(first.exposure.pixels.variance, second.exposure.pixels.variance)


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (ReducedImage(image=np.zeros(5, np.float32)), InputError, r"got an image of shape \(5,\), wanted \(ny, nx\)"),
        (ReducedImage(image=np.zeros((0, 5), np.float32)), InputError, r"shape \(0, 5\)"),
        (
            ReducedImage(image=np.ones((64, 64), np.float32), mask=np.zeros((64, 65), np.int32)), InputError,
            r"got a mask of shape \(64, 65\), wanted that of the image, \(64, 64\)",
        ),
        (
            ReducedImage(image=np.ones((64, 64), np.float32), variance=np.ones((3, 3), np.float32)), InputError,
            r"got a variance of shape \(3, 3\)",
        ),
        (ReducedImage(image=np.full((64, 64), np.nan, np.float32)), UnprocessableError, "no pixel of the image has a value"),
        (ReducedImage(image=np.full((64, 64), 3.0, np.float32)), UnprocessableError, "no source of S/N 20"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(image, kind, message):
    """Shape, planes that do not fit, no values, no light."""
    with pytest.raises(kind, match=message):
        prepare(image)


def test_an_image_without_stars_says_so():
    """Noise alone: nothing to measure the seeing on."""
    with pytest.raises(UnprocessableError, match="no source of S/N 20 to measure the seeing on, among 0 found"):
        prepare(expose(field(0)))
