"""What LSST's ip_diffim claims of its subtraction, of ours: twenty stars on 256 x 256 pixels, PSFs of sigma 2.0 to 2.8 pixels.

Tolerances are derived from the noise: 5 sigma, where nothing else is said.
"""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from gaussian_fields import render
from reduced_pair import Stars, expose, field, flux_pulls, pulls, subtract, widths
from scipy.signal import fftconvolve

from nightstream.engine.config import PrepareConfig, SubtractConfig
from nightstream.engine.prepare import prepare_image
from nightstream.engine.subtraction import subtract_images
from nightstream.engine.values import ExposureInfo, ReducedImage
from nightstream.errors import UnprocessableError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.matching_basis import choose_sigmas, gaussian_basis
from nightstream.kernels.matching_fit import term_count
from nightstream.kernels.photometry import psf_flux
from nightstream.kernels.psf import FWHM_PER_SIGMA
from nightstream.kernels.psf_matching import MatchingKernel, fit_matching_kernel
from nightstream.kernels.sky_correlation import sky_correlation
from nightstream.kernels.wcs import Wcs

SHAPE = (256, 256)
STARS = field(20, shape=SHAPE, seed=6, low=2e3, high=3e4, border=25)
PLACES = np.array([60.3, 200.4, 130.7, 70.2]), np.array([50.6, 60.2, 128.4, 190.1])
CHANGES = Stars(*PLACES, np.array([900.0, 900.0, -900.0, 900.0]))
LEVEL = 100.0  # of the sky
GAIN = 100.0  # so that the sky's photons are noise of variance 1


def make(sigma=2.4, noise=1.0, seed=1, extra=None, stars=STARS, **options) -> ReducedImage:
    """An image of noise ``noise`` on the sky, more on stars, with the variance plane that says so."""
    light = render(SHAPE, *stars, sigma * FWHM_PER_SIGMA)
    if extra is not None:
        light = light + render(SHAPE, *extra, sigma * FWHM_PER_SIGMA)
    variance = noise**2 * (1 + np.maximum(light, 0) / LEVEL)
    image = LEVEL + light + np.sqrt(variance) * np.random.default_rng(seed).normal(0, 1, SHAPE)
    return ReducedImage(image=image.astype(np.float32), variance=variance.astype(np.float32), **options)


def lags(done, step=1):
    """Correlation of empty sky with itself ``step`` pixels on, along x and y."""
    pixels = done.difference.pixels
    stamp = sky_correlation(pixels.image, pixels.mask, pixels.variance, planes=~0 & ~MaskPlane.INJECTED, reach=step)
    return np.array([stamp[step, 2 * step], stamp[2 * step, step]])


def test_equal_images_leave_the_noise_of_both():
    """Mean 0 within 5 sigma / sqrt(N), scatter sqrt(2) of one image's within 5 / sqrt(2 N)."""
    done = subtract(make(seed=1), make(seed=2))
    sky = done.difference.pixels.image[done.difference.pixels.mask == 0]
    assert sky.mean() == pytest.approx(0, abs=5 * np.sqrt(2 / sky.size))
    assert sky.std() == pytest.approx(np.sqrt(2), rel=5 / np.sqrt(2 * sky.size))
    pull = pulls(done)
    assert np.nanstd(pull) == pytest.approx(1, abs=5 / np.sqrt(2 * np.isfinite(pull).sum()))


