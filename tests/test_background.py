"""The sky background: what it must recover, what must not move it, and that all targets agree."""

from __future__ import annotations

import numpy as np
import pytest
import sep
from starfield import flux_of_snr, moffat, star_field

from nightstream.engine.characterize import DETECTED, flatten_sky
from nightstream.engine.config import CharacterizeConfig
from nightstream.engine.values import MaskedImage
from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.background import (
    background_mesh,
    clip_bin_reference,
    clip_bins,
    fit_background,
    level_error,
    median_3x3,
    polynomial_surface,
)
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch

INTERPOLATIONS = ["spline", "linear", "polynomial"]


def no_mask(image):
    return np.zeros(image.shape, dtype=np.int32)


def noisy(shape, level=200.0, sigma=10.0, seed=1):
    return np.random.default_rng(seed).normal(level, sigma, shape).astype(np.float32)


def test_a_constant_stays_constant():
    """Without noise the sky is returned to float32 rounding, whatever the number of bins."""
    for shape in ((256, 256), (100, 333), (5, 7)):
        image = np.full(shape, 123.25, dtype=np.float32)
        np.testing.assert_allclose(fit_background(image, no_mask(image), bin_pix=64), 123.25, rtol=1e-5)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_plane_is_recovered_to_the_border(interpolation):
    """A tilted sky comes back everywhere, borders and corners included.

    The tilt spreads the pixels of a bin by 0.36 * 64 / sqrt(12) = 6.7, noise by 3: together sigma 7.3. A bin is right
    to 2.1 sigma / 64 = 0.24; going on straight to the border doubles that; 5 sigma.
    """
    rows, columns = np.indices((320, 448))
    plane = 500 + 0.3 * columns - 0.2 * rows
    image = (plane + np.random.default_rng(2).normal(0, 3, plane.shape)).astype(np.float32)
    found = fit_background(image, no_mask(image), bin_pix=64, interpolation=interpolation)
    np.testing.assert_allclose(found, plane, atol=5 * 2 * 0.24)


@pytest.mark.parametrize(("interpolation", "curvature_error"), [("spline", 0.375), ("linear", 0.375), ("polynomial", 0.0)])
def test_a_curved_sky_is_recovered_as_far_as_straight_ends_allow(interpolation, curvature_error):
    """A bowl f comes back to what the method leaves at the border, in units of f'' bin^2 along each axis.

    Straight lines through the outer centres miss (3/2)(1/2) / 2 = 0.375 there, the natural spline less; a quadratic
    misses nothing. A bin's mean is 1/24 above its centre. Noise: a bin's mean is right to 0.5 / 32, doubled at the
    border; 5 sigma.
    """
    rows, columns = np.indices((256, 320))
    second = 2e-3
    bowl = 300 + second / 2 * ((columns - 160.0) ** 2 + (rows - 100.0) ** 2)
    image = (bowl + np.random.default_rng(2).normal(0, 0.5, bowl.shape)).astype(np.float32)
    found = fit_background(image, no_mask(image), bin_pix=32, estimator="mean", interpolation=interpolation, outlier_sigma=np.inf)
    atol = 2 * second * 32**2 * (curvature_error + 1 / 24) + 5 * 2 * 0.5 / 32
    np.testing.assert_allclose(found, bowl, atol=atol)


def test_pure_noise_gives_its_level_and_width():
    """Level within 5 * 2.1 sigma / sqrt(N), noise within 5 sigma / sqrt(2 N) of the truth, N pixels a bin."""
    image = noisy((256, 256))
    mesh = background_mesh(image, no_mask(image), bin_pix=64)
    np.testing.assert_allclose(mesh.level, 200, atol=5 * 2.1 * 10 / 64)
    np.testing.assert_allclose(mesh.noise, 10, atol=5 * 10 / np.sqrt(2 * 64**2))


