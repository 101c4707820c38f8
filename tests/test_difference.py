"""Subtraction: what is constant vanishes, what changed keeps its flux, and the noise is what the result
says."""

from dataclasses import replace

import numpy as np
import pytest
from skyscene import make_exposure, star_field

from nightstream.engine.config import DifferenceConfig, TemplateConfig
from nightstream.engine.difference import subtract, warp_template
from nightstream.engine.memory import DetectorMemory
from nightstream.engine.template import build_template
from nightstream.errors import UnprocessableError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.photometry import psf_flux

STARS = star_field(n=60, size=380, low=3e3, high=2e5)
SHAPE = (320, 320)
CONFIG = DifferenceConfig()
TRANSIENTS = [(60.0, 70.3, 4e3), (150.4, 200.0, 8e3), (251.2, 90.7, 2e4), (100.5, 260.2, -2.5e3)]


def make(**options):
    return make_exposure(STARS, shape=SHAPE, **options)


@pytest.fixture(scope="module")
def template():
    """Three dithered visits with FWHM 3.4 and twice the depth of a science image each."""
    moves = [(0.0, 0.0, 0.0), (2.4, -1.3, 0.3), (-1.7, 3.6, -0.2)]
    shots = [
        make(fwhm=3.4, scale=2.0, sky=800.0, dx=dx, dy=dy, angle=a, seed=20 + i, visit=i) for i, (dx, dy, a) in enumerate(moves)
    ]
    return build_template(shots, TemplateConfig(padding_pix=24))


@pytest.fixture(scope="module")
def science():
    """A shifted, rotated visit with FWHM 4.2 and four changes on the sky."""
    return make(fwhm=4.2, dx=1.3, dy=-2.2, angle=0.7, seed=5, visit=9, extra=TRANSIENTS)


@pytest.fixture(scope="module")
def result(science, template):
    return subtract(science, template, CONFIG)


def usable(pixels, margin=20):
    bad = (pixels.mask & (MaskPlane.NO_DATA | MaskPlane.EDGE | MaskPlane.SAT | MaskPlane.SAT_TEMPLATE)) != 0
    bad[:margin], bad[-margin:], bad[:, :margin], bad[:, -margin:] = True, True, True, True
    return ~bad


def away_from(shape, sources, radius=14):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.all([(x - s[0]) ** 2 + (y - s[1]) ** 2 > radius**2 for s in sources], axis=0)


def test_static_stars_vanish_into_the_noise(result):
    """Away from what changed the pull has mean 0 and width 1, stars included."""
    pixels = result.difference.pixels
    quiet = usable(pixels) & away_from(SHAPE, TRANSIENTS)
    pull = (pixels.image / np.sqrt(pixels.variance))[quiet]
    n = quiet.sum()
    assert np.mean(pull) == pytest.approx(0, abs=10 / np.sqrt(n))  # 5 sigma, and the background's own error
    assert np.std(pull) == pytest.approx(1, abs=0.03)
    assert np.mean(np.abs(pull) > 5) < 1e-4


def test_the_noise_is_white(result):
    """Neighbours of the difference are uncorrelated within 5 / sqrt(N) plus the stars' residue."""
    pixels = result.difference.pixels
    good = usable(pixels) & away_from(SHAPE, TRANSIENTS)
    pull = np.where(good, pixels.image / np.sqrt(pixels.variance), np.nan)
    for a, b in ((pull[:, 1:], pull[:, :-1]), (pull[1:], pull[:-1]), (pull[:, 2:], pull[:, :-2])):
        assert np.nanmean(a * b) == pytest.approx(0, abs=5 / np.sqrt(good.sum()) + 0.01)


def test_changes_keep_their_flux_and_sign(result):
    """PSF photometry with the difference's own PSF gives the injected fluxes within 4 sigma, both signs."""
    pixels, (x, y, flux) = result.difference.pixels, np.array(TRANSIENTS).T
    got = psf_flux(pixels.image, pixels.mask, pixels.variance, x, y, result.difference.psf)
    pull = (got["flux"] - flux) / np.hypot(got["flux_err"], 0.005 * flux)
    assert np.abs(pull).max() < 4


def test_the_matched_template_looks_like_the_science_image(science, result):
    """Stars of the matched template and of the science image have equal fluxes in science units."""
    template = result.matched_template
    bright = science.pixels.image > 500
    good = bright & usable(result.difference.pixels) & away_from(SHAPE, TRANSIENTS)
    ratio = template.pixels.image[good].sum() / science.pixels.image[good].sum()
    assert ratio == pytest.approx(1, abs=0.005)


def test_the_diagnostics_say_what_was_done(result):
    """Star counts, chi^2, coverage and noise ratio are there and sane."""
    d = result.diagnostics
    assert d["n_stamps_used"] > 10 and d["coverage"] > 0.95
    assert d["chi2_per_pixel_median"] == pytest.approx(1, abs=0.15)
    assert d["noise_ratio"] == pytest.approx(1, abs=0.05)
    assert d["kernel_sum"] == pytest.approx(1, abs=0.01)