@pytest.mark.parametrize("noises", [(1.0, 1.0), (1.0, 0.1), (0.1, 0.1)])
@pytest.mark.parametrize("sigmas", [(2.0, 2.8), (2.8, 2.0)], ids=["science better", "template better"])
def test_scatter_variance_and_scale_agree(sigmas, noises):
    """The variance plane is s^2 + t^2 and its pixels scatter so; fluxes are on one scale to 1 %."""
    done = subtract(make(sigmas[0], noises[0], seed=3), make(sigmas[1], noises[1], seed=4))
    pixels = done.difference.pixels
    sky = pixels.mask == 0
    scale = done.diagnostics["kernel_sum"]
    # noise of the kernel's 35^2 pixels, over the flux of 20 stars: 35 / 2e5 = 2e-4, five times that and the fit's 20 parameters
    assert scale == pytest.approx(1, abs=0.01)
    assert pixels.variance[sky].mean() == pytest.approx(noises[0] ** 2 + noises[1] ** 2, rel=2 * abs(scale - 1) + 0.02)
    assert np.std(pixels.image[sky] / np.sqrt(pixels.variance[sky])) == pytest.approx(1, abs=5 / np.sqrt(2 * sky.sum()))
    assert done.diagnostics["science_variance_scale"] == pytest.approx(1, abs=5 * np.sqrt(2 / sky.sum()))


def test_exchanging_the_images_turns_the_sign():
    """One kernel either way: minus the difference, in the other image's units."""
    a, b = make(2.8, seed=5, extra=CHANGES), make(2.0, seed=6)
    one, other = subtract(a, b), subtract(b, a)
    assert one.diagnostics["convolved_science"] == 0 and other.diagnostics["convolved_science"] == 1
    image, mirrored = one.difference.pixels.image, other.difference.pixels.image * other.diagnostics["kernel_sum"]
    good = np.isfinite(pulls(one)) & np.isfinite(pulls(other))
    np.testing.assert_allclose(mirrored[good], -image[good], atol=0.02 * np.sqrt(2))  # 2 % of a pixel's noise
    fluxes = [
        psf_flux(p.image, p.mask, p.variance, CHANGES.x, CHANGES.y, d.difference.psf)["flux"]
        for d in (one, other) for p in (d.difference.pixels,)
    ]  # fmt: skip
    assert np.abs(flux_pulls(one, CHANGES)).max() < 5
    np.testing.assert_allclose(fluxes[1] * other.diagnostics["kernel_sum"], -fluxes[0], rtol=0.02)


@pytest.mark.parametrize("sigmas, mode", [((2.0, 2.8), "science"), ((2.8, 2.0), "template")])
def test_auto_is_the_explicit_mode_bit_for_bit(sigmas, mode):
    """Which image is convolved is the only thing that "auto" decides."""
    pair = make(sigmas[0], seed=7), make(sigmas[1], seed=8)
    auto, explicit = (subtract(*pair, convolve=which).difference.pixels for which in ("auto", mode))
    for name in ("image", "mask", "variance"):
        np.testing.assert_array_equal(getattr(auto, name), getattr(explicit, name))


def test_few_sources_are_an_error():
    """Nothing to fit a kernel on: the message counts what there was."""
    faint = Stars(STARS.x, STARS.y, np.full(20, 20.0))
    with pytest.raises(UnprocessableError, match="no source of S/N 20 to measure the seeing on"):
        subtract(make(stars=faint), make(stars=faint, seed=2))
    with pytest.raises(UnprocessableError, match=r"none of the template's \d+ sources has S/N 1e\+06 on the science image"):
        subtract(make(), make(seed=2), kernel_min_snr=1e6)


def test_the_background_is_recovered():
    """A sky that is a polynomial of the place comes back, 5 sigma of a mesh bin's mean; nothing of it is in the difference."""
    y, x = (2 * c / 255 - 1 for c in np.mgrid[:256, :256])
    sky = (20 + 6 * x - 4 * y + 3 * x * y + 2 * (2 * x**2 - 1)).astype(np.float32)
    science = make(seed=9)
    tilted = replace(science, image=science.image + sky)
    got = prepare_image(tilted, PrepareConfig()).sky
    # The mean of a bin with a masked star belongs to a place up to 4 pixels off; the slope is 17 / 128 in the corner.
    np.testing.assert_allclose(got, LEVEL + sky, atol=4 * 17 / 128)
    done = subtract(tilted, make(seed=10))
    pixels = done.difference.pixels
    for part in (np.s_[:128, :128], np.s_[:128, 128:], np.s_[128:, :128], np.s_[128:, 128:]):
        rest = pixels.image[part][pixels.mask[part] == 0]
        assert rest.mean() == pytest.approx(0, abs=5 * np.sqrt(2 * 2 / rest.size))  # the fit's error is as large


