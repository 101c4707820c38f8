"""Periods of light curves: against least squares, astropy, known waves and pure noise."""

import numpy as np
import pytest
from astropy.timeseries import LombScargle

from nightstream.errors import InputError
from nightstream.kernels.periodogram import band_powers_reference, false_alarm_probability, find_periods


def search(time, flux, err, band=None, *, n_bands=1, f_max=1.0, oversample=5, put=np.asarray, **options):
    """`find_periods` of one object on the usual grid."""
    band = np.zeros(len(time), int) if band is None else band
    order = np.lexsort([time, band])
    start = np.searchsorted(band[order], np.arange(n_bands + 1))
    span = np.ptp(time)
    step = 1 / (oversample * span)
    n_steps = int((f_max - 1 / span) / step) + 1
    arrays = time[order], flux[order], err[order], start, np.array([1 / span]), np.array([step]), np.array([n_steps], np.int32)
    return find_periods(*map(put, arrays), n_bands=n_bands, **options)


def wave(rng, n=40, period=10.0, amplitude=100.0, phase=0.3, noise=5.0, span=365.0):
    """An unevenly sampled sinusoid whose maximum is ``phase`` periods after time 0."""
    time = np.sort(rng.uniform(0, span, n))
    err = rng.uniform(0.5, 1.5, n) * noise
    return time, 500 + amplitude * np.cos(2 * np.pi * (time / period - phase)) + rng.normal(0, err), err


def test_known_period_amplitude_and_phase_come_back(target):
    """A wave of 10 days sampled 40 times in a year: its period, and its errors of least squares for the rest."""
    time, flux, err = wave(np.random.default_rng(1))
    found = search(time, flux, err, put=target.array)
    frequency, power, amplitude, phase = (target.host(a)[0] for a in found)
    # sigma(f) = sqrt(6 / n) / (pi T) * sigma / A
    sigma_f = np.sqrt(6 / 40) / (np.pi * 365) * 5 / 100
    assert abs(frequency[0] - 0.1) < 5 * sigma_f and abs(1 / frequency[0] - 10) < 0.04
    assert frequency[1] == frequency[0] and power[1] == pytest.approx(power[0], rel=1e-12) and power[0] > 0.98
    assert amplitude[0] == pytest.approx(100, abs=5 * 5 * np.sqrt(2 / 40))
    # the phase at time 0 is extrapolated half a year by the fitted frequency
    assert phase[0] == pytest.approx(0.3, abs=5 * (5 / 100 * np.sqrt(2 / 40) / (2 * np.pi) + sigma_f * 182))


def test_power_is_that_of_least_squares(target):
    """At the frequency found, the power is that of a sinusoid plus mean fitted by plain least squares."""
    rng = np.random.default_rng(2)
    for n in (5, 6, 23):
        time, flux, err = wave(rng, n=n, amplitude=20.0, noise=10.0)
        found = search(time, flux, err, put=target.array)
        frequency, power = target.host(found.frequency)[0, 0], target.host(found.power)[0, 0]
        # the determinant may be down to 1e-4, so 1e-16 / 1e-4 times some tens of operations
        assert power == pytest.approx(band_powers_reference(time, flux, err, [frequency])[0], abs=1e-10)


def test_highest_peak_is_that_of_astropy(target):
    """On the same grid astropy finds the same peak; ours, refined, is as high or higher."""
    rng = np.random.default_rng(3)
    for _ in range(5):
        time, flux, err = wave(rng, n=30, amplitude=12.0, noise=10.0)
        step = 1 / (5 * np.ptp(time))
        grid = 5 * step + step * np.arange(int((1 - 5 * step) / step) + 1)
        powers = LombScargle(time, flux, err).power(grid, method="slow")
        found = search(time, flux, err, put=target.array)
        assert abs(target.host(found.frequency)[0, 0] - grid[np.argmax(powers)]) < 1.5 * step
        # the scan in float32 takes another maximum only if that differs by its rounding
        assert target.host(found.power)[0, 0] > powers.max() - 1e-5


def test_bands_add_up(target):
    """Over bands the power is the sum of the gains in chi2 that astropy finds band by band, over the sum of chi2."""
    rng = np.random.default_rng(4)
    time, flux, err = wave(rng, n=60)
    band = rng.integers(0, 3, 60)
    flux = flux * np.array([1.0, 2.0, 0.5])[band] + np.array([0, 300.0, -80.0])[band]
    found = search(time, flux, err, band, n_bands=4, put=target.array)
    frequency, power = target.host(found.frequency)[0], target.host(found.power)[0]
    chi2 = gained = 0.0
    for b in range(3):
        one = LombScargle(time[band == b], flux[band == b], err[band == b])
        mean = np.average(one.y, weights=one.dy**-2.0)
        chi2 += np.sum(((one.y - mean) / one.dy) ** 2)
        gained += one.power(frequency[4:], method="slow")[0] * np.sum(((one.y - mean) / one.dy) ** 2)
    assert power[4] == pytest.approx(gained / chi2, rel=1e-9)
    assert abs(1 / frequency[4] - 10) < 0.04
    # 20 points each: amplitudes within 5 sigma sqrt(2 / n)
    np.testing.assert_allclose(target.host(found.amplitude)[0, :3], [100, 200, 50], atol=5 * 7.5 * np.sqrt(2 / 15))
    assert np.isnan(frequency[3]) and np.isnan(target.host(found.amplitude)[0, 3])


