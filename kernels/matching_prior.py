"""Least squares that is as flexible as the data ask for: Gaussian priors whose widths come from the data themselves.

Parameters c fitted to normal equations M c = b, with a prior exp(-lambda_g c' P_g c / 2) for each group g. The
strengths lambda_g maximise the marginal likelihood (MacKay 1992, "Bayesian interpolation", eqs. 31 and 32):
lambda = gamma / (c' P c), gamma = rank(P) - lambda tr(C P), C the posterior covariance. A group that the data do not
need is switched off smoothly; one that they need is left alone. Nothing is tuned by hand.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nightstream.kernels.target import array_module

RIDGE = 1e-12  # added to the diagonal of a matrix whose diagonal is 1
FIRST_WIDTH = 0.1  # of a parameter's prior, relative to the scale of the solution, before the data have spoken
STRENGTH_RANGE = (1e-6, 1e6)  # of a strength relative to the first one
SMALL_MATRIX = 48  # rows, below which a triangular matrix is inverted like any other
SETTLED = 3.0  # parameters that the last change of the strengths may have freed or tied, at most, before they are left alone


class Penalty(NamedTuple):
    """One group: ``index`` (m,) into the parameters and ``matrix`` (m, m), positive, of rank m or nearly. No parameter is
    in two groups."""

    index: Any
    matrix: Any


class Solution(NamedTuple):
    """Posterior of the parameters."""

    mean: Any  # (p,)
    covariance: Any  # (p, p)
    prior: Any  # (p, p) precision matrix of the prior, sum of lambda_g P_g
    strengths: Any  # (groups,) lambda_g
    freedom: float  # effective number of parameters, tr(C M)
    condition: float  # of the scaled matrix with its prior


def solve_shrunk(matrix, vector, penalties, *, scale: float = 1.0, strengths=None, iterations: int = 5) -> Solution:
    """Solve ``matrix`` (p, p) c = ``vector`` (p,), float64, with ``penalties`` whose strengths the data choose.

    ``scale`` is the size that parameters may have (the photometric scale of a kernel): it sets where the search for
    the strengths starts. ``strengths`` start it elsewhere, normally where it ended before. Without penalties this is
    plain least squares.
    """
    xp = array_module(matrix)
    penalty, member = _joined(penalties, len(vector), xp)
    first = 1 / (FIRST_WIDTH * scale) ** 2
    strengths = xp.full(len(penalties), first) if strengths is None else strengths
    for _ in range(iterations if penalties else 0):
        solution = _posterior(matrix, vector, penalty, member, strengths)
        gamma, better = _strengths(solution, penalty, member)
        better = xp.clip(better, STRENGTH_RANGE[0] * first, STRENGTH_RANGE[1] * first)
        settled = bool((gamma * xp.abs(xp.log(better / strengths))).sum() < SETTLED)
        strengths = better
        if settled:
            break
    return _posterior(matrix, vector, penalty, member, strengths)


def _joined(penalties, size: int, xp):
    """All penalties in one matrix (p, p), and (p, groups) float64, 1 where a parameter belongs to a group."""
    whole, member = xp.zeros((size, size)), xp.zeros((size, len(penalties)))
    for group, penalty in enumerate(penalties):
        whole[penalty.index[:, None], penalty.index[None, :]] = penalty.matrix
        member[penalty.index, group] = 1
    return whole, member


def _posterior(matrix, vector, penalty, member, strengths) -> Solution:
    prior = penalty * (member @ strengths)[:, None]
    covariance, condition = invert_positive(matrix + prior)
    freedom = float((covariance * matrix).sum())
    return Solution(covariance @ vector, covariance, prior, strengths, freedom, float(condition))


def _strengths(solution: Solution, penalty, member):
    """Return gamma, how many parameters of every group the data determine, and the group's next lambda."""
    xp = array_module(penalty)
    gamma = member.sum(0) - solution.strengths * (member.T @ (solution.covariance * penalty).sum(1))
    gamma = xp.maximum(gamma, 1e-3)
    return gamma, gamma / xp.maximum(member.T @ (solution.mean * (penalty @ solution.mean)), 1e-300)


def invert_positive(matrix):
    """Return the inverse of a symmetric positive ``matrix`` (p, p) and the condition number of its scaled form (1-norm).

    The diagonal is scaled to 1 first and 1e-12 added to it, which makes a singular matrix a regular one.
    """
    xp = array_module(matrix)
    scale, root = _scaled_root(matrix)
    inverse = root.T @ root
    size = (xp.abs(matrix) * scale[None, :]).sum(axis=1) * scale
    return inverse * scale[:, None] * scale[None, :], size.max() * xp.abs(inverse).sum(axis=0).max()


def _scaled_root(matrix):
    """Return ``scale`` (p,) that makes the diagonal of a symmetric positive ``matrix`` (p, p) 1, and the inverse of the lower
    Cholesky factor of the scaled matrix with the ridge."""
    xp = array_module(matrix)
    scale = 1 / xp.sqrt(xp.maximum(xp.diagonal(matrix), 1e-300))
    return scale, invert_lower(xp.linalg.cholesky(matrix * scale[:, None] * scale[None, :] + RIDGE * xp.eye(len(matrix))))


def invert_lower(matrix):
    """Return the inverse of a lower triangular ``matrix`` (p, p), by halves: nearly all of it is products of matrices, which
    threads may do side by side."""
    xp = array_module(matrix)
    if len(matrix) <= SMALL_MATRIX:
        return xp.linalg.inv(matrix)
    half = len(matrix) // 2
    inverse = xp.zeros_like(matrix)
    upper, lower = invert_lower(matrix[:half, :half]), invert_lower(matrix[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = upper, lower
    inverse[half:, :half] = -(lower @ matrix[half:, :half]) @ upper
    return inverse


def without_noise(matrix, noise):
    """Return ``matrix`` M (p, p) without the part that noise in the design added to it, ``noise`` N (p, p): M (M + N)^-1 M.

    Noise in what is fitted passes for signal that the solution must suppress, and makes it too small (errors in
    variables; Fuller 1987, "Measurement error models", section 2.2). The remedy is M - N, which this is to first order in
    N / M; but directions that are little else than noise keep half of what they have: nothing would be left to stand on.
    """
    scale, root = _scaled_root(matrix + noise)
    half = root @ (matrix * scale[:, None])
    return half.T @ half
