"""Convolution by tiles: linear, flux-preserving, the same bits everywhere, and strict about missing
pixels."""

import numpy as np
import pytest
from scipy import ndimage

from nightstream.kernels.convolution import (
    convolve_plane,
    convolve_tiles,
    convolve_tiles_reference,
    tile_centres,
    tile_counts,
)
from nightstream.kernels.mask import MaskPlane

TILE = 16


def planes(shape, seed=5):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, shape).astype(np.float32), np.zeros(shape, np.int32), np.ones(shape, np.float32)


def kernels_for(shape, k, seed=6):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 1, (*tile_counts(shape, TILE), k, k)).astype(np.float32)


def run(target, arrays, kernels, **options):
    with target.running():
        out = convolve_tiles(*(target.array(a) for a in arrays), target.array(kernels), TILE, **options)
    return [target.host(a) for a in out]


@pytest.mark.parametrize("shape, k", [((37, 50), 7), ((16, 16), 5), ((1, 1), 3), ((5, 40), 9), ((20, 33), 1)])
def test_all_targets_follow_the_definition(target, shape, k):
    """Different kernels on every tile, missing and flagged pixels: as the pixel-by-pixel float64
    definition."""
    image, mask, variance = planes(shape)
    mask[shape[0] // 2, shape[1] // 2] = MaskPlane.SAT
    image[0, 0] = np.nan
    kernels = kernels_for(shape, k)
    wanted = convolve_tiles_reference(image, mask, variance, kernels, TILE)
    got = run(target, (image, mask, variance), kernels)
    tolerance = k * k * 4 * np.finfo(np.float32).eps * k  # k^2 float32 sums of terms up to 4
    np.testing.assert_allclose(got[0], wanted[0], atol=tolerance)
    np.testing.assert_array_equal(got[1], wanted[1])
    np.testing.assert_allclose(got[2], wanted[2], atol=tolerance)


def test_targets_agree_bit_for_bit(target):
    """Same order of the same float32 operations: the result is that of a plain float32 loop over the taps."""
    image, kernel = planes((40, 45))[0], kernels_for((40, 45), 5)
    kernel[:] = kernel[0, 0]
    padded, wanted = np.pad(image, 2), np.zeros((40, 45), np.float32)
    for j in range(5):
        for i in range(5):
            wanted += kernel[0, 0, j, i] * padded[4 - j : 44 - j, 4 - i : 49 - i]
    with target.running():
        got = target.host(convolve_plane(target.array(image), target.array(kernel), TILE))
    np.testing.assert_array_equal(got, wanted)


def test_a_constant_kernel_is_an_ordinary_convolution():
    """With the same kernel on all tiles the result is scipy's, tile borders included."""
    image, mask, variance = planes((50, 60))
    kernels = np.broadcast_to(kernels_for((16, 16), 5), (*tile_counts((50, 60), TILE), 5, 5))
    got = convolve_tiles(image, mask, variance, kernels, TILE)
    wanted = ndimage.convolve(image.astype(float), kernels[0, 0].astype(float), mode="constant")
    np.testing.assert_allclose(got[0], wanted, atol=1e-5)


def test_flux_is_multiplied_by_the_kernel_sum():
    """Away from edges sum(out) = sum(in) sum(kernel)."""
    image = np.zeros((64, 64), np.float32)
    image[20:40, 20:40] = planes((20, 20))[0] + 3
    kernels = kernels_for((16, 16), 7) * np.ones((4, 4, 1, 1), np.float32)
    out = convolve_plane(image, kernels, TILE)
    assert out.sum(dtype=float) == pytest.approx(image.sum(dtype=float) * kernels[0, 0].sum(dtype=float), rel=1e-5)


def test_a_delta_kernel_is_the_identity(target):
    """Nothing moves, nothing is flagged, not even at the border: no significant tap leaves the image."""
    arrays = planes((33, 20))
    arrays[1][3, 4] = MaskPlane.CR
    kernels = np.zeros((*tile_counts((33, 20), TILE), 7, 7), np.float32)
    kernels[..., 3, 3] = 1
    for got, wanted in zip(run(target, arrays, kernels), arrays, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_the_variance_plane_predicts_the_scatter():
    """Noise of variance 1 through a kernel scatters with the variance sum(K^2)."""
    image, mask, variance = planes((300, 300))
    kernels = np.broadcast_to(kernels_for((16, 16), 5), (*tile_counts((300, 300), TILE), 5, 5)) / 10
    out, _, predicted = convolve_tiles(image, mask, variance, kernels, TILE)
    inside = np.s_[5:-5, 5:-5]
    ratio = np.var(out[inside]) / np.mean(predicted[inside])
    assert ratio == pytest.approx(1, abs=5 * np.sqrt(2 / (290**2 / 25)))  # 25 pixels share their noise


def test_missing_pixels_never_leak(target):
    """NaN stays where it is; its neighbours are finite and say EDGE; the image border says EDGE too."""
    image, mask, variance = planes((40, 40))
    image[20, 20], variance[20, 20], mask[20, 20] = np.nan, np.nan, MaskPlane.NO_DATA
    out = run(target, (image, mask, variance), kernels_for((40, 40), 5))
    only = np.zeros((40, 40), bool)
    only[20, 20] = True
    np.testing.assert_array_equal(np.isnan(out[0]), only)
    np.testing.assert_array_equal((out[1] & MaskPlane.NO_DATA) != 0, only)
    edge = np.ones((40, 40), bool)
    edge[2:-2, 2:-2] = False
    edge[18:23, 18:23] = True
    np.testing.assert_array_equal((out[1] & MaskPlane.EDGE) != 0, edge)


def test_only_the_chosen_planes_spread(target):
    """DETECTED stays put when it is not among the planes; SAT spreads over the kernel."""
    image, mask, variance = planes((40, 40))
    mask[20, 20] = MaskPlane.SAT | MaskPlane.DETECTED
    out = run(target, (image, mask, variance), kernels_for((40, 40), 5), planes=MaskPlane.SAT)[1]
    assert ((out & MaskPlane.SAT) != 0).sum() == 25 and ((out & MaskPlane.DETECTED) != 0).sum() == 1


def test_inputs_stay_unchanged_and_results_repeat():
    """Same input, same bits; the caller's arrays are not written to."""
    arrays, kernels = planes((40, 50)), kernels_for((40, 50), 7)
    before = [a.copy() for a in arrays]
    first, second = (convolve_tiles(*arrays, kernels, TILE) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_tile_centres_are_inside_the_image():
    """Centres follow the tiles and are clipped to the image where the last tile overhangs."""
    x, y = tile_centres((20, 40), TILE)
    np.testing.assert_array_equal(x[0], [7.5, 23.5, 39.0])
    np.testing.assert_array_equal(y[:, 0], [7.5, 19.0])


def test_wrong_kernel_shapes_are_refused():
    """Even kernels and wrong tile counts name the wanted shape."""
    with pytest.raises(ValueError, match="k odd"):
        convolve_plane(planes((20, 20))[0], np.ones((2, 2, 4, 4), np.float32), TILE)
