"""The smooth offset that an affine map leaves between two star lists: a low-order polynomial, of an order the stars can bear.

Owns the fit and its value. Which stars are pairs is `registration`'s, what the offset does to sky positions `wcs`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.polynomial import Polynomials, substitute
from nightstream.kernels.psf import polynomial_exponents, polynomial_terms
from nightstream.kernels.target import array_module

MEDIAN_DISTANCE2 = 2 * math.log(2)  # median squared distance of a two-dimensional Gaussian of variance 1 per axis
MIN_EIGENVALUE = 1e-9  # of the normal matrix per unit weight: below, the stars do not determine all terms
MAX_CORNER_LEVERAGE = 1.0  # variance of the fit at a corner of the bounds, in units of the median star's
MIN_GAIN_SIGMA = 2.0  # by which a higher order must predict stars that were held out better
MAX_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Distortion:
    """Offsets (dx, dy), pixels, as polynomials of (x - centre[0]) / half[0] and (y - centre[1]) / half[1]."""

    centre: tuple[float, float]  # pixels
    half: tuple[float, float]  # pixels
    order: int
    terms: Polynomials

    def terms_about(self, x: float, y: float) -> Polynomials:
        """Return the polynomials with the pixel offset from (``x``, ``y``) as their variables."""
        return substitute(self.terms, ((1 / self.half[0], 0.0, (x - self.centre[0]) / self.half[0]),
                                       (0.0, 1 / self.half[1], (y - self.centre[1]) / self.half[1])))  # fmt: skip


def fit_distortion(
    x, y, dx, dy, error, *, bounds: tuple[float, float, float, float], max_order: int = 3,
    clip_sigma: float = 3.0, floor_pix: float = 0.02,
):  # fmt: skip
    """Fit the offsets ``dx, dy`` of stars at ``x, y`` by polynomials of an order that the data choose.

    All arrays (n,), pixels; ``error`` is per axis. Stars with a value that is not finite take no part. Weights are
    1 / (error^2 + floor_pix^2 + e^2): neither the air nor a reference is better than the floor, and e is by how much more
    than their errors the brighter half scatters about the fit, so that few stars do not steer one that is too stiff.
    Stars farther off than ``clip_sigma`` times the scatter, in units of those errors, are clipped; a star's distance is
    from the fit to all others, which it cannot pull.

    ``bounds`` (lowest x, highest x, lowest y, highest y) is where the fit will be used. Orders above 1 are tried, up to
    ``max_order``, only when the variance of the fit at the corners of the bounds is not above that of one star, so that
    nothing is extrapolated: 26 and 70 evenly spread stars allow orders 2 and 3. Of those, an order is taken when it
    predicts stars left out one at a time (the PRESS statistic, Allen 1974, Technometrics 16, 125) better than the best
    lower one by 2 standard errors. Stars on a line, or fewer than 3, get a constant: order 0.

    Returns (`Distortion`, used (n,) bool). Raises UnprocessableError when no star is usable.
    """
    xp = array_module(x, y, dx, dy)
    if max_order < 0 or not floor_pix > 0:
        raise InputError(f"got order {max_order} and floor {floor_pix} pixels, wanted at least 0, and more than 0")
    x, y, dx, dy, error = (xp.asarray(values, dtype=np.float64) for values in (x, y, dx, dy, error))
    usable = xp.isfinite(x + y + dx + dy + error)
    if not bool(usable.any()):
        raise UnprocessableError(f"none of {len(x)} stars has a position and an error, wanted at least 1")
    centre, half = zip(*((float(a + b) / 2, max(float(b - a) / 2, 1.0)) for a, b in (bounds[:2], bounds[2:])), strict=True)
    u, v = (xp.where(usable, (c - m) / h, 0.0) for c, m, h in zip((x, y), centre, half, strict=True))
    offsets = xp.where(usable[:, None], xp.stack([dx, dy], axis=1), 0.0)
    variance = xp.where(usable, error**2 + floor_pix**2, xp.inf)
    best = _best_fit(u, v, offsets, variance, max_order, clip_sigma)
    powers = polynomial_exponents(best.order)
    terms = tuple(tuple((i, j, 0, float(c)) for (i, j), c in zip(powers, column, strict=True)) for column in best.coefficients.T)
    return Distortion(centre, half, best.order, terms), best.used


class _Fit(NamedTuple):
    order: int
    coefficients: Any  # (n_terms, 2)
    held_out: Any  # (n, 2) offset of each star from the fit to all others, pixels
    weights: Any  # (n,) 1 / pixel^2, 0 for stars that are not usable
    used: Any  # (n,) bool


def _best_fit(u, v, offsets, variance, max_order: int, clip_sigma: float) -> _Fit:
    """Return the fit of the lowest order, from 1, that no higher one beats at predicting held-out stars.

    They are compared on the stars that the highest possible order keeps: to a lower one, distortion is an outlier.
    """
    tried = (_clipped_fit(u, v, offsets, variance, order, clip_sigma) for order in range(max_order, -1, -1))
    highest = next(fit for fit in tried if fit is not None)  # a constant is always determined
    best = _fit(u, v, offsets, highest.weights, highest.used, min(1, highest.order))
    for order in range(2, highest.order + 1):
        fit = _fit(u, v, offsets, highest.weights, highest.used, order)
        gain = ((best.held_out**2 - fit.held_out**2).sum(axis=1) * highest.weights)[highest.used]
        mean = float(gain.mean())
        if mean > MIN_GAIN_SIGMA * math.sqrt(float(((gain - mean) ** 2).mean()) / len(gain)):
            best = fit
    if best.order == highest.order:
        return highest
    return _clipped_fit(u, v, offsets, variance, best.order, clip_sigma) or best  # its own clipping may open a corner


def _clipped_fit(u, v, offsets, variance, order: int, clip_sigma: float) -> _Fit | None:
    xp = array_module(u)
    used, excess, fit = xp.isfinite(variance), 0.0, None
    for _ in range(MAX_ROUNDS):
        fit = _fit(u, v, offsets, 1.0 / (variance + excess), used, order)
        if fit is None:
            break
        distance2, before = (fit.held_out**2).sum(axis=1), excess
        excess = _excess_variance(xp, distance2, variance, used)
        ratio = distance2 / (variance + excess)
        limit = 2 * clip_sigma**2 * float(xp.median(ratio[used])) / MEDIAN_DISTANCE2 + 1e-9
        kept = xp.isfinite(variance) & (ratio <= limit)
        if bool((kept == used).all()) and abs(excess - before) <= 0.01 * excess:
            break
        used = kept
    return fit


def _excess_variance(xp, distance2, variance, used) -> float:
    """Return by how much the squares of the brighter half's offsets, per axis, exceed their variances; medians, at least 0."""
    bright = used & (variance <= xp.median(variance[used]))
    return max(float(xp.median(distance2[bright])) / MEDIAN_DISTANCE2 - float(xp.median(variance[bright])), 0.0)


def _fit(u, v, offsets, weights, used, order: int) -> _Fit | None:
    """Return the weighted least-squares fit to the stars used; None when they leave it open at the corners, or altogether."""
    xp = array_module(u)
    design = polynomial_terms(u, v, order)
    weighted = design * xp.where(used, weights, 0.0)[:, None]
    normal = weighted.T @ design
    if not float(xp.linalg.eigvalsh(normal)[0]) > MIN_EIGENVALUE * float(weights[used].sum()):
        return None
    inverse = xp.linalg.inv(normal)
    corners = polynomial_terms(xp.asarray([-1.0, 1.0, -1.0, 1.0]), xp.asarray([-1.0, -1.0, 1.0, 1.0]), order)
    leverage = float(((corners @ inverse) * corners).sum(axis=1).max()) * float(xp.median(weights[used]))
    if order > 1 and leverage > MAX_CORNER_LEVERAGE:
        return None
    coefficients = inverse @ (weighted.T @ offsets)
    own = ((design @ inverse) * weighted).sum(axis=1)  # the share of its own offset in the fit at each star
    held_out = (offsets - design @ coefficients) / xp.maximum(1.0 - own, 1e-9)[:, None]
    return _Fit(order, coefficients, held_out, weights, used)
