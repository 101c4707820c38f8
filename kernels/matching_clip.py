"""What must not enter the fit of a matching kernel: stars that changed, and point sources that came or went.

Both tests ask for the *significance* of a change of that very shape, which chi^2 over a whole stamp hardly notices, and
both allow for the error of the model itself: a bright star that the model does not yet describe is no variable.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nightstream.kernels.matching_basis import STAMPS_PER_LARGE_CHUNK
from nightstream.kernels.psf import FWHM_PER_SIGMA
from nightstream.kernels.target import array_module, chunks, for_each

AMPLITUDE_SIGMA = 4.0  # significance of a change of the whole star's flux at which it is left out
POINT_SIGMA = 4.5  # and of a point source in the residual, whose pixels are left out
PEEL = 0.25  # of a stamp's most significant: weaker ones may be what that did to the fit, and wait for a later round
MAX_LOST_LIGHT = 0.5  # of a star's own light: beyond, it is the star that does not fit, not a source near it
MAX_LOST = 0.5  # of a stamp's pixels that may be left out before the stamp is
CHI2_SIGMA = 4.0  # robust standard deviations of chi^2 per pixel above which a stamp is left out
TOLERANCES = (0.02, 0.005, 0.002)  # relative error that the model may have in round 1, 2, 3 and later


class Clipped(NamedTuple):
    """The verdict of a round."""

    used: Any  # (n,) bool stamps
    bad: Any  # (n, m) bool pixels near a point-like residual


def model_errors(design, weights, signal, terms, index, covariance):
    """Return (n,) relative errors of the model's flux of every star, from the fit's ``covariance`` (p, p).

    ``design`` (n, J, m), ``weights`` and ``signal`` (n, m), spatial ``terms`` (n, T); ``index`` (p,) says which of the
    J * T products each parameter multiplies.
    """
    xp = array_module(design)
    information = xp.maximum((weights * signal**2).sum(1), 1e-30)
    gradient, pull = xp.empty(design.shape[:2]), (weights * signal)[:, :, None].astype(design.dtype)

    def project_chunk(chunk: slice) -> None:
        gradient[chunk] = xp.matmul(design[chunk], pull[chunk])[:, :, 0]

    for_each(project_chunk, chunks(len(design), STAMPS_PER_LARGE_CHUNK, xp), xp)
    gradient /= information[:, None]
    rows = gradient[:, index // terms.shape[1]] * terms[:, index % terms.shape[1]]
    return xp.sqrt(xp.maximum(((rows @ covariance) * rows).sum(1), 0.0))


def amplitudes(residual, weights, signal):
    """Return the relative change of flux of every star and its error (n,): the residual projected on the model."""
    xp = array_module(residual)
    information = xp.maximum((weights * signal**2).sum(1), 1e-30)
    return (weights * residual * signal).sum(1) / information, 1 / xp.sqrt(information)


def clip(residual, weights, bad_before, signal, model_error, side, fwhm_pix, round_) -> Clipped:
    """Judge stamps of ``side`` x ``side`` pixels after a round of the fit; all arrays (n, m), ``model_error`` (n,).

    Pixels near a point-like residual are left out unless they hold most of a star's own light: a star is judged as a whole,
    for its wings alone would say nothing. ``weights`` are inverse variances without the model's own error, 0 on unusable
    pixels; pixels left out in the round before are judged again. At least half of the stamps stay: when more do not fit, it
    is the model that does not, and all of their pixels count.
    """
    xp = array_module(residual)
    tolerance = xp.sqrt(TOLERANCES[min(round_, len(TOLERANCES)) - 1] ** 2 + model_error**2)
    bad, (excess, lost, chi2) = xp.empty(residual.shape, bool), xp.empty((3, len(residual)))

    def judge_chunk(chunk: slice) -> None:
        rows = (plane[chunk] for plane in (residual, weights, bad_before, signal, tolerance))
        bad[chunk], excess[chunk], lost[chunk], chi2[chunk] = _judge(*rows, side, fwhm_pix)

    for_each(judge_chunk, chunks(len(residual), STAMPS_PER_LARGE_CHUNK, xp), xp)
    used = (excess < AMPLITUDE_SIGMA) & (lost < MAX_LOST) & (chi2 <= _chi2_limit(chi2))
    if int(used.sum()) * 2 < len(used):
        used, bad = excess <= xp.median(excess), xp.zeros_like(bad)
    return Clipped(used, bad & (lost < MAX_LOST)[:, None])


def _judge(residual, weights, bad_before, signal, tolerance, side, fwhm_pix) -> tuple:
    """Return of every stamp: pixels near a point-like residual, significance of the star's change, what part of the pixels
    is lost, chi^2 per pixel."""
    xp = array_module(residual)
    softened = weights / (1 + weights * (tolerance[:, None] * signal) ** 2)
    bad = point_residuals(residual, softened, side, fwhm_pix)
    bad = bad & (_share(bad, xp.where(weights > 0, xp.abs(signal), 0.0)) <= MAX_LOST_LIGHT)[:, None]
    kept = xp.where(bad_before, 0.0, weights)
    change, error = amplitudes(residual, kept, signal)
    excess = xp.abs(change) / xp.sqrt(error**2 + tolerance**2)
    chi2 = (xp.where(bad_before, 0.0, softened) * residual**2).sum(1) / xp.maximum((kept > 0).sum(1), 1)
    return bad, excess, _share(bad, weights > 0), chi2


def _share(bad, of):
    """Return (n,) what part of the sum of ``of`` (n, m) lies on ``bad`` pixels."""
    xp = array_module(bad)
    return xp.where(bad, of, 0).sum(1) / xp.maximum(of.sum(1), 1e-30)


def _chi2_limit(chi2) -> float:
    xp = array_module(chi2)
    middle = xp.median(chi2)
    spread = 1.4826 * xp.median(xp.abs(chi2 - middle)) + 0.05 * middle
    return float(middle + CHI2_SIGMA * spread)


def point_residuals(residual, weights, side, fwhm_pix):
    """Return (n, m) bool: pixels within a FWHM of a place where the residual holds a point source of `POINT_SIGMA`.

    The residual is correlated with a Gaussian of that FWHM, weighted with ``weights`` (inverse variances).
    """
    xp = array_module(residual)
    offset = xp.arange(side)
    distance = xp.abs(offset[:, None] - offset[None, :])
    profile = xp.exp(-0.5 * (distance / (fwhm_pix / FWHM_PER_SIGMA)) ** 2)
    near = (distance <= int(np.ceil(fwhm_pix))).astype(xp.float64)
    top = profile @ (residual * weights).reshape(-1, side, side) @ profile
    bottom = profile**2 @ weights.reshape(-1, side, side) @ profile**2
    score = xp.abs(top) / xp.sqrt(xp.maximum(bottom, 1e-30))
    hit = score > xp.maximum(POINT_SIGMA, PEEL * score.max(axis=(1, 2), keepdims=True))
    return ((near @ hit.astype(xp.float64) @ near) > 0.5).reshape(-1, side * side)