@pytest.mark.parametrize("factor", [1.345, 1 / 1.345])
def test_a_wrong_gain_is_made_good(factor):
    """A variance made from a gain that is wrong by 1.345^2 is scaled to the sky's scatter within 5 sqrt(2 / N)."""
    image = replace(make(seed=11), variance=None, gain=GAIN * factor**2)
    prepared = prepare_image(image, PrepareConfig())
    assert prepared.summary["variance_scale"] == pytest.approx(factor**2, rel=5 * np.sqrt(2 / 256**2))
    sky = prepared.exposure.pixels.mask == 0
    assert prepared.exposure.pixels.variance[sky].mean() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("scale, expected", [(True, 1.0), (False, 1.345)])
def test_a_wrong_variance_plane_is_mended_or_told(scale, expected):
    """Scaled to the sky's scatter unless told not to; then the diagnostics say by how much the sky scatters more."""
    pair = [replace(image, variance=image.variance / 1.345**2) for image in (make(seed=12), make(seed=13))]
    done = subtract_images(*pair, SubtractConfig(prepare=PrepareConfig(scale_variance=scale)))
    error = 5 * 1.17 / np.sqrt(2 * 9000)  # of a width from the median deviation of 9,000 pixels
    assert done.diagnostics["noise_ratio"] == pytest.approx(expected, rel=error)


@pytest.mark.parametrize("sigmas", [(2.0, 2.8), (2.8, 2.0)])
@pytest.mark.parametrize("decorrelate", [True, False])
def test_properties_are_those_of_the_science_image(sigmas, decorrelate):
    """WCS, identity and units are carried over, whichever image is convolved; the PSF where that was not the science image."""
    info = ExposureInfo(
        visit=12, detector=3, camera="test", kind="science", band="r", exposure_time_s=30.0, dark_time_s=31.0,
        midpoint_mjd_tai=6e4,
    )  # fmt: skip
    wcs = Wcs.tan(150.0, 2.0, 127.5, 127.5, 0.2)
    done = subtract(make(sigmas[0], seed=14, wcs=wcs, info=info), make(sigmas[1], seed=15), decorrelate=decorrelate)
    for image in (done.difference, done.result.matched_template):
        assert (image.info, image.wcs, image.njy_per_unit) == (info, wcs, 1.0)
    if not decorrelate and sigmas[0] > sigmas[1]:
        assert done.difference.psf is done.science.psf
    fwhm = done.difference.psf.fwhm_pix(128, 128)[0]
    if not decorrelate:
        assert fwhm == pytest.approx(2.8 * FWHM_PER_SIGMA, rel=0.02)


def test_masks_are_handed_on():
    """Saturation of the template has its own name; its temporary planes stay behind, those of the science image stay on."""
    science_mask, template_mask = np.zeros(SHAPE, np.int32), np.zeros(SHAPE, np.int32)
    science_mask[100:103, 100:103], science_mask[150:153, 150:153] = MaskPlane.INJECTED, MaskPlane.SAT
    template_mask[30:33, 200:203], template_mask[200:203, 30:33] = MaskPlane.SAT, MaskPlane.BAD
    template_mask[60:63, 60:63] = MaskPlane.CR | MaskPlane.SUSPECT
    done = subtract(replace(make(seed=16), mask=science_mask), replace(make(2.0, seed=17), mask=template_mask))
    mask = done.difference.pixels.mask
    assert (mask[100:103, 100:103] & MaskPlane.INJECTED).all() and (mask[150:153, 150:153] & MaskPlane.SAT).all()
    assert (mask[30:33, 200:203] & MaskPlane.SAT_TEMPLATE).all() and not (mask[30:33, 200:203] & MaskPlane.SAT).any()
    assert (mask[200:203, 30:33] & MaskPlane.BAD).all()
    assert not (mask[60:63, 60:63] & (MaskPlane.CR | MaskPlane.SUSPECT)).any()
    np.testing.assert_array_equal(mask & science_mask, science_mask)


