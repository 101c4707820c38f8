"""Two reduced images on one grid: as they are, by their WCSs, or by their stars alone."""

from dataclasses import replace

import numpy as np
import pytest
from reduced_pair import Stars, expose, field

from nightstream.engine.align import align, choose_mode
from nightstream.engine.config import AlignConfig, DifferenceConfig, PrepareConfig
from nightstream.engine.prepare import prepare_image
from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.wcs import Wcs

SHAPE, TEMPLATE_SHAPE = (384, 384), (400, 420)
ALIGN, DIFFERENCE = AlignConfig(), DifferenceConfig()
SCIENCE_WCS = Wcs.tan(150.0, 2.0, 191.5, 191.5, 0.2)
SKY = field(160, shape=(700, 700), seed=5)  # on a grid of 0.2 arcsec, 158 pixels of it on either side of the science image


def on(wcs, shape):
    """The stars of the sky that fall on an image, in its pixels; their numbers."""
    x, y = wcs.pixel_from_sky(*SCIENCE_WCS.sky_from_pixel(SKY.x - 158, SKY.y - 158))
    inside = np.flatnonzero((x > 3) & (x < shape[1] - 4) & (y > 3) & (y < shape[0] - 4))
    return Stars(x[inside], y[inside], SKY.flux[inside]), inside


def image(wcs, shape=SHAPE, tell=True, **options):
    """A prepared image of the sky, whose header may ``tell`` its WCS, or another one."""
    told = wcs if tell is True else tell or None
    return prepare_image(expose(on(wcs, shape)[0], shape=shape, wcs=told, **options), PrepareConfig())


def misplacement(aligned, wcs, shape):
    """Root mean square distance, pixels, from where the template's stars are put to where they are on the science image."""
    (x, y, _), number = on(wcs, shape)
    got = aligned.to_science(x, y)
    true = SKY.x[number] - 158, SKY.y[number] - 158
    seen = (true[0] > 10) & (true[0] < 370) & (true[1] > 10) & (true[1] < 370)
    return np.sqrt(np.mean((np.hypot(got[0] - true[0], got[1] - true[1])[seen]) ** 2))


@pytest.fixture(scope="module")
def science():
    return image(SCIENCE_WCS, tell=True)


@pytest.fixture(scope="module")
def lost():
    """The science image without a WCS."""
    return image(SCIENCE_WCS, tell=False)


@pytest.mark.parametrize("angle, shift", [(35.0, (21.0, -14.0)), (180.0, (0.0, 5.0)), (0.0, (-60.0, 40.0))])
def test_stars_alone_align_any_rotation_and_shift(lost, angle, shift):
    """Turned and shifted, without a WCS in either: stars land within 0.05 pixel of their places."""
    wcs = Wcs.tan(150.0, 2.0, 209.5 + shift[0], 199.5 + shift[1], 0.2, angle)
    template = image(wcs, TEMPLATE_SHAPE, tell=False, fwhm=3.4, seed=4)
    aligned = align(lost, template, ALIGN, DIFFERENCE)
    assert misplacement(aligned, wcs, TEMPLATE_SHAPE) < 0.05
    assert aligned.diagnostics["n_matched_stars"] >= 15
    assert aligned.template.pixels.shape == SHAPE


def test_another_scale_and_a_wcs_that_is_off(science):
    """0.25 arcsec a pixel, turned by 10 degrees, and a header that is 5 pixels off: the stars put it right."""
    wcs = Wcs.tan(150.0, 2.0, 209.5, 199.5, 0.25, 10.0)
    off = replace(wcs, crpix=(wcs.crpix[0] + 3.0, wcs.crpix[1] - 4.0))
    template = image(wcs, TEMPLATE_SHAPE, tell=off, fwhm=3.2, seed=6)
    aligned = align(science, template, ALIGN, DIFFERENCE)
    assert misplacement(aligned, wcs, TEMPLATE_SHAPE) < 0.05
    assert aligned.diagnostics["registration_scatter_pix"] < 0.1
    assert aligned.template.psf.fwhm_pix(191, 191)[0] == pytest.approx(3.2 * 0.25 / 0.2, rel=0.05)


