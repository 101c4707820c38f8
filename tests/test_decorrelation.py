"""Decorrelation: white noise out, flux kept, and a variance plane that predicts the scatter everywhere."""

import numpy as np
import pytest

from nightstream.kernels.convolution import convolve_plane, tile_counts
from nightstream.kernels.decorrelation import decorrelate, decorrelation_kernels, tile_medians
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.psf_transform import convolve_psf

TILE, SHAPE = 64, (320, 320)
PLANES = MaskPlane.SAT | MaskPlane.EDGE


def gaussian_kernels(sigma=1.4, total=1.0, size=21):
    """Kernels that grow by 20 % over the image along x."""
    rows, columns = tile_counts(SHAPE, TILE)
    offset = np.arange(size) - size // 2
    kernels = np.empty((rows, columns, size, size), np.float32)
    for i in range(columns):
        s = sigma * (1 + 0.2 * i / columns)
        profile = np.exp(-0.5 * (offset / s) ** 2)
        kernels[:, i] = total * np.outer(profile, profile) / profile.sum() ** 2
    return kernels


def correlated_noise(seed, correlate):
    """White noise, or noise through a small kernel whose autocorrelation is returned too."""
    rng = np.random.default_rng(seed)
    white = rng.normal(0, 1, (SHAPE[0] + 2, SHAPE[1] + 2))
    if not correlate:
        return white[1:-1, 1:-1], None
    a = np.array([0.2, 0.7, 0.3]) / np.sqrt(0.62)
    rows = sum(w * white[i : i + SHAPE[0]] for i, w in enumerate(a))
    image = sum(w * rows[:, i : i + SHAPE[1]] for i, w in enumerate(a))
    lags = np.convolve(a, a[::-1])
    return image, np.outer(lags, lags)


def difference(sigma_science, sigma_template, correlate=False, seed=4, total=1.0):
    """A difference of two noise images before decorrelation, with everything decorrelate needs."""
    rng = np.random.default_rng(seed)
    science = (sigma_science * rng.normal(0, 1, SHAPE)).astype(np.float32)
    noise, correlation = correlated_noise(seed + 1, correlate)
    template = (sigma_template * noise).astype(np.float32)
    variances = [np.full(SHAPE, s**2, np.float32) for s in (sigma_science, sigma_template)]
    kernels, mask = gaussian_kernels(total=total), np.zeros(SHAPE, np.int32)
    matched = convolve_plane(template, kernels, TILE)
    skies = [np.full(kernels.shape[:2], s**2, float) for s in (sigma_science, sigma_template)]
    stamps = decorrelation_kernels(kernels, *skies, convolved_correlation=correlation)
    return science - matched, mask, variances, stamps


def lag(image, dy, dx):
    inner = image[40:-40, 40:-40]
    ny, nx = inner.shape
    return np.mean(inner[: ny - dy, : nx - dx] * inner[dy:, dx:]) / np.mean(inner**2)


@pytest.mark.parametrize("correlate", [False, True])
@pytest.mark.parametrize("sigmas", [(1.0, 1.0), (1.0, 0.3), (0.6, 1.2)])
def test_neighbours_are_uncorrelated_and_the_variance_is_right(target, sigmas, correlate):
    """Lags vanish within 5 / sqrt(N); variance over scatter squared is 1 within 5 sqrt(2 / N)."""
    image, mask, variances, stamps = difference(*sigmas, correlate)
    with target.running():
        arrays = [target.array(a) for a in (image, mask, *variances)]
        on_target = stamps._replace(**{n: target.array(getattr(stamps, n)) for n in stamps._fields[:3]})
        white, _, variance = (target.host(a) for a in decorrelate(*arrays, on_target, TILE, planes=PLANES))
    n = 240 * 240
    if sigmas == (0.6, 1.2):
        assert abs(lag(image, 0, 1)) > 0.1
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (0, 3)):
        assert abs(lag(white, dy, dx)) < 5 / np.sqrt(n)
    chi2 = np.mean((white**2 / variance)[40:-40, 40:-40])
    assert chi2 == pytest.approx(1, abs=5 * np.sqrt(2 / n))


