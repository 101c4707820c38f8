"""Fluxes at known positions: PSF fits and circular apertures.

Owns flux estimators. Finding sources is `detection`, moving them is `centroid`.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from nightstream.errors import InputError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.stamp_fit import fit_stamps, model_weights, pixel_of
from nightstream.kernels.target import Launch, array_module, device_function, hot_loop

MIN_SEEN = 0.5  # share of sum(P^2) that must lie on usable pixels for a flux to be unflagged


def psf_flux(image, mask, variance, x, y, psf, *, planes=None, background=False) -> dict:
    """Fit the flux of a point source at each fixed position.

    ``image`` float32, ``mask`` int32, ``variance`` float32 are (ny, nx); ``x, y`` (n,) pixels; ``psf`` a
    `PsfModel` in the same library. ``F = sum(w P D) / sum(w P^2)`` with w the inverse of a smooth model of
    the variances in the stamp (`model_weights`), so that a variance plane made from the image itself does not
    bias the flux; ``F_err^2 = sum(w^2 P^2 V) / sum(w P^2)^2`` with V the variance plane. Pixels in ``planes``
    (default `MaskPlane.unusable`), NaN or off the image do not enter. ``background`` adds a free constant to the fit.

    Returns (n,) columns: flux, flux_err (unit of image), chi2, n_pixels, flag (less than half of sum(P^2) on
    usable pixels, or no flux at all), flag_edge (stamp reaches off the image). A
    source without usable pixels has NaN flux and the flag.
    """
    xp = array_module(image)
    x, y = (xp.asarray(v, dtype=np.float64) for v in (x, y))
    column, row = pixel_of(x, y)
    known = xp.isfinite(x) & xp.isfinite(y)
    templates = psf.stamps(xp.where(known, x, 0), xp.where(known, y, 0))[:, None]
    weights, seen = model_weights(image, mask, variance, column, row, templates, planes=planes)
    if background:
        templates = xp.concatenate([templates, xp.ones_like(templates)], axis=1)
    fit = fit_stamps(image, mask, variance, column, row, templates, weights, planes=planes)
    flux = fit.coefficients[:, 0]
    return {
        "flux": flux,
        "flux_err": xp.sqrt(fit.covariance[:, 0, 0]),
        "chi2": fit.chi2,
        "n_pixels": fit.n_pixels,
        "flag": ~(seen >= MIN_SEEN) | ~xp.isfinite(flux),
        "flag_edge": touches_edge(column, row, psf.size // 2, image.shape),
    }


def touches_edge(column, row, half: int, shape):
    """Return (n,) bool: the box of ``half`` pixels around the pixel reaches off an image of ``shape``."""
    ny, nx = shape
    return (column < half) | (row < half) | (column >= nx - half) | (row >= ny - half)


@device_function
def quadrant_overlap(a, b, radius):
    """Return the signed area of the disc of ``radius`` at 0, within the rectangle from (0, 0) to (a, b)."""
    sign = 1.0 if (a < 0) == (b < 0) else -1.0
    a, b = min(abs(a), radius), min(abs(b), radius)
    if a * a + b * b <= radius * radius:
        return sign * a * b
    start = math.sqrt(radius * radius - b * b)  # where the circle leaves the side y = b
    upper = a * math.sqrt(radius * radius - a * a) + radius * radius * math.asin(a / radius)
    lower = start * b + radius * radius * math.asin(start / radius)
    return sign * (b * start + 0.5 * (upper - lower))


@device_function
def pixel_overlap(dx, dy, radius):
    """Return the area that the unit pixel centred at (dx, dy) shares with the disc of ``radius`` at 0."""
    return (
        quadrant_overlap(dx + 0.5, dy + 0.5, radius)
        - quadrant_overlap(dx - 0.5, dy + 0.5, radius)
        - quadrant_overlap(dx + 0.5, dy - 0.5, radius)
        + quadrant_overlap(dx - 0.5, dy - 0.5, radius)
    )


@hot_loop("photometry")
def sum_apertures(image, mask, variance, x, y, radius, bad_planes, ny, nx, n, flux, flux_variance, missing):
    """Sum image and variance over each disc by exact overlap; count the overlap that is unusable."""
    for k in numba.prange(n):
        total, noise, lost = 0.0, 0.0, 0.0
        for yy in range(math.floor(y[k] - radius + 0.5), math.floor(y[k] + radius + 0.5) + 1):
            for xx in range(math.floor(x[k] - radius + 0.5), math.floor(x[k] + radius + 0.5) + 1):
                area = pixel_overlap(xx - x[k], yy - y[k], radius)
                if yy < 0 or yy >= ny or xx < 0 or xx >= nx:
                    lost += area
                    continue
                d = np.float64(image[yy, xx])
                v = np.float64(variance[yy, xx])
                if (mask[yy, xx] & bad_planes) != 0 or not (d - d == 0.0) or not (v - v == 0.0):
                    lost += area
                    continue
                total += area * d
                noise += area * area * v
        flux[k] = total
        flux_variance[k] = noise
        missing[k] = lost


def sum_apertures_reference(image, mask, variance, x, y, radius, planes, subpixels: int = 100):
    """Define `sum_apertures` by brute force, pixels cut into ``subpixels``^2: (flux, variance, missing)."""
    fine = (np.arange(subpixels) + 0.5) / subpixels - 0.5
    usable = ((mask & int(planes)) == 0) & np.isfinite(image) & np.isfinite(variance)
    rows, columns = np.indices(image.shape)
    out = np.zeros((3, len(x)))
    for k in range(len(x)):
        near = (np.hypot(columns - x[k], rows - y[k]) < radius + 1).nonzero()
        dx2 = ((near[1] - x[k])[:, None] + fine) ** 2
        dy2 = ((near[0] - y[k])[:, None] + fine) ** 2
        area = (dx2[:, None, :] + dy2[:, :, None] <= radius**2).mean(axis=(1, 2))
        good = usable[near]
        out[0, k] = (area * np.where(good, image[near], 0)).sum()
        out[1, k] = (area**2 * np.where(good, variance[near], 0)).sum()
        out[2, k] = np.pi * radius**2 - area[good].sum()
    return out


def aperture_flux(image, mask, variance, x, y, *, radius_pix: float, planes=None) -> dict:
    """Sum the image within circles, weighting each pixel by the exact area it shares with the circle.

    Arguments as in `psf_flux`. Returns (n,) columns: flux, flux_err (unit of image; unusable pixels add
    nothing) and flag: some of the circle is off the image, in ``planes`` (default `MaskPlane.unusable`
    without INTRP), or NaN. A position that is not finite gives NaN and the flag.
    """
    xp = array_module(image)
    if not radius_pix > 0:
        raise InputError(f"aperture radius must be positive, got {radius_pix}")
    planes = MaskPlane.unusable() & ~MaskPlane.INTRP if planes is None else planes
    far = -4 * radius_pix - 4
    column, row = (xp.asarray(v, dtype=np.float64) for v in (x, y))
    lost = ~(xp.isfinite(column) & xp.isfinite(row))
    column, row = (xp.ascontiguousarray(xp.where(lost, far, v)) for v in (column, row))
    n = len(column)
    flux, noise, missing = xp.zeros(n), xp.zeros(n), xp.zeros(n)
    arrays = [xp.ascontiguousarray(a, dtype=t) for a, t in ((image, np.float32), (mask, np.int32), (variance, np.float32))]
    sizes = [np.int32(v) for v in (planes, *image.shape, n)]
    launch = Launch.over((n,), (64,))
    sum_apertures(launch, *arrays, column, row, np.float64(radius_pix), *sizes, flux, noise, missing)
    flux[lost], noise[lost] = xp.nan, xp.nan
    return {"flux": flux, "flux_err": xp.sqrt(noise), "flag": lost | (missing > 1e-9 * radius_pix**2)}
