"""Pairs on the sky. Brute force over all pairs, and SciPy's tree, are the oracles."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from nightstream.errors import InputError
from nightstream.kernels.sky_frames import ARCSEC_PER_RADIAN, unit_vectors
from nightstream.kernels.sky_match import gaussian_cost, sky_pairs, turned_covariance

SKIES = {"equator": (150.0, 0.0), "seam": (0.0, -30.0), "north pole": (77.0, 90.0), "south pole": (0.0, -90.0)}


def around(rng, ra, dec, n, width_arcsec):
    """Directions scattered about one, even at a pole."""
    return normalised(unit_vectors(ra, dec) + rng.uniform(-0.5, 0.5, (n, 3)) * width_arcsec / ARCSEC_PER_RADIAN)


def normalised(vectors):
    return vectors / np.linalg.norm(vectors, axis=1)[:, None]


def brute_force(first, second, radius):
    apart = 2 * np.arcsin(np.linalg.norm(first[:, None] - second[None], axis=2) / 2) * ARCSEC_PER_RADIAN
    return *np.nonzero(apart <= radius), apart[apart <= radius]


@pytest.mark.parametrize("where", SKIES)
@pytest.mark.parametrize("radius", [0.3, 1.0, 20.0])
def test_all_pairs_are_found(where, radius):
    """In order, with their separations: on the equator, across 0 h and at the poles alike."""
    rng = np.random.default_rng(11)
    first, second = (around(rng, *SKIES[where], n, 30.0) for n in (150, 400))
    i, j, apart = sky_pairs(first, second, radius)
    want_i, want_j, want_apart = brute_force(first, second, radius)
    np.testing.assert_array_equal(i, want_i)
    np.testing.assert_array_equal(j, want_j)
    np.testing.assert_allclose(apart, want_apart, rtol=1e-9)
    assert len(i) > 5


def test_many_directions_agree_with_a_tree():
    """Two hundred thousand directions: the same number of pairs as SciPy's tree finds."""
    rng = np.random.default_rng(12)
    second = unit_vectors(rng.uniform(10, 11, 200_000), rng.uniform(-31, -30, 200_000))
    first = normalised(second[:3000] + rng.normal(0, 0.5 / ARCSEC_PER_RADIAN, (3000, 3)))
    found = cKDTree(second).query_ball_point(first, 2 * np.sin(0.5 / ARCSEC_PER_RADIAN))
    i, j, _ = sky_pairs(first, second, 1.0)
    assert list(zip(i, j, strict=True)) == [(k, m) for k, near in enumerate(found) for m in sorted(near)]


def test_nan_matches_nothing():
    """Directions that are NaN are in no pair."""
    one = unit_vectors(np.array([10.0, np.nan, 10.0]), np.array([5.0, 5.0, np.nan]))
    assert sky_pairs(one, one, 1.0).first.tolist() == [0]


@pytest.mark.parametrize("n, m", [(0, 0), (0, 3), (3, 0)])
def test_nothing_to_match(n, m):
    """Empty lists give no pairs."""
    assert len(sky_pairs(np.ones((n, 3)), np.ones((m, 3)), 1.0).first) == 0


@pytest.mark.parametrize("radius", [0.0, 0.01, -1.0, 4000.0, np.nan])
def test_a_radius_out_of_range_is_refused(radius):
    """The radius must be positive and small."""
    with pytest.raises(InputError, match="radius"):
        sky_pairs(np.ones((1, 3)), np.ones((1, 3)), radius)


def test_cost_is_the_gaussian_density():
    """The cost is minus the log of the density that SciPy gives."""
    from scipy.stats import multivariate_normal

    covariance = np.array([[0.04, 0.09, 0.03]])
    density = multivariate_normal(cov=[[0.04, 0.03], [0.03, 0.09]]).logpdf([0.2, -0.1])
    np.testing.assert_allclose(gaussian_cost(np.array([[0.2, -0.1]]), covariance), -density)


def test_covariance_turns_with_its_axes():
    """Next to the pole, where east at ra 0 is north at ra 90, the two variances swap and the correlation changes sign."""
    turned = turned_covariance(np.array([[1.0, 4.0, 0.5]]), [90.0], [89.9999], [0.0], [89.9999])
    np.testing.assert_allclose(turned, [[4.0, 1.0, -0.5]], atol=1e-5)
