"""The score image: where the science image is the sharper one, as much signal to noise as both images hold."""

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
from scipy.stats import norm

from nightstream.kernels.convolution import convolve_parts, convolve_plane, tile_counts
from nightstream.kernels.decorrelation import decorrelate, decorrelation_kernels
from nightstream.kernels.detection import detect_score, score_image
from nightstream.kernels.fourier_stamps import mean_power, power, transfer
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.psf import FWHM_PER_SIGMA, PsfModel
from nightstream.kernels.psf_matching import MatchingKernel, fit_matching_kernel
from nightstream.kernels.psf_transform import convolve_psf
from nightstream.kernels.score import Preconvolved, preconvolve, score_from_difference, score_kernels

SHAPE, TILE = (384, 384), 64
PLANES = MaskPlane.SAT | MaskPlane.EDGE
FWHMS = 3.0, 4.0  # science, template
SKIES = 400.0, 1600.0  # the template four times as deep
SCALE = 0.25  # science / template
INNER = np.s_[40:-40, 40:-40]
STARS = scattered(6, 120, SHAPE, 3e3, 3e5)


class Scene(NamedTuple):
    science: Planes
    template: Planes
    psf: PsfModel
    preconvolved: Preconvolved


def make_scene(*, stars=(), changes=(), gradient=0.0, seed=1, noise=None, clean=False) -> Scene:
    """Constant ``stars`` (x, y, science flux) and, on the science image only, ``changes``.

    ``clean`` images have no noise, and the variance of a hundred exposures.
    """
    lights = [np.zeros(SHAPE), np.zeros(SHAPE)]
    if len(stars):
        x, y, flux = stars
        lights = [render(SHAPE, x, y, flux, FWHMS[0], gradient), render(SHAPE, x, y, flux / SCALE, FWHMS[1])]
    if len(changes):
        lights[0] += render(SHAPE, *changes, FWHMS[0], gradient)
    science, template = expose(lights[0], SKIES[0], seed), expose(lights[1], SKIES[1], seed + 1000, noise)
    if clean:
        science, template = (
            p._replace(image=light.astype(np.float32), variance=p.variance / np.float32(100))
            for p, light in zip((science, template), lights, strict=True)
        )
    psf = psf_model(FWHMS[0], gradient, SHAPE)
    return Scene(science, template, psf, preconvolve(*science, psf, TILE, planes=PLANES))


def fit(scene) -> MatchingKernel:
    """The kernel from template to preconvolved science, as the engine fits it."""
    wide = float(scene.preconvolved.psf.fwhm_pix(SHAPE[1] / 2, SHAPE[0] / 2)[0])
    order = np.argsort(-STARS[2])[:40]
    return fit_matching_kernel(
        scene.template, scene.preconvolved[:3], STARS[0][order], STARS[1][order], source_fwhm_pix=FWHMS[1], target_fwhm_pix=wide
    )


@pytest.fixture(scope="module")
def kernel():
    """Fitted once, on a field of bright stars."""
    return fit(make_scene(stars=STARS, seed=77))


def difference_of(scene, kernel):
    """D' and its mask."""
    matched = convolve_parts(kernel.convolution_parts(scene.template.image, TILE), TILE)
    return scene.preconvolved.image - matched - kernel.background_image(SHAPE), scene.preconvolved.mask


def filters(scene, kernel, correlation=None):
    skies = [np.full(tile_counts(SHAPE, TILE), sky) for sky in SKIES]
    return score_kernels(kernel.tile_kernels(SHAPE, TILE), scene.psf, *skies, SHAPE, TILE, convolved_correlation=correlation)


def score_of(scene, kernel, correlation=None):
    stamps = filters(scene, kernel, correlation)
    return score_from_difference(*difference_of(scene, kernel), scene.science.variance, scene.template.variance, stamps, TILE)


def best_error():
    """Error of a PSF flux from both images together, by Fourier mode: the least that any method can have (Zackay et al. 2016)."""
    science, template = (transfer(psf_model(fwhm, 0.0, SHAPE).centred_float64(0.0, 0.0)[0]) for fwhm in FWHMS)
    ratio = power(science) / np.maximum(power(template), 1e-12)
    information = power(science) / (SKIES[0] + SCALE**2 * SKIES[1] * ratio)
    return 1 / np.sqrt(mean_power(information))


