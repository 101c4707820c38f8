"""The polynomial between two star lists: recovered through outliers, of no higher order than the stars bear."""

import numpy as np
import pytest

from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.distortion import fit_distortion
from nightstream.kernels.polynomial import evaluate

SIZE = 4000
BOUNDS = (0.0, SIZE, 0.0, SIZE)


def offset(x, y):
    """A cubic distortion, of 1.5 pixels in the corners."""
    u, v = x / 2000 - 1, y / 2000 - 1
    return 0.1 + 0.7 * u * (u * u + v * v) / 2 + 0.3 * v * v, -0.2 + 0.7 * v * (u * u + v * v) / 2 - 0.2 * u * v


def scene(rng, n=400, outliers=0.0):
    """x, y, dx, dy, error of n stars, whose errors reach from 0.01 to 0.2 pixel; and which are outliers."""
    x, y, error = rng.uniform(0, SIZE, n), rng.uniform(0, SIZE, n), 10 ** rng.uniform(-2, -0.7, n)
    dx, dy = (c + error * rng.normal(size=n) for c in offset(x, y))
    wrong = rng.random(n) < outliers
    dx[wrong] += rng.uniform(1.5, 3, wrong.sum()) * rng.choice([-1, 1], wrong.sum())
    return [x, y, dx, dy, error], wrong


def values(distortion, x, y):
    """The offsets that a `Distortion` stands for."""
    return [evaluate(terms, x, y, np) for terms in distortion.terms_about(0.0, 0.0)]


def largest_error(distortion):
    x, y = np.meshgrid(np.linspace(0, SIZE, 21), np.linspace(0, SIZE, 21))
    return np.abs(np.subtract(values(distortion, x, y), offset(x, y))).max()


def test_the_distortion_is_recovered_through_outliers(target):
    """A tenth of wrong pairs is clipped, little else is; the corners are good to 5 of their standard errors."""
    columns, wrong = scene(np.random.default_rng(1), outliers=0.1)
    found, used = fit_distortion(*map(target.array, columns), bounds=BOUNDS)
    used = target.host(used)
    assert found.order == 3
    assert not (used & wrong).any() and (used | wrong).mean() > 0.97
    # a cubic's variance at a corner is 70 over the sum of the weights
    assert largest_error(found) < 5 * np.sqrt(70 / (1 / (columns[4][used] ** 2 + 0.02**2)).sum())


def test_weights_make_bright_stars_count():
    """A thousand faint stars take nothing from what a hundred bright ones tell."""
    rng = np.random.default_rng(2)
    x, y = rng.uniform(0, SIZE, (2, 1100))
    error = np.where(np.arange(1100) < 100, 0.01, 1.0)
    dx, dy = (c + error * rng.normal(size=1100) for c in offset(x, y))
    found, _ = fit_distortion(x, y, dx, dy, error, bounds=BOUNDS)
    bright, _ = fit_distortion(*(c[:100] for c in (x, y, dx, dy, error)), bounds=BOUNDS)
    assert largest_error(found) < 1.1 * largest_error(bright)


@pytest.mark.parametrize("n, order", [(1, 0), (2, 0), (3, 1), (10, 1), (400, 3)])
def test_the_order_follows_the_number_of_stars(n, order):
    """Few stars get a constant or an affine map, which no scarcity makes wild."""
    columns, _ = scene(np.random.default_rng(3), n)
    assert fit_distortion(*columns, bounds=BOUNDS)[0].order == order


def test_max_order_is_kept():
    """An order that is not wanted is not used."""
    columns, _ = scene(np.random.default_rng(4))
    assert [fit_distortion(*columns, bounds=BOUNDS, max_order=k)[0].order for k in (0, 1, 2, 3)] == [0, 1, 2, 3]


def test_stars_that_leave_a_corner_open_do_not_decide_it():
    """The same stars bear a cubic where they are, and not over a field of four times the side."""
    columns, _ = scene(np.random.default_rng(5))
    assert fit_distortion(*columns, bounds=BOUNDS)[0].order == 3
    assert fit_distortion(*columns, bounds=(0, 4 * SIZE, 0, 4 * SIZE))[0].order < 3


def test_stars_on_a_line_get_a_constant(target):
    """Their mean offset is all that is known everywhere."""
    x = np.linspace(0, SIZE, 50)
    columns = [target.array(c) for c in (x, x, np.full(50, 0.5), np.full(50, -0.25), np.full(50, 0.1))]
    found, used = fit_distortion(*columns, bounds=BOUNDS)
    assert found.order == 0 and target.host(used).all()
    np.testing.assert_allclose(values(found, 10.0, 3000.0), (0.5, -0.25), rtol=1e-12)


def test_nan_takes_no_part():
    """Stars with NaN anywhere change nothing and are not used; inputs are unchanged."""
    columns, _ = scene(np.random.default_rng(6))
    clean, _ = fit_distortion(*columns, bounds=BOUNDS)
    longer = [np.r_[c, np.where(np.arange(5) == k, np.nan, 1.0)] for k, c in enumerate(columns)]
    before = [c.copy() for c in longer]
    found, used = fit_distortion(*longer, bounds=BOUNDS)
    assert not used[-5:].any() and found.order == clean.order
    np.testing.assert_allclose(values(found, 0.0, 0.0), values(clean, 0.0, 0.0), rtol=1e-9)
    np.testing.assert_array_equal(before, longer)


def test_impossible_fits_are_refused():
    """No star, or no order, says so."""
    nan = np.full(3, np.nan)
    with pytest.raises(UnprocessableError, match="none of 3 stars"):
        fit_distortion(nan, nan, nan, nan, nan, bounds=BOUNDS)
    with pytest.raises(InputError, match="got order -1"):
        fit_distortion(nan, nan, nan, nan, nan, bounds=BOUNDS, max_order=-1)