def test_stars_hardly_raise_the_sky():
    """A field of 100 stars raises the sky by less than a tenth of its noise on average."""
    field = star_field(np.random.default_rng(3), n=512, per_side=10, snr=(10.0, 500.0))
    found = fit_background(field.image, field.mask, bin_pix=64)
    assert abs(found.mean()) < 0.1 * np.sqrt(200)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_tilted_sky_is_bridged_where_nothing_was_measured(interpolation):
    """A masked bin and a NaN one inside a plane take the plane's value: tolerance as for the plane without holes."""
    rows, columns = np.indices((320, 320))
    plane = 500 + 0.3 * columns - 0.2 * rows
    image = (plane + np.random.default_rng(2).normal(0, 3, plane.shape)).astype(np.float32)
    mask = no_mask(image)
    mask[64:128, 64:128] = int(MaskPlane.DETECTED)
    image[64:128, 64:128] += 1000
    image[192:256, 128:192] = np.nan
    found = fit_background(image, mask, bin_pix=64, interpolation=interpolation)
    np.testing.assert_allclose(found, plane, atol=5 * 2 * 0.24)


@pytest.mark.parametrize("estimator", ["mode", "mean"])
def test_levels_scatter_as_their_error_says(estimator):
    """1024 bins of 256 pixels: their scatter in sigma / 16 is the stated one to 5 / sqrt(2 * 1024)."""
    image = noisy((512, 512))
    level = background_mesh(image, no_mask(image), bin_pix=16, estimator=estimator, outlier_sigma=np.inf).level
    assert level.std() / (10 / 16) == pytest.approx(level_error(estimator), rel=5 / np.sqrt(2 * 1024))


def test_skewness_of_poisson_noise_lowers_the_mode_more_than_the_mean():
    """Median = mean - skewness sigma / 6 and skewness sigma = 1 electron: the mode is 2.5 / 6 electrons low. Cutting an
    Edgeworth series at 3 sigma takes (1 / 6) of the integral of x phi (x^3 - 3 x) beyond, 0.04, off the mean.

    For Poisson noise of 100 with read noise 3 both shrink by 100 / 109. Errors: 10.4 / 1024, times `level_error`.
    """
    rng = np.random.default_rng(7)
    image = (rng.poisson(100, (1024, 1024)) + rng.normal(0, 3, (1024, 1024))).astype(np.float32)
    for estimator, bias in (("mode", -2.5 / 6), ("mean", -0.04)):
        level = background_mesh(image, no_mask(image), bin_pix=1024, estimator=estimator).level[0, 0]
        assert level - 100 == pytest.approx(bias * 100 / 109, abs=5 * level_error(estimator) * 10.4 / 1024)


def faint_sky(seed, n=512, sky=400.0):
    """A tilted sky with sources down to S/N 0.25, counts as in the sky at 24 mag; pixels, sky and light without noise."""
    rng = np.random.default_rng(seed)
    n_sources = rng.poisson(4 * n * n / 1000)
    snr = np.minimum(0.25 * rng.uniform(size=n_sources) ** (-1 / 0.75), 800.0)
    rows, columns = np.indices((n, n))
    light, truth = np.zeros((n, n)), sky * (1 + 0.05 * columns / n - 0.04 * rows / n)
    for x, y, flux in zip(*rng.uniform(0, n, (2, n_sources)), flux_of_snr(snr, 3.8, sky), strict=True):
        box = np.s_[max(int(y) - 25, 0) : int(y) + 26, max(int(x) - 25, 0) : int(x) + 26]
        light[box] += flux * moffat(columns[box] - x, rows[box] - y, 3.8)
    image = rng.poisson(light + truth) + rng.normal(0, 5.0, (n, n))
    planes = image.astype(np.float32), np.zeros((n, n), np.int32), (np.maximum(image, 0) + 25).astype(np.float32)
    return MaskedImage(*planes), truth, light


