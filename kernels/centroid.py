"""Positions of point sources: the PSF fitted to the pixels, flux and position free."""

from __future__ import annotations

import numpy as np

from nightstream.kernels.stamp_fit import fit_stamps, gradients, model_weights, pixel_of
from nightstream.kernels.target import array_module

MAX_STEP_PIX = 0.7  # largest move of one iteration: the linearised PSF is no guide farther away


def fit_centroids(
    image, mask, variance, x, y, psf, *, planes=None, background=False, max_shift_pix=3.0, iterations=12,
    tolerance_pix=1e-3,
) -> dict:  # fmt: skip
    """Fit flux and position of each source by Gauss-Newton, starting from its peak ``x, y`` (n,).

    Arguments as in `photometry.psf_flux`; the same weights. ``background`` adds a free constant. Works for
    negative sources too. Errors come from the covariance of the last linear fit with the variance plane.

    Returns (n,) columns: x, y, x_err, y_err (pixels), flux, flux_err, and flag: no convergence to
    ``tolerance_pix`` within ``iterations``, or a move of more than ``max_shift_pix``. Flagged sources stand
    at their peak, errors NaN.
    """
    xp = array_module(image)
    x0, y0 = (xp.asarray(v, dtype=np.float64) for v in (x, y))
    column, row = pixel_of(x0, y0)
    weights, _ = model_weights(image, mask, variance, column, row, psf.stamps(x0, y0)[:, None], planes=planes)
    x, y, lost = x0.copy(), y0.copy(), xp.zeros(x0.shape, dtype=bool)
    for _ in range(iterations):
        dx, dy, fit = _step(image, mask, variance, x, y, psf, weights, planes, background)
        x, y = x + dx, y + dy
        lost |= xp.hypot(x - x0, y - y0) > max_shift_pix
        x, y = xp.where(lost, x0, x), xp.where(lost, y0, y)
        settled = (xp.maximum(xp.abs(dx), xp.abs(dy)) < tolerance_pix) & ~lost
        if bool(xp.all(settled | lost)):
            break
    flux = fit.coefficients[:, 0]
    errors = xp.sqrt(xp.diagonal(fit.covariance, axis1=1, axis2=2)[:, 1:3]) / xp.abs(flux)[:, None]
    flag = ~settled | ~xp.isfinite(errors).all(axis=1)
    return {
        "x": xp.where(flag, x0, x),
        "y": xp.where(flag, y0, y),
        "x_err": xp.where(flag, xp.nan, errors[:, 0]),
        "y_err": xp.where(flag, xp.nan, errors[:, 1]),
        "flux": flux,
        "flux_err": xp.sqrt(fit.covariance[:, 0, 0]),
        "flag": flag,
    }


def _step(image, mask, variance, x, y, psf, weights, planes, background):
    """Return (dx, dy, fit): one bounded Gauss-Newton move from ``x, y``."""
    xp = array_module(image)
    stamps = psf.stamps(x, y)
    templates = [stamps, *gradients(stamps)] + ([xp.ones_like(stamps)] if background else [])
    column, row = pixel_of(x, y)
    fit = fit_stamps(image, mask, variance, column, row, xp.stack(templates, axis=1), weights, planes=planes)
    flux = fit.coefficients[:, 0]
    move = xp.nan_to_num(fit.coefficients[:, 1:3] / xp.where(flux == 0, xp.nan, flux)[:, None])
    dx, dy = xp.clip(move, -MAX_STEP_PIX, MAX_STEP_PIX).T
    return dx, dy, fit
