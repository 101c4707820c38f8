"""The matching kernel: right width, right sum, right background, from few stars and from many."""

import numpy as np
import pytest
from skyscene import add_gaussians

from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.convolution import convolve_parts
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.matching_basis import choose_sigmas, choose_size, convolve_stamps, delta_basis, gaussian_basis
from nightstream.kernels.psf_matching import fit_matching_kernel, thin


def scene(n=40, seed=3, sigma_source=1.6, sigma_target=2.2, scale=1.0, noise=(1.0, 1.0), background=None, shape=(300, 300)):
    """Source and target planes (Poisson-like noise), and the stars' positions."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(40, shape[1] - 40, n), rng.uniform(40, shape[0] - 40, n)
    flux = 10 ** rng.uniform(3.5, 5.5, n)
    planes = []
    for sigma, factor, level in ((sigma_source, 1.0, noise[0]), (sigma_target, scale, noise[1])):
        model = np.zeros(shape)
        add_gaussians(model, x, y, factor * flux, sigma)
        variance = (model + 300) * level**2
        image = model + rng.normal(0, 1, shape) * np.sqrt(variance)
        planes.append([image.astype(np.float32), np.zeros(shape, np.int32), variance.astype(np.float32)])
    if background is not None:
        planes[1][0] += background.astype(np.float32)
    return *planes, x, y


def fit(source, target, x, y, sigmas=(1.6, 2.2), **options):
    fwhm = [s * 2.3548 for s in sigmas]
    return fit_matching_kernel(source, target, x, y, source_fwhm_pix=fwhm[0], target_fwhm_pix=fwhm[1], **options)


def second_moment(kernel):
    half = kernel.shape[0] // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    return np.sum(kernel * (x * x + y * y)) / 2 / kernel.sum()


def test_gaussians_of_sigma_3_and_5_give_a_kernel_of_sigma_4():
    """The kernel's second moment is 16 pixels^2 and it sums to the flux ratio."""
    source, target, x, y = scene(sigma_source=3.0, sigma_target=5.0, scale=0.7, noise=(0.03, 0.03))
    kernel = fit(source, target, x, y, (3.0, 5.0), size=41, spatial_order=0)
    middle = kernel.kernel_at(150.0, 150.0)[0]
    assert kernel.kernel_sum == pytest.approx(0.7, rel=2e-3)
    assert second_moment(middle) == pytest.approx(16, rel=0.03)
    offset = np.arange(41) - 20
    wanted = 0.7 / (2 * np.pi * 16) * np.exp(-(offset[:, None] ** 2 + offset**2) / 32)
    np.testing.assert_allclose(middle, wanted, atol=0.03 * wanted.max())


