"""The correlation of neighbours: 0 for white noise, known for smoothed noise, undisturbed by sources."""

import numpy as np

from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.sky_correlation import sky_correlation

SHAPE = (400, 500)
N = SHAPE[0] * SHAPE[1]


def measure(target, image, mask=None, variance=1.0):
    mask = np.zeros(SHAPE, np.int32) if mask is None else mask
    planes = (
        target.array(a.astype(t)) for a, t in ((image, np.float32), (mask, np.int32), (np.full(SHAPE, variance), np.float32))
    )
    return sky_correlation(*planes, planes=MaskPlane.SAT)


def test_white_noise_has_none(target):
    """All lags are 0 within 5 / sqrt(N), the centre is 1, and opposite lags are one."""
    stamp = measure(target, np.random.default_rng(1).normal(0, 3, SHAPE), variance=9)
    assert stamp[2, 2] == 1
    np.testing.assert_array_equal(stamp, stamp[::-1, ::-1])
    assert np.abs(np.delete(stamp.ravel(), 12)).max() < 5 / np.sqrt(N)


def test_smoothed_noise_has_that_of_its_kernel(target):
    """Noise summed over two neighbours along x: 0.5 there, 0 elsewhere."""
    white = np.random.default_rng(2).normal(0, 1, (SHAPE[0], SHAPE[1] + 1))
    stamp = measure(target, (white[:, 1:] + white[:, :-1]) / np.sqrt(2))
    assert abs(stamp[2, 3] - 0.5) < 5 / np.sqrt(N) and abs(stamp[3, 2]) < 10 / np.sqrt(N)


def test_sources_and_masked_pixels_do_not_count(target):
    """Stars and a masked patch of structure change no lag by more than its error."""
    image, mask = np.random.default_rng(3).normal(0, 1, SHAPE), np.zeros(SHAPE, np.int32)
    clean = measure(target, image)
    image[50:60, 50:60], image[200:300, 100:200] = 100, 3
    mask[200:300, 100:200] = MaskPlane.SAT
    assert np.abs(measure(target, image, mask) - clean).max() < 5 / np.sqrt(N)


def test_without_sky_there_is_no_number(target):
    """All masked: NaN."""
    assert np.isnan(measure(target, np.ones(SHAPE), np.full(SHAPE, int(MaskPlane.SAT)))).all()