def test_means_give_the_sky_under_measured_sources_better_than_modes():
    """The sky under a source is empty sky and the light of undetected sources; means halve the error of modes in that.

    Stated errors a bin, 16 bins an image, the spline's border factor 2: mean 2 / 128 = 0.016 sigma; mode twice that, and
    0.42 electrons = 0.02 sigma low by skewness and 0.02 sigma by the undetected light that it leaves out.
    """
    errors = {"mean": [], "mode": []}
    for seed in range(3):
        pixels, truth, light = faint_sky(seed)
        for estimator, error in errors.items():
            outlier_sigma = {"mean": 3.0, "mode": 0.0}[estimator]
            config = CharacterizeConfig(background_estimator=estimator, background_outlier_sigma=outlier_sigma)
            flat, sky = flatten_sky(pixels, config)
            undetected = light[(flat.mask & int(DETECTED)) == 0].mean()
            error.append(np.mean((sky - truth - undetected) ** 2))
    mean, mode = (np.sqrt(np.mean(errors[name])) / np.sqrt(425) for name in ("mean", "mode"))
    assert mean < 0.016 and mean < 0.6 * mode


def test_masked_and_nan_pixels_do_not_matter():
    """Nothing that stands in a masked or non-finite pixel enters, and a bin without pixels is filled."""
    clean = noisy((256, 256))
    dirty, mask = clean.copy(), no_mask(clean)
    mask[64:128, 64:128] = int(MaskPlane.BAD)
    dirty[64:128, 64:128] = 1e9
    dirty[0:64, 10:20] = np.nan
    found = fit_background(dirty, mask, bin_pix=64)
    np.testing.assert_allclose(found, 200, atol=5 * 2.1 * 10 / 64 * 2)


def test_inputs_are_unchanged_and_output_is_float32():
    """The planes are read only."""
    image = noisy((96, 80))
    before, mask = image.copy(), no_mask(image)
    assert fit_background(image, mask, bin_pix=32).dtype == np.float32
    np.testing.assert_array_equal(image, before)


def test_nothing_usable_is_an_error():
    """An image that is masked or NaN throughout has no background; nor has a bin of 2 pixels."""
    image = noisy((64, 64))
    with pytest.raises(UnprocessableError, match="no background"):
        fit_background(image, no_mask(image) | int(MaskPlane.BAD))
    with pytest.raises(UnprocessableError, match="no background"):
        fit_background(image * np.float32(np.nan), no_mask(image))
    with pytest.raises(InputError, match="bin_pix must be 4 to 1024, got 2"):
        fit_background(image, no_mask(image), bin_pix=2)
    with pytest.raises(InputError, match="estimator must be one of mode, mean, got 'median'"):
        fit_background(image, no_mask(image), estimator="median")
    with pytest.raises(InputError, match="interpolation must be one of spline, linear, polynomial, got 'cubic'"):
        fit_background(image, no_mask(image), interpolation="cubic")


def test_agrees_with_sep_on_a_star_field():
    """Two estimators of one sky differ by a few hundredths of its noise: 2.1 sigma / 64 each, and the stars."""
    field = star_field(np.random.default_rng(4), n=512, per_side=9, snr=(10.0, 500.0))
    peer = sep.Background(field.image, bw=64, bh=64, fw=3, fh=3).back()
    found = fit_background(field.image, field.mask, bin_pix=64)
    assert np.abs(found - peer).mean() < 0.1 * np.sqrt(200)


def test_median_of_a_tilted_mesh_is_the_mesh():
    """The 3 x 3 median keeps a plane, borders and corners included."""
    rows, columns = np.indices((5, 7))
    np.testing.assert_allclose(median_3x3(2.0 * rows + 3.0 * columns), 2.0 * rows + 3.0 * columns, atol=1e-12)


def test_outlying_bins_alone_take_the_median_of_their_neighbours():
    """Of the levels only one, 50 sigma off through an object that fills it, is changed; without tolerance all are."""
    image = noisy((256, 256))
    image[64:96, 96:128] += 500
    as_measured, cleaned, smoothed = (
        background_mesh(image, no_mask(image), bin_pix=32, estimator="mean", outlier_sigma=limit).level
        for limit in (np.inf, 10, 0)
    )
    assert list(zip(*np.nonzero(cleaned != as_measured), strict=True)) == [(2, 3)]
    np.testing.assert_array_equal(smoothed, median_3x3(as_measured))
    assert cleaned[2, 3] == smoothed[2, 3]