def test_decorrelated_variance_is_that_of_white_noise():
    """var = s^2 + t^2 K0^2 within 2 % in the mean, for a kernel that varies and for one that does not, within 3 %."""
    pair = make(2.8, seed=18), make(2.0, seed=19)
    means = []
    for order in (0, 2):
        done = subtract(*pair, spatial_order=order)
        variance = done.difference.pixels.variance[done.difference.pixels.mask == 0].mean()
        assert variance == pytest.approx(1 + done.diagnostics["kernel_sum"] ** 2, rel=0.02)
        means.append(variance)
    assert means[1] == pytest.approx(means[0], rel=0.03)


def test_decorrelation_makes_the_noise_white():
    """Where the template's noise rules, the matched difference correlates neighbours by more than 0.2; whitened, within
    5 / sqrt(N) by nothing."""
    pair = make(2.8, 0.2, seed=20), make(2.0, seed=21)
    white, coloured = (subtract(*pair, decorrelate=d) for d in (True, False))
    n = np.sum(white.difference.pixels.mask == 0)
    assert (lags(coloured) > 0.2).all()
    for step in (1, 2, 3):
        assert np.abs(lags(white, step)).max() < 5 / np.sqrt(n)


@pytest.mark.parametrize("sigmas", [(2.0, 2.8), (2.8, 2.0), (2.4, 2.4)])
@pytest.mark.parametrize("decorrelate", [True, False])
def test_the_psf_of_the_difference_is_a_transients_shape(sigmas, decorrelate):
    """A bright transient over its flux is the PSF model, in a field of lone stars: within 0.5 % of its peak, which is 5
    sigma of the faintest, and the slope over 0.04 pixel, by which PSF stars may place the model, another 1 %."""
    y, x = (c.ravel() + 0.3 for c in np.mgrid[25:250:51, 25:250:51])
    stars = Stars(x, y, np.geomspace(3e3, 3e4, 25)[np.random.default_rng(1).permutation(25)])
    bright = Stars(np.array([101.7, 205.4, 47.6]), np.array([104.2, 77.9, 203.5]), np.array([2e4, 3e4, 1e4]))
    pair = make(sigmas[0], 0.1, seed=22, stars=stars, extra=bright), make(sigmas[1], 0.1, seed=23, stars=stars)
    done = subtract(*pair, decorrelate=decorrelate)
    pixels, psf = done.difference.pixels, done.difference.psf
    got = psf_flux(pixels.image, pixels.mask, pixels.variance, *bright[:2], psf)
    models, half = psf.stamps(*bright[:2]), 9
    for x0, y0, flux, model in zip(*bright[:2], got["flux"], models, strict=True):
        row, column, middle = round(y0), round(x0), model.shape[0] // 2
        seen = pixels.image[row - half : row + half + 1, column - half : column + half + 1] / flux
        wanted = model[middle - half : middle + half + 1, middle - half : middle + half + 1]
        np.testing.assert_allclose(seen, wanted, atol=0.015 * wanted.max())


def test_transients_as_bright_as_the_stars_do_not_spoil_the_kernel():
    """Four of them within the stamps of half of the twenty stars: scale and sky as without them."""
    bright = CHANGES._replace(flux=np.full(4, 3e4))
    for seed, sigmas in enumerate([(2.8, 2.0), (2.4, 2.4), (2.0, 2.8)]):
        done = subtract(make(sigmas[0], 0.1, seed=24 + seed, extra=bright), make(sigmas[1], 0.1, seed=34 + seed))
        assert done.diagnostics["kernel_sum"] == pytest.approx(1, abs=0.002)
        got = widths(done, bright)
        assert got.sky == pytest.approx(1, abs=5 / np.sqrt(2 * got.n_sky))
        assert got.star == pytest.approx(1, abs=5 / np.sqrt(2 * got.n_star))


