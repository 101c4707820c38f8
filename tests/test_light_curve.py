"""Statistics of light curves: against their definitions, NumPy, SciPy, and by hand."""

import numpy as np
import pytest
import scipy.stats

from nightstream.errors import InputError
from nightstream.kernels.light_curve import (
    STATISTICS,
    segment_statistics,
    segment_statistics_reference,
    weighted_means,
)


def curves(seed=1, lengths=(0, 1, 2, 3, 7, 40, 0, 111, 1)):
    """Light curves of those lengths about a bright level, and where each starts."""
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    err = rng.uniform(20, 200, n)
    flux = 5000 + rng.normal(0, err) + rng.normal(0, 100, n)
    time = np.concatenate([60000 + np.sort(rng.uniform(0, 365, k)) for k in lengths])
    start = np.concatenate([[0], np.cumsum(lengths)])
    return flux, err, time, start, np.full(len(lengths), 60000.0)


def described(flux, err=None, time=None, origin=0.0):
    """The statistics of one light curve as a dict of numbers."""
    flux = np.asarray(flux, float)
    err = np.ones_like(flux) if err is None else err
    time = np.arange(len(flux), dtype=float) if time is None else time
    table = segment_statistics(flux, err, time, np.array([0, len(flux)]), np.array([origin]))
    return {name: column[0] for name, column in table.items()}


def test_statistics_match_the_definition(target):
    """Empty, single and long segments: every twin gives the numbers of plain NumPy."""
    arrays = curves()
    got = segment_statistics(*(target.array(a) for a in arrays))
    wanted = segment_statistics_reference(*arrays)
    for name in STATISTICS:
        # up to 111 additions in another order, of fluxes 5000 and of times 6e4 with a lever arm of 1e2; atol for the skew
        np.testing.assert_allclose(target.host(got[name]), wanted[name], rtol=1e-11, atol=1e-12, err_msg=name)


def test_twins_agree_to_the_bit(target):
    """The arithmetic is + - * / sqrt in one order, so the targets have the same bits."""
    arrays = curves(seed=2)
    got = segment_statistics(*(target.array(a) for a in arrays))
    from nightstream.kernels import light_curve

    host = np.full((len(STATISTICS), len(arrays[3]) - 1), np.nan)
    flux, err, time, start, origin = arrays
    ranked = flux[np.lexsort([flux, np.repeat(np.arange(len(start) - 1), np.diff(start))])]
    light_curve.describe_segments.cpu(flux, err, time, ranked, start.astype(np.int64), origin, host, len(start) - 1)
    for row, name in enumerate(STATISTICS):
        np.testing.assert_array_equal(target.host(got[name]), host[row], err_msg=name)


def test_weighted_means_match_numpy(target):
    """Mean, its error and the scatter are those of `numpy.average` and `numpy.std`."""
    flux, err, _, start, _ = curves(seed=3)
    mean, mean_err, sigma = (target.host(a) for a in weighted_means(*map(target.array, (flux, err, start))))
    rows = slice(start[7], start[8])
    np.testing.assert_allclose(mean[7], np.average(flux[rows], weights=err[rows] ** -2), rtol=1e-14)
    np.testing.assert_allclose(mean_err[7], np.sum(err[rows] ** -2) ** -0.5, rtol=1e-14)
    np.testing.assert_allclose(sigma[7], flux[rows].std(ddof=1), rtol=1e-13)
    assert np.isnan(mean[0]) and np.isfinite(mean[1]) and np.isnan(sigma[1])


def test_steepest_change_by_hand():
    """Steps of 2/9 nJy, one of them within a tenth of a day: 2 + 2/9 nJy/d."""
    time = np.array([0, 1, 2, 3, 4, 4.1, 5, 6, 7, 8.0])
    assert described(np.linspace(-1, 1, 10), time=time)["max_slope"] == pytest.approx(2 + 2 / 9, rel=1e-12)


def test_steepest_change_is_signed():
    """A light curve that only fades has a negative greatest slope; rows of one time have none."""
    assert described([3.0, 2.0, 0.0])["max_slope"] == -1.0
    assert np.isnan(described([3.0, 2.0], time=np.array([5.0, 5.0]))["max_slope"])


@pytest.mark.parametrize("n", [1, 2, 3, 10, 11, 100])
def test_percentiles_are_those_of_numpy(n):
    """To the bit, whatever the number of rows."""
    flux = np.random.default_rng(n).normal(100, 10, n)
    got = described(flux)
    for percent in (5, 25, 50, 75, 95):
        assert got[f"percentile{percent:02d}"] == np.percentile(flux, percent)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 10, 11])
