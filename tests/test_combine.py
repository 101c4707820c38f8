"""Clipped mean of frames."""

from __future__ import annotations

import numpy as np
import pytest

from nightstream.errors import InputError
from nightstream.kernels.combine import combine_frames, combine_frames_reference
from nightstream.kernels.mask import MaskPlane

SIGMA = 3.0


def stack(n=5, shape=(40, 50), seed=2):
    """Frames of 100 electrons with noise SIGMA, nothing masked."""
    images = np.random.default_rng(seed).normal(100, SIGMA, (n, *shape)).astype(np.float32)
    return images, np.zeros(images.shape, np.int32), np.full(images.shape, SIGMA**2, np.float32)


def spoiled(n, shape, seed=4):
    """Frames with outliers, masked and missing pixels, and unequal noise."""
    rng = np.random.default_rng(seed)
    images, masks, variances = stack(n, shape, seed)
    images[rng.random(images.shape) < 0.05] += 200
    images[rng.random(images.shape) < 0.05] = np.nan
    variances[rng.random(images.shape) < 0.02] = np.inf
    masks[:] = rng.choice([0, MaskPlane.SAT, MaskPlane.SUSPECT], images.shape, p=[0.8, 0.1, 0.1])
    return images, masks, variances


@pytest.mark.parametrize(("n", "shape"), [(1, (7, 9)), (2, (16, 5)), (5, (13, 17)), (64, (3, 3)), (3, (0, 4)), (4, (1, 1))])
def test_targets_agree_bit_for_bit(target, n, shape):
    """Reference, Numba and CUDA do the same additions in the same order."""
    images, masks, variances = spoiled(n, shape)
    rng = np.random.default_rng(1)
    options = {"scales": rng.uniform(0.5, 2, n), "weights": rng.uniform(0.5, 2, n), "tolerance": 0.01}
    with target.running():
        found = combine_frames(*map(target.array, (images, masks, variances)), **options)
    for ours, wanted in zip(found, combine_frames_reference(images, masks, variances, **options), strict=True):
        np.testing.assert_array_equal(target.host(ours), wanted)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_thread_order_does_not_matter(order):
    """The CUDA kernel gives the same bits whichever thread runs first."""
    loader = pytest.importorskip("cudashim.loader")
    if not loader.has_compiler():
        pytest.skip("g++ is absent")
    frames = spoiled(5, (16, 16))
    with loader.host_cuda(order):
        found = combine_frames(*frames)
    for ours, wanted in zip(found, combine_frames_reference(*frames), strict=True):
        np.testing.assert_array_equal(ours, wanted)


def test_variance_predicts_the_scatter_of_the_mean(target):
    """Pulls of the mean are N(0, 1): 2000 pixels know their mean to 5/sqrt(N), their width to 5/sqrt(2N)."""
    with target.running():
        found = combine_frames(*map(target.array, stack()))
    pulls = (target.host(found.image) - 100) / np.sqrt(target.host(found.variance))
    assert abs(pulls.mean()) < 5 / np.sqrt(pulls.size)
    assert abs(pulls.std() - 1) < 5 / np.sqrt(2 * pulls.size)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_cosmic_ray_in_one_frame_is_rejected(target, n):
    """One outlier among as few as two frames is left out, and the rest of the mean is unmoved."""
    images, masks, variances = stack(n)
    hit = images.copy()
    hit[0, 10, 20] += 40 * SIGMA
    with target.running():
        found = combine_frames(*map(target.array, (hit, masks, variances)))
    assert target.host(found.n_used)[10, 20] == n - 1
    np.testing.assert_allclose(target.host(found.image)[10, 20], images[1:, 10, 20].mean(), rtol=1e-6)


def test_clean_pixels_are_rarely_clipped():
    """At 4 sigma of the difference a Gaussian loses under 1e-3 of its values, even from a median of five."""
    assert 5 - combine_frames(*stack(5, (200, 200))).n_used.mean() < 5e-3


def test_masked_pixels_do_not_enter_and_empty_pixels_say_so():
    """A saturated value is ignored; where all are, the pixel is NaN with NO_DATA and the reason."""
    images, masks, variances = stack(3)
    masks[0, 1, 1] = masks[:, 2, 2] = MaskPlane.SAT
    found = combine_frames(images, masks, variances)
    assert found.n_used[1, 1] == 2 and found.mask[1, 1] == 0
    assert found.mask[2, 2] == MaskPlane.SAT | MaskPlane.NO_DATA
    assert np.isnan(found.image[2, 2]) and np.isnan(found.variance[2, 2])


def test_scales_bring_frames_to_one_level():
    """Frames of one scene at different exposure times give the scene."""
    images, masks, variances = stack(3)
    factors = np.array([1.0, 2.0, 4.0], np.float32)[:, None, None]
    found = combine_frames(images * factors, masks, variances * factors**2, scales=1 / factors.ravel())
    np.testing.assert_allclose(found.image, combine_frames(images, masks, variances).image, rtol=1e-6)


def test_inputs_are_not_changed():
    """Frames come out as they went in."""
    frames = spoiled(4, (8, 8))
    copies = [f.copy() for f in frames]
    combine_frames(*frames)
    for frame, copy in zip(frames, copies, strict=True):
        np.testing.assert_array_equal(frame, copy)


def test_mean_agrees_with_ccdproc():
    """Without outliers the mean is ccdproc's Combiner average."""
    ccdproc = pytest.importorskip("ccdproc")
    from astropy.nddata import CCDData

    images, masks, variances = stack(4)
    oracle = ccdproc.Combiner([CCDData(i, unit="electron") for i in images]).average_combine()
    found = combine_frames(images, masks, variances, clip_sigma=np.inf)
    np.testing.assert_allclose(found.image, oracle.data, rtol=1e-6)


@pytest.mark.parametrize("n", [0, 65])
def test_too_few_or_too_many_frames_are_refused(n):
    """Nothing to combine, or more than the kernel takes, is said so."""
    with pytest.raises(InputError, match=r"wanted \(1 to 64, ny, nx\)"):
        combine_frames(np.zeros((n, 2, 2), np.float32), np.zeros((n, 2, 2), np.int32), np.zeros((n, 2, 2), np.float32))
