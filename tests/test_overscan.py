"""Overscan levels and read noise."""

from __future__ import annotations

import numpy as np
import pytest

from nightstream.kernels import overscan

METHODS = [
    overscan.row_median_levels,
    overscan.row_mean_levels,
    overscan.amplifier_levels,
    overscan.adaptive_row_levels,
]
READ_NOISE = 4.0


def strips(dtype=np.float32, shape=(3, 400, 24), pedestal=1000.0):
    values = np.random.default_rng(5).normal(pedestal, READ_NOISE, shape)
    return np.rint(values).astype(dtype) if np.dtype(dtype).kind in "iu" else values.astype(dtype)


@pytest.mark.parametrize("method", METHODS)
def test_levels_follow_any_added_pedestal(method):
    """Adding whole counts to the strip adds them to every level (float32 near 1e3 rounds at 6e-5)."""
    values = strips()
    np.testing.assert_allclose(method(values + 137), method(values) + 137, atol=3e-4)


@pytest.mark.parametrize(("method", "spread"), [(METHODS[0], 1.2533), (METHODS[1], 1.0)])
def test_row_levels_scatter_as_theory_says(method, spread):
    """A row's mean scatters by sigma/sqrt(n), its median by sqrt(pi/2) times that; 1200 rows know it to 5/sqrt(2N)."""
    levels = method(strips())
    expected = READ_NOISE / np.sqrt(24) * spread
    assert levels.mean() == pytest.approx(1000, abs=5 * expected / np.sqrt(levels.size))
    # 6 %: the median's asymptotic spread is not yet reached for 24 values
    assert levels.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * levels.size) + 0.06)


@pytest.mark.parametrize("method", METHODS)
def test_row_drift_and_outliers(method):
    """Charge in one column of every fifth row moves a level by less than the scatter of clean ones."""
    values = strips()
    clean = method(values)
    values[:, ::5, 3] += 5000
    assert abs(method(values) - clean).max() < 5 * 1.2533 * READ_NOISE / np.sqrt(24)


def test_row_levels_follow_the_row():
    """A pedestal that drifts from row to row is followed; the amplifier's one level is its mean."""
    drift = np.arange(400, dtype=np.float32)[None, :, None]
    for method in METHODS[:2]:
        np.testing.assert_allclose(method(np.zeros((1, 400, 9), np.float32) + drift)[0], drift[0, :, 0])
    np.testing.assert_allclose(overscan.amplifier_levels(np.zeros((1, 400, 9), np.float32) + drift), 199.5)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_read_noise_is_measured(dtype):
    """Differences of neighbours give sigma; 5 sqrt(3/(4N)) since each pixel is used twice; quantisation is taken off."""
    noise = overscan.measure_read_noise(strips(dtype))
    np.testing.assert_allclose(noise, READ_NOISE, rtol=5 * np.sqrt(0.75 / (400 * 23)))


def test_read_noise_ignores_drift_and_charge():
    """Row drift and a bleeding column leave the measured noise alone."""
    values = strips() + 10 * np.arange(400, dtype=np.float32)[None, :, None]
    values[:, :, 0] += 3000
    np.testing.assert_allclose(overscan.measure_read_noise(values), READ_NOISE, rtol=5 * np.sqrt(0.75 / (400 * 22)))


@pytest.mark.parametrize("method", METHODS)
def test_rows_without_data_take_the_amplifiers_level(method):
    """NaN rows get the median level; an amplifier of NaN gives NaN, silently."""
    values = np.full((2, 50, 8), 7, np.float32)
    values[0, 10] = np.nan
    values[1] = np.nan
    np.testing.assert_array_equal(method(values)[0], 7)
    assert np.isnan(method(values)[1]).all() and np.isnan(overscan.measure_read_noise(values)[1])


def test_only_high_levels_are_replaced():
    """A column with bleeding charge takes the amplifier's median level; a low one is believed."""
    levels = np.array([[1, 2, 3, 500, -500]], np.float32)
    np.testing.assert_array_equal(overscan.replace_outlying_levels(levels, 100), [[1, 2, 3, 2, -500]])


def test_row_median_agrees_with_ccdproc():
    """ccdproc's overscan subtraction with a row median leaves the same image."""
    ccdproc = pytest.importorskip("ccdproc")
    from astropy.nddata import CCDData

    values = strips(shape=(1, 60, 40))
    frame = CCDData(values[0], unit="adu")
    oracle = ccdproc.subtract_overscan(frame, overscan=frame[:, 30:], overscan_axis=1, median=True)
    ours = values[0] - overscan.row_median_levels(values[:, :, 30:])[0][:, None]
    np.testing.assert_allclose(ours, oracle.data, atol=1e-3)