def test_all_targets_give_the_same_difference(target, science, template, result):
    """The `.cu` sources give what Numba gives, to float32 sums."""
    memory = DetectorMemory("gpu" if target.name == "cuda" else "cpu")
    with target.running():
        got = memory.download(subtract(memory.keep(science), memory.keep(template), CONFIG).difference.pixels)
    np.testing.assert_array_equal(got.mask, result.difference.pixels.mask)
    np.testing.assert_allclose(got.image, result.difference.pixels.image, atol=0.05)


def test_a_sharper_science_image_is_convolved_instead(template):
    """Science of FWHM 2.8 against a template of 3.4: fluxes, noise and PSF still hold."""
    sharp = make(fwhm=2.8, seed=6, extra=TRANSIENTS)
    result = subtract(sharp, template, CONFIG)
    assert result.diagnostics["convolved_science"] == 1
    pixels, (x, y, flux) = result.difference.pixels, np.array(TRANSIENTS).T
    got = psf_flux(pixels.image, pixels.mask, pixels.variance, x, y, result.difference.psf)
    assert np.abs((got["flux"] - flux) / np.hypot(got["flux_err"], 0.01 * flux)).max() < 4
    assert result.diagnostics["noise_ratio"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("decorrelates", [True, False])
def test_a_convolved_science_image_keeps_its_units_and_noise(template, decorrelates):
    """A nominal zero point that is wrong by a factor of 1.6 changes neither noise nor fluxes in science units."""
    sharp = make(fwhm=2.8, seed=6, extra=TRANSIENTS)
    off = replace(sharp, njy_per_unit=1.6 * sharp.njy_per_unit)
    result = subtract(off, template, DifferenceConfig(decorrelate=decorrelates))
    assert result.kernel.kernel_sum == pytest.approx(1 / 1.6, rel=0.01)
    # the MAD of 9,000 sky pixels scatters by 1.17 / sqrt(2 * 9000) = 0.009: 5 sigma
    assert result.diagnostics["noise_ratio"] == pytest.approx(1, abs=0.045)
    pixels = usable(result.difference.pixels) & away_from(SHAPE, TRANSIENTS)
    subtracted, direct = (image[pixels].sum() for image in (result.matched_template.pixels.image, sharp.pixels.image))
    # all light counts, so the PSFs do not: 0.5 electron of sky left on 7e4 pixels is 2 % of the stars' 2e6
    assert subtracted / direct == pytest.approx(1, abs=0.02)


def test_a_template_sharpened_by_force_behaves(template):
    """Convolving the template although the science is sharper (a mild deconvolution) leaves stars at the
    noise."""
    sharp = make(fwhm=3.1, seed=7)
    result = subtract(sharp, template, DifferenceConfig(convolve="template"))
    pixels = result.difference.pixels
    pull = (pixels.image / np.sqrt(pixels.variance))[usable(pixels)]
    assert np.std(pull) == pytest.approx(1, abs=0.05)


def test_uncovered_pixels_have_no_data(science, template):
    """With 30 % of the template missing the rest is subtracted as ever; NaN and NO_DATA agree."""
    planes = template.pixels
    image, mask, variance = planes.image.copy(), planes.mask.copy(), planes.variance.copy()
    cut = int(0.3 * planes.shape[1])
    image[:, :cut], variance[:, :cut] = np.nan, np.nan
    mask[:, :cut] |= MaskPlane.NO_DATA
    partial = replace(template, pixels=type(planes)(image, mask, variance))
    pixels = subtract(science, partial, CONFIG).difference.pixels
    lost = (pixels.mask & MaskPlane.NO_DATA) != 0
    np.testing.assert_array_equal(np.isnan(pixels.image), lost)
    np.testing.assert_array_equal(np.isnan(pixels.variance), lost)
    assert 0.15 < lost.mean() < 0.35
    good = usable(pixels) & away_from(SHAPE, TRANSIENTS)
    assert np.std((pixels.image / np.sqrt(pixels.variance))[good]) == pytest.approx(1, abs=0.04)


def test_the_warped_template_brings_its_psf(science, template):
    """On an equal pixel scale the PSF of three Gaussian visits of FWHM 3.4 keeps its width: resampled twice by a
    Lanczos-3 window, which changes the area above half maximum by less than 1 %."""
    warped = warp_template(science, template, CONFIG)
    assert warped.psf.centred(160, 160).sum() == pytest.approx(1, abs=1e-4)
    assert warped.psf.fwhm_pix(160, 160)[0] == pytest.approx(3.4, rel=0.01)


def test_flags_of_the_template_arrive_where_its_pixels_do(science, template):
    """NO_DATA, BAD, EDGE and HIGH_VARIANCE of a template pixel lie on the pixel its sky position falls on; DETECTED,
    CR and SUSPECT, which speak of the visits, do not come along."""
    planes, mask = template.pixels, template.pixels.mask.copy()
    spots = {MaskPlane.NO_DATA: 100, MaskPlane.BAD: 150, MaskPlane.EDGE: 200, MaskPlane.HIGH_VARIANCE: 250}
    for plane, at in spots.items():
        mask[at - 2 : at + 3, at - 2 : at + 3] |= plane | MaskPlane.DETECTED | MaskPlane.CR | MaskPlane.SUSPECT
    got = warp_template(science, replace(template, pixels=replace(planes, mask=mask)), CONFIG).pixels
    for plane, at in spots.items():
        x, y = (round(float(c)) for c in science.wcs.pixel_from_sky(*template.wcs.sky_from_pixel(float(at), float(at))))
        assert got.mask[y, x] & plane
        assert np.isnan(got.image[y, x]) == (plane == MaskPlane.NO_DATA)
    assert not (got.mask & (MaskPlane.DETECTED | MaskPlane.CR | MaskPlane.SUSPECT)).any()


def test_a_template_of_few_visits_is_flagged_in_the_difference(science, template):
    """Where the variance is 9 times the usual, the bins wholly inside carry HIGH_VARIANCE and no others; at 2 times none."""
    planes = template.pixels
    for factor, flagged in ((9.0, True), (2.0, False)):
        variance = planes.variance.copy()
        variance[-160:] *= np.float32(factor)
        mask = planes.mask & ~int(MaskPlane.HIGH_VARIANCE)
        thin = replace(template, pixels=replace(planes, mask=mask, variance=variance))
        high = (subtract(science, thin, CONFIG).difference.pixels.mask & MaskPlane.HIGH_VARIANCE) != 0
        assert high[-96:].all() == flagged and high.any() == flagged
        assert not high[:128].any()


def test_no_overlap_is_an_error_that_names_the_fraction(science, template):
    """A template elsewhere on the sky covers 0 % and says so."""
    elsewhere = replace(template, wcs=replace(template.wcs, crval=(151.0, 2.0)))
    with pytest.raises(UnprocessableError, match=r"covers 0\.0% .* wanted 10%"):
        subtract(science, elsewhere, CONFIG)


def test_a_star_saturated_in_the_template_is_flagged_and_not_fitted(science, template):
    """Its pixels carry SAT_TEMPLATE in the difference; the rest of the sky is unharmed."""
    planes = template.pixels
    image, mask = planes.image.copy(), planes.mask.copy()
    x, y = (int(round(template.stars[c][0])) for c in "xy")
    image[y - 3 : y + 4, x - 3 : x + 4] = 1e5
    mask[y - 3 : y + 4, x - 3 : x + 4] |= MaskPlane.SAT
    pixels = subtract(science, replace(template, pixels=type(planes)(image, mask, planes.variance)), CONFIG).difference.pixels
    sx, sy = science.wcs.pixel_from_sky(*template.wcs.sky_from_pixel(float(x), float(y)))
    assert pixels.mask[round(float(sy)), round(float(sx))] & MaskPlane.SAT_TEMPLATE
    good = usable(pixels) & away_from(SHAPE, [*TRANSIENTS, (float(sx), float(sy))], 30)
    assert np.std((pixels.image / np.sqrt(pixels.variance))[good]) == pytest.approx(1, abs=0.04)


def test_masks_of_the_science_image_only_grow(science, template):
    """Planes of the science image stay, at least, where they were."""
    planes = science.pixels
    mask = planes.mask.copy()
    mask[100:104, 100:104] |= MaskPlane.CR
    mask[200, 150] |= MaskPlane.SAT
    marked = replace(science, pixels=type(planes)(planes.image, mask, planes.variance))
    got = subtract(marked, template, CONFIG).difference.pixels.mask
    np.testing.assert_array_equal(got & mask, mask)


def test_inputs_stay_unchanged_and_the_result_repeats(science, template, result):
    """Same input, same bits; nothing is written into the caller's planes."""
    before = [p.copy() for p in (science.pixels.image, science.pixels.mask, template.pixels.image)]
    again = subtract(science, template, CONFIG).difference.pixels
    np.testing.assert_array_equal(again.image, result.difference.pixels.image)
    for plane, copy in zip((science.pixels.image, science.pixels.mask, template.pixels.image), before, strict=True):
        np.testing.assert_array_equal(plane, copy)


def test_without_stars_the_error_says_so(science, template):
    """No star bright enough for the kernel is an UnprocessableError with the count."""
    with pytest.raises(UnprocessableError, match="none of the template's"):
        subtract(science, template, DifferenceConfig(kernel_min_snr=1e6))
