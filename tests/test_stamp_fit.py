"""The shared least-squares loop: twins against the definition."""

import numpy as np
import pytest
from scenes import blank

from nightstream.errors import InputError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.stamp_fit import _sum_equations, fit_stamps, gradients, stamp_normal_equations_reference


def case(rng, m=3, size=7, shape=(41, 33), n=20):
    image, mask, variance = blank(rng, shape, 2.0)
    mask[rng.random(shape) < 0.1] = int(MaskPlane.CR)
    image[5, 5], variance[6, 9], variance[20, 20] = np.nan, np.nan, 0.0
    column, row = rng.integers(-5, shape[1] + 5, n), rng.integers(-5, shape[0] + 5, n)
    column[0] = -(2**20)
    templates = rng.normal(size=(n, m, size, size)).astype(np.float32)
    weights = rng.uniform(0.5, 2, (n, size, size)).astype(np.float32)
    return image, mask, variance, column.astype(np.int32), row.astype(np.int32), templates, weights


@pytest.mark.parametrize("m", [1, 3])
def test_sums_match_the_definition(target, m):
    """Masked, NaN, zero-variance and off-image pixels included, the twins give the sums of plain NumPy."""
    inputs = case(np.random.default_rng(1), m)
    with target.running():
        sums = _sum_equations(*(target.array(a) for a in inputs), MaskPlane.unusable())
    for got, wanted in zip(sums, stamp_normal_equations_reference(*inputs, MaskPlane.unusable()), strict=True):
        # 49 additions in another order: 49 eps of sums of order 100
        np.testing.assert_allclose(target.host(got), wanted, rtol=1e-13, atol=1e-11)


def test_linear_combination_is_recovered(target):
    """Pixels that are exactly a combination of the templates give back its coefficients."""
    _, mask, variance, _, _, templates, weights = case(np.random.default_rng(2), n=1)
    image = np.zeros((41, 33), np.float32)
    image[10:17, 8:15] = np.tensordot([2.0, -3.0, 0.5], templates[0].astype(float), 1)
    arrays = (image, 0 * mask, variance, np.array([11]), np.array([13]), templates, weights)
    with target.running():
        fit = fit_stamps(*(target.array(a) for a in arrays))
    # float32 pixels of order 5: 6e-8 * 5; the ridge adds 1e-10
    np.testing.assert_allclose(target.host(fit.coefficients), [[2.0, -3.0, 0.5]], atol=1e-6)


def test_source_without_pixels_is_nan():
    """A source far off the image gets NaN and no pixels, and disturbs no other."""
    inputs = case(np.random.default_rng(3))
    fit = fit_stamps(*inputs)
    assert np.isnan(fit.coefficients[0]).all() and fit.n_pixels[0] == 0
    assert np.isfinite(fit.coefficients[fit.n_pixels > 20]).all()


def test_gradients_are_minus_the_slope():
    """Of a Gaussian of sigma 2 the differences are the analytic gradient within the k^4/30 of their order."""
    offset = np.arange(25) - 12
    profile = np.exp(-0.125 * (offset[:, None] ** 2 + offset[None, :] ** 2))
    along_x, _ = gradients(profile[None])
    analytic = profile * offset[None, :] / 4
    # fourth-order differences of sigma 2: relative error about 1 / (30 sigma^4) * 15 (fifth derivative of a Gaussian)
    np.testing.assert_allclose(along_x[0], analytic, atol=15 / (30 * 16) * analytic.max())


def test_wrong_shapes_are_told():
    """The error says what was got and wanted."""
    *planes, templates, weights = case(np.random.default_rng(4))
    with pytest.raises(InputError, match="odd s"):
        fit_stamps(*planes, templates[..., :6, :6], weights[..., :6, :6])