def test_a_polynomial_listens_to_bins_by_their_pixels():
    """A corner bin with a tenth of its pixels and a wild level moves the surface a tenth as much."""
    mesh = np.zeros((5, 5))
    mesh[0, 0] = 1.0
    few, many = np.full((5, 5), 1000), np.full((5, 5), 1000)
    few[0, 0] = 100
    low, high = (polynomial_surface(mesh, count, (80, 80), 0)[0, 0] for count in (few, many))
    assert low / high == pytest.approx(0.1 * 25 / 24.1, rel=1e-5)


def test_a_polynomial_of_few_bins_loses_order():
    """One bin gives a constant, two bins along one axis and one along the other too, whatever order is asked for."""
    assert np.ptp(polynomial_surface(np.ones((1, 1)), np.ones((1, 1)), (9, 9), 3)) == 0
    np.testing.assert_allclose(polynomial_surface(np.array([[1.0, 3.0]]), np.ones((1, 2)), (9, 9), 3), 2.0, rtol=1e-6)


def bins_on(target, image, mask, n_y, n_x, weight=2.5):
    level, noise = np.zeros((n_y, n_x)), np.zeros((n_y, n_x))
    count = np.zeros((n_y, n_x), dtype=np.int32)
    out = [target.array(a) for a in (level, noise, count)]
    sizes = [np.int32(v) for v in (*image.shape, n_y, n_x, int(MaskPlane.BAD), 20)]
    with target.running():
        clip_bins(
            Launch((n_x, n_y), (64,)), target.array(image), target.array(mask), *out, *sizes, np.float64(3.0), np.float64(weight)
        )
    return [target.host(a) for a in out]


@pytest.mark.parametrize("weight", [2.5, 0.0])
def test_bins_follow_their_definition_on_all_targets(target, weight):
    """Counts are equal; mean and sigma to float64 rounding; the median to 6 sigma / 2^14 and a gap between values."""
    image = noisy((90, 110))
    image[::9, ::7] += 300
    image[5, 5] = np.nan
    mask = no_mask(image)
    mask[40:60, 50:90] = int(MaskPlane.BAD)
    level, noise, count = bins_on(target, image, mask, 2, 3, weight)
    for y, rows in enumerate((slice(0, 45), slice(45, 90))):
        for x, columns in enumerate((slice(0, 36), slice(36, 73), slice(73, 110))):
            values = image[rows, columns][(mask[rows, columns] == 0) & np.isfinite(image[rows, columns])]
            wanted = clip_bin_reference(values, 3.0, 20, weight)
            assert count[y, x] == wanted[2]
            assert noise[y, x] == pytest.approx(wanted[1], rel=1e-9)
            assert level[y, x] == pytest.approx(wanted[0], abs=2.5 * (60 / 2**14 + 10 * 2.5 / wanted[2] * 5))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_sky_image_is_the_same_on_all_targets(target, interpolation):
    """Equal bins and matrix products of float32: the surfaces agree to a few roundings of the level."""
    image = noisy((96, 130), seed=6)
    options = dict(bin_pix=32, estimator="mean", interpolation=interpolation, outlier_sigma=3.0)
    expected = fit_background(image, no_mask(image), **options)
    with target.running():
        found = target.host(fit_background(*map(target.array, (image, no_mask(image))), **options))
    np.testing.assert_allclose(found, expected, rtol=20 * 6e-8)


def test_noise_image_follows_the_noise():
    """Twice the noise on the right side shows on the right side: 5 sigma / sqrt(2 N) in the outer bins' middles."""
    image = noisy((128, 256), level=0.0)
    image[:, 128:] *= 2
    noise = background_mesh(image, no_mask(image), bin_pix=64).noise_image()
    np.testing.assert_allclose(noise[[31, 95]][:, [31, 223]], [[10, 20]] * 2, rtol=5 / np.sqrt(2 * 64**2))


@pytest.mark.parametrize("weight", [2.5, 0.0])
def test_bins_are_the_same_bits_on_all_targets(target, weight):
    """Only + - * / sqrt in one order: Numba and CUDA agree exactly."""
    from conftest import Target

    image = noisy((70, 130), seed=5)
    for here, there in zip(*(bins_on(where, image, no_mask(image), 3, 4, weight) for where in (target, Target())), strict=True):
        np.testing.assert_array_equal(here, there)
