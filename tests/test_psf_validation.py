"""What held-back stars say of a PSF model: nothing when it is right, and how wrong it is when it is not."""

from __future__ import annotations

import numpy as np
import pytest
from starfield import fwhm_at, moffat, star_field

from nightstream.engine.characterize import model_psf
from nightstream.engine.config import CharacterizeConfig
from nightstream.engine.values import MaskedImage
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.psf_fit import fit_psf
from nightstream.kernels.psf_validation import hold_out, validate_psf

FWHM = 3.5


@pytest.fixture(scope="module")
def field():
    """144 stars of S/N 60 to 1000, of varying width."""
    return star_field(np.random.default_rng(1), n=512, fwhm=FWHM, per_side=12, snr=(60.0, 1000.0))


@pytest.fixture(scope="module")
def fitted(field):
    """The PSF of nine tenths of the stars, and which were held back."""
    held = hold_out(field.x, field.y, field.image.shape)
    psf, _ = fit_psf(*field[:3], field.x[~held], field.y[~held])
    return psf, held


def test_one_star_in_ten_is_held_back():
    """None of nine, one of ten to nineteen, then a tenth, rounded down or up by the half with which counting starts."""
    rng = np.random.default_rng(3)
    for n, wanted in ((0, 0), (1, 0), (9, 0), (10, 1), (14, 1), (100, 10), (200, 20)):
        assert hold_out(*rng.uniform(0, 500, (2, n)), (500, 500)).sum() == wanted


def test_held_back_stars_cover_the_image():
    """Of 200 stars at random places every ninth of the image holds one to five of the twenty, 2.2 being the mean."""
    for seed in range(5):
        x, y = np.random.default_rng(seed).uniform(0, 600, (2, 200))
        held = hold_out(x, y, (600, 600))
        counts = np.histogram2d(x[held], y[held], bins=3, range=[[0, 600]] * 2)[0]
        assert counts.min() >= 1 and counts.max() <= 5


def test_held_back_stars_do_not_depend_on_the_order_of_the_list(field):
    """The same stars are taken from a shuffled list."""
    order = np.random.default_rng(4).permutation(field.x.size)
    held = hold_out(field.x, field.y, field.image.shape)
    np.testing.assert_array_equal(hold_out(field.x[order], field.y[order], field.image.shape), held[order])


def test_stars_agree_with_an_honest_model(field, fitted):
    """chi2 is 1 within 5 * 1.25 sqrt(2 / 622) / sqrt(14) and the model's own 1 %; the rest is 0 within 5 times noise.

    A star of the median S/N of 245 has errors of 1 / 245 in flux, 2.2 / 245 in T and 1.5 / 245 in e; over sqrt(14).
    """
    psf, held = fitted
    found = validate_psf(psf, *field[:3], field.x[held], field.y[held])
    assert found.n_stars == held.sum() == 14
    assert found.chi2 == pytest.approx(1, abs=5 * 1.25 * np.sqrt(2 / 622 / 14) + 0.01)
    assert found.residual < 0.01
    assert found.flux == pytest.approx(0, abs=5 * 1.25 / 245 / np.sqrt(14))
    assert found.size == pytest.approx(0, abs=5 * 1.25 * 2.2 / 245 / np.sqrt(14))
    assert found.ellipticity < 5 * 1.25 * 1.5 / 245 / np.sqrt(14)


def test_a_model_that_is_too_narrow_is_found_out(field):
    """Against a round Moffat of 0.9 times the central width stars have 1 / 0.81 of T, and more for their own widths, and
    their ellipticity of 2 g. A tenth of the light of S/N 245 left in 622 pixels makes chi2 = 1 + 24.5^2 / 622 = 2."""
    offset = np.arange(25) - 12
    narrow = PsfModel.constant(moffat(offset[None], offset[:, None], 0.9 * fwhm_at(256, 256, 512, FWHM), 0.0, 0.0))
    found = validate_psf(narrow, *field[:3], field.x, field.y)
    width = fwhm_at(field.x, field.y, 512, FWHM) / (0.9 * fwhm_at(256, 256, 512, FWHM))
    assert found.size == pytest.approx(np.median(width**2) - 1, abs=0.02)
    assert found.ellipticity == pytest.approx(2 * np.hypot(0.03, 0.02), abs=0.01)
    assert found.residual > 0.1 and found.chi2 > 2


def test_a_sky_that_is_left_shows_in_the_aperture_flux(field, fitted):
    """A pedestal of p adds 49 pi p to an aperture of 7 pixels, less to the PSF flux: the ratio falls."""
    psf, held = fitted
    lifted = (field.image + np.float32(20), *field[1:3], field.x[held], field.y[held])
    assert validate_psf(psf, *lifted).flux < validate_psf(psf, *field[:3], field.x[held], field.y[held]).flux - 0.01


def test_without_usable_stars_nothing_is_claimed(field, fitted):
    """No stars, or only masked ones: a count of 0, and NaN."""
    for mask, x in ((field.mask, field.x[:0]), (field.mask | int(MaskPlane.BAD), field.x)):
        found = validate_psf(fitted[0], field.image, mask, field.variance, x, field.y[: x.size])
        assert found.n_stars == 0 and np.isnan(found[1:]).all()


def test_masked_pixels_do_not_matter(field, fitted):
    """Whatever stands in a masked pixel, NaN included, the statistics are the same."""
    psf, held = fitted
    mask, dirty = field.mask.copy(), field.image.copy()
    spots = np.rint(field.y[held]).astype(int) + 5, np.rint(field.x[held]).astype(int) - 3
    mask[spots] |= MaskPlane.BAD
    dirty[spots] = np.nan
    places = field.x[held], field.y[held]
    assert validate_psf(psf, dirty, mask, field.variance, *places) == validate_psf(
        psf, field.image, mask, field.variance, *places
    )


def test_validation_is_the_same_on_all_targets(target):
    """It differs through the moments alone: 1e-6."""
    field = star_field(np.random.default_rng(9), n=128, per_side=3)
    psf = PsfModel.gaussian(1.6)
    expected = validate_psf(psf, *field[:5])
    with target.running():
        there = tuple(map(target.array, field[:5]))
        held = target.host(hold_out(*there[3:], field.image.shape))
        found = validate_psf(PsfModel(target.array(psf.coefficients)), *there)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(held, hold_out(field.x, field.y, field.image.shape))


def test_the_model_in_use_is_the_one_that_was_judged(field):
    """Of the stars chosen, those that validate are not among those fitted; 144 give 14 of them."""
    psf, n_used, validation = model_psf(MaskedImage(*field[:3]), CharacterizeConfig())
    assert validation.n_stars >= 12 and 100 < n_used <= field.x.size - validation.n_stars
    assert validation.chi2 == pytest.approx(1, abs=0.15) and validation.residual < 0.01
    assert psf.order == 2