def test_the_residual_is_noise():
    """target - K source has the scatter of both noises on the stars: chi^2 per pixel 1 within 5 %."""
    source, target, x, y = scene(noise=(0.2, 1.0))
    kernel = fit(source, target, x, y)
    matched = convolve_parts(kernel.convolution_parts(source[0], 32), 32)
    pull = (target[0] - matched - kernel.background_image((300, 300))) / np.sqrt(target[2] + 0.04 * 0.06 * source[2])
    on_star = np.zeros((300, 300), bool)
    for x0, y0 in zip(np.rint(x).astype(int), np.rint(y).astype(int), strict=True):
        on_star[y0 - 5 : y0 + 6, x0 - 5 : x0 + 6] = True
    assert np.mean(pull[on_star] ** 2) == pytest.approx(1, abs=0.05)  # 5 sqrt(2 / 4800) = 0.1; the fit takes some
    assert kernel.diagnostics["chi2_per_pixel_median"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_kernel_sums_to_the_flux_ratio(scale):
    """Whatever the photometric scale, the sum finds it to 0.3 %, the same everywhere."""
    source, target, x, y = scene(scale=scale, noise=(0.2, 0.5))
    kernel = fit(source, target, x, y)
    assert kernel.kernel_sum == pytest.approx(scale, rel=3e-3)
    sums = kernel.tile_kernels((300, 300), 64).sum(axis=(2, 3))
    np.testing.assert_allclose(sums, kernel.kernel_sum, rtol=1e-5)


def test_a_background_plane_is_recovered():
    """A tilted background of the target comes back, and does not touch the kernel sum."""
    y, x = np.mgrid[:300, :300]
    plane = 20 + 0.05 * x - 0.03 * y
    source, target, sx, sy = scene(background=plane, noise=(0.2, 1.0))
    kernel = fit(source, target, sx, sy)
    np.testing.assert_allclose(kernel.background_image((300, 300)), plane, atol=1.5)  # 17 / sqrt(40 * 800) * 10
    assert kernel.kernel_sum == pytest.approx(1, rel=3e-3)


def test_the_variance_weights_do_not_bias_the_background():
    """Variances taken from the noisy pixels themselves leave the background unbiased (naively: -1
    electron)."""
    rng = np.random.default_rng(9)
    source, target, x, y = scene(noise=(0.05, 1.0))
    target[2][:] = np.maximum(target[0] + 300, 1)
    source[2][:] = 0.0025 * np.maximum(source[0] + 300, 1)
    target[0] += rng.normal(0, 0.01, (300, 300)).astype(np.float32)
    kernel = fit(source, target, x, y, background_order=0)
    assert float(kernel.background[0]) == pytest.approx(0, abs=5 * 17 / np.sqrt(40 * 600))


def test_five_stars_suffice():
    """With five stars the orders come down and the kernel still sums to the flux ratio to 2 %."""
    source, target, x, y = scene(n=5, seed=8, noise=(0.2, 0.5))
    kernel = fit(source, target, x, y)
    assert kernel.kernel_sum == pytest.approx(1, rel=0.02)
    assert kernel.diagnostics["spatial_order"] <= 1


def test_a_variable_star_is_clipped():
    """A star that doubled its flux between source and target does not enter the fit."""
    source, target, x, y = scene(noise=(0.2, 0.5))
    add = np.zeros((300, 300))
    add_gaussians(add, x[:1], y[:1], [2e5], 2.2)
    target[0] += add.astype(np.float32)
    kernel = fit(source, target, x, y)
    assert kernel.kernel_sum == pytest.approx(1, rel=3e-3)
    assert kernel.diagnostics["n_stamps_used"] < kernel.diagnostics["n_stamps"]


def test_the_spatial_variation_of_the_psf_is_followed():
    """Where the target's PSF grows across the image, so does the kernel."""
    source, target, x, y = scene(n=80, noise=(0.05, 0.05))
    model = np.zeros((300, 300))
    rng = np.random.default_rng(3)
    rng.uniform(size=160)
    flux = 10 ** rng.uniform(3.5, 5.5, 80)
    for x0, y0, f in zip(x, y, flux, strict=True):
        add_gaussians(model, [x0], [y0], [f], 2.0 + 0.4 * x0 / 300)
    source_model = np.zeros((300, 300))
    add_gaussians(source_model, x, y, flux, 1.6)
    source[0][:] = source_model + rng.normal(0, 0.5, (300, 300))
    target[0][:] = model + rng.normal(0, 0.5, (300, 300))
    kernel = fit(source, target, x, y)
    left, right = (second_moment(kernel.kernel_at(at, 150.0)[0]) for at in (50.0, 250.0))
    assert left == pytest.approx((2.0 + 0.4 / 6) ** 2 - 1.6**2, abs=0.25)
    assert right == pytest.approx((2.0 + 0.4 * 5 / 6) ** 2 - 1.6**2, abs=0.25)
    assert kernel.diagnostics["spatial_order"] >= 1


@pytest.mark.parametrize("basis", [gaussian_basis((0.7, 1.5, 3.0), (4, 2, 2), 21), delta_basis(7)], ids=["gaussian", "delta"])
def test_stamps_are_convolved_with_the_very_basis(basis):
    """The fast ways agree with a direct convolution by every basis image."""
    stamps = np.random.default_rng(2).normal(0, 1, (2, 31, 31))
    got = convolve_stamps(stamps, basis)
    from scipy.signal import convolve2d

    for f in (0, 5, 26):
        np.testing.assert_allclose(got[1, f], convolve2d(stamps[1], basis.images[f], mode="valid"), atol=1e-10)


def test_a_basis_of_pixels_finds_any_kernel():
    """A ring, which has its hole where Gaussians have their peak, comes back: chi^2 on the stars is 1 within 5 %."""
    from scipy.ndimage import convolve

    source, target, x, y = scene(noise=(0.05, 0.3))
    ring = np.zeros((7, 7))
    ring[[1, 1, 5, 5, 3, 3], [2, 4, 2, 4, 1, 5]] = 1 / 6
    rng = np.random.default_rng(6)
    clean = convolve(source[0].astype(float), ring)
    target[2][:] = 30 + np.maximum(clean, 0) * 0.1
    target[0][:] = clean + rng.normal(0, 1, clean.shape) * np.sqrt(target[2])
    kernel = fit(source, target, x, y, basis="delta", size=9, spatial_order=0)
    assert kernel.kernel_sum == pytest.approx(1, rel=5e-3)
    assert kernel.diagnostics["chi2_per_pixel_median"] == pytest.approx(1, abs=0.05)


def test_a_noisy_source_does_not_make_the_kernel_small():
    """Template as noisy as the science image: over eight fields the kernel sums to 1 within 5 standard errors; noise taken
    for signal would make it 0.5 % low."""
    sums = []
    for seed in range(8):
        source, target, x, y = scene(n=60, seed=seed, sigma_target=2.0, noise=(1.0, 1.0))
        sums.append(fit(source, target, x, y, (1.6, 2.0)).kernel_sum)
    assert np.mean(sums) == pytest.approx(1, abs=max(5 * np.std(sums) / np.sqrt(8), 1e-3))


def test_stamps_that_overlap_are_used_once():
    """Of positions closer than the distance the first stays, wherever the others come in the list."""
    x, y = np.array([10.0, 12.0, 40.0, np.nan, 11.0, 55.0]), np.array([10.0, 11.0, 40.0, 3.0, 22.0, 41.0])
    np.testing.assert_array_equal(thin(x, y, 10.0), [0, 2, 4, 5])


def test_an_unknown_basis_is_refused():
    """The message names what there is."""
    source, target, x, y = scene(n=6)
    with pytest.raises(InputError, match="'gaussian' or 'delta', got 'fourier'"):
        fit(source, target, x, y, basis="fourier")


def test_only_the_first_basis_function_has_a_sum():
    """27 functions; sums 1, 0, 0, ...; those of sum 0 are orthonormal."""
    basis = gaussian_basis((0.7, 1.5, 3.0), (4, 2, 2), 21)
    sums = basis.images.sum(axis=(1, 2))
    np.testing.assert_allclose(sums, np.eye(1, 27)[0], atol=1e-9)
    flat = basis.images[1:].reshape(26, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(26), atol=1e-8)


def test_sigmas_and_size_follow_the_psf_sizes():
    """Equal PSFs get the fixed list; else each Gaussian is twice the one before. Sizes are odd and within limits."""
    assert choose_sigmas(4.0, 4.1) == (0.7, 1.5, 3.0, 6.0)
    sigmas = choose_sigmas(3.0, 6.0)
    np.testing.assert_allclose(np.diff(np.log2(sigmas)), 1)
    assert [choose_size(f) for f in (2.0, 4.25, 6.0, 20.0)] == [21, 31, 43, 61]


@pytest.mark.parametrize("place", [22.0, 27.0])
def test_stars_near_the_border_count_with_the_side_that_is_left(place):
    """Where half a stamp and the kernel's reach, 36 pixels here, do not fit, 6 stars still give the flux ratio to 1 %.

    Six stars of S/N 200, half of whose light is left in both images, allow 0.4 %.
    """
    source, target, x, y = scene(n=6, scale=0.7)
    for plane in (source[0], target[0]):
        plane[:] = 0
    y[:] = place
    x[:] = np.linspace(40, 260, 6)
    rng = np.random.default_rng(12)
    for planes, sigma, flux in ((source, 1.6, 1e5), (target, 2.2, 7e4)):
        model = np.zeros((300, 300))
        add_gaussians(model, x, y, np.full(6, flux), sigma)
        planes[0][:], planes[2][:] = model + rng.normal(0, 1, model.shape) * np.sqrt(model + 300), model + 300
    kernel = fit(source, target, x, y)
    assert kernel.diagnostics["n_stamps_used"] == 6
    assert kernel.kernel_sum == pytest.approx(0.7, rel=0.01)


def test_without_usable_stars_the_error_counts():
    """All masked, or all at the border: the message says so."""
    source, target, x, y = scene(n=6)
    target[1][:] = MaskPlane.SAT
    with pytest.raises(UnprocessableError, match="6 with bad pixels"):
        fit(source, target, x, y)
    with pytest.raises(UnprocessableError, match="2 too close to the border"):
        fit(source, target, np.array([3.0, 297.0]), np.array([150.0, 3.0]))


def test_threads_change_no_bit_of_the_fit(one_thread):
    """Stamps and candidate models are shared out among threads; their sums keep one order."""
    import numba

    source, target, x, y = scene(n=60)
    alone = fit(source, target, x, y)
    numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
    together = fit(source, target, x, y)
    np.testing.assert_array_equal(alone.coefficients, together.coefficients)
    assert alone.diagnostics == together.diagnostics


def test_a_basis_of_one_gaussian_needs_no_prior():
    """A single function has no group to hold back. Half as wide as the true kernel, it puts too much light into the
    star's centre, where the fit weighs most: the scale comes out low, but it is fitted."""
    source, target, x, y = scene(n=20, scale=0.7)
    kernel = fit(source, target, x, y, degrees=(0,))
    assert kernel.basis.shape[0] == 1 and 0.5 < kernel.kernel_sum < 0.7
