"""Least squares over stamps for the matching kernel: weights, spatial terms, shrinkage, cross-validation.

Each stamp is reduced once per round to its own small normal equations; every model (spatial order, size of the basis)
and every fold of the cross-validation is then a selection of rows and columns of one summed system. What is left out of
a round, because it changed between the images, is `matching_clip`'s to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nightstream.kernels.matching_basis import STAMPS_PER_CHUNK, STAMPS_PER_LARGE_CHUNK, KernelBasis
from nightstream.kernels.matching_clip import clip, model_errors
from nightstream.kernels.matching_prior import Penalty, Solution, solve_shrunk, without_noise
from nightstream.kernels.psf import polynomial_exponents, polynomial_terms
from nightstream.kernels.target import array_module, chunks, for_each

FOLDS = 5
MODEL_ERRORS = (0.02, 0.005, 0.001)  # of the model's signal, added to the noise in round 1, 2, 3 and later
WORTH = 2.0  # gain in held-out chi^2 that a larger model must bring
KERNEL_POWER = 0.06  # sum(K^2) of a typical matching kernel, for the first round's weights
CHOOSING_ROUND = 2  # before, stars that changed may mislead: the largest model, held by its priors, finds them


class Candidate(NamedTuple):
    """One model: the leading ``functions`` of the basis, spatial order of the kernel, order of the background."""

    functions: int
    order: int
    background_order: int


def term_count(order: int) -> int:
    """Number of terms of a polynomial in two variables."""
    return (order + 1) * (order + 2) // 2


def order_of(terms: int) -> int:
    """Order of a polynomial in two variables with that many terms."""
    return math.isqrt(2 * terms) - 1


@dataclass(eq=False)
class StampFit:
    """The chosen model, its parameters and what became of the stamps."""

    candidate: Candidate
    table: Any  # (n_basis + 1, terms) parameters, zero where the model has none; last row the background
    solution: Solution
    index: Any  # (p,) of each parameter in the flat table
    strengths: Any  # (penalties, degrees) of the priors
    power: float = KERNEL_POWER  # sum(K^2) of the kernel in the middle
    signal: Any = None  # (n, m) the model without its background
    residual: Any = None  # (n, m) target minus model
    used: Any = None  # (n,) bool
    held_out: float = np.nan  # chi^2 per pixel of left-out stamps under the chosen model
    extra: dict[str, float] = field(default_factory=dict)

    def unpack(self):
        """Return the kernel's coefficients (functions, terms) and the background's (terms,)."""
        c = self.candidate
        return self.table[: c.functions, : term_count(c.order)], self.table[-1, : term_count(c.background_order)]

    @property
    def scale(self) -> float:
        """Kernel sum at the centre of the image."""
        return float(self.table[0, 0])

    @property
    def scale_error(self) -> float:
        """Its standard error, for stars that scatter about the model by their noise alone."""
        return float(self.solution.covariance[0, 0]) ** 0.5

    def diagnostics(self) -> dict[str, float]:
        """Numbers for the record of the difference."""
        return {
            "n_stamps": int(self.used.shape[0]),
            "n_stamps_used": int(self.used.sum()),
            "condition_number": self.solution.condition,
            "kernel_sum": self.scale,
            "kernel_sum_error": self.scale_error,
            "background": float(self.table[-1, 0]),
            "spatial_order": self.candidate.order,
            "basis_functions": self.candidate.functions,
            "effective_parameters": self.solution.freedom,
            "held_out_chi2": self.held_out,
            **self.extra,
        }


def fit_stamps(stamps, u, v, basis: KernelBasis, candidates, *, constant_scale, fwhm_pix, max_iterations) -> StampFit:
    """Choose among ``candidates``, fit, leave out what changed, update the weights; repeat until nothing changes.

    ``u, v`` (n,) are the stamps' places within [-1, 1]; ``fwhm_pix`` is the target's, for the search for point sources.
    """
    xp = array_module(stamps.target)
    terms = polynomial_terms(u, v, max(max(c.order, c.background_order) for c in candidates))
    used, bad = xp.ones(stamps.count, dtype=bool), xp.zeros(stamps.good.shape, dtype=bool)
    strengths, chosen, held_out = None, candidates[-1], np.nan
    signal = stamps.design[:, 0].astype(xp.float64)
    variance = _expected_variance(stamps, signal, KERNEL_POWER)
    for round_ in range(1, max_iterations + 1):
        softened = variance + (MODEL_ERRORS[min(round_, len(MODEL_ERRORS)) - 1] * signal) ** 2
        weights = xp.where(bad | ~stamps.good, 0.0, 1 / softened)
        system = StampSystem.reduce(stamps, weights, terms)
        if round_ == CHOOSING_ROUND:
            scores = _held_out_scores(system, used, basis, candidates, constant_scale, strengths)
            chosen, held_out = _choose(scores, system, used)
        fit = _solve(system, used, basis, chosen, constant_scale, strengths)
        strengths = fit.strengths
        fit.held_out = held_out
        _predict(fit, stamps, terms, basis)
        signal, variance = fit.signal, _expected_variance(stamps, fit.signal, fit.power)
        honest = xp.where(stamps.good, 1 / variance, 0.0)
        error = model_errors(stamps.design, xp.where(bad, 0.0, honest), fit.signal, terms, fit.index, fit.solution.covariance)
        verdict = clip(fit.residual, honest, bad, fit.signal, error, stamps.side, fwhm_pix, round_)
        settled = bool((verdict.used == used).all()) and round_ > len(MODEL_ERRORS)
        fit.used, used, bad = used, verdict.used, verdict.bad
        if settled:
            break
    fit.extra = _summary(fit, honest, bad, round_)
    return fit


def _summary(fit: StampFit, weights, bad, rounds) -> dict[str, float]:
    """Chi^2 per pixel of the stamps that were used: of the median stamp, and of the pixels where the star rules."""
    xp = array_module(weights)
    kept = xp.where(bad, 0.0, weights)[fit.used]
    square = kept * fit.residual[fit.used] ** 2
    chi2 = square.sum(1) / xp.maximum((kept > 0).sum(1), 1)
    bright = (kept > 0) & (fit.signal[fit.used] ** 2 * kept > 100)
    rms = float(xp.sqrt(square[bright].mean())) if bool(bright.any()) else float("nan")
    return {"chi2_per_pixel_median": float(xp.median(chi2)), "bright_residual_rms": rms, "iterations": rounds}


def _expected_variance(stamps, signal, power):
    """Variance (n, m) per stamp as a straight line in the model's signal, target's and source's together; the kernel
    lets through ``power``, sum(K^2), of the latter.

    The variance plane of a single exposure contains its pixel's noise; weighting by it pulls every fit low
    (by about 1 electron a pixel). The line, fitted per stamp to plane against model, carries none of the
    noise.
    """
    xp = array_module(signal)
    variance = xp.empty(signal.shape)

    def fit_chunk(chunk: slice) -> None:
        total = stamps.target_variance[chunk] + power * stamps.source_variance[chunk]
        variance[chunk] = _line_in(signal[chunk], total, stamps.good[chunk])

    for_each(fit_chunk, chunks(len(signal), STAMPS_PER_LARGE_CHUNK, xp), xp)
    return variance


def _line_in(signal, total, good):
    """Return the straight line in ``signal`` (n, m) that fits ``total`` on the ``good`` pixels of each row."""
    xp = array_module(signal)
    count = xp.maximum(good.sum(1, keepdims=True), 1)
    mean = lambda a: xp.where(good, a, 0).sum(1, keepdims=True) / count  # noqa: E731
    spread = signal - mean(signal)
    slope = xp.maximum(mean(spread * total) / xp.maximum(mean(spread**2), 1e-30), 0)
    level = mean(total)
    return xp.maximum(level + slope * spread, 0.2 * level) + 1e-30


@dataclass(frozen=True, slots=True, eq=False)
class StampSystem:
    """Normal equations of every stamp with the spatial terms still separate."""

    matrix: Any  # (n, J, J)
    vector: Any  # (n, J)
    scalar: Any  # (n,)
    pixels: Any  # (n,) with weight
    terms: Any  # (n, T)
    noise: Any  # (n,) sum of weight times variance of the source

    @classmethod
    def reduce(cls, stamps, weights, terms) -> StampSystem:
        """Sum over the pixels of every stamp."""
        xp = array_module(weights)
        n, j, _ = stamps.design.shape
        matrix, vector = xp.empty((n, j, j)), xp.empty((n, j))

        def reduce_chunk(chunk: slice) -> None:
            design = stamps.design[chunk].astype(xp.float64)
            weighted = design * weights[chunk][:, None, :]
            matrix[chunk] = xp.matmul(weighted, design.transpose(0, 2, 1))
            vector[chunk] = xp.matmul(weighted, stamps.target[chunk][:, :, None])[:, :, 0]

        for_each(reduce_chunk, chunks(n, STAMPS_PER_CHUNK, xp), xp)
        noise = (weights * stamps.source_variance).sum(1)
        return cls(matrix, vector, (weights * stamps.target**2).sum(1), (weights > 0).sum(1), terms, noise)

    def summed(self, chosen):
        """Return the system summed over the ``chosen`` stamps: matrix (JT, JT), vector (JT,), scalar."""
        xp = array_module(self.matrix)
        j, t = self.matrix.shape[1], self.terms.shape[1]
        terms = self.terms * chosen[:, None]
        pairs = (terms[:, :, None] * self.terms[:, None, :]).reshape(len(terms), t * t)
        matrix = (self.matrix.reshape(len(terms), j * j).T @ pairs).reshape(j, j, t, t)
        vector = self.vector.T @ terms
        return matrix.transpose(0, 2, 1, 3).reshape(j * t, j * t), vector.reshape(j * t), xp.sum(self.scalar * chosen)

    def summed_noise(self, chosen, basis: KernelBasis):
        """Return what the source's noise adds to the summed matrix on average, (JT, JT): sum(w V p_s p_t) <B_i, B_j>."""
        xp = array_module(self.matrix)
        j, t = self.matrix.shape[1], self.terms.shape[1]
        functions = basis.images.reshape(len(basis), -1)
        overlap = xp.zeros((j, j))
        overlap[: len(basis), : len(basis)] = functions @ functions.T
        pairs = (self.terms * (self.noise * chosen)[:, None]).T @ self.terms
        return (overlap[:, None, :, None] * pairs[None, :, None, :]).reshape(j * t, j * t)


