"""Bad pixels reach as far as the taps that matter, and no farther."""

import numpy as np
import pytest

from nightstream.kernels.convolution import tile_counts
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.mask_spreading import spread_mask, spread_mask_reference

TILE = 16


def kernels_for(shape, k, seed=6):
    return np.random.default_rng(seed).uniform(0.1, 1, (*tile_counts(shape, TILE), k, k)).astype(np.float32)


def spread(target, mask, kernels, **options):
    return target.host(spread_mask(target.array(mask), target.array(kernels), TILE, **options))


@pytest.mark.parametrize("shape, k", [((37, 50), 7), ((16, 16), 5), ((1, 1), 3), ((5, 40), 9), ((20, 33), 1)])
def test_all_targets_follow_the_definition(target, shape, k):
    """Different kernels on every tile, missing and flagged pixels: bit for bit the definition."""
    mask = np.zeros(shape, np.int32)
    mask[shape[0] // 2, shape[1] // 2] = MaskPlane.SAT
    mask[0, 0] = MaskPlane.NO_DATA
    kernels = kernels_for(shape, k)
    np.testing.assert_array_equal(spread(target, mask, kernels), spread_mask_reference(mask, kernels, TILE))


def test_a_delta_kernel_is_the_identity(target):
    """Nothing is flagged, not even at the border: no significant tap leaves the image."""
    mask = np.zeros((33, 20), np.int32)
    mask[3, 4] = MaskPlane.CR
    kernels = np.zeros((*tile_counts(mask.shape, TILE), 7, 7), np.float32)
    kernels[..., 3, 3] = 1
    np.testing.assert_array_equal(spread(target, mask, kernels), mask)


def test_missing_pixels_make_an_edge(target):
    """Neighbours of a missing pixel say EDGE, and so does the image's border."""
    mask = np.zeros((40, 40), np.int32)
    mask[20, 20] = MaskPlane.NO_DATA
    out = spread(target, mask, kernels_for((40, 40), 5))
    edge = np.ones((40, 40), bool)
    edge[2:-2, 2:-2] = False
    edge[18:23, 18:23] = True
    np.testing.assert_array_equal((out & MaskPlane.EDGE) != 0, edge)
    np.testing.assert_array_equal((out & MaskPlane.NO_DATA) != 0, mask != 0)


def test_only_the_chosen_planes_spread(target):
    """DETECTED stays put when it is not among the planes; SAT spreads over the kernel."""
    mask = np.zeros((40, 40), np.int32)
    mask[20, 20] = MaskPlane.SAT | MaskPlane.DETECTED
    out = spread(target, mask, kernels_for((40, 40), 5), planes=MaskPlane.SAT)
    assert ((out & MaskPlane.SAT) != 0).sum() == 25 and ((out & MaskPlane.DETECTED) != 0).sum() == 1


def test_masks_only_grow():
    """Whatever the mask and the kernel, no bit is lost."""
    rng = np.random.default_rng(3)
    mask = rng.integers(0, 2**13, (40, 40)).astype(np.int32) * (rng.random((40, 40)) < 0.05)
    out = spread_mask(mask.astype(np.int32), kernels_for((40, 40), 5), TILE)
    assert ((out & mask) == mask).all()


def test_saturation_reaches_further():
    """A tap of 1e-4 of the largest carries saturation on, and no defect."""
    got = spread_beside(MaskPlane.SAT, 1e-4) | spread_beside(MaskPlane.BAD, 1e-4)
    assert got[10, 13] == MaskPlane.SAT


@pytest.mark.parametrize("plane", [MaskPlane.SAT, MaskPlane.SAT_TEMPLATE])
def test_many_saturated_pixels_reach_further_than_one(target, plane):
    """Under taps of 1e-5 of the kernel one saturated pixel does no harm, and five do."""
    assert (spread_beside(plane, 1.1e-5, target=target)[:, 13] == 0).all()
    got = spread_beside(plane, 1.1e-5, rows=5, target=target)
    assert got[12, 13] == plane and got[8, 13] == 0


def test_saturation_that_is_spread_already_goes_as_far_as_a_defect(target):
    """A plane that is not among ``lost`` is carried by significant taps alone."""
    options = {"tap": 1e-4, "target": target, "lost": MaskPlane.SAT}
    assert spread_beside(MaskPlane.SAT_TEMPLATE, **options)[10, 13] == 0
    assert spread_beside(MaskPlane.SAT, **options)[10, 13] == MaskPlane.SAT


def test_negligible_taps_carry_nothing(target):
    """Taps of 1e-6 of the largest, under which a hundred saturated pixels would hold 1e-4 of the kernel, count for nothing."""
    kernels = np.full((1, 1, 21, 21), 1e-6, np.float32)
    kernels[0, 0, 10, 10] = 1
    mask = np.zeros((60, 60), np.int32)
    mask[20:30, 20:30] = MaskPlane.SAT
    inside = np.s_[10:-10, 10:-10]
    got = target.host(spread_mask(target.array(mask), target.array(kernels), 64))
    np.testing.assert_array_equal(got[inside], mask[inside])


def spread_beside(plane, tap, rows=1, target=None, **options):
    """Pixels of ``plane`` from (10, 10) downwards, under a kernel that is 1 in its centre and ``tap`` in a column beside."""
    kernels = np.zeros((1, 1, 7, 7), np.float32)
    kernels[0, 0, 3, 3] = 1
    kernels[0, 0, 3 - rows // 2 : 4 + rows // 2, 6] = tap
    mask = np.zeros((30, 30), np.int32)
    mask[10 : 10 + rows, 10] = plane
    if target is None:
        return spread_mask(mask, kernels, 32, **options)
    return target.host(spread_mask(target.array(mask), target.array(kernels), 32, **options))
