"""Dipoles: a positive and a negative lobe, left by a star that moved or was misregistered.

Owns pairing of lobes, the two-lobe fit and the decision. An isolated transient is never one.
"""

from __future__ import annotations

import math

import numpy as np

from nightstream.kernels.centroid import fit_centroids
from nightstream.kernels.stamp_fit import fit_stamps, gradients, model_weights, pixel_of, place_stamps
from nightstream.kernels.target import array_module

MAX_STEP_PIX = 0.7  # largest move of a lobe in one iteration
SETTLED_CHI2 = 0.5  # a fit whose last step gained less has converged: far below the 1 of one sigma


def pair_lobes(x, y, snr, footprint, *, max_separation_pix: float):
    """Return (positive, negative) indices of peaks that may be the two lobes of one dipole.

    Peaks of opposite sign in one footprint (`detection.detect` joins touching lobes) and within
    ``max_separation_pix``, each the other's strongest such partner. Arrays (n,); each index appears at most
    once.
    """
    xp = array_module(x)
    positive, negative = xp.nonzero(snr > 0)[0], xp.nonzero(snr < 0)[0]
    if not len(positive) or not len(negative):
        return positive[:0], negative[:0]
    order = xp.argsort(footprint[negative], kind="stable")
    negative = negative[order]
    labels = footprint[negative]
    first, last = (
        xp.searchsorted(labels, footprint[positive]),
        xp.searchsorted(labels, footprint[positive], "right"),
    )
    return _mutual(x, y, xp.abs(snr), positive, negative, first, last, max_separation_pix)


def _mutual(x, y, strength, positive, negative, first, last, max_separation):
    """Keep the pairs that prefer each other among positive[i], negative[first[i]:last[i]]."""
    xp = array_module(x)
    count = last - first
    pair = xp.arange(int(count.sum()))
    i = xp.searchsorted(xp.cumsum(count), pair, "right")
    j = pair - (xp.cumsum(count) - count)[i] + first[i]
    near = xp.hypot(x[positive[i]] - x[negative[j]], y[positive[i]] - y[negative[j]]) <= max_separation
    i, j = i[near], j[near]
    chosen_j = _strongest(i, strength[negative[j]], len(positive))
    chosen_i = _strongest(j, strength[positive[i]], len(negative))
    mutual = (chosen_j[i] == xp.arange(len(i))) & (chosen_i[j] == xp.arange(len(i)))
    return positive[i[mutual]], negative[j[mutual]]


def _strongest(group, strength, n: int):
    """Return for each group 0..n-1 the position in ``strength`` of its largest entry, -1 if it has none."""
    xp = array_module(strength)
    best = xp.full(n, -1, dtype=np.int64)
    order = xp.lexsort(xp.stack([-xp.arange(len(group)), strength, group]))
    ordered = group[order]
    if len(order):
        is_last = xp.concatenate([ordered[1:] != ordered[:-1], xp.ones(1, dtype=bool)])
        best[ordered[is_last]] = order[is_last]
    return best


def fit_dipoles(
    image, mask, variance, x_positive, y_positive, x_negative, y_negative, psf, *, planes=None, iterations=25,
    max_shift_pix=3.0,
) -> dict:  # fmt: skip
    """Fit two point sources of independent flux to each pair of lobes, and a single one for comparison.

    Arguments as in `photometry.psf_flux`; lobes start at their peaks (n,) and may move ``max_shift_pix``.
    Weights are inverse model variances (`stamp_fit.model_weights`). Lobes closer than about one sigma of the
    PSF are nearly degenerate (only flux times separation is measured); the flux errors say so.

    Returns (n,) columns: flux_positive, flux_negative (of the negative lobe; a positive number),
    flux_positive_err, flux_negative_err, flux_covariance, x_positive, y_positive, x_negative, y_negative,
    chi2, chi2_single (a single source of free position at the better of the two lobes, same pixels and
    weights), n_pixels, converged.
    """
    xp = array_module(image)
    start = [xp.asarray(v, dtype=np.float64) for v in (x_positive, y_positive, x_negative, y_negative)]
    column, row = pixel_of((start[0] + start[2]) / 2, (start[1] + start[3]) / 2)
    spread = _spread(xp, start, column, row) + math.ceil(max_shift_pix)
    frame = _Frame(image, mask, variance, column, row, psf, psf.size + 2 * spread, planes)
    weights = frame.weights(start)
    at, gain = _descend(frame, start, weights, iterations, max_shift_pix)
    single = xp.minimum(*(frame.single_chi2(*at[k : k + 2], weights) for k in (0, 2)))
    inside = xp.stack([xp.abs(v - s) < max_shift_pix for v, s in zip(at, start, strict=True)]).all(axis=0)
    return _columns(frame.fit(frame.templates(at), weights), frame.fit(frame.lobes(at), weights), at) | {
        "chi2_single": single,
        "converged": inside & (gain < SETTLED_CHI2),
    }