@pytest.mark.parametrize("gradient", [0.0, 0.25])
def test_preconvolution_keeps_flux_and_has_the_psf_it_says(gradient):
    """A noiseless star at any place within a tile comes out as the PSF model, to 1 % of the peak, with its flux."""
    x, y = np.array([95.0, 170.0, 290.0]), np.array([120.0, 224.0, 255.0])
    image = render(SHAPE, x, y, np.full(3, 1e4), FWHMS[0], gradient).astype(np.float32)
    blank = make_scene().science
    got = preconvolve(image, blank.mask, blank.variance, psf_model(FWHMS[0], gradient, SHAPE), TILE, planes=PLANES)
    for a, b, wanted in zip(x.astype(int), y.astype(int), got.psf.centred(x, y), strict=True):
        np.testing.assert_allclose(
            got.image[b - 12 : b + 13, a - 12 : a + 13] / 1e4, wanted, atol=0.01 * wanted.max()
        )  # fmt: skip
    # kernels that follow the source change flux by their gradient across a star: 1e-3
    np.testing.assert_allclose(got.image.sum(), 3e4, rtol=2e-3)


@pytest.mark.parametrize("correlate", [False, True])
def test_the_score_of_empty_sky_is_one_sigma(kernel, correlate):
    """Scatter 1 within 5 sigma of its own error, with a warped template too; peaks as a Gaussian random field has them."""
    noise, correlation = coloured(7, SHAPE) if correlate else (None, None)
    scene = make_scene(seed=11, noise=noise)
    score = score_of(scene, kernel, correlation)[0][INNER]
    assert float(score.std()) == pytest.approx(1, abs=5 / np.sqrt(2 * independent_values(score)))
    for threshold in (3.5, 5.0):
        expected = 2 * expected_peaks(score, threshold)
        found = len(detect_score(np.ascontiguousarray(score), threshold=threshold, grow_pix=2))
        assert abs(found - expected) < 5 * np.sqrt(expected) + 1


def test_sources_are_found_as_their_signal_to_noise_says(kernel):
    """Sources of S/N 5 to 20: flux pulls are N(0, 1) within 5 / sqrt(N); above 5 sigma are as many as Gaussian noise gives."""
    x, y = on_lattice(SHAPE, 32)
    flux = np.linspace(5, 20, x.size) * best_error()
    scene = make_scene(changes=(x, y, flux), seed=3)
    score, fluxes, errors, mask = score_of(scene, kernel)
    inside = (mask[y.astype(int), x.astype(int)] == 0) & (x > 20) & (y > 20)
    x, y, flux = (v[inside] for v in (x, y, flux))
    at = y.astype(int), x.astype(int)
    # the kernel, made of noisy stars, and the stamps have the flux to 0.5 %
    pull = (fluxes[at] - flux) / errors[at]
    assert abs(pull.mean()) < 5 / np.sqrt(x.size)
    assert float(np.mean(pull**2)) == pytest.approx(1, abs=5 * np.sqrt(2 / x.size))
    chance = norm.cdf(flux / errors[at] - 5)
    above = score[at] > 5
    assert abs(above.sum() - chance.sum()) < 5 * np.sqrt(np.sum(chance * (1 - chance)))
    found = detect_score(score, grow_pix=2)
    distance = np.hypot(found.x[None] - x[:, None], found.y[None] - y[:, None]).min(axis=1)
    assert (distance[above] < 2.5).all()


def test_the_error_is_the_least_possible(kernel):
    """On empty sky the flux error is that of both images used in the best way, to 1 %."""
    scene = make_scene(seed=4)
    assert np.median(score_of(scene, kernel)[2][INNER]) == pytest.approx(best_error(), rel=0.01)


@pytest.mark.parametrize("gradient", [0.0, 0.1])
def test_constant_stars_vanish(gradient):
    """With the true kernel, the fit to noiseless images, 120 stars up to 3e5 electrons leave noise and no false positive.

    A width that changes by a tenth is 2.85 to 3.15 pixels: preconvolved, the science image is broader than the template all over.
    """
    scene = make_scene(stars=STARS, gradient=gradient, seed=6)
    score = score_of(scene, fit(make_scene(stars=STARS, gradient=gradient, clean=True)))[0]
    at_stars = score[np.rint(STARS[1]).astype(int), np.rint(STARS[0]).astype(int)]
    assert float(np.mean(at_stars**2)) == pytest.approx(1, abs=5 * np.sqrt(2 / at_stars.size))
    assert len(detect_score(score, grow_pix=2)) <= 1


def test_a_kernel_fitted_to_the_field_leaves_no_false_positives():
    """The fit's own error, with forty noisy stars, stays below the noise of the stars."""
    scene = make_scene(stars=STARS, seed=6)
    assert len(detect_score(score_of(scene, fit(scene))[0], grow_pix=2)) <= 1


