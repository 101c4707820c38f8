"""What is learnt from a visit image with known truth: sky, PSF, WCS and zero point."""

from dataclasses import replace

import numpy as np
import pytest

from nightstream.engine.characterize import characterize, flux_scale, register
from nightstream.engine.config import CharacterizeConfig
from nightstream.engine.values import ExposureInfo, MaskedImage
from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.wcs import Wcs

SHAPE, SKY, SIGMA_PIX, NJY_PER_ELECTRON = (400, 420), 400.0, 1.6, 2.5
TRUE_WCS = Wcs.tan(150.0, 2.0, 210.0, 200.0, 0.2)
WRONG_WCS = Wcs.tan(150.0 + 25 * 0.2 / 3600, 2.0 - 25 * 0.2 / 3600, 210.0, 200.0, 0.2, angle_deg=0.2)
INFO = ExposureInfo(visit=7, detector=2, camera="test", kind="science", band="r", exposure_time_s=30.0, dark_time_s=30.0,
                    midpoint_mjd_tai=60000.0)  # fmt: skip


@pytest.fixture(scope="module")
def scene():
    """120 stars with a flat sky and Poisson noise; the catalogue has their sky positions and fluxes in nJy."""
    rng = np.random.default_rng(5)
    x, y = rng.uniform(15, SHAPE[1] - 15, 120), rng.uniform(15, SHAPE[0] - 15, 120)
    flux = 10 ** rng.uniform(3.3, 5.3, 120)
    image = np.full(SHAPE, SKY)
    for stamp, column, row, electrons in zip(PsfModel.gaussian(SIGMA_PIX).stamps(x, y), x, y, flux, strict=True):
        j, i = round(row), round(column)
        rows, columns = (slice(max(p - 12, 0), p + 13) for p in (j, i))
        top, left = rows.start - (j - 12), columns.start - (i - 12)
        part = image[rows, columns]
        part += electrons * stamp[top : top + part.shape[0], left : left + part.shape[1]]
    image = rng.poisson(image) + rng.normal(0, 5.0, SHAPE)
    variance = np.maximum(image, 0) + 25.0
    ra, dec = TRUE_WCS.sky_from_pixel(x, y)
    pixels = MaskedImage(image.astype(np.float32), np.zeros(SHAPE, np.int32), variance.astype(np.float32))
    return pixels, {"ra": ra, "dec": dec, "flux": flux * NJY_PER_ELECTRON}


@pytest.fixture(scope="module")
def done(scene):
    """The scene characterized from a WCS that is 35 pixels off and turned by 0.2 degrees."""
    pixels, catalogue = scene
    return characterize(pixels, INFO, WRONG_WCS, catalogue, CharacterizeConfig())


def test_the_wcs_is_corrected(done):
    """Centroids of S/N 20 and more are good to 0.05 pixel each, so the affine fit is good to 0.03 pixel everywhere."""
    x, y = np.meshgrid(np.linspace(0, 419, 5), np.linspace(0, 399, 5))
    x_back, y_back = TRUE_WCS.pixel_from_sky(*done.exposure.wcs.sky_from_pixel(x, y))
    assert np.hypot(x_back - x, y_back - y).max() < 0.03


def test_offsets_of_matched_stars_agree_with_their_scatter(done):
    """Mean square distance = mean^2 + std^2 = twice the square of the scatter per axis."""
    mean, std = (done.summary[f"astrometric_offset_{name}_arcsec"] for name in ("mean", "std"))
    scatter = done.summary["astrometric_scatter_pix"] * done.exposure.wcs.pixel_scale_arcsec
    assert mean > 0 and np.hypot(mean, std) == pytest.approx(np.sqrt(2) * scatter, rel=1e-9)


def test_the_zero_point_is_recovered(done):
    """About 100 stars with errors of 1 to 10 % and a floor of 1 % give the scale to 0.5 %."""
    assert done.exposure.njy_per_unit == pytest.approx(NJY_PER_ELECTRON, rel=0.005)


def test_brighter_stars_beyond_the_detector_do_no_harm(scene, done):
    """A catalogue of ten fields, whose 300 brightest stars are elsewhere, gives the same WCS and zero point."""
    pixels, catalogue = scene
    rng = np.random.default_rng(8)
    x, y = rng.uniform(1500, 6000, (2, 300))
    ra, dec = TRUE_WCS.sky_from_pixel(x, y)
    wide = {
        "ra": np.r_[catalogue["ra"], ra],
        "dec": np.r_[catalogue["dec"], dec],
        "flux": np.r_[catalogue["flux"], np.full(300, 1e9)],
    }
    found = register(done.stars, WRONG_WCS, wide, INFO, CharacterizeConfig())
    assert found.wcs == done.exposure.wcs
    assert found.njy_per_electron == done.exposure.njy_per_unit


def test_the_psf_width_is_recovered(done):
    """A Gaussian of sigma 1.6 has FWHM 3.77 pixels; the model is good to 1 %."""
    assert done.summary["psf_fwhm_pix"] == pytest.approx(2.3548 * SIGMA_PIX, rel=0.01)


def test_the_sky_is_removed(done):
    """Away from stars the mean is 0 within 1 electron, 5 % of the sky noise: faint wings remain."""
    pixels = done.exposure.pixels
    sky = (pixels.mask & int(MaskPlane.DETECTED)) == 0
    assert abs(float(pixels.image[sky].mean())) < 1.0
    assert done.summary["sky_background_electron"] == pytest.approx(SKY, abs=2.0)


def test_inputs_are_unchanged(scene):
    """The planes given are not written to."""
    pixels, catalogue = scene
    before = pixels.image.copy()
    characterize(pixels, INFO, None, None, CharacterizeConfig())
    np.testing.assert_array_equal(pixels.image, before)


def test_too_few_matches_say_how_many(scene):
    """A reference of another field is an error with counts, not a wrong WCS."""
    pixels, _ = scene
    rng = np.random.default_rng(1)
    ra, dec = TRUE_WCS.sky_from_pixel(rng.uniform(0, 420, 60), rng.uniform(0, 400, 60))
    with pytest.raises(UnprocessableError, match=r"\d+ of \d+ stars|of \d+ and \d+"):
        characterize(pixels, INFO, TRUE_WCS, {"ra": ra, "dec": dec, "flux": np.ones(60)}, CharacterizeConfig())


def test_a_frame_without_wcs_or_time_is_refused(scene):
    """What cannot be registered or calibrated says why; without a reference no WCS is needed."""
    pixels, catalogue = scene
    with pytest.raises(UnprocessableError, match="the raw header has no WCS"):
        characterize(pixels, INFO, None, catalogue, CharacterizeConfig())
    with pytest.raises(InputError, match="got an exposure time of 0 s, wanted more than 0"):
        characterize(pixels, replace(INFO, exposure_time_s=0.0), TRUE_WCS, catalogue, CharacterizeConfig())


def test_flux_scale_ignores_variables():
    """10 % of stars changed by a factor of two leave the scale within its error of 1 % / sqrt(90)."""
    rng = np.random.default_rng(2)
    ratio = 3.0 * (1 + 0.01 * rng.standard_normal(100))
    ratio[:10] *= 2
    scale, scatter = flux_scale(ratio, np.full(100, 0.01))
    assert scale == pytest.approx(3.0, rel=5 * 0.01 / 90**0.5)
    assert scatter == pytest.approx(0.01, rel=0.5)
