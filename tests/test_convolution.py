"""Convolution by blocks: linear, flux-preserving, the same whatever the tiles, on every target."""

import numpy as np
import pytest
from scipy import ndimage

from nightstream.kernels.convolution import (
    Part,
    choose_tile,
    convolve_parts,
    convolve_parts_reference,
    convolve_plane,
    linear_kernels,
    linear_parts,
    tile_centres,
    tile_counts,
)

TILE = 16
EPS = np.finfo(np.float32).eps


def noise(shape, seed=5):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def kernels_for(shape, k, seed=6, tile=TILE):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 1, (*tile_counts(shape, tile), k, k)).astype(np.float32)


def tolerance(k, tile=TILE):
    """Transforms of n^2 pixels of a sum of k^2 products of size 1: eps times log2(n^2) times the root of both."""
    n = tile + k
    return 2 * EPS * np.log2(n * n) * k * np.sqrt(k)


@pytest.mark.parametrize("shape, k", [((37, 50), 7), ((16, 16), 5), ((1, 1), 3), ((5, 40), 9), ((20, 33), 1)])
def test_all_targets_follow_the_definition(target, shape, k):
    """Different kernels on every tile, ramps included: as the pixel-by-pixel float64 definition."""
    image, kernels = noise(shape), kernels_for(shape, k)
    parts = [(image, kernels, None), (image, kernels_for(shape, 3, 7) / TILE, 1), (image, kernels_for(shape, 5, 8) / TILE, 0)]
    wanted = convolve_parts_reference([Part(*p) for p in parts], TILE)
    on_target = [Part(target.array(plane), target.array(taps), ramp) for plane, taps, ramp in parts]
    np.testing.assert_allclose(target.host(convolve_parts(on_target, TILE)), wanted, atol=4 * tolerance(max(k, 5)))


def test_a_constant_kernel_is_an_ordinary_convolution():
    """With the same kernel on all tiles the result is scipy's, tile borders included."""
    image, kernel = noise((50, 60)), kernels_for((16, 16), 5)
    kernels = np.broadcast_to(kernel, (*tile_counts((50, 60), TILE), 5, 5))
    wanted = ndimage.convolve(image.astype(float), kernel[0, 0].astype(float), mode="constant")
    np.testing.assert_allclose(convolve_plane(image, kernels, TILE), wanted, atol=tolerance(5))


def test_the_size_of_the_tiles_does_not_matter():
    """One kernel everywhere: 16 or 48 pixels a tile give the same image."""
    image, kernel = noise((90, 100)), kernels_for((16, 16), 9)
    first, second = (convolve_plane(image, np.broadcast_to(kernel, (*tile_counts(image.shape, t), 9, 9)), t) for t in (16, 48))
    np.testing.assert_allclose(first, second, atol=2 * tolerance(9, 48))


def test_ramps_make_a_kernel_that_is_linear_in_the_source_position():
    """A point source at any place of a tile comes out as the kernel of that very place."""
    image = np.zeros((48, 48), np.float32)
    image[21, 27] = 1
    value, along_x, along_y = (kernels_for((48, 48), 7, seed) for seed in (1, 2, 3))
    value[:], along_x[:], along_y[:] = value[0, 0], along_x[0, 0] / 100, along_y[0, 0] / 100
    got = convolve_parts([Part(image, value), Part(image, along_x, 1), Part(image, along_y, 0)], TILE)
    wanted = value[0, 0] + (27 - 23.5) * along_x[0, 0] + (21 - 23.5) * along_y[0, 0]
    np.testing.assert_allclose(got[18:25, 24:31], wanted, atol=tolerance(7))


def test_linear_kernels_follow_the_source():
    """Where a kernel is a linear function of the place, a point source anywhere comes out as the kernel of its own pixel,
    in tiles that overhang the image too."""
    shape, base = (40, 54), kernels_for((16, 16), 5)[0, 0].astype(float)
    kernel_at = lambda x, y: base * (1 + x / 50 - y / 90)[:, None, None]  # noqa: E731
    kernels = linear_kernels(kernel_at, shape, TILE)
    for y, x in ((9, 20), (33, 45), (37, 51)):
        image = np.zeros(shape, np.float32)
        image[y, x] = 1
        got = convolve_parts(linear_parts(image, kernels), TILE)[y - 2 : y + 3, x - 2 : x + 3]
        wanted = base * (1 + x / 50 - y / 90)
        np.testing.assert_allclose(got, wanted[: got.shape[0], : got.shape[1]], atol=tolerance(5))


def test_constant_kernels_need_no_gradients():
    """The same kernel at every place makes one part instead of three."""
    kernels = linear_kernels(lambda x, y: np.ones((len(x), 3, 3)), (40, 54), TILE)
    assert len(linear_parts(noise((40, 54)), kernels)) == 1


def test_flux_is_multiplied_by_the_kernel_sum():
    """Away from edges sum(out) = sum(in) sum(kernel)."""
    image = np.zeros((64, 64), np.float32)
    image[20:40, 20:40] = noise((20, 20)) + 3
    kernels = kernels_for((16, 16), 7) * np.ones((4, 4, 1, 1), np.float32)
    out = convolve_plane(image, kernels, TILE)
    assert out.sum(dtype=float) == pytest.approx(image.sum(dtype=float) * kernels[0, 0].sum(dtype=float), rel=1e-5)


def test_two_kernels_commute():
    """First one and then the other, or the other way round: away from the border the same."""
    image = noise((60, 60))
    shape = tile_counts(image.shape, TILE)
    a, b = (np.broadcast_to(kernels_for((16, 16), 5, seed) / 25, (*shape, 5, 5)) for seed in (1, 2))
    one, two = (convolve_plane(convolve_plane(image, x, TILE), y, TILE) for x, y in ((a, b), (b, a)))
    np.testing.assert_allclose(one[4:-4, 4:-4], two[4:-4, 4:-4], atol=2 * tolerance(5))


def test_inputs_stay_unchanged_and_results_repeat(one_thread):
    """Same input, same bits, on one thread or several; the caller's arrays are not written to."""
    import numba

    image, kernels = noise((70, 50)), kernels_for((70, 50), 7)
    before = image.copy(), kernels.copy()
    first = convolve_plane(image, kernels, TILE)
    numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
    np.testing.assert_array_equal(first, convolve_plane(image, kernels, TILE))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(kernels, before[1])


def test_tile_centres_are_inside_the_image():
    """Centres follow the tiles and are clipped to the image where the last tile overhangs."""
    x, y = tile_centres((20, 40), TILE)
    np.testing.assert_array_equal(x[0], [7.5, 23.5, 39.0])
    np.testing.assert_array_equal(y[:, 0], [7.5, 19.0])


@pytest.mark.parametrize("shape, wanted", [((100, 100), 32), ((1024, 1024), 64), ((2000, 2100), 160), ((4072, 4000), 256)])
def test_tiles_are_a_sixteenth_of_the_image(shape, wanted):
    """Within 32 and 256 pixels, in steps of 32."""
    assert choose_tile(shape) == wanted


def test_wrong_kernel_shapes_are_refused():
    """Even kernels and wrong tile counts name the wanted shape."""
    with pytest.raises(ValueError, match="k odd"):
        convolve_plane(noise((20, 20)), np.ones((2, 2, 4, 4), np.float32), TILE)
