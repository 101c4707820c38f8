"""The picture of a subtraction: drawn for every kind of difference, and it shows the numbers that it was given."""

from dataclasses import replace

import numpy as np
import pytest
from reduced_pair import expose, field, subtract

from nightstream.kernels.mask import MaskPlane
from nightstream.report.subtraction import save_subtraction

SHAPE = (192, 224)
STARS = field(30, shape=SHAPE)


def pair(**options):
    return expose(STARS, shape=SHAPE, **options), expose(STARS, shape=SHAPE, fwhm=3.2, depth=4.0, seed=3)


def draw(done, folder):
    """Draw it and return the picture's pixels."""
    from matplotlib.image import imread

    path = save_subtraction(done, folder / "look.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    return imread(path)


@pytest.mark.parametrize(
    "options",
    [{"decorrelate": False}, {"method": "zogy"}, {"align": "stars", "score": True}],
    ids=["alard_lupton", "zogy", "stars"],
)
def test_it_is_drawn_for_every_kind_of_difference(options, tmp_path):
    """Alard-Lupton; proper, which has no kernel; aligned by stars and with a score image."""
    picture = draw(subtract(*pair(), **options), tmp_path)
    assert picture.shape[0] > 900 and picture.shape[1] > 1400
    assert len(np.unique(picture[..., :3].reshape(-1, 3), axis=0)) > 100


def test_missing_pixels_and_masks_are_drawn(tmp_path):
    """NaN, a masked quarter and saturation change the picture, not the program's mind."""
    science, template = pair(saturation=2e4)
    science.image[:50, :60] = np.nan
    mask = np.zeros(SHAPE, np.int32)
    mask[100:, 150:] = MaskPlane.BAD
    assert draw(subtract(science, replace(template, mask=mask)), tmp_path).std() > 0


def test_an_image_without_empty_sky_is_drawn(tmp_path):
    """No pixel to judge the noise on: empty panels rather than an error."""
    done = subtract(*pair())
    pixels = done.difference.pixels
    blind = replace(pixels, mask=pixels.mask | np.int32(MaskPlane.BAD))
    difference = replace(done.difference, pixels=blind)
    assert draw(replace(done, result=replace(done.result, difference=difference)), tmp_path).std() > 0
