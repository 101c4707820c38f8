"""Pairs that other subtractions stumble over: each keeps fluxes and noise, and finds nothing that is not there.

White differences (the default of the visit pipeline), so that a score is as significant as it says.
"""

from dataclasses import replace

import numpy as np
import pytest
from reduced_pair import SHAPE, Stars, crowded, expose, false_detections, field, flux_pulls, lattice, subtract, widths

from nightstream.errors import UnprocessableError
from nightstream.kernels.mask import MaskPlane

STARS, CHANGES = field(), lattice()
TEMPLATE = {"fwhm": 3.2, "depth": 4.0, "seed": 3}
# A pixel that noise alone lifts above 2 sigma of the sky counts as photons: with 400 electrons a pixel the variance of 2 %
# of the pixels is too large by 12 %, and the pull's width 0.7 % too small.
PHOTONS_OF_NOISE = 0.008
FALSE_SIGMA = 5.5  # 1e5 independent places hold 0.004 peaks above it


def check_honest(done, changes=CHANGES, unseen=0.0):
    """Pulls of sky and stars have mean 0 and width 1, changes their flux and error, and nothing else is found.

    ``unseen`` stars may make the sky look noisier than it is, by that fraction of its variance."""
    got, pull = widths(done, changes), flux_pulls(done, changes)
    assert got.sky_mean == pytest.approx(0, abs=5 / np.sqrt(got.n_sky))
    assert got.sky == pytest.approx(1, abs=5 / np.sqrt(2 * got.n_sky) + PHOTONS_OF_NOISE + unseen / 2)
    assert got.star == pytest.approx(1, abs=5 / np.sqrt(2 * got.n_star) + PHOTONS_OF_NOISE)
    assert np.mean(pull) == pytest.approx(0, abs=5 / np.sqrt(pull.size))
    assert np.mean(pull**2) == pytest.approx(1, abs=5 * np.sqrt(2 / pull.size))
    assert false_detections(done, changes, threshold=FALSE_SIGMA) == []


def science(stars=STARS, changes=CHANGES, **options):
    return expose(stars, extra=changes, **options)


def template(stars=STARS, **options):
    return expose(stars, **(TEMPLATE | options))


def without(image, part, plane):
    """``image`` with ``plane`` set in a ``part`` of it; without values if that is NO_DATA."""
    mask, pixels = np.zeros(image.image.shape, np.int32), image.image.copy()
    mask[part] = plane
    if plane == MaskPlane.NO_DATA:
        pixels[part] = np.nan
    return replace(image, image=pixels, mask=mask)


