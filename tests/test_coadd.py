"""Coaddition of aligned images: unbiased, robust from three images on, honest about coverage."""

import numpy as np
import pytest

from nightstream.kernels.coadd import coadd, flag_high_variance, mean_correlation
from nightstream.kernels.mask import MaskPlane


def stack(n=5, shape=(60, 70), seed=1, sigmas=None):
    rng = np.random.default_rng(seed)
    sigmas = np.ones(n) if sigmas is None else np.asarray(sigmas, float)
    images = (rng.normal(0, 1, (n, *shape)) * sigmas[:, None, None]).astype(np.float32)
    variances = np.broadcast_to((sigmas**2)[:, None, None], images.shape).astype(np.float32)
    return images, np.zeros(images.shape, np.int32), variances.copy()


def run(target, stacks, **options):
    with target.running():
        out = coadd(*(target.array(a) for a in stacks), **options)
    return [target.host(a) for a in out]


def test_the_mean_is_weighted_and_its_variance_predicts_its_scatter(target):
    """Noise of 1 and 3 combines with weights 1 and 1/9; the variance plane is right within 5 sqrt(2 / N)."""
    image, _, variance, n_used, weights = run(target, stack(4, sigmas=[1, 1, 3, 3], shape=(100, 100)))
    np.testing.assert_allclose(weights, [1, 1, 1 / 9, 1 / 9], rtol=1e-6)
    np.testing.assert_allclose(variance, 1 / (2 + 2 / 9), rtol=1e-5)
    assert np.var(image) / variance[0, 0] == pytest.approx(1, abs=5 * np.sqrt(2 / 1e4))
    assert (n_used >= 3).all()


def test_an_outlier_is_clipped_from_three_images_on(target):
    """A cosmic ray of 100 sigma in one of three images leaves no trace; in one of two it stays."""
    stacks = stack(3)
    stacks[0][1, 20, 20] = 100
    image, _, _, n_used, _ = run(target, stacks)
    assert abs(image[20, 20]) < 5 and n_used[20, 20] == 2
    pair = run(target, [a[:2] for a in stacks])
    assert pair[0][20, 20] > 40 and pair[3][20, 20] == 2


def test_a_star_of_varying_width_is_not_clipped(target):
    """Bright pixels that differ by 20 % between images, as seeing makes them, all enter."""
    stacks = stack(3)
    stacks[0][:, 30, 30] += np.float32([800, 1000, 1200])
    assert run(target, stacks)[3][30, 30] == 3


def test_flagged_pixels_enter_only_where_there_is_nothing_better(target):
    """A saturated value is left out; where all are saturated their mean stays, flagged; NaN is NO_DATA."""
    stacks = stack(3)
    stacks[1][0, 10, 10] = MaskPlane.SAT
    stacks[1][:, 40, 40] = MaskPlane.SAT
    stacks[0][:, 40, 40] = 500
    stacks[0][:, 50, 50] = np.nan
    image, mask, _, n_used, _ = run(target, stacks)
    assert n_used[10, 10] == 2 and mask[10, 10] == 0
    assert image[40, 40] == 500 and mask[40, 40] & MaskPlane.SAT and n_used[40, 40] == 0
    assert np.isnan(image[50, 50]) and mask[50, 50] & MaskPlane.NO_DATA


def test_high_variance_is_flagged_where_coverage_is_thin():
    """A corner with five times the variance gets HIGH_VARIANCE, the rest does not."""
    variance = np.ones((128, 128), np.float32)
    variance[:32, :32] = 5
    mask = flag_high_variance(np.zeros(variance.shape, np.int32), variance)
    np.testing.assert_array_equal((mask & MaskPlane.HIGH_VARIANCE) != 0, variance > 1)


def test_the_correlation_of_a_mean_weighs_its_members_by_their_noise():
    """White and correlated members in equal shares give half the correlation."""
    white, other = np.zeros((3, 3)), np.zeros((3, 3))
    white[1, 1] = other[1, 1] = 1
    other[1, 2] = other[1, 0] = 0.4
    assert mean_correlation([white, other], [1, 1], [1, 1])[1, 2] == pytest.approx(0.2)