def _descend(frame, start, weights, iterations, max_shift_pix):
    """Move the lobes by Levenberg-Marquardt; return (positions, last gain in chi2). The fluxes follow
    linearly."""
    xp = array_module(start[0])
    at, damping = start, xp.full(start[0].shape, 0.1)
    chi2 = frame.fit(frame.lobes(at), weights).chi2
    gain = xp.full(chi2.shape, xp.inf)
    for _ in range(iterations):
        moves = frame.step(at, weights, damping)
        trial = [xp.clip(v + d, s - max_shift_pix, s + max_shift_pix) for v, d, s in zip(at, moves, start, strict=True)]
        trial_chi2 = frame.fit(frame.lobes(trial), weights).chi2
        better = trial_chi2 < chi2
        gain = xp.where(better, chi2 - trial_chi2, xp.where(damping > 1, 0.0, gain))
        at = [xp.where(better, t, v) for t, v in zip(trial, at, strict=True)]
        chi2 = xp.where(better, trial_chi2, chi2)
        damping = xp.where(better, damping / 5, damping * 5)
    return at, gain


def _spread(xp, start, column, row) -> int:
    """Return how many pixels a lobe is away, at most, from the middle of its pair's stamp, in x or y."""
    if not len(column):
        return 0
    return max(math.ceil(float(xp.max(xp.abs(v - c)))) for v, c in zip(start, (column, row) * 2, strict=True))


def _columns(free, fit, at):
    """Return the table: fluxes at the fitted places, their errors with the places free."""
    xp = array_module(fit.chi2)
    return {
        "flux_positive": fit.coefficients[:, 0],
        "flux_negative": fit.coefficients[:, 1],
        "flux_positive_err": xp.sqrt(free.covariance[:, 0, 0]),
        "flux_negative_err": xp.sqrt(free.covariance[:, 1, 1]),
        "flux_covariance": free.covariance[:, 0, 1],
        **dict(zip(("x_positive", "y_positive", "x_negative", "y_negative"), at, strict=True)),
        "chi2": fit.chi2,
        "n_pixels": fit.n_pixels,
    }


class _Frame:
    """The pixels of all pairs: one stamp a pair, centred between its lobes, that both PSFs are placed in."""

    def __init__(self, image, mask, variance, column, row, psf, size, planes):
        self.pixels = (image, mask, variance, column, row)
        self.column, self.row, self.psf, self.size, self.planes = column, row, psf, size, planes

    def weights(self, at):
        both = self.lobes(at)
        return model_weights(*self.pixels, stack(both[:, 0], -both[:, 1]), planes=self.planes)[0]

    def fit(self, templates, weights, damping=0.0):
        return fit_stamps(*self.pixels, templates, weights, planes=self.planes, damping=damping)

    def lobes(self, at):
        """Return (n, 2, size, size): the PSF at the positive lobe, minus the PSF at the negative one."""
        return stack(self._placed(at[0], at[1])[0], -self._placed(at[2], at[3])[0])

    def templates(self, at):
        """Return (n, 6, size, size): the lobes, and their changes with x+, y+, x-, y-."""
        positive, negative = self._placed(at[0], at[1]), self._placed(at[2], at[3])
        return stack(positive[0], -negative[0], *positive[1:], *(-g for g in negative[1:]))

    def step(self, at, weights, damping):
        """Return bounded moves (dx+, dy+, dx-, dy-); ``damping`` (n,) holds the places, never the fluxes."""
        xp = array_module(damping)
        held = xp.concatenate([xp.zeros((2, 1)), xp.ones((4, 1))]) * damping[None, :]
        move = self.fit(self.templates(at), weights, damping=held.T).coefficients[:, 2:]
        flux = self.fit(self.lobes(at), weights).coefficients
        floor = 0.1 * xp.abs(flux).max(axis=1, keepdims=True)
        flux = xp.where(xp.abs(flux) > floor, flux, xp.nan)[:, xp.asarray([0, 0, 1, 1])]
        return tuple(xp.clip(xp.nan_to_num(move / flux), -MAX_STEP_PIX, MAX_STEP_PIX).T)

    def single_chi2(self, x, y, weights):
        """Return chi2 of one source, position free, started at ``x, y``."""
        image, mask, variance = self.pixels[:3]
        found = fit_centroids(image, mask, variance, x, y, self.psf, planes=self.planes)
        return self.fit(stack(*self._placed(found["x"], found["y"])), weights).chi2

    def _placed(self, x, y):
        """Return (P, -dP/dx, -dP/dy), each (n, size, size), of sources at ``x, y`` in the pairs' stamps."""
        stamps = self.psf.stamps(x, y)
        column, row = pixel_of(x, y)
        return [place_stamps(s, column - self.column, row - self.row, self.size) for s in (stamps, *gradients(stamps))]


def stack(*arrays):
    """Return ``arrays`` (n, size, size) stacked to (n, m, size, size)."""
    return array_module(*arrays).stack(arrays, axis=1)


def classify_dipoles(fit: dict, *, min_chi2_gain: float = 25.0, max_lobe_share: float = 0.7):
    """Return (n,) bool: which fits of `fit_dipoles` are dipoles.

    Both fluxes must be positive, the two lobes must explain the pixels better than a single source by more
    than ``min_chi2_gain`` (default 5^2), and neither lobe may hold more than ``max_lobe_share`` of the summed
    flux, so that a transient on a weak residual stays a transient. A fit that failed (NaN) is no dipole.
    """
    xp = array_module(fit["chi2"])
    positive, negative = fit["flux_positive"], fit["flux_negative"]
    both = (positive > 0) & (negative > 0)
    share = xp.maximum(positive, negative) / xp.where(both, positive + negative, xp.nan)
    return both & (fit["chi2_single"] - fit["chi2"] > min_chi2_gain) & (share <= max_lobe_share)