def bleed(image, level, x, y, length):
    """``image`` cut at ``level``, with three columns of that level ``length`` pixels long through a star."""
    pixels = np.minimum(image.image, np.float32(level))
    pixels[y - length // 2 : y + length // 2 + 1, x - 1 : x + 2] = level
    return replace(image, image=pixels, saturation=level)


@pytest.mark.parametrize("fwhm", [3.0, 3.6])
def test_science_sharper_than_the_template(fwhm):
    """The science image is convolved to a template of FWHM 4.2 and the difference whitened again."""
    done = subtract(science(fwhm=fwhm), template(fwhm=4.2))
    assert done.diagnostics["convolved_science"] == 1
    check_honest(done)


def test_a_third_of_the_template_is_missing():
    """There the difference is NaN with NO_DATA, nowhere else, and the rest is as good as ever."""
    cut = int(0.3 * SHAPE[1])
    done = subtract(science(), without(template(), np.s_[:, :cut], MaskPlane.NO_DATA))
    pixels = done.difference.pixels
    lost = (pixels.mask & MaskPlane.NO_DATA) != 0
    assert lost[:, :cut].all() and not lost[:, cut:].any()
    np.testing.assert_array_equal(np.isnan(pixels.image), lost)
    np.testing.assert_array_equal(np.isnan(pixels.variance), lost)
    check_honest(done)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_twenty_stars_suffice(seed):
    """Ordinary stars, some of them at the border."""
    stars = field(20, seed=seed)
    check_honest(subtract(science(stars, seed=10 + seed), template(stars, seed=20 + seed)))


def test_crowded_field():
    """As dense as 100,000 stars on 4k x 4k: hardly a star's stamp is empty of others."""
    shape = (512, 512)
    stars, changes = crowded(1563, shape=shape), lattice(shape)
    faint = stars.flux[stars.flux < 600]  # 5 sigma: 5 sqrt(4 pi 1.7^2 400)
    unseen = np.sum(faint**2) / (4 * np.pi * 1.7**2) / (shape[0] * shape[1]) / 400
    assert unseen < 0.03
    check_honest(subtract(science(stars, changes, shape=shape), template(stars, shape=shape)), changes, unseen)


def test_star_that_saturates_hundreds_of_pixels():
    """Flagged in the difference with the kernel's reach around it, and nothing is found beside it."""
    stars = Stars(np.r_[STARS.x, 200.3], np.r_[STARS.y, 180.6], np.r_[STARS.flux, 3e7])
    pair = [bleed(image, 5e4, 200, 181, 61) for image in (science(stars), template(stars))]
    assert all(150 < np.sum(image.image >= 5e4) < 300 for image in pair)
    done = subtract(*pair)
    both = int(MaskPlane.SAT | MaskPlane.SAT_TEMPLATE)
    assert done.difference.pixels.mask[181, 200] & both == both
    check_honest(done)


@pytest.mark.parametrize("fwhms", [(4.2, 3.0), (3.6, 3.6)])
def test_seeing_that_changes_by_a_third_over_the_image(fwhms):
    """The science PSF grows by 30 % from left to right, past a template whose PSF does not."""
    check_honest(subtract(science(fwhm=fwhms[0], gradient=0.3), template(fwhm=fwhms[1])))


@pytest.mark.parametrize("fwhms", [(4.0, 3.2), (3.0, 4.2)])
def test_registration_off_by_a_third_of_a_pixel(fwhms):
    """The kernel moves the template to where the science image is."""
    check_honest(subtract(science(fwhm=fwhms[0]), template(fwhm=fwhms[1], shift=(0.3, -0.2))))


@pytest.mark.parametrize("fwhms", [(4.0, 3.2), (3.0, 4.2)])
def test_template_of_another_photometric_scale(fwhms):
    """A template in units of 0.3 electron: the difference stays in the science image's."""
    done = subtract(science(fwhm=fwhms[0]), template(fwhm=fwhms[1], scale=1 / 0.3))
    scale = 1 / done.diagnostics["kernel_sum"] if done.diagnostics["convolved_science"] else done.diagnostics["kernel_sum"]
    assert scale == pytest.approx(0.3, rel=0.01)
    check_honest(done)


@pytest.mark.parametrize("side", [0, 1])
def test_masked_quarter(side):
    """A quarter of either image is BAD: it says so in the difference, and the rest does not notice."""
    pair, quarter = [science(), template()], np.s_[: SHAPE[0] // 2, : SHAPE[1] // 2]
    pair[side] = without(pair[side], quarter, MaskPlane.BAD)
    done = subtract(*pair)
    assert (done.difference.pixels.mask[quarter] & MaskPlane.BAD).all()
    check_honest(done)


@pytest.mark.parametrize("n", [1, 3])
def test_a_star_or_three(n):
    """The little they say is used: no residue above the noise."""
    stars = field(n, border=60, low=3e4)
    done = subtract(science(stars, None), template(stars))
    assert done.diagnostics["n_stamps_used"] == n
    assert false_detections(done, threshold=FALSE_SIGMA) == []


def test_too_few_stars_are_one_clear_error():
    """Which image, what was wanted, and how many were found."""
    empty, border = field(0), Stars(np.array([15.0, 365.0]), np.array([180.0, 15.0]), np.array([1e5, 1e5]))
    with pytest.raises(UnprocessableError, match=r"no source of S/N 20 .* seeing on, among 0 found \[file science image\]"):
        subtract(science(empty, None), template())
    with pytest.raises(UnprocessableError, match=r"among 0 found \[file template\]"):
        subtract(science(), template(empty))
    with pytest.raises(UnprocessableError, match="2 for the matching kernel: 2 too close to the border, 0 with bad pixels"):
        subtract(science(border, None), template(border))


def test_no_star_in_common():
    """Two fields of the sky: none of the template's sources is on the science image."""
    other = Stars(STARS.x[::-1], (STARS.y + 190) % 380, STARS.flux)
    with pytest.raises(UnprocessableError, match="none of the template's 2 sources has S/N 5 on the science image"):
        subtract(science(changes=None), template(Stars(*(c[:2] for c in other))))