def test_many_objects_are_searched_alone(target):
    """Each object has its own grid and its own answer, the same as if it were the only one."""
    rng = np.random.default_rng(5)
    curves = [wave(rng, n=n, period=p) for n, p in ((9, 4.0), (31, 20.0), (64, 2.5))]
    starts, grids = [0], []
    for time, _, _ in curves:
        starts.append(starts[-1] + len(time))
        step = 1 / (5 * np.ptp(time))
        grids.append((5 * step, step, int((1 - 5 * step) / step) + 1))
    columns = [np.concatenate(column) for column in zip(*curves, strict=True)]
    first, step, n_steps = (np.array(column) for column in zip(*grids, strict=True))
    arrays = *columns, np.array(starts), first, step, n_steps.astype(np.int32)
    found = find_periods(*map(target.array, arrays), n_bands=1)
    for k, curve in enumerate(curves):
        alone = search(*curve)
        # the lanes and their order of addition are the same: bits, but for the last digits of sine and cosine
        np.testing.assert_allclose(target.host(found.frequency)[k], alone.frequency[0], rtol=1e-9)
        np.testing.assert_allclose(target.host(found.power)[k], alone.power[0], rtol=1e-9)


def test_few_points_or_constant_flux_have_no_period(target):
    """Fewer than five points, or no variation, or no frequencies: NaN."""
    rng = np.random.default_rng(6)
    time, flux, err = wave(rng, n=4)
    assert np.isnan(target.host(search(time, flux, err, put=target.array).frequency)).all()
    time, flux, err = wave(rng, n=12)
    assert np.isnan(target.host(search(time, np.full(12, 0.1), err, put=target.array).frequency)).all()
    assert np.isnan(target.host(search(time, flux, err, f_max=0.0, put=target.array).frequency)).all()


def test_no_objects():
    """Nothing in, nothing out."""
    empty = np.zeros(0)
    found = find_periods(empty, empty, empty, np.zeros(1, np.int64), empty, empty, np.zeros(0, np.int32), n_bands=6)
    assert found.frequency.shape == (0, 7) and found.amplitude.shape == (0, 6)


def test_false_alarms_of_one_band_are_baluevs():
    """The formula is that of astropy's "baluev" method."""
    time, flux, err = wave(np.random.default_rng(7), n=25)
    oracle = LombScargle(time, flux, err)
    cycles = 2.0 * np.sqrt(4 * np.pi * np.average((time - np.average(time, weights=err**-2)) ** 2, weights=err**-2))
    power = np.array([0.2, 0.4, 0.6, 0.8, 0.95])
    expected = oracle.false_alarm_probability(power, method="baluev", maximum_frequency=2.0)
    # astropy puts 1 - 0.75 / N for the ratio of gamma functions: 1 / (32 N^2) off
    np.testing.assert_allclose(false_alarm_probability(power, 25, 1, cycles), expected, rtol=1e-4)


@pytest.mark.parametrize("n_bands", [1, 3])
def test_noise_alarms_as_often_as_predicted(n_bands):
    """Of 400 light curves of noise about a tenth has a probability below 0.1: a bound, so at most 5 sigma more."""
    rng = np.random.default_rng(8)
    n, per_object = 400, 15 * n_bands
    time = np.sort(rng.uniform(0, 100, (n * n_bands, 15))).ravel()
    err = rng.uniform(1, 2, n * per_object)
    start = np.arange(n * n_bands + 1) * 15
    step = np.full(n, 1 / 500)
    n_steps = np.full(n, 500, np.int32)
    found = find_periods(time, rng.normal(0, err), err, start, 5 * step, step, n_steps, n_bands=n_bands)
    cycles = 1.008 * np.sqrt(4 * np.pi * 100**2 / 12)
    chance = false_alarm_probability(found.power[:, n_bands], per_object, n_bands, cycles)
    fraction = np.mean(chance < 0.1)
    assert 0.03 < fraction < 0.1 + 5 * np.sqrt(0.09 / n)


def test_alarms_at_the_ends():
    """Power 0 is certain to be reached, power 1 never, NaN stays NaN."""
    chance = false_alarm_probability(np.array([0.0, 1.0, np.nan]), 20, 2, 100.0)
    assert chance[0] == 1.0 and chance[1] == 0.0 and np.isnan(chance[2])


def test_wrong_starts_are_told():
    """The error says what was got and wanted."""
    row = np.ones(3)
    with pytest.raises(InputError, match="wanted 1 x 2"):
        find_periods(row, row, row, np.array([0, 3]), row[:1], row[:1], np.ones(1, np.int32), n_bands=2)
