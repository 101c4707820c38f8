"""Polynomials as terms: substitution and derivatives mean what calculus says."""

import numpy as np

from nightstream.kernels.polynomial import add, derivatives, evaluate, mix, substitute

F = (((0, 0, 0, 0.5), (2, 1, 0, -1.5), (3, 0, 0, 2.0)), ((1, 0, 0, 1.0), (0, 2, 0, 0.25)))
X, Y = np.random.default_rng(1).uniform(-1, 1, (2, 50))


def values(polynomials, x=X, y=Y):
    return np.array([evaluate(terms, x, y, np) for terms in polynomials])


def test_substitution_is_composition():
    """F after an affine map, expanded, has the values of F at the mapped places; a few roundings apart."""
    affine = ((0.8, -0.3, 0.2), (0.1, 1.2, -0.5))
    u, v = (a * X + b * Y + c for a, b, c in affine)
    np.testing.assert_allclose(values(substitute(F, affine)), values(F, u, v), rtol=0, atol=1e-14)


def test_sums_and_mixtures_are_those_of_the_values():
    """`add` and `mix` act on the values, and what cancels leaves no term."""
    matrix = ((2.0, -1.0), (0.5, 3.0))
    np.testing.assert_allclose(values(mix(matrix, F)), np.array(matrix) @ values(F), rtol=0, atol=1e-14)
    np.testing.assert_allclose(values(add(F, F)), 2 * values(F), rtol=1e-14)
    assert add(F, mix(((-1.0, 0.0), (0.0, -1.0)), F)) == ((), ())


def test_derivatives_are_those_of_differences():
    """Central differences of step h agree to h^2 of the third derivative; powers of r too."""
    terms, h = ((1, 2, 0, 0.7), (0, 0, 3, -0.4), (1, 0, 1, 0.2)), 1e-5
    along_x, along_y = values(derivatives(terms))
    np.testing.assert_allclose(along_x, (evaluate(terms, X + h, Y, np) - evaluate(terms, X - h, Y, np)) / (2 * h), atol=1e-8)
    np.testing.assert_allclose(along_y, (evaluate(terms, X, Y + h, np) - evaluate(terms, X, Y - h, np)) / (2 * h), atol=1e-8)