def convolved_field(order, noise, seed=3):
    """Lone stars, and the same convolved with a kernel of our basis whose coefficients are polynomials of ``order``."""
    rng, shape, fwhm = np.random.default_rng(seed), (512, 512), 4.0
    basis = gaussian_basis(choose_sigmas(fwhm, 5.0, 3), (2, 1, 0), 21)
    coefficients = rng.normal(0, 0.03, (len(basis), term_count(order)))
    coefficients[0] = [0.8] + [0.0] * (term_count(order) - 1)
    truth = MatchingKernel(basis.images, coefficients, np.zeros(1), shape)
    y, x = (c.ravel() + rng.uniform(-0.5, 0.5, c.size) for c in np.mgrid[40:480:60, 40:480:60])
    flux, planes = np.exp(rng.uniform(np.log(1e4), np.log(1e5), x.size)), np.zeros((2, *shape))
    for x0, y0, f, kernel in zip(x, y, flux, truth.kernel_at(np.rint(x), np.rint(y)), strict=True):
        row, column = (slice(round(c) - 29, round(c) + 30) for c in (y0, x0))
        star = render((59, 59), [x0 - column.start], [y0 - row.start], [f], fwhm)
        planes[0][row, column] += star
        planes[1][row, column] += fftconvolve(star, kernel, mode="same")
    images = (planes + noise * rng.normal(0, 1, planes.shape)).astype(np.float32)
    mask, variance = np.zeros(shape, np.int32), np.full(shape, noise**2, np.float32)
    return truth, (images[0], mask, variance), (images[1], mask, variance), x, y


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_known_coefficients_are_recovered(order):
    """At noise of 1e-7 of a star every coefficient comes back to 1e-3 of the kernel's sum, at any spatial order."""
    truth, source, target, x, y = convolved_field(order, noise=1e-3)
    got = fit_matching_kernel(
        source, target, x, y, source_fwhm_pix=4.0, target_fwhm_pix=5.0, size=21, degrees=(2, 1, 0), spatial_order=order,
        background_order=0,
    )  # fmt: skip
    assert got.coefficients.shape == truth.coefficients.shape
    np.testing.assert_allclose(got.coefficients, truth.coefficients, atol=1e-3)


@pytest.mark.skipif(shutil.which("hotpants") is None, reason="hotpants is not installed")
def test_hotpants_leaves_the_same_image(tmp_path):
    """Two fits of the same stars differ by less than the noise that either takes from them: a fifth of a pixel's sigma on
    stars, where 100 parameters share 2,500 pixels, a twentieth on the sky."""
    shape, stars = (512, 512), field(120, shape=(512, 512), seed=8, low=3e3, high=1e5)
    pair = expose(stars, shape=shape, fwhm=4.2), expose(stars, shape=shape, fwhm=3.0, depth=4.0, seed=3)
    for name, image in zip(("science", "template"), pair, strict=True):
        fits.writeto(tmp_path / f"{name}.fits", image.image)
    arguments = "-inim science.fits -tmplim template.fits -outim out.fits -oci convolved.fits -c t -n i -tg 4 -ig 1 -ko 1 -bgo 1"
    limits = "-iu 1e6 -tu 1e6 -il -1e4 -tl -1e4 -r 10 -rss 15 -nsx 6 -nsy 6 -ng 3 6 0.7 4 1.5 2 3.0"
    subprocess.run(["hotpants", *arguments.split(), *limits.split()], cwd=tmp_path, check=True, capture_output=True)
    ours = subtract(*pair, decorrelate=False, spatial_order=1)
    theirs = fits.getdata(tmp_path / "out.fits")
    inner = np.s_[40:-40, 40:-40]
    off = (theirs - ours.difference.pixels.image)[inner] / np.sqrt(ours.difference.pixels.variance[inner])
    good = np.isfinite(pulls(ours)[inner]) & (np.abs(theirs[inner]) < 1e4)
    off -= np.median(off[good])  # their sky is the stamps', ours all empty pixels'
    star = good & (ours.result.matched_template.pixels.image[inner] > 100)
    assert np.std(off[good & ~star]) < 0.05 and np.std(off[star]) < 0.2
