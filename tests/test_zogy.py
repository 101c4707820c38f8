"""Proper subtraction: what is constant vanishes, what changed keeps its flux, and the noise is white and what the planes say."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from gaussian_fields import (
    Planes,
    coloured,
    expected_peaks,
    expose,
    independent_values,
    on_lattice,
    psf_model,
    render,
    scattered,
)

from nightstream.kernels.convolution import tile_counts
from nightstream.kernels.detection import detect_score
from nightstream.kernels.fourier_stamps import mean_power, power, transfer
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.photometry import psf_flux
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.psf_transform import convolve_psf
from nightstream.kernels.zogy import ZogyKernels, corrected_score, subtract_proper, zogy_kernels

SHAPE, TILE = (384, 384), 64
PLANES = MaskPlane.SAT | MaskPlane.EDGE
SKIES = 400.0, 250.0  # science, template
SCALE = 1.6  # science / template
INNER = np.s_[40:-40, 40:-40]


class Pair(NamedTuple):
    science: Planes
    template: Planes
    psfs: tuple[PsfModel, PsfModel]
    kernels: ZogyKernels


def make_kernels(psfs, scale=SCALE, correlation=None, shape=SHAPE, skies=SKIES):
    noise = [np.full(tile_counts(shape, TILE), sky) for sky in skies]
    return zogy_kernels(*psfs, *noise, shape, TILE, flux_scale=scale, template_correlation=correlation)


def make_pair(fwhms=(4.2, 3.0), *, gradients=(0.0, 0.0), stars=(), changes=(), seed=1, noise=None, correlation=None, shift=0.0):
    """A science image and a template of constant ``stars`` (x, y, science flux); ``changes`` are on the science image only."""
    lights = [np.zeros(SHAPE), np.zeros(SHAPE)]
    if len(stars):
        x, y, flux = stars
        lights[0] += render(SHAPE, x, y, flux, fwhms[0], gradients[0])
        lights[1] += render(SHAPE, x + shift, y, flux / SCALE, fwhms[1], gradients[1])
    if len(changes):
        lights[0] += render(SHAPE, *changes, fwhms[0], gradients[0])
    psfs = tuple(psf_model(fwhm, gradient, SHAPE) for fwhm, gradient in zip(fwhms, gradients, strict=True))
    science, template = expose(lights[0], SKIES[0], seed), expose(lights[1], SKIES[1], seed + 1000, noise)
    return Pair(science, template, psfs, make_kernels(psfs, correlation=correlation))


def difference_of(pair):
    return subtract_proper(pair.science, pair.template, pair.kernels, TILE, planes=PLANES)


def score_of(pair, difference, **options):
    return corrected_score(difference, pair.science.variance, pair.template.variance, pair.kernels, TILE, **options)


def lag(image, dy, dx):
    inner = image[INNER]
    ny, nx = inner.shape
    return np.mean(inner[: ny - dy, : nx - dx] * inner[dy:, dx:]) / np.mean(inner**2)


@pytest.mark.parametrize("correlate", [False, True])
@pytest.mark.parametrize("fwhms", [(4.2, 3.0), (3.0, 4.2), (3.5, 3.5), (7.0, 6.0)])
def test_the_noise_is_white_and_the_variance_right(fwhms, correlate):
    """Lags vanish within 5 / sqrt(N), chi^2 is 1 within 5 sqrt(2 / N), whichever image is sharper, with a warped template too."""
    noise, correlation = coloured(7, SHAPE) if correlate else (None, None)
    difference = difference_of(make_pair(fwhms, noise=noise, correlation=correlation))
    n = difference.image[INNER].size
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 1), (0, 5)):
        assert abs(lag(difference.image, dy, dx)) < 5 / np.sqrt(n)
    chi2 = np.mean((difference.image**2 / difference.variance)[INNER])
    assert chi2 == pytest.approx(1, abs=5 * np.sqrt(2 / n))


def test_the_noise_level_is_that_of_both_images():
    """White noise of s_n^2 + F^2 s_r^2, as for two images of one PSF."""
    variance = difference_of(make_pair()).variance
    # the squared stamps hold all power to rounding
    np.testing.assert_allclose(variance[INNER], SKIES[0] + SCALE**2 * SKIES[1], rtol=1e-3)


@pytest.mark.parametrize("fwhms", [(4.2, 3.0), (3.0, 4.2)])
def test_changes_keep_their_flux(fwhms):
    """PSF photometry with D's own PSF: pulls have mean 0 within 5 / sqrt(N), mean square 1 within 5 sqrt(2 / N)."""
    x, y = on_lattice(SHAPE, 32)
    flux = np.full(x.size, 6e3)
    pair = make_pair(fwhms, changes=(x, y, flux), seed=3)
    difference = difference_of(pair)
    psf = convolve_psf(pair.psfs[0], pair.kernels.science[0], SHAPE, TILE)
    got = psf_flux(difference.image, difference.mask, difference.variance, x, y, psf)
    inside = np.isfinite(got["flux"])
    pull = ((got["flux"] - flux) / got["flux_err"])[inside]
    assert np.mean(flux / got["flux_err"]) > 10
    assert abs(pull.mean()) < 5 / np.sqrt(pull.size)
    assert np.mean(pull**2) == pytest.approx(1, abs=5 * np.sqrt(2 / pull.size))