def test_warped_stars_lie_on_the_science_images(science):
    """The warped template has its stars where the science image has them: their light weighted by each other correlates."""
    wcs = Wcs.tan(150.0, 2.0, 209.5, 199.5, 0.2, 35.0)
    aligned = align(science, image(wcs, TEMPLATE_SHAPE, seed=7), ALIGN, DIFFERENCE)
    ours, theirs = science.exposure.pixels.image, np.nan_to_num(aligned.template.pixels.image)
    both = np.isfinite(aligned.template.pixels.image)
    assert both.mean() == aligned.template.coverage > 0.8
    assert np.corrcoef(ours[both], theirs[both])[0, 1] > 0.98
    missing = (aligned.template.pixels.mask & MaskPlane.NO_DATA) != 0
    np.testing.assert_array_equal(missing, ~both)


def test_equal_grids_are_left_as_they_are(science):
    """The same WCS, or none in images of one shape: not a pixel is resampled."""
    template = image(SCIENCE_WCS, seed=8)
    aligned = align(science, template, ALIGN, DIFFERENCE)
    assert aligned.template.pixels.image is template.exposure.pixels.image and aligned.diagnostics == {}
    assert aligned.to_science(3.0, 4.0) == (3.0, 4.0)


def test_auto_looks_at_shapes_and_wcs(science, lost):
    """Aligned only where both say so; by WCS where both have one; else by stars."""
    half = replace(science.exposure, wcs=replace(SCIENCE_WCS, crpix=(191.5, 192.0)))
    other = image(SCIENCE_WCS, TEMPLATE_SHAPE, tell=False).exposure
    ours = science.exposure
    wanted = [(ours, "none"), (half, "wcs"), (lost.exposure, "none"), (other, "stars"), (replace(other, wcs=SCIENCE_WCS), "wcs")]
    assert [choose_mode(ours, theirs, ALIGN) for theirs, _ in wanted] == [mode for _, mode in wanted]


def test_modes_that_the_images_do_not_allow(science, lost):
    """No pixels to share, no WCS to go by: said before any work."""
    other = image(SCIENCE_WCS, TEMPLATE_SHAPE, tell=False)
    with pytest.raises(InputError, match=r"got a template of shape \(400, 420\), wanted that of the science image, \(384, 384\)"):
        align(science, other, AlignConfig(mode="none"), DIFFERENCE)
    with pytest.raises(InputError, match="got an image without WCS, wanted one in both; align by stars, or not at all"):
        align(science, other, AlignConfig(mode="wcs"), DIFFERENCE)


def test_another_field_does_not_match(lost):
    """Stars that are not the same ones: an error with counts, rather than a chance alignment."""
    stranger = prepare_image(expose(field(80, shape=TEMPLATE_SHAPE, seed=77), shape=TEMPLATE_SHAPE, seed=9), PrepareConfig())
    with pytest.raises(UnprocessableError, match=r"no common offset within .* pixels: \d+ of \d+ and \d+ stars agree"):
        align(lost, stranger, ALIGN, DIFFERENCE)


def test_too_few_stars_to_align_on(lost):
    """Two stars of enough S/N fix no grid; none at all is told as such."""
    two = prepare_image(expose(Stars(*(np.array(c) for c in ([90.0, 300.0], [80.0, 310.0], [1e5, 1e5])))), PrepareConfig())
    with pytest.raises(UnprocessableError, match="stars to match, wanted at least"):
        align(lost, two, AlignConfig(mode="stars"), DIFFERENCE)
    with pytest.raises(UnprocessableError, match="0 and 0 stars to match, wanted at least 3"):
        align(lost, lost, AlignConfig(mode="stars", min_snr=1e6), DIFFERENCE)


def test_images_of_different_skies_do_not_overlap(science):
    """WCSs a degree apart: no star in common."""
    away = image(SCIENCE_WCS, tell=replace(SCIENCE_WCS, crval=(151.0, 2.0)), seed=3)
    with pytest.raises(UnprocessableError, match="no common offset|stars to match"):
        align(science, away, ALIGN, DIFFERENCE)