def test_median_distance_is_that_of_scipy(n):
    """Odd, even and tied rows."""
    for flux in (np.random.default_rng(n).normal(size=n), np.arange(n) // 2, np.ones(n)):
        expected = scipy.stats.median_abs_deviation(flux)
        assert described(flux)["mad"] == pytest.approx(expected, rel=1e-14, abs=1e-15)


def test_moments_are_those_of_scipy():
    """Skewness and scatter, of fluxes far from zero: nothing cancels."""
    flux = 1e9 + np.random.default_rng(4).gamma(2.0, 1.0, 50)
    got = described(flux)
    assert got["skew"] == pytest.approx(scipy.stats.skew(flux - 1e9), rel=1e-9)
    assert got["sigma"] == pytest.approx(np.std(flux - 1e9, ddof=1), rel=1e-12)


def test_constant_flux_has_no_variation():
    """Equal fluxes: no chi2, scatter, distance or slope, and no defined skew; J is -1 for rows on their mean."""
    got = described(np.full(6, 0.1))
    assert got["chi2"] == got["sigma"] == got["mad"] == got["slope"] == 0.0
    assert np.isnan(got["skew"]) and got["stetson_j"] == -1.0


def test_line_is_recovered():
    """A straight light curve gives its slope and its level at the origin, whatever the errors."""
    rng = np.random.default_rng(5)
    time = 60000 + np.sort(rng.uniform(0, 365, 30))
    got = described(7.0 + 0.25 * (time - 60100), err=rng.uniform(1, 5, 30), time=time, origin=60100.0)
    assert got["slope"] == pytest.approx(0.25, rel=1e-12)
    assert got["intercept"] == pytest.approx(7.0, rel=1e-10)


def test_stetson_j_grows_with_variability():
    """Pure noise scatters about zero as theory says; a wave of ten sigmas stands far above."""
    rng = np.random.default_rng(6)
    noise = rng.normal(size=4000)
    # <sgn(d^2 - 1) sqrt|d^2 - 1|> of a normal d, by quadrature
    d = np.linspace(-9, 9, 200_001)
    p = d**2 - 1
    expected = np.trapezoid(np.sign(p) * np.sqrt(np.abs(p)) * scipy.stats.norm.pdf(d), d)
    # the summand has unit scatter: 4 / sqrt(4000)
    assert described(noise)["stetson_j"] == pytest.approx(expected, abs=4 / np.sqrt(4000))
    assert described(noise + 10 * np.sin(np.arange(4000)))["stetson_j"] > 5


def test_chi2_of_noise_is_its_degrees_of_freedom():
    """Of 2000 curves of 10 rows the mean chi2 is 9 within 5 sqrt(2 * 9 / 2000)."""
    rng = np.random.default_rng(7)
    err = rng.uniform(1, 9, 20_000)
    start = np.arange(0, 20_001, 10)
    table = segment_statistics(rng.normal(0, err), err, np.arange(20_000.0), start, np.zeros(2000))
    assert table["chi2"].mean() == pytest.approx(9, abs=5 * np.sqrt(18 / 2000))


def test_mean_pulls_are_normal():
    """(mean - truth) / mean_err of 2000 curves has mean 0 and width 1, within 5 / sqrt(2000)."""
    rng = np.random.default_rng(8)
    err = rng.uniform(1, 9, 20_000)
    mean, mean_err, _ = weighted_means(rng.normal(50, err), err, np.arange(0, 20_001, 10))
    pull = (mean - 50) / mean_err
    assert abs(pull.mean()) < 5 / np.sqrt(2000)
    assert pull.std() == pytest.approx(1, abs=5 / np.sqrt(4000))


def test_no_rows_and_no_segments(target):
    """No segments give empty columns; segments without rows give NaN."""
    empty = target.array(np.zeros(0))
    for count in (0, 3):
        table = segment_statistics(
            empty, empty, empty, target.array(np.zeros(count + 1, np.int64)), target.array(np.zeros(count))
        )
        assert all(np.isnan(target.host(column)).all() and len(column) == count for column in table.values())


def test_unequal_lengths_are_told():
    """The error says what was got."""
    with pytest.raises(InputError, match="one length"):
        segment_statistics(np.ones(3), np.ones(2), np.ones(3), np.array([0, 3]), np.zeros(1))