def _parameters(candidate: Candidate, functions: int, terms: int, constant_scale: bool) -> np.ndarray:
    """Indices into the flat (J, T) table of the parameters that ``candidate`` has."""
    has = np.zeros((functions, terms), bool)
    has[0, : 1 if constant_scale else term_count(candidate.order)] = True
    has[1 : candidate.functions, : term_count(candidate.order)] = True
    has[-1, : term_count(candidate.background_order)] = True
    return np.flatnonzero(has)


def _penalties(basis: KernelBasis, index: np.ndarray, terms: int, xp) -> tuple[list[Penalty], tuple]:
    """One group for each penalty of the basis and each spatial degree: how strongly either varies is its own affair. Also
    return these two numbers of every group."""
    function, term = index // terms, index % terms
    degree = np.array([i + j for i, j in polynomial_exponents(order_of(terms))])[term]
    kernel = function < len(basis)
    groups, names = [], []
    for number, matrix in enumerate(basis.penalties):
        concerned = kernel & (np.abs(matrix).sum(1) > 0)[np.minimum(function, len(basis) - 1)]
        for d in range(int(degree.max()) + 1):
            own = np.flatnonzero(concerned & (degree == d))
            if own.size:
                part = matrix[np.ix_(function[own], function[own])] * (term[own][:, None] == term[own][None, :])
                groups.append(Penalty(xp.asarray(own), xp.asarray(part)))
                names.append((number, d))
    return groups, tuple(xp.asarray(np.array(names, int).reshape(-1, 2).T))


