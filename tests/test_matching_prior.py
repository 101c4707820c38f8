"""Shrinkage: what the data need is kept, what they do not need is not fitted, and errors are what they are said to be."""

import numpy as np
import pytest

from nightstream.kernels.matching_prior import Penalty, invert_lower, invert_positive, solve_shrunk, without_noise

N, P = 400, 30


def problem(truth, seed=1, sigma=1.0):
    rng = np.random.default_rng(seed)
    design = rng.normal(0, 1, (N, P))
    data = design @ truth + rng.normal(0, sigma, N)
    return design.T @ design / sigma**2, design.T @ data / sigma**2


def halves(target):
    """Two groups: the first and the second half of the parameters."""
    return [Penalty(target.array(np.arange(h * P // 2, (h + 1) * P // 2)), target.array(np.eye(P // 2))) for h in (0, 1)]


def solve(target, matrix, vector, penalties):
    solution = solve_shrunk(target.array(matrix), target.array(vector), penalties)
    return target.host(solution.mean), target.host(solution.covariance), solution


def test_without_penalties_it_is_least_squares(target):
    """The same numbers as the normal equations give."""
    matrix, vector = problem(np.arange(P) / P)
    got, covariance, solution = solve(target, matrix, vector, [])
    np.testing.assert_allclose(got, np.linalg.solve(matrix, vector), rtol=1e-9)
    np.testing.assert_allclose(covariance, np.linalg.inv(matrix), atol=1e-12)
    assert solution.freedom == pytest.approx(P)


def test_a_group_without_signal_is_switched_off(target):
    """Half of the parameters are 0: their scatter falls far below 1 / sqrt(N), the others stay as they were."""
    truth = np.r_[np.full(P // 2, 1.0), np.zeros(P // 2)]
    free, shrunk = [], []
    for seed in range(20):
        matrix, vector = problem(truth, seed)
        free.append(np.linalg.solve(matrix, vector))
        shrunk.append(solve(target, matrix, vector, halves(target))[0])
    error = np.array(shrunk) - truth
    assert np.std(error[:, P // 2 :]) < 0.4 * np.std(np.array(free)[:, P // 2 :])
    assert np.std(error[:, : P // 2]) < 1.05 * np.std((np.array(free) - truth)[:, : P // 2])


def test_the_posterior_predicts_its_own_errors(target):
    """Truths drawn from the prior: pulls of all parameters are N(0, 1) within 5 / sqrt(2 n)."""
    pulls = []
    for seed in range(40):
        rng = np.random.default_rng(100 + seed)
        truth = rng.normal(0, np.r_[np.full(P // 2, 0.5), np.full(P // 2, 0.05)])
        mean, covariance, _ = solve(target, *problem(truth, seed), halves(target))
        pulls.append((mean - truth) / np.sqrt(np.diag(covariance)))
    assert np.std(pulls) == pytest.approx(1, abs=5 / np.sqrt(2 * 40 * P) + 0.02)  # 0.02: the strengths' own error


def test_the_unit_of_the_data_does_not_matter(target):
    """A thousand times the signal and the noise gives a thousand times the answer."""
    matrix, vector = problem(np.r_[np.ones(P // 2), np.zeros(P // 2)])
    small = solve(target, matrix, vector, halves(target))[0]
    large = solve_shrunk(target.array(matrix / 1e6), target.array(vector / 1e3), halves(target), scale=1e3)
    np.testing.assert_allclose(target.host(large.mean) / 1e3, small, rtol=1e-6, atol=1e-9)


def test_singular_systems_have_an_answer(target):
    """Two equal columns: finite, and the condition number says so."""
    design = np.ones((10, 2))
    inverse, condition = invert_positive(target.array(design.T @ design))
    assert np.isfinite(target.host(inverse)).all() and condition > 1e12


def test_noise_in_the_design_no_longer_makes_the_solution_small(target):
    """Columns with 30 % noise: without the correction 8 % low, with it right within 5 sigma."""
    rng = np.random.default_rng(5)
    clean = rng.normal(0, 1, (20_000, 3))
    noisy = clean + rng.normal(0, 0.3, clean.shape)
    data = clean.sum(1) + rng.normal(0, 0.1, len(clean))
    matrix, vector = noisy.T @ noisy, noisy.T @ data
    better = target.host(without_noise(target.array(matrix), target.array(len(clean) * 0.09 * np.eye(3))))
    assert np.linalg.solve(matrix, vector) == pytest.approx(1 / 1.09, abs=0.02)
    assert np.linalg.solve(better, vector) == pytest.approx(1, abs=5 * np.sqrt((0.01 + 3 * 0.09) / len(clean)))


def test_what_is_mostly_noise_keeps_half(target):
    """A direction that is all noise stays regular."""
    matrix = np.diag([100.0, 1.0])
    got = target.host(without_noise(target.array(matrix), target.array(np.diag([1.0, 1.0]))))
    np.testing.assert_allclose(got, np.diag([100**2 / 101, 0.5]), rtol=1e-9)


@pytest.mark.parametrize("size", [1, 7, 150])
def test_a_triangular_matrix_times_its_inverse_is_one(target, size):
    """To 100 roundings an element; sizes of one block and of several."""
    matrix = np.tril(np.random.default_rng(2).normal(0, 0.1, (size, size))) + np.eye(size)
    got = target.host(invert_lower(target.array(matrix)))
    np.testing.assert_allclose(matrix @ got, np.eye(size), atol=100 * size * np.finfo(float).eps * np.abs(got).max())
