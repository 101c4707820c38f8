"""Least squares over stamps for the matching kernel: weights, spatial terms, cross-validation, clipping.

Each stamp is reduced once per round to its own small normal equations; every model (spatial order, size of
the basis) and every fold of the cross-validation is then a selection of rows and columns of one summed
system.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nightstream.kernels.psf import polynomial_terms
from nightstream.kernels.target import array_module

FOLDS = 5
CLIP_SIGMA = 4.0  # robust standard deviations of chi^2 per degree of freedom above which a stamp goes
PIXEL_CLIP_SIGMA = 6.0
PIXEL_CLIP_MODEL_ERROR = 0.03  # of the signal, added to the noise in that test
MODEL_ERROR = 0.001  # of the model's signal: what no basis of this size can do better
WORTH = 1e-3  # relative gain in held-out chi^2 that a larger model must bring
MAX_CONDITION = 1e12


class Candidate(NamedTuple):
    """One model: the leading ``functions`` of the basis, spatial order of the kernel, order of the
    background."""

    functions: int
    order: int
    background_order: int


def _term_count(order: int) -> int:
    return (order + 1) * (order + 2) // 2


@dataclass(eq=False)
class StampFit:
    """The chosen model, its parameters and what became of the stamps."""

    candidate: Candidate
    table: Any  # (n_basis + 1, terms) parameters, zero where the model has none; last row the background
    chi2: Any = None  # (n,) chi^2 per good pixel
    used: Any = None  # (n,) bool
    condition: float = 0.0
    rounds: int = 0
    extra: dict[str, float] = field(default_factory=dict)

    def unpack(self):
        """Return the kernel's coefficients (functions, terms) and the background's (terms,)."""
        c = self.candidate
        return self.table[: c.functions, : _term_count(c.order)], self.table[-1, : _term_count(c.background_order)]

    def diagnostics(self) -> dict[str, float]:
        """Numbers for the record of the difference."""
        chosen = self.chi2[self.used]
        return {
            "n_stamps": int(self.used.shape[0]),
            "n_stamps_used": int(self.used.sum()),
            "chi2_per_pixel_median": float(array_module(chosen).median(chosen)),
            "condition_number": self.condition,
            "kernel_sum": float(self.table[0, 0]),
            "background": float(self.table[-1, 0]),
            "spatial_order": self.candidate.order,
            "basis_functions": self.candidate.functions,
            "iterations": self.rounds,
        }


def fit_stamps(stamps, u, v, candidates, *, constant_scale, max_iterations) -> StampFit:
    """Choose among ``candidates``, fit, clip stamps and pixels, update the weights; repeat until nothing
    changes."""
    xp = array_module(stamps.target)
    order = max(max(c.order, c.background_order) for c in candidates)
    terms = polynomial_terms(u, v, order)
    used = xp.ones(stamps.count, dtype=bool)
    signal, weights = stamps.design[:, 0], None
    fit = None
    for round_ in range(1, max_iterations + 1):
        weights = _weights(stamps, signal, fit)
        system = StampSystem.reduce(stamps, weights, terms)
        if round_ <= 2:
            chosen = _choose(system, used, candidates, constant_scale)
        fit = _solve(system, used, chosen, constant_scale)
        residual, signal = _residuals(stamps, terms, fit)
        fit.chi2 = (weights * residual**2).sum(1) / xp.maximum((weights > 0).sum(1), 1)
        fit.rounds, fit.used = round_, used
        keep = _clip(fit.chi2, used, stamps.count)
        if round_ > 2 and bool((keep == used).all()):
            break
        used = keep
    return fit


def _weights(stamps, signal, fit):
    """Inverse of the expected variance; 0 for bad pixels and for pixels far off the model of the round
    before."""
    xp = array_module(signal)
    variance = _expected_variance(stamps, signal, 1.0 if fit is None else float(fit.table[0, 0]))
    good = stamps.good
    if fit is not None:
        residual = stamps.target - signal - fit.extra["sky"]
        good = good & (xp.abs(residual) < PIXEL_CLIP_SIGMA * xp.sqrt(variance + (PIXEL_CLIP_MODEL_ERROR * signal) ** 2))
    return xp.where(good, 1 / variance, 0.0)


def _expected_variance(stamps, signal, scale):
    """Variance per stamp as a straight line in the model's signal, plus the source's and the basis' own
    error.

    The variance plane of a single exposure contains its pixel's noise; weighting by it pulls every fit low
    (by about 1 electron a pixel). The line, fitted per stamp to plane against model, carries none of the
    noise.
    """
    xp = array_module(signal)
    count = xp.maximum(stamps.good.sum(1, keepdims=True), 1)
    mean = lambda a: xp.where(stamps.good, a, 0).sum(1, keepdims=True) / count  # noqa: E731
    total = stamps.target_variance + KERNEL_POWER * scale**2 * stamps.source_variance
    spread = signal - mean(signal)
    slope = xp.maximum(mean(spread * total) / xp.maximum(mean(spread**2), 1e-30), 0)
    level = mean(total)
    line = level + slope * spread
    return xp.maximum(line, 0.2 * level) + (MODEL_ERROR * signal) ** 2 + 1e-30


KERNEL_POWER = 0.06  # sum(K^2) of a typical matching kernel, enough for weights


@dataclass(frozen=True, slots=True, eq=False)
class StampSystem:
    """Normal equations of every stamp with the spatial terms still separate."""

    matrix: Any  # (n, J, J)
    vector: Any  # (n, J)
    scalar: Any  # (n,)
    terms: Any  # (n, T)

    @classmethod
    def reduce(cls, stamps, weights, terms) -> StampSystem:
        xp = array_module(weights)
        weighted = stamps.design * weights[:, None, :]
        matrix = xp.matmul(weighted, stamps.design.transpose(0, 2, 1))
        vector = xp.matmul(weighted, stamps.target[:, :, None])[:, :, 0]
        return cls(matrix, vector, (weights * stamps.target**2).sum(1), terms)

    def summed(self, chosen):
        """Return the system summed over the ``chosen`` stamps: matrix (JT, JT), vector (JT,), scalar."""
        xp = array_module(self.matrix)
        j, t = self.matrix.shape[1], self.terms.shape[1]
        terms = self.terms * chosen[:, None]
        pairs = (terms[:, :, None] * self.terms[:, None, :]).reshape(len(terms), t * t)
        matrix = (self.matrix.reshape(len(terms), j * j).T @ pairs).reshape(j, j, t, t)
        vector = self.vector.T @ terms
        return matrix.transpose(0, 2, 1, 3).reshape(j * t, j * t), vector.reshape(j * t), xp.sum(self.scalar * chosen)


def _parameters(candidate: Candidate, functions: int, terms: int, constant_scale: bool) -> np.ndarray:
    """Indices into the flat (J, T) table of the parameters that ``candidate`` has."""
    has = np.zeros((functions, terms), bool)
    has[0, : 1 if constant_scale else _term_count(candidate.order)] = True
    has[1 : candidate.functions, : _term_count(candidate.order)] = True
    has[-1, : _term_count(candidate.background_order)] = True
    return np.flatnonzero(has)


def _choose(system: StampSystem, used, candidates, constant_scale) -> Candidate:
    """Return the candidate that predicts left-out stamps best; the smaller one when they are close."""
    if len(candidates) == 1:
        return candidates[0]
    xp = array_module(used)
    fold = xp.cumsum(used) % FOLDS
    parts = [system.summed((used & (fold == f)).astype(xp.float64)) for f in range(FOLDS)]
    whole = tuple(sum(p[i] for p in parts) for i in range(3))
    scores = {}
    for candidate in sorted(candidates, key=lambda c: c.functions * _term_count(c.order)):
        index = _parameters(candidate, system.matrix.shape[1], system.terms.shape[1], constant_scale)
        scores[candidate] = sum(_held_out_chi2(whole, part, index) for part in parts)
    best = min(scores.values())
    return next(c for c, score in scores.items() if score <= best * (1 + WORTH))


def _held_out_chi2(whole, part, index) -> float:
    xp = array_module(whole[0])
    index = xp.asarray(index)
    rows = index[:, None], index[None, :]
    solution, _ = solve_positive(whole[0][rows] - part[0][rows], whole[1][index] - part[1][index])
    return float(part[2] - 2 * solution @ part[1][index] + solution @ part[0][rows] @ solution)


def _solve(system: StampSystem, used, candidate: Candidate, constant_scale) -> StampFit:
    xp = array_module(used)
    matrix, vector, _ = system.summed(used.astype(xp.float64))
    j, t = system.matrix.shape[1], system.terms.shape[1]
    index = xp.asarray(_parameters(candidate, j, t, constant_scale))
    solution, condition = solve_positive(matrix[index[:, None], index[None, :]], vector[index])
    table = xp.zeros(j * t)
    table[index] = solution
    return StampFit(candidate, table.reshape(j, t), condition=condition)


def solve_positive(matrix, vector):
    """Solve a symmetric positive system by Cholesky after scaling its diagonal to 1; return solution,
    condition.

    Where the condition number exceeds 1e12 the small eigenvalues are raised (ridge) to bring it there.
    """
    xp = array_module(matrix)
    scale = 1 / xp.sqrt(xp.maximum(xp.diagonal(matrix), 1e-300))
    scaled = matrix * scale[:, None] * scale[None, :]
    eigenvalues = xp.linalg.eigvalsh(scaled)
    largest = float(eigenvalues[-1])
    condition = largest / max(float(eigenvalues[0]), largest * 1e-300)
    ridge = max(largest / MAX_CONDITION - float(eigenvalues[0]), 0.0)
    lower = xp.linalg.cholesky(scaled + ridge * xp.eye(len(scaled)))
    solution = xp.linalg.solve(lower.T, xp.linalg.solve(lower, scale * vector))
    return scale * solution, condition


def _residuals(stamps, terms, fit: StampFit):
    """Return target minus model and the model without its background, both (n, m); keep the sky in the
    fit."""
    xp = array_module(terms)
    parameters = terms @ fit.table.T  # (n, J)
    signal = xp.matmul(parameters[:, None, :-1], stamps.design[:, :-1])[:, 0]
    sky = parameters[:, -1:]
    fit.extra["sky"] = sky
    return stamps.target - signal - sky, signal


def _clip(chi2, used, count):
    """Keep the stamps whose chi^2 is not far above the others'; always at least half of them."""
    xp = array_module(chi2)
    middle = xp.median(chi2[used])
    spread = 1.4826 * xp.median(xp.abs(chi2[used] - middle)) + 0.05 * middle
    limit = max(float(middle + CLIP_SIGMA * spread), float(xp.median(chi2)))
    return chi2 <= limit
