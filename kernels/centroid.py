"""Positions of point sources: the PSF fitted to the pixels, flux and position free."""

from __future__ import annotations

import numpy as np

from nightstream.kernels.stamp_fit import fit_stamps, gradients, model_weights, pixel_of, place_stamps
from nightstream.kernels.target import array_module

TOLERANCE_SIGMA = 0.03  # a step this small against the error of the position ends the iteration too
MAX_STEP_PIX = 0.7  # largest move of one iteration: the linearised PSF is no guide farther away


def fit_centroids(
    image, mask, variance, x, y, psf, *, planes=None, background=False, max_shift_pix=3.0, iterations=20,
    tolerance_pix=1e-3,
) -> dict:  # fmt: skip
    """Fit flux and position of each source by Gauss-Newton, starting from its peak ``x, y`` (n,).

    Arguments as in `photometry.psf_flux`; the same weights. ``background`` adds a free constant. Works for
    negative sources too. Errors come from the covariance of the last linear fit with the variance plane.

    Returns (n,) columns: x, y, x_err, y_err (pixels), flux, flux_err, and flag: a move of more than
    ``max_shift_pix``, or no step below ``tolerance_pix`` (or 3 % of the error) within ``iterations``. Flagged
    sources stand at their peak, with NaN errors. The errors are those of a point source: an object broader
    than the PSF is centred less well than they say.
    """
    xp = array_module(image)
    x0, y0 = (xp.asarray(v, dtype=np.float64) for v in (x, y))
    column, row = pixel_of(x0, y0)
    weights, _ = model_weights(image, mask, variance, column, row, psf.stamps(x0, y0)[:, None], planes=planes)
    n = len(x0)
    x, y, flux, errors = x0.copy(), y0.copy(), xp.full(n, xp.nan), xp.full((n, 3), xp.nan)
    flag, active = xp.ones(n, dtype=bool), xp.arange(n)
    for _ in range(iterations):
        held = weights[active], column[active], row[active]
        dx, dy, fit = _step(image, mask, variance, x[active], y[active], psf, held, planes, background)
        x[active], y[active] = x[active] + dx, y[active] + dy
        flux[active], errors[active] = fit.coefficients[:, 0], _errors(fit)
        limit = xp.maximum(tolerance_pix, TOLERANCE_SIGMA * errors[active, 1:].min(axis=1))
        kept = xp.isfinite(limit) & (xp.hypot(x - x0, y - y0)[active] <= max_shift_pix)
        settled = kept & (xp.maximum(xp.abs(dx), xp.abs(dy)) < limit)
        flag[active[settled]] = False
        active = active[kept & ~settled]
        if len(active) == 0:
            break
    return {
        "x": xp.where(flag, x0, x),
        "y": xp.where(flag, y0, y),
        "x_err": xp.where(flag, xp.nan, errors[:, 1]),
        "y_err": xp.where(flag, xp.nan, errors[:, 2]),
        "flux": flux,
        "flux_err": errors[:, 0],
        "flag": flag,
    }


def _step(image, mask, variance, x, y, psf, held, planes, background):
    """Return (dx, dy, fit): one bounded Gauss-Newton move from ``x, y``.

    The weights ``held`` belong to the detector's pixels: a stamp that moves on to the next pixel does not
    take them along. Otherwise a star between two pixels could go back and forth between two answers for ever.
    """
    xp = array_module(image)
    stamps = psf.stamps(x, y)
    templates = [stamps, *gradients(stamps)] + ([xp.ones_like(stamps)] if background else [])
    column, row = pixel_of(x, y)
    weights, column0, row0 = held
    weights = place_stamps(weights, column0 - column, row0 - row, psf.size)
    fit = fit_stamps(image, mask, variance, column, row, xp.stack(templates, axis=1), weights, planes=planes)
    flux = fit.coefficients[:, 0]
    move = xp.nan_to_num(fit.coefficients[:, 1:3] / xp.where(flux == 0, xp.nan, flux)[:, None])
    dx, dy = xp.clip(move, -MAX_STEP_PIX, MAX_STEP_PIX).T
    return dx, dy, fit


def _errors(fit):
    """Return (n, 3) errors of flux, x and y."""
    xp = array_module(fit.chi2)
    sigma = xp.sqrt(xp.diagonal(fit.covariance, axis1=1, axis2=2)[:, :3])
    flux = xp.abs(fit.coefficients[:, :1])
    return xp.concatenate([sigma[:, :1], sigma[:, 1:] / xp.where(flux > 0, flux, xp.nan)], axis=1)
