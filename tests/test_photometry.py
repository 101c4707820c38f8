"""Fluxes: unbiased, with right errors; apertures exact."""

import numpy as np
import pytest
from scenes import SKY, blank, flux_of_snr, gaussian_psf, lattice, noisy, stars

from nightstream.errors import InputError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.photometry import aperture_flux, psf_flux, sum_apertures_reference


def measure(target, planes, x, y, **options):
    with target.running():
        out = psf_flux(*(target.array(p) for p in planes), target.array(x), target.array(y), gaussian_psf(target), **options)
    return {name: target.host(column) for name, column in out.items()}


def apertures(target, planes, x, y, **options):
    with target.running():
        out = aperture_flux(*(target.array(p) for p in planes), target.array(x), target.array(y), **options)
    return {name: target.host(column) for name, column in out.items()}


@pytest.mark.parametrize("own_noise", [True, False])
@pytest.mark.parametrize("snr", [7.0, 100.0])
def test_pulls_are_standard_normal(snr, own_noise):
    """Flux errors over sigma have mean 0 and width 1, also with a variance plane made from the noisy image
    itself."""
    rng = np.random.default_rng(30)
    x, y, shape = lattice(rng, 20, 25)
    flux = flux_of_snr(snr)
    light = stars(shape, x, y, np.full(x.size, flux))
    image, mask, variance = noisy(rng, light)
    out = psf_flux(image, mask, variance if own_noise else (light + SKY).astype(np.float32), x, y, gaussian_psf())
    pull = (out["flux"] - flux) / out["flux_err"]
    n = pull.size
    assert abs(pull.mean()) < 3 / np.sqrt(n) and abs(pull.std() - 1) < 3 / np.sqrt(2 * n)
    assert abs((out["flux"] - flux).mean()) < 3 * out["flux_err"].mean() / np.sqrt(n)
    assert not out["flag"].any()


def test_chi2_follows_its_distribution():
    """chi2 of well-modelled stars has mean n - 1 and variance 2 (n - 1)."""
    rng = np.random.default_rng(31)
    x, y, shape = lattice(rng, 10, 25)
    light = stars(shape, x, y, np.full(x.size, 1e4))
    image = (light + rng.normal(0, 10, shape)).astype(np.float32)
    out = psf_flux(image, np.zeros(shape, np.int32), np.full(shape, 100, np.float32), x, y, gaussian_psf())
    freedom = out["n_pixels"] - 1
    assert abs((out["chi2"] / freedom).mean() - 1) < 4 * np.sqrt(2 / freedom.sum())


def test_unweighted_sky_error_is_analytic():
    """On constant variance the error is sigma / sqrt(sum P^2), the optimum."""
    image, mask, variance = blank(np.random.default_rng(32), (50, 50), 9.0)
    out = psf_flux(image, mask, variance, np.array([25.0]), np.array([25.0]), gaussian_psf())
    stamp = gaussian_psf().centred(0.0, 0.0)[0].astype(float)
    np.testing.assert_allclose(out["flux_err"], 3 / np.sqrt((stamp**2).sum()), rtol=1e-6)


def test_masked_pixels_cost_noise_not_flux(target):
    """Half the pixels masked and garbage in them: the flux stays, the error grows."""
    rng = np.random.default_rng(33)
    x, y, shape = lattice(rng, 3, 30)
    image = stars(shape, x, y, np.full(x.size, 1e4)).astype(np.float32)
    mask, variance = np.zeros(shape, np.int32), np.full(shape, 4, np.float32)
    full = measure(target, (image, mask, variance), x, y)
    hit = rng.random(shape) < 0.3
    mask[hit], image[hit] = int(MaskPlane.BAD), 1e6
    part = measure(target, (image, mask, variance), x, y)
    np.testing.assert_allclose(part["flux"], 1e4, rtol=1e-5)  # float32 pixels and stamps
    assert (part["flux_err"] > full["flux_err"]).all() and not part["flag"].any()


def test_flags_tell_what_is_missing(target):
    """The edge flag where the stamp leaves the image; the flag where most of the star is unusable or off
    it."""
    image, mask, variance = blank(np.random.default_rng(34), (60, 60))
    mask[27:34, 27:34] = int(MaskPlane.SAT)
    out = measure(target, (image, mask, variance), [30.0, 5.0, -200.0, np.nan], [30.0, 15.0, 10.0, 10.0])
    np.testing.assert_array_equal(out["flag"], [True, False, True, True])
    np.testing.assert_array_equal(out["flag_edge"], [False, True, True, True])
    assert np.isnan(out["flux"][2:]).all()


@pytest.mark.parametrize("radius", [0.4, 3.0, 12.0])
def test_aperture_is_exact(target, radius):
    """Sums agree with photutils' exact circles."""
    from photutils.aperture import CircularAperture, aperture_photometry

    rng = np.random.default_rng(35)
    image = rng.uniform(0, 1, (64, 60)).astype(np.float32)
    x, y = rng.uniform(14, 45, (2, 50))
    out = apertures(target, (image, np.zeros(image.shape, np.int32), image), x, y, radius_pix=radius)
    table = aperture_photometry(image.astype(float), CircularAperture(np.transpose([x, y]), radius), method="exact")
    # both are exact: rounding of some 500 terms
    np.testing.assert_allclose(out["flux"], table["aperture_sum"], rtol=1e-9)
    assert not out["flag"].any()


def test_aperture_of_ones_has_the_area_of_the_circle(target):
    """Over an image of ones the flux is pi r^2 wherever the centre falls, on pixel corners too."""
    ones = np.ones((40, 40), np.float32)
    x = np.array([20.0, 20.5, 19.73, 20.0])
    out = apertures(target, (ones, np.zeros((40, 40), np.int32), ones), x, x[::-1].copy(), radius_pix=5.0)
    np.testing.assert_allclose(out["flux"], np.pi * 25, rtol=1e-12)


def test_aperture_matches_the_definition(target):
    """Masked, NaN and off-image pixels add nothing and set the flag, as in the brute-force definition."""
    rng = np.random.default_rng(36)
    image, mask, variance = blank(rng, (40, 44))
    image[12, 12], mask[20, 30] = np.nan, int(MaskPlane.CR)
    x, y = np.array([12.2, 30.4, 1.5, 22.0]), np.array([11.9, 20.0, 38.0, 30.0])
    out = apertures(target, (image, mask, variance), x, y, radius_pix=4.0)
    flux, noise, _ = sum_apertures_reference(image, mask, variance, x, y, 4.0, MaskPlane.unusable())
    # sub-pixels of 0.01: edge areas are off by up to 1e-3 each, in some 30 pixels at random
    np.testing.assert_allclose(out["flux"], flux, atol=0.03)
    np.testing.assert_allclose(out["flux_err"] ** 2, noise, atol=0.03)
    np.testing.assert_array_equal(out["flag"], [True, True, True, False])


def test_aperture_far_off_is_flagged(target):
    """A position off the image or not finite is flagged, without harm."""
    planes = blank(np.random.default_rng(37), (20, 20))
    out = apertures(target, planes, np.array([-1000.0, np.nan]), np.array([5.0, 5.0]), radius_pix=3.0)
    assert out["flag"].all() and out["flux"][0] == 0 and np.isnan(out["flux"][1])


def test_aperture_needs_a_radius():
    """A radius that is not positive is an error."""
    planes = blank(np.random.default_rng(38), (20, 20))
    with pytest.raises(InputError, match="radius"):
        aperture_flux(*planes, np.zeros(1), np.zeros(1), radius_pix=0.0)
