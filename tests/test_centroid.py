"""Centroids: unbiased, with right errors, and honest when they fail."""

import numpy as np
import pytest
from scenes import blank, flux_of_snr, gaussian_psf, lattice, noisy, stars

from nightstream.kernels.centroid import fit_centroids
from nightstream.kernels.mask import MaskPlane


def centre(target, planes, x, y, **options):
    with target.running():
        found = fit_centroids(
            *(target.array(p) for p in planes), target.array(x), target.array(y), gaussian_psf(target), **options
        )
    return {name: target.host(column) for name, column in found.items()}


@pytest.mark.parametrize("snr", [10.0, 100.0])
@pytest.mark.parametrize("background", [False, True])
def test_pulls_are_standard_normal(snr, background):
    """Position errors divided by their quoted sigma have mean 0 and width 1, at any brightness."""
    rng = np.random.default_rng(20)
    x, y, shape = lattice(rng, 20, 25)
    planes = noisy(rng, stars(shape, x, y, np.full(x.size, flux_of_snr(snr))))
    found = fit_centroids(*planes, np.rint(x), np.rint(y), gaussian_psf(), background=background)
    good = ~found["flag"]
    assert good.mean() > 0.99
    for axis, truth in (("x", x), ("y", y)):
        pull = ((found[axis] - truth) / found[f"{axis}_err"])[good]
        # width: 4 sigma of the sampling error, and 4 % for second-order terms of order 1 / snr^2 and the differences
        assert abs(pull.mean()) < 4 / np.sqrt(pull.size)
        assert abs(pull.std() - 1) < 4 / np.sqrt(2 * pull.size) + 0.04


def test_noiseless_star_is_placed_exactly(target):
    """Without noise the position of either sign comes back to the tolerance of the iteration."""
    rng = np.random.default_rng(21)
    x, y, shape = lattice(rng, 4, 30)
    image = stars(shape, x, y, np.where(np.arange(x.size) % 2, 1e4, -1e4)).astype(np.float32)
    found = centre(target, (image, np.zeros(shape, np.int32), np.ones(shape, np.float32)), np.rint(x), np.rint(y))
    assert not found["flag"].any()
    # iterations end when a step is below 1e-3; the next would be far smaller
    np.testing.assert_allclose(found["x"], x, atol=1e-3)
    np.testing.assert_allclose(found["y"], y, atol=1e-3)


def test_masked_pixels_do_not_move_a_star(target):
    """A cosmic ray on the flank of a star, masked, leaves the position where it was."""
    image = stars((41, 41), [20.3], [19.8], [5000.0]).astype(np.float32)
    mask, variance = np.zeros((41, 41), np.int32), np.full((41, 41), 10, np.float32)
    image[19, 22], mask[19, 22] = 1e5, int(MaskPlane.CR)
    image[21, 21], variance[21, 21] = np.nan, np.nan
    found = centre(target, (image, mask, variance), [20.0], [20.0])
    assert np.hypot(found["x"] - 20.3, found["y"] - 19.8)[0] < 1e-3


def test_lost_source_returns_to_its_peak(target):
    """Started far from any light, or off the image, a source keeps its peak, with the flag and no errors."""
    image = stars((60, 60), [30.0], [30.0], [5000.0]).astype(np.float32)
    planes = (image, np.zeros((60, 60), np.int32), np.ones((60, 60), np.float32))
    found = centre(target, planes, [24.0, -90.0], [30.0, 30.0])
    assert found["flag"].all() and np.isnan(found["x_err"]).all()
    np.testing.assert_array_equal(found["x"], [24.0, -90.0])


def test_targets_agree(target):
    """Every target gives the positions of Numba to rounding."""
    rng = np.random.default_rng(22)
    x, y, shape = lattice(rng, 3, 30)
    planes = noisy(rng, stars(shape, x, y, np.full(x.size, 5e3)))
    wanted = fit_centroids(*planes, np.rint(x), np.rint(y), gaussian_psf())
    found = centre(target, planes, np.rint(x), np.rint(y))
    np.testing.assert_allclose(found["x"], wanted["x"], atol=1e-6)


def test_empty_list_gives_empty_columns(target):
    """No sources is a valid input."""
    found = centre(target, blank(np.random.default_rng(23), (30, 30)), np.zeros(0), np.zeros(0))
    assert all(len(column) == 0 for column in found.values())


def test_broad_object_converges(target):
    """A blob twice as wide as the PSF ends within half a pixel of its centre: its peak pixel, at worst."""
    rng = np.random.default_rng(24)
    x, y, shape = lattice(rng, 5, 40)
    light = stars(shape, x, y, np.full(x.size, 1e5), gaussian_psf(sigma_pix=4.0, size=37))
    found = centre(target, noisy(rng, light), np.rint(x), np.rint(y))
    assert not found["flag"].any() and np.hypot(found["x"] - x, found["y"] - y).max() < 0.5