@pytest.mark.parametrize("fwhms, gradient", [((4.2, 3.0), 0.0), ((3.0, 4.2), 0.0), ((4.2, 3.0), 0.25)])
def test_the_psf_of_the_difference_is_that_of_a_new_star(fwhms, gradient):
    """A noiseless star at any place within a tile comes out as the PSF model says, to 1 % of the peak."""
    x, y = np.array([95.0, 170.0, 290.0]), np.array([120.0, 224.0, 255.0])
    pair = make_pair(fwhms, gradients=(gradient, 0.0))
    image = render(SHAPE, x, y, np.full(3, 1e4), fwhms[0], gradient).astype(np.float32)
    nothing = Planes(np.zeros(SHAPE, np.float32), *pair.template[1:])
    seen = subtract_proper(pair.science._replace(image=image), nothing, pair.kernels, TILE, planes=PLANES).image / 1e4
    psf = convolve_psf(pair.psfs[0], pair.kernels.science[0], SHAPE, TILE)
    for a, b, wanted in zip(x.astype(int), y.astype(int), psf.centred(x, y), strict=True):
        np.testing.assert_allclose(seen[b - 12 : b + 13, a - 12 : a + 13], wanted, atol=0.01 * wanted.max())
    # light beyond the stamp, which the model leaves out, is less than 1 %
    np.testing.assert_allclose(seen.sum(), 3, rtol=0.01)


@pytest.mark.parametrize("fwhms", [(4.2, 3.0), (3.0, 4.2)])
def test_the_score_of_empty_sky_is_one_sigma(fwhms):
    """Scatter 1 within 5 sigma of its own error; peaks as many as a Gaussian random field has, at 3.5 and at 5 sigma."""
    pair = make_pair(fwhms, seed=11)
    score = score_of(pair, difference_of(pair))[INNER]
    assert float(score.std()) == pytest.approx(1, abs=5 / np.sqrt(2 * independent_values(score)))
    for threshold in (3.5, 5.0):
        expected = 2 * expected_peaks(score, threshold)
        found = len(detect_score(np.ascontiguousarray(score), threshold=threshold, grow_pix=2))
        assert abs(found - expected) < 5 * np.sqrt(expected) + 1


