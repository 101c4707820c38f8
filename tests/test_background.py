"""The sky background: what it must recover, what must not move it, and that all targets agree."""

from __future__ import annotations

import numpy as np
import pytest
import sep
from starfield import star_field

from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.background import (
    background_mesh,
    clip_bin_reference,
    clip_bins,
    fit_background,
    median_3x3,
)
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch


def no_mask(image):
    return np.zeros(image.shape, dtype=np.int32)


def noisy(shape, level=200.0, sigma=10.0, seed=1):
    return np.random.default_rng(seed).normal(level, sigma, shape).astype(np.float32)


def test_a_constant_stays_constant():
    """Without noise the sky is returned to float32 rounding, whatever the number of bins."""
    for shape in ((256, 256), (100, 333), (5, 7)):
        image = np.full(shape, 123.25, dtype=np.float32)
        np.testing.assert_allclose(fit_background(image, no_mask(image), bin_pix=64), 123.25, rtol=1e-5)


def test_a_plane_is_recovered_to_the_border():
    """A tilted sky comes back everywhere, borders and corners included.

    The tilt spreads the pixels of a bin by 0.36 * 64 / sqrt(12) = 6.7, noise by 3: together sigma 7.3. A bin is right
    to 2.1 sigma / 64 = 0.24; going on straight to the border doubles that; 5 sigma.
    """
    rows, columns = np.indices((320, 448))
    plane = 500 + 0.3 * columns - 0.2 * rows
    image = (plane + np.random.default_rng(2).normal(0, 3, plane.shape)).astype(np.float32)
    found = fit_background(image, no_mask(image), bin_pix=64)
    np.testing.assert_allclose(found, plane, atol=5 * 2 * 0.24)


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


def bins_on(target, image, mask, n_y, n_x):
    level, noise = np.zeros((n_y, n_x)), np.zeros((n_y, n_x))
    count = np.zeros((n_y, n_x), dtype=np.int32)
    out = [target.array(a) for a in (level, noise, count)]
    sizes = [np.int32(v) for v in (*image.shape, n_y, n_x, int(MaskPlane.BAD), 20)]
    with target.running():
        clip_bins(Launch((n_x, n_y), (64,)), target.array(image), target.array(mask), *out, *sizes, np.float64(3.0))
    return [target.host(a) for a in out]


def test_bins_follow_their_definition_on_all_targets(target):
    """Counts are equal; mean and sigma to float64 rounding; the median to 6 sigma / 2^14 and a gap between values."""
    image = noisy((90, 110))
    image[::9, ::7] += 300
    image[5, 5] = np.nan
    mask = no_mask(image)
    mask[40:60, 50:90] = int(MaskPlane.BAD)
    level, noise, count = bins_on(target, image, mask, 2, 3)
    for y, rows in enumerate((slice(0, 45), slice(45, 90))):
        for x, columns in enumerate((slice(0, 36), slice(36, 73), slice(73, 110))):
            values = image[rows, columns][(mask[rows, columns] == 0) & np.isfinite(image[rows, columns])]
            wanted = clip_bin_reference(values, 3.0, 20)
            assert count[y, x] == wanted[2]
            assert noise[y, x] == pytest.approx(wanted[1], rel=1e-9)
            assert level[y, x] == pytest.approx(wanted[0], abs=2.5 * (60 / 2**14 + 10 * 2.5 / wanted[2] * 5))


def test_sky_image_is_the_same_on_all_targets(target):
    """Equal bins and matrix products of float32: the surfaces agree to a few roundings of the level."""
    image = noisy((96, 130), seed=6)
    expected = fit_background(image, no_mask(image), bin_pix=32)
    with target.running():
        found = target.host(fit_background(*map(target.array, (image, no_mask(image))), bin_pix=32))
    np.testing.assert_allclose(found, expected, rtol=20 * 6e-8)


def test_noise_image_follows_the_noise():
    """Twice the noise on the right side shows on the right side: 5 sigma / sqrt(2 N) in the outer bins' middles."""
    image = noisy((128, 256), level=0.0)
    image[:, 128:] *= 2
    noise = background_mesh(image, no_mask(image), bin_pix=64).noise_image()
    np.testing.assert_allclose(noise[[31, 95]][:, [31, 223]], [[10, 20]] * 2, rtol=5 / np.sqrt(2 * 64**2))


def test_bins_are_the_same_bits_on_all_targets(target):
    """Only + - * / sqrt in one order: Numba and CUDA agree exactly."""
    from conftest import Target

    image = noisy((70, 130), seed=5)
    for here, there in zip(
        bins_on(target, image, no_mask(image), 3, 4), bins_on(Target(), image, no_mask(image), 3, 4), strict=True
    ):
        np.testing.assert_array_equal(here, there)
