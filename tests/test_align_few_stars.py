"""Images whose WCSs are good and whose stars are few: the WCS is improved by as much as they can tell, and no more."""

import numpy as np
import pytest
from skyscene import add_gaussians

from nightstream.engine.config import DifferenceConfig, SubtractConfig
from nightstream.engine.subtraction import subtract_images
from nightstream.engine.values import ReducedImage
from nightstream.errors import UnprocessableError
from nightstream.kernels.wcs import Wcs

SIZE = 240
SKY_SIGMA = 5.0
CONFIG = SubtractConfig(difference=DifferenceConfig(decorrelate=True))
LINE = np.array([(60.0, 50.0), (110.0, 52.0), (170.0, 49.0), (200.0, 51.0)])  # stars all at one side: an affine map runs wild


def image(places, seed, *, offset=(0.0, 0.0), wcs_error=(0.0, 0.0), sigma=1.9, flux=3e4):
    """Stars at ``places`` (template pixels) moved by ``offset``, and a WCS that knows it up to ``wcs_error``."""
    light = np.zeros((SIZE, SIZE))
    add_gaussians(light, places[:, 0] + offset[0], places[:, 1] + offset[1], np.broadcast_to(flux, len(places)), sigma)
    variance = SKY_SIGMA**2 + light / 3
    noisy = light + np.random.default_rng(seed).normal(0, np.sqrt(variance)) + 200
    middle = SIZE / 2
    wcs = Wcs.tan(150.0, 2.0, middle + offset[0] + wcs_error[0], middle + offset[1] + wcs_error[1], 0.26)
    return ReducedImage(image=noisy.astype(np.float32), variance=variance.astype(np.float32), wcs=wcs)


def registration_error(done, offset):
    """Largest error of the map at the corners, pixels: the matched template's own WCS against the truth."""
    corner = np.array([0.0, SIZE - 1.0, 0.0, SIZE - 1.0]), np.array([0.0, 0.0, SIZE - 1.0, SIZE - 1.0])
    theirs = Wcs.tan(150.0, 2.0, SIZE / 2, SIZE / 2, 0.26)
    x, y = done.pixel_from_sky(*theirs.sky_from_pixel(*corner))
    return float(np.hypot(x - corner[0] - offset[0], y - corner[1] - offset[1]).max())


def aligned_wcs(science, template):
    from nightstream.engine.align import align
    from nightstream.engine.prepare import prepare_image

    pair = [prepare_image(one, CONFIG.prepare) for one in (science, template)]
    aligned = align(*pair, CONFIG.align, CONFIG.difference)
    return aligned.science_wcs, aligned.diagnostics


def test_four_stars_on_a_line_shift_the_wcs_and_no_more():
    """A WCS that is off by (0.8, -0.6) is right to 0.05 pixel everywhere: four stars of S/N 300 give 0.01."""
    template = image(LINE, 1)
    science = image(LINE, 2, offset=(7.3, -4.6), wcs_error=(0.8, -0.6))
    wcs, diagnostics = aligned_wcs(science, template)
    assert diagnostics["n_matched_stars"] == 4
    assert registration_error(wcs, (7.3, -4.6)) < 0.05


def test_with_two_stars_the_wcs_stands():
    """Two stars are no match: the WCS is taken as it is, the count says 0, and the difference is empty."""
    template, science = image(LINE[:2], 3), image(LINE[:2], 4, offset=(7.3, -4.6))
    done = subtract_images(science, template, CONFIG)
    assert done.diagnostics["n_matched_stars"] == 0
    assert "registration_scatter_pix" not in done.diagnostics
    pixels = done.difference.pixels
    pull = (pixels.image / np.sqrt(pixels.variance))[40:90, 40:150]
    assert np.nanmax(np.abs(pull)) < 6


def test_with_many_stars_that_do_not_match_there_is_no_difference():
    """Twelve stars in both images at unrelated places: the WCS must be wrong, and the error says so."""
    rng = np.random.default_rng(7)
    grid = np.stack(np.meshgrid([40.0, 90.0, 140.0, 200.0], [40.0, 110.0, 190.0]), axis=-1).reshape(-1, 2)
    one, two = (grid + rng.uniform(-18, 18, grid.shape) for _ in range(2))
    with pytest.raises(UnprocessableError, match="agree|matched"):
        subtract_images(image(two, 5, offset=(5.2, 3.1)), image(one, 6), CONFIG)


def test_the_scale_is_that_of_the_science_image_whichever_is_convolved():
    """Science stars of 0.6 times the flux give 0.6, with the sharper science image convolved and without, within 5 errors."""
    for sigmas in ((1.6, 2.2), (2.2, 1.6)):
        science, template = image(LINE, 8, sigma=sigmas[0], flux=1.8e4), image(LINE, 9, sigma=sigmas[1])
        done = subtract_images(science, template, CONFIG)
        assert done.diagnostics["convolved_science"] == (sigmas[0] < sigmas[1])
        error = done.diagnostics["photometric_scale_error"]
        assert done.diagnostics["photometric_scale"] == pytest.approx(0.6, abs=5 * error)
        assert error < 0.012