def _held_out_scores(system: StampSystem, used, basis, candidates, constant_scale, strengths) -> dict[Candidate, float]:
    """Return chi^2 of left-out stamps under every candidate, whose priors are what all stamps ask for."""
    xp = array_module(used)
    fold = xp.cumsum(used) % FOLDS
    parts = for_each(lambda f: system.summed((used & (fold == f)).astype(xp.float64)), range(FOLDS), xp)
    whole = tuple(sum(p[i] for p in parts) for i in range(3))
    largest_first = sorted(candidates, key=_size, reverse=True)

    def find_prior(candidate: Candidate) -> tuple:
        solution, index, _ = _shrunk(whole, system, basis, candidate, constant_scale, strengths)
        return index, solution.prior

    priors = dict(zip(largest_first, for_each(find_prior, largest_first, xp), strict=True))
    tasks = [(c, part) for c in largest_first for part in parts]
    chi2 = for_each(lambda task: _held_out_chi2(whole, task[1], *priors[task[0]]), tasks, xp)
    return {c: sum(chi2[i * FOLDS : (i + 1) * FOLDS]) for i, c in enumerate(largest_first)}


def _size(candidate: Candidate) -> int:
    return candidate.functions * term_count(candidate.order)


def _choose(scores: dict[Candidate, float], system: StampSystem, used) -> tuple[Candidate, float]:
    """Return the candidate that predicts left-out stamps best, the smaller one when they are close, and its chi^2 per
    pixel."""
    least = min(scores.values())
    chosen = next(c for c in sorted(scores, key=_size) if scores[c] <= least + WORTH)
    return chosen, scores[chosen] / max(float((system.pixels * used).sum()), 1.0)