def test_exchanging_the_images_turns_the_sign():
    """Template minus science is minus the difference, in the template's units; so is the score."""
    pair = make_pair(stars=scattered(5, 40, SHAPE, 1e3, 1e5), seed=5)
    swapped = Pair(
        pair.template, pair.science, pair.psfs[::-1], make_kernels(pair.psfs[::-1], scale=1 / SCALE, skies=SKIES[::-1])
    )
    ours, theirs = difference_of(pair), difference_of(swapped)
    brightest = pair.science.image.max()
    # float32 transforms of blocks of about 100 pixels a side: 2 log2(n^2) eps of the brightest pixel
    np.testing.assert_allclose(theirs.image * SCALE, -ours.image, atol=30 * np.finfo(np.float32).eps * brightest)
    np.testing.assert_allclose(theirs.variance * SCALE**2, ours.variance, rtol=1e-4)
    # Both kernels for S hold D's PSF, which either side makes of its own cut kernels
    np.testing.assert_allclose(score_of(swapped, theirs)[INNER], -score_of(pair, ours)[INNER], atol=0.02)


@pytest.mark.parametrize("gradients", [(0.0, 0.0), (0.25, 0.0), (0.25, -0.15)])
def test_constant_stars_vanish(gradients):
    """With the true PSFs 150 stars up to 3e5 electrons leave only noise: in D, and in S_corr, there with no false positive."""
    stars = scattered(6, 150, SHAPE, 1e3, 3e5)
    pair = make_pair(stars=stars, gradients=gradients, seed=6)
    difference = difference_of(pair)
    pull = (difference.image / np.sqrt(difference.variance))[INNER]
    assert np.mean(pull**2) == pytest.approx(1, abs=5 * np.sqrt(2 / pull.size))
    score = score_of(pair, difference)
    at_stars = score[np.rint(stars[1]).astype(int), np.rint(stars[0]).astype(int)]
    assert np.mean(at_stars**2) == pytest.approx(1, abs=5 * np.sqrt(2 / at_stars.size))
    assert len(detect_score(score, grow_pix=2)) <= 1  # blank sky gives 0.1


def test_a_constant_psf_leaves_residues_that_local_ones_do_not():
    """Where the width changes by a quarter over the image, the PSFs of its centre leave many false positives."""
    stars = scattered(8, 150, SHAPE, 1e4, 3e5)
    pair = make_pair(stars=stars, gradients=(0.25, 0.0), seed=8)
    fixed = tuple(PsfModel.constant(p.centred_float64(SHAPE[1] / 2, SHAPE[0] / 2)[0]) for p in pair.psfs)
    rigid = pair._replace(kernels=make_kernels(fixed))
    local, constant = (len(detect_score(score_of(p, difference_of(p)), grow_pix=2)) for p in (pair, rigid))
    assert local <= 1 and constant > 50


def test_astrometric_noise_holds_static_stars_back_but_no_transient():
    """A template 0.15 pixel off gives dipoles of many sigma; with that noise allowed for, only what is new is left."""
    stars, change = scattered(9, 30, SHAPE, 3e4, 1e5), (np.array([190.0]), np.array([200.0]), np.array([8e3]))
    away = np.hypot(stars[0] - 190, stars[1] - 200) > 40
    pair = make_pair(stars=tuple(s[away] for s in stars), changes=change, seed=9, shift=0.15)
    difference = difference_of(pair)
    bare = detect_score(score_of(pair, difference), grow_pix=2)
    held = detect_score(score_of(pair, difference, astrometric_noise_pix=0.15), grow_pix=2)
    assert len(bare) > 20
    assert len(held) == 1 and np.hypot(held.x[0] - 190, held.y[0] - 200) < 1.5


@pytest.mark.parametrize("fwhms", [(12.0, 11.0), (6.0, 2.5), (2.5, 6.0), (9.0, 9.0)])
def test_vanishing_transforms_blow_nothing_up(fwhms):
    """Where both PSFs have no power the kernels stay finite, and let through as much noise as white images of that depth."""
    psfs = tuple(psf_model(f, 0.0, SHAPE, size=41) for f in fwhms)
    kernels = make_kernels(psfs)
    through = [mean_power(power(transfer(k[0][0, 0]))) for k in (kernels.science, kernels.template)]
    total = SKIES[0] + SCALE**2 * SKIES[1]
    # all power but what the cut may lose
    assert SKIES[0] * through[0] + SKIES[1] * through[1] == pytest.approx(total, rel=max(2 * kernels.truncation, 1e-3))
    assert kernels.truncation < 2e-3 and kernels.star_residue < 2e-4