def test_flux_is_preserved():
    """Every psi sums to 1, so a source keeps its flux."""
    stamps = difference(1.0, 1.0)[3]
    np.testing.assert_allclose(stamps.psi.sum(axis=(2, 3)), 1, rtol=1e-5)


def test_noise_level_is_that_of_an_unconvolved_template():
    """White noise of sigma_s^2 + (scale sigma_t)^2: convolution hid the template's noise, whitening shows
    it."""
    image, mask, variances, stamps = difference(1.0, 0.8, total=0.7)
    variance = decorrelate(image, mask, *variances, stamps, TILE, planes=PLANES)[2]
    assert np.median(variance) == pytest.approx(1 + 0.7**2 * 0.8**2, rel=2e-3)


def test_a_noiseless_template_needs_no_decorrelation():
    """Without template noise psi is a delta function and the image stays as it was."""
    image, mask, variances, stamps = difference(1.0, 1e-6)
    white = decorrelate(image, mask, *variances, stamps, TILE, planes=PLANES)[0]
    np.testing.assert_allclose(white, image, atol=1e-5)


def test_truncation_is_small_and_reported():
    """The stamps hold all but 1e-4 of psi's power."""
    assert 0 <= difference(1.0, 1.0)[3].truncation < 1e-4


def test_the_variance_plane_predicts_the_scatter_near_a_source():
    """Where the science image has ten times the variance, the pull still has width 1."""
    pulls = []
    for seed in range(20):
        image, mask, variances, stamps = difference(1.0, 0.7, seed=seed * 2)
        rng = np.random.default_rng(1000 + seed)
        image[160:163, 160:163] += (3 * rng.normal(0, 1, (3, 3))).astype(np.float32)
        variances[0][160:163, 160:163] += 9
        white, _, variance = decorrelate(image, mask, *variances, stamps, TILE, planes=PLANES)
        pulls.append((white / np.sqrt(variance))[158:165, 158:165].ravel())
    n = 20 * 49
    assert np.mean(np.square(pulls)) == pytest.approx(1, abs=5 * np.sqrt(2 / n * 2))  # neighbours share noise there


def test_missing_pixels_stay_missing():
    """NaN neither spreads nor vanishes; its surroundings say EDGE."""
    image, mask, variances, stamps = difference(1.0, 1.0)
    image[100, 100], mask[100, 100] = np.nan, MaskPlane.NO_DATA
    white, flags, variance = decorrelate(image, mask, *variances, stamps, TILE, planes=PLANES)
    assert np.isnan(white).sum() == 1 and np.isnan(variance).sum() == 1
    assert flags[100, 101] & MaskPlane.EDGE


def test_tile_medians_ignore_masked_pixels_and_fill_empty_tiles():
    """A masked star does not raise its tile; a tile without pixels takes the median of the others."""
    plane, mask = np.full((100, 130), 2.0, np.float32), np.zeros((100, 130), np.int32)
    plane[10:50, 10:50], mask[10:50, 10:50] = 100.0, MaskPlane.DETECTED
    mask[64:, :64] = MaskPlane.SAT
    medians = tile_medians(plane, mask, 64, planes=MaskPlane.DETECTED | MaskPlane.SAT)
    np.testing.assert_array_equal(medians, np.full((2, 3), 2.0))


def test_the_psf_of_a_convolved_image_is_the_convolved_psf():
    """A Gaussian of sigma 2 through Gaussian kernels of sigma 1.4 to 1.6 becomes one of the summed
    squares."""
    psf = convolve_psf(PsfModel.gaussian(2.0, 31), gaussian_kernels(), SHAPE, TILE)
    for x, sigma in ((31.5, 1.4), (223.5, 1.4 * (1 + 0.2 * 3 / 5))):
        wanted = PsfModel.gaussian(np.hypot(2.0, sigma), 31).centred(0.0, 0.0)[0]
        np.testing.assert_allclose(psf.centred(x, 100.0)[0], wanted, atol=0.01 * wanted.max())