def decorrelated_error(scene):
    """Flux error, science units, of the matched filter on the white difference with the science image convolved instead."""
    sigma = np.sqrt(FWHMS[1] ** 2 - FWHMS[0] ** 2) / FWHM_PER_SIGMA
    stamp = PsfModel.gaussian(sigma, 21).centred(0.0, 0.0)[0] / np.float32(SCALE)
    kernels = np.broadcast_to(stamp, (*tile_counts(SHAPE, TILE), *stamp.shape))
    stamps = decorrelation_kernels(kernels, *(np.full(kernels.shape[:2], sky) for sky in SKIES[::-1]))
    raw = scene.template.image - convolve_plane(scene.science.image, kernels, TILE)
    white, mask, variance = decorrelate(
        raw, scene.science.mask, scene.template.variance, scene.science.variance, stamps, TILE, planes=PLANES
    )
    psf = convolve_psf(convolve_psf(scene.psf, kernels, SHAPE, TILE), stamps.psi, SHAPE, TILE).centred(190.0, 190.0)[0]
    score = score_image(white, mask, variance, psf)[INNER]
    assert float(score.std()) == pytest.approx(1, abs=5 / np.sqrt(2 * independent_values(score)))
    return SCALE * np.sqrt(np.median(variance[INNER]) / np.sum(psf.astype(float) ** 2))


def test_nothing_is_lost_against_the_decorrelated_difference(kernel):
    """Convolving the sharper image and whitening is, for true PSFs and sky noise, as sensitive: the score must not be less so."""
    scene = make_scene(seed=4)
    error = np.median(score_of(scene, kernel)[2][INNER])
    assert error < 1.01 * decorrelated_error(scene)


def test_missing_pixels_have_no_score(kernel):
    """NaN stays NaN in flux and error, its surroundings are EDGE without score, and nothing leaks further."""
    scene = make_scene()
    scene.science.image[100, 100] = np.nan
    scene.template.mask[200, 200] = MaskPlane.NO_DATA
    again = scene._replace(preconvolved=preconvolve(*scene.science, scene.psf, TILE, planes=PLANES))
    image, mask = difference_of(again, kernel)
    score, flux, error, flags = score_from_difference(
        image, mask | scene.template.mask, scene.science.variance, scene.template.variance, filters(scene, kernel), TILE
    )  # fmt: skip
    lost = np.isnan(flux)
    assert lost.sum() == 2 and lost[100, 100] and lost[200, 200]
    np.testing.assert_array_equal(lost, np.isnan(error))
    np.testing.assert_array_equal(lost, (flags & MaskPlane.NO_DATA) != 0)
    assert flags[100, 101] & MaskPlane.EDGE and score[100, 101] == 0 and np.isfinite(score).all()


def test_all_targets_give_the_same_score(target, kernel):
    """Preconvolution, filters and score on arrays as strict as CuPy's: NumPy's to float32 sums."""
    noise, correlation = coloured(7, SHAPE)
    scene = make_scene(stars=STARS, gradient=0.25, noise=noise)
    wanted = score_of(scene, kernel, correlation)
    image, mask = difference_of(scene, kernel)
    with target.running():
        psf = replace(scene.psf, coefficients=target.array(scene.psf.coefficients))
        science, template = (tuple(target.array(p) for p in planes) for planes in (scene.science, scene.template))
        pre = preconvolve(*science, psf, TILE, planes=PLANES)
        skies = [target.array(np.full(tile_counts(SHAPE, TILE), sky)) for sky in SKIES]
        stamps = score_kernels(
            target.array(kernel.tile_kernels(SHAPE, TILE)), psf, *skies, SHAPE, TILE,
            convolved_correlation=target.array(correlation),
        )  # fmt: skip
        got = score_from_difference(target.array(image), target.array(mask), science[2], template[2], stamps, TILE)
    brightest = scene.science.image.max()
    # float32 transforms of blocks of about 100 pixels a side: 2 log2(n^2) eps of the brightest pixel
    np.testing.assert_allclose(target.host(pre.image), scene.preconvolved.image, atol=30 * np.finfo(np.float32).eps * brightest)
    np.testing.assert_array_equal(target.host(pre.mask), scene.preconvolved.mask)
    np.testing.assert_allclose(target.host(got[0]), wanted[0], atol=1e-3)
    np.testing.assert_allclose(target.host(got[2]), wanted[2], rtol=1e-5)
    np.testing.assert_array_equal(target.host(got[3]), wanted[3])