def test_missing_pixels_of_either_image_stay_missing():
    """NaN neither spreads nor vanishes; its surroundings say EDGE; there is no score on it."""
    pair = make_pair()
    pair.science.image[100, 100], pair.template.image[200, 150] = np.nan, np.nan
    pair.template.mask[250, 250], pair.template.variance[30, 30] = MaskPlane.NO_DATA, np.nan
    difference = difference_of(pair)
    lost = np.isnan(difference.image)
    assert lost.sum() == 3 and lost[100, 100] and lost[200, 150] and lost[250, 250]
    np.testing.assert_array_equal(lost, (difference.mask & MaskPlane.NO_DATA) != 0)
    np.testing.assert_array_equal(lost, np.isnan(difference.variance))
    assert difference.mask[100, 101] & MaskPlane.EDGE and difference.mask[200, 151] & MaskPlane.EDGE
    score = score_of(pair, difference)
    assert np.isfinite(score).all() and not score[lost].any() and not score[100, 101]


def test_masks_only_grow_and_inputs_stay():
    """Planes of both images are in the difference, spread where asked for; nothing is written into the caller's arrays."""
    pair = make_pair()
    pair.science.mask[60, 60], pair.template.mask[90:93, 90] = MaskPlane.SAT, MaskPlane.HIGH_VARIANCE
    before = [p.copy() for p in (*pair.science, *pair.template)]
    mask = difference_of(pair).mask
    given = pair.science.mask | pair.template.mask
    np.testing.assert_array_equal(mask & given, given)
    assert mask[60, 62] & MaskPlane.SAT and not mask[90, 93] & MaskPlane.HIGH_VARIANCE
    for plane, copy in zip((*pair.science, *pair.template), before, strict=True):
        np.testing.assert_array_equal(plane, copy)


def test_all_targets_give_the_same_difference_and_score(target):
    """Kernels, difference and score on arrays as strict as CuPy's: NumPy's to float32 sums."""
    noise, correlation = coloured(7, SHAPE)
    pair = make_pair(stars=scattered(6, 30, SHAPE, 1e3, 1e5), gradients=(0.25, 0.0), noise=noise, correlation=correlation)
    wanted = difference_of(pair)
    score = score_of(pair, wanted, astrometric_noise_pix=0.1)
    with target.running():
        psfs = tuple(replace(p, coefficients=target.array(p.coefficients)) for p in pair.psfs)
        noise = [target.array(np.full(tile_counts(SHAPE, TILE), sky)) for sky in SKIES]
        kernels = zogy_kernels(*psfs, *noise, SHAPE, TILE, flux_scale=SCALE, template_correlation=target.array(correlation))
        science, template = (tuple(target.array(p) for p in planes) for planes in (pair.science, pair.template))
        got = subtract_proper(science, template, kernels, TILE, planes=PLANES)
        got_score = corrected_score(got, science[2], template[2], kernels, TILE, astrometric_noise_pix=0.1)
        found = detect_score(got_score, grow_pix=2)
    tolerance = 30 * np.finfo(np.float32).eps * pair.science.image.max()
    np.testing.assert_array_equal(target.host(got.mask), wanted.mask)
    np.testing.assert_allclose(target.host(got.image), wanted.image, atol=tolerance)
    np.testing.assert_allclose(target.host(got.variance), wanted.variance, rtol=1e-5)
    np.testing.assert_allclose(target.host(got_score), score, atol=1e-3)
    assert len(found) == len(detect_score(score, grow_pix=2))