def _held_out_chi2(whole, part, index, prior) -> float:
    xp = array_module(whole[0])
    rows = index[:, None], index[None, :]
    rest = whole[0][rows] - part[0][rows] + prior
    scale = 1 / xp.sqrt(xp.maximum(xp.diagonal(rest), 1e-300))
    scaled = rest * scale[:, None] * scale[None, :] + 1e-12 * xp.eye(len(index))
    solution = scale * xp.linalg.solve(scaled, scale * (whole[1][index] - part[1][index]))
    return float(part[2] - 2 * solution @ part[1][index] + solution @ part[0][rows] @ solution)


def _shrunk(whole, system: StampSystem, basis, candidate: Candidate, constant_scale, strengths, noise=None):
    """Return the `Solution` for one candidate, the places (p,) of its parameters in the flat table, and the strengths of all
    priors, its own brought up to date; they start where the ``strengths`` of the round before are."""
    xp = array_module(whole[0])
    j, t = system.matrix.shape[1], system.terms.shape[1]
    host = _parameters(candidate, j, t, constant_scale)
    index = xp.asarray(host)
    rows = index[:, None], index[None, :]
    matrix, vector = whole[0][rows], whole[1][index]
    scale = abs(float(vector[0] / xp.maximum(matrix[0, 0], 1e-300))) or 1.0
    if noise is not None:
        matrix = without_noise(matrix, noise[rows])
    penalties, names = _penalties(basis, host, t, xp)
    start = None if strengths is None else strengths[names]
    solution = solve_shrunk(matrix, vector, penalties, scale=scale, strengths=start)
    table = xp.ones((len(basis.penalties), order_of(t) + 1)) if strengths is None else strengths.copy()
    table[names] = solution.strengths
    return solution, index, table


def _solve(system: StampSystem, used, basis, candidate: Candidate, constant_scale, strengths) -> StampFit:
    """Fit one candidate to the stamps ``used``."""
    xp = array_module(used)
    chosen = used.astype(xp.float64)
    whole, noise = system.summed(chosen), system.summed_noise(chosen, basis)
    solution, index, strengths = _shrunk(whole, system, basis, candidate, constant_scale, strengths, noise)
    j, t = system.matrix.shape[1], system.terms.shape[1]
    table = xp.zeros(j * t)
    table[index] = solution.mean
    return StampFit(candidate, table.reshape(j, t), solution, index, strengths)


def _predict(fit: StampFit, stamps, terms, basis: KernelBasis) -> None:
    """Set the model without its background and target minus model, both (n, m), and the kernel's power."""
    xp = array_module(terms)
    parameters = terms @ fit.table.T  # (n, J)
    single = parameters[:, None, :-1].astype(xp.float32)
    fit.signal = xp.empty(stamps.target.shape)

    def predict_chunk(chunk: slice) -> None:
        fit.signal[chunk] = xp.matmul(single[chunk], stamps.design[chunk, :-1])[:, 0]

    for_each(predict_chunk, chunks(stamps.count, STAMPS_PER_LARGE_CHUNK, xp), xp)
    fit.residual = stamps.target - fit.signal - parameters[:, -1:]
    fit.power = float((xp.tensordot(fit.table[:-1, 0], basis.images, 1) ** 2).sum())
