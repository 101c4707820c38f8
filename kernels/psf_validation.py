"""Is a PSF model honest? Measured on stars that took no part in its fit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.moments import gaussian_moments
from nightstream.kernels.psf import FWHM_PER_SIGMA, PsfModel, shift_stamps
from nightstream.kernels.psf_fit import StarState, cut_stars, fit_star_parameters, usable_stars
from nightstream.kernels.target import array_module

STARS_PER_HELD_OUT = 10  # one star in ten is kept for validation, none of fewer than ten
APERTURE_FWHM = 2.0  # radius of the aperture that a PSF flux is compared with
DEFAULT_PLANES = MaskPlane.unusable()


class PsfValidation(NamedTuple):
    """What stars say that the model has not seen: medians over ``n_stars``, NaN without any.

    A perfect model has chi2 1, within 1.25 sqrt(2 / n_pixels / n_stars), and 0 in all others within their noise.
    """

    n_stars: int
    chi2: float  # of a star's pixels per degree of freedom; bright stars show what is wrong with the model
    residual: float  # rms of what is left of a star beyond noise, as a fraction of the rms of its light
    flux: float  # PSF flux over the flux in an aperture of 2 FWHM radius, corrected for the model's light beyond, less 1
    size: float  # (T of the star - T of the model) / T, from Gaussian moments, T = 2 sigma^2
    ellipticity: float  # length of the median (e1, e2) of star minus model, twice that of the weighted moments


def hold_out(x, y, shape):
    """Return which of the stars at ``x, y`` (n,) on an image of ``shape`` to keep from the fit, bool (n,).

    One in ten, the same every time and spread evenly: stars are strung along strips that run to and fro, about ten
    in a square of a strip's height, and every tenth is taken. None of fewer than ten stars.
    """
    xp = array_module(x)
    strips = max(1, round((x.size / STARS_PER_HELD_OUT) ** 0.5))
    strip = xp.clip(y * (strips / shape[0]), 0, strips - 1).astype(xp.int64)
    along = xp.where(strip % 2 == 0, x, shape[1] - x)
    held = xp.zeros(x.size, dtype=bool)
    held[xp.lexsort(xp.stack([along, strip.astype(xp.float64)]))[STARS_PER_HELD_OUT // 2 :: STARS_PER_HELD_OUT]] = (
        x.size >= STARS_PER_HELD_OUT
    )
    return held


def validate_psf(psf: PsfModel, image, mask, variance, x, y, *, planes: MaskPlane = DEFAULT_PLANES) -> PsfValidation:
    """Compare ``psf`` with the stars at ``x, y`` (n,): flux and position of each are fitted, the model is not.

    ``image`` (background subtracted), ``variance`` float32 and ``mask`` int32 are (ny, nx). Pixels with ``planes`` or
    not finite are left out, and stars that `psf_fit.fit_psf` would not use.
    """
    xp = array_module(image)
    x, y = (xp.atleast_1d(xp.asarray(value, dtype=xp.float64)) for value in (x, y))
    found = gaussian_moments(image, mask, variance, x, y, half_size=psf.size // 2, planes=planes)
    index = xp.flatnonzero(usable_stars(image.shape, found, psf.size))
    if index.size == 0:
        return PsfValidation(0, *[float("nan")] * 5)
    found = {name: column[index] for name, column in found.items()}
    stars = cut_stars(image, mask, variance, found["x"], found["y"], psf.size, planes)
    start = StarState(xp.zeros(index.size), found["x"] - stars.x_pixel, found["y"] - stars.y_pixel, None)
    centred = psf.centred_float64(found["x"], found["y"])
    state = fit_star_parameters(stars, start, centred, repeats=5)
    model = shift_stamps(centred, state.dx, state.dy)
    chi2, excess = _misfit(stars, state.flux, model)
    drawn = stamp_moments(model, state.dx, state.dy)
    flux = state.flux / _aperture(stars, model, state, psf.fwhm_pix(found["x"], found["y"])) - 1
    size = (found["sigma_pix"] / drawn["sigma_pix"]) ** 2 - 1
    shape = (float(xp.median(found[name] - drawn[name])) for name in ("e1", "e2"))
    residual = max(float(xp.median(excess)), 0.0) ** 0.5
    medians = (float(xp.median(values)) for values in (flux, size))
    return PsfValidation(int(index.size), float(xp.median(chi2)), residual, *medians, 2 * float(np.hypot(*shape)))


def _misfit(stars, flux, model):
    """Reduced chi squared of each star, and the mean square of its residuals beyond noise in units of its light."""
    xp = array_module(model)
    light = stars.good * flux[:, None, None] * model
    noise = stars.good * (stars.base_variance[:, None, None] + stars.variance_per_unit[:, None, None] * xp.maximum(light, 0.0))
    square = (stars.good * stars.data - light) ** 2
    degrees = stars.good.sum(axis=(1, 2)) - 3
    chi2 = (square / xp.where(noise > 0, noise, 1.0)).sum(axis=(1, 2)) / degrees
    return chi2, (square - noise).sum(axis=(1, 2)) / (light**2).sum(axis=(1, 2))


def _aperture(stars, model, state, fwhm):
    """Flux of each star from the good pixels within `APERTURE_FWHM`, over the model's share of light in them."""
    xp = array_module(model)
    offset = xp.arange(model.shape[-1]) - model.shape[-1] // 2
    dx, dy = offset[None, None, :] - state.dx[:, None, None], offset[None, :, None] - state.dy[:, None, None]
    inside = stars.good * (dx * dx + dy * dy < ((APERTURE_FWHM * fwhm) ** 2)[:, None, None])
    return (inside * stars.data).sum(axis=(1, 2)) / (inside * model).sum(axis=(1, 2))


def stamp_moments(stamps, dx, dy):
    """Return `gaussian_moments` of ``stamps`` (n, size, size) whose sources lie ``dx, dy`` (n,) from the middle."""
    xp = array_module(stamps)
    n, size, _ = stamps.shape
    row = xp.ascontiguousarray(stamps.transpose(1, 0, 2)).reshape(size, n * size).astype(xp.float32)
    planes = row, xp.zeros(row.shape, xp.int32), xp.ones(row.shape, xp.float32)
    x = size * xp.arange(n) + size // 2 + dx
    return gaussian_moments(*planes, x, size // 2 + dy, half_size=size // 2, sigma_pix=4.0 / FWHM_PER_SIGMA)
