"""PSF fluxes at very many fixed positions: what `photometry.psf_flux` does, in one loop that keeps no stamp in memory.

The PSF of a position is evaluated, moved, fitted and forgotten, so that a million positions need no more memory than their
results.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.photometry import MIN_SEEN, psf_flux, touches_edge
from nightstream.kernels.psf import LANCZOS_ORDER, PsfModel, lanczos
from nightstream.kernels.stamp_fit import RIDGE, VARIANCE_FLOOR, pixel_of
from nightstream.kernels.target import Launch, array_module, device_function, hot_loop

THREADS = 64  # of one block, which measures one position
MAX_SIZE = 51  # pixels of a PSF whose two stamps fit a block's 48 KiB of shared memory
NORMAL, NOISE, PROJECTION, TOTAL, SEEN, WHOLE = range(6)  # columns of the sums


@device_function
def variance_levels(n, p, pp, v, pv, area):
    """Return (a, b, floor) of the smooth variances a P + b, from the sums of 1, P, P^2, V, P V over the usable pixels."""
    if not pp > 0.0:
        return 0.0, 0.0, VARIANCE_FLOOR * 1e-30
    scale_p, scale_1 = 1.0 / math.sqrt(pp), 1.0 / math.sqrt(n)
    side, cross = 1.0 + RIDGE, p * scale_p * scale_1
    det = side * side - cross * cross
    of_p, of_1 = pv * scale_p, v * scale_1
    a = max((side * of_p - cross * of_1) / det * scale_p, 0.0)
    b = max((side * of_1 - cross * of_p) / det * scale_1, 0.0)
    return a, b, VARIANCE_FLOOR * max(a / area + b, 1e-30)


@device_function
def place_psf(terms, coefficients, taps_x, taps_y, size, reach):
    """Return the (size, size) PSF of one position, moved off the middle by the taps, float32 values that sum to 1."""
    centred, moved = np.zeros((size, size)), np.zeros((size, size))
    for t in range(len(terms)):
        for y in range(size):
            for x in range(size):
                centred[y, x] += terms[t] * coefficients[t, y, x]
    for y in range(size):
        for j in range(max(0, y - reach), min(size, y + reach + 1)):
            for x in range(size):
                moved[y, x] += taps_y[y - j + reach] * centred[j, x]
    centred[:] = 0.0
    total = 0.0
    for y in range(size):
        for d in range(reach, -reach - 1, -1):
            for x in range(max(0, d), min(size, size + d)):
                centred[y, x] += taps_x[d + reach] * moved[y, x - d]
        of_row = 0.0
        for x in range(size):
            of_row += centred[y, x]
        total += of_row
    for y in range(size):
        for x in range(size):
            centred[y, x] = np.float64(np.float32(centred[y, x] / total))
    return centred


@hot_loop("forced")
def forced_sums(
    image, mask, variance, column, row, terms, coefficients, taps_x, taps_y, bad_planes, ny, nx, n, n_terms, size, reach,
    sums, n_pixels,
):  # fmt: skip
    """Sum the normal equation of one PSF a position: w P^2, w^2 P^2 V, w P D, w D^2, and P^2 seen and whole; by rows."""
    half = size // 2
    for k in numba.prange(n):
        psf = place_psf(terms[k], coefficients, taps_x[k], taps_y[k], size, reach)
        first_y, last_y = max(0, half - row[k]), min(size, ny + half - row[k])
        first_x, last_x = max(0, half - column[k]), min(size, nx + half - column[k])
        whole, n_known, sum_p, sum_pp, sum_v, sum_pv = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for y in range(size):
            of_psf, row_n, row_p, row_pp, row_v, row_pv = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for x in range(size):
                of_psf += psf[y, x] * psf[y, x]
            for x in range(first_x, last_x if first_y <= y < last_y else first_x):
                yy, xx = row[k] + y - half, column[k] + x - half
                p, v = psf[y, x], np.float64(variance[yy, xx])
                if (mask[yy, xx] & bad_planes) == 0 and v > 0.0 and v - v == 0.0:
                    row_n += 1.0
                    row_p += p
                    row_pp += p * p
                    row_v += v
                    row_pv += p * v
            whole, n_known, sum_p = whole + of_psf, n_known + row_n, sum_p + row_p
            sum_pp, sum_v, sum_pv = sum_pp + row_pp, sum_v + row_v, sum_pv + row_pv
        a, b, floor = variance_levels(n_known, sum_p, sum_pp, sum_v, sum_pv, size * size)
        normal, noise, projection, squares, count = 0.0, 0.0, 0.0, 0.0, 0
        for y in range(first_y, last_y):
            row_normal, row_noise, row_projection, row_squares = 0.0, 0.0, 0.0, 0.0
            for x in range(first_x, last_x):
                yy, xx = row[k] + y - half, column[k] + x - half
                p, d, v = psf[y, x], np.float64(image[yy, xx]), np.float64(variance[yy, xx])
                if (mask[yy, xx] & bad_planes) == 0 and d - d == 0.0 and v > 0.0 and v - v == 0.0:
                    w = np.float64(np.float32(1.0 / max(a * p + b, floor)))
                    wp = w * p
                    row_normal += wp * p
                    row_noise += wp * p * (w * v)
                    row_projection += wp * d
                    row_squares += w * d * d
                    count += 1
            normal, noise = normal + row_normal, noise + row_noise
            projection, squares = projection + row_projection, squares + row_squares
        sums[k, NORMAL], sums[k, NOISE], sums[k, PROJECTION], sums[k, TOTAL] = normal, noise, projection, squares
        sums[k, SEEN], sums[k, WHOLE], n_pixels[k] = sum_pp, whole, count


def forced_psf_flux(image, mask, variance, x, y, psf: PsfModel, *, planes=None) -> dict:
    """Fit the flux of a point source at each fixed position: `photometry.psf_flux`, which defines it, for many positions.

    Arguments and columns are the same, and so are the results but for the rounding of the PSF to float32. A PSF of more
    than `MAX_SIZE` pixels a side is left to `psf_flux`.
    """
    if psf.size > MAX_SIZE:
        return psf_flux(image, mask, variance, x, y, psf, planes=planes)
    xp = array_module(image)
    x, y = (xp.asarray(v, dtype=np.float64) for v in (x, y))
    column, row = pixel_of(x, y)
    sums, n_pixels = _sum(image, mask, variance, x, y, (column, row), psf, planes)
    normal = sums[:, NORMAL]
    inverse = xp.where(normal > 0, 1 / ((1 + RIDGE) * xp.where(normal > 0, normal, 1.0)), xp.nan)
    flux = inverse * sums[:, PROJECTION]
    return {
        "flux": flux,
        "flux_err": inverse * xp.sqrt(sums[:, NOISE]),
        "chi2": sums[:, TOTAL] - flux * sums[:, PROJECTION],
        "n_pixels": n_pixels,
        "flag": ~(sums[:, SEEN] >= MIN_SEEN * sums[:, WHOLE]) | ~xp.isfinite(flux),
        "flag_edge": touches_edge(column, row, psf.size // 2, image.shape),
    }


def _sum(image, mask, variance, x, y, pixel, psf: PsfModel, planes):
    xp = array_module(image)
    known = xp.isfinite(x) & xp.isfinite(y)
    x, y = xp.where(known, x, 0.0), xp.where(known, y, 0.0)
    pixels = zip((image, mask, variance), (np.float32, np.int32, np.float32), strict=True)
    arrays = [xp.ascontiguousarray(a, dtype=t) for a, t in pixels]
    terms, coefficients = (xp.ascontiguousarray(a, dtype=np.float64) for a in (psf.terms(x, y), psf.coefficients))
    taps = _taps(x - xp.rint(x)), _taps(y - xp.rint(y))
    planes = MaskPlane.unusable() if planes is None else planes
    n, n_terms = terms.shape
    sizes = [np.int32(v) for v in (planes, *image.shape, n, n_terms, psf.size, LANCZOS_ORDER)]
    sums, n_pixels = xp.zeros((n, 6)), xp.zeros(n, np.int32)
    shared = 8 * (2 * psf.size**2 + 5 * psf.size + 3)
    forced_sums(Launch((n,), (THREADS,), shared), *arrays, *pixel, terms, coefficients, *taps, *sizes, sums, n_pixels)
    return sums, n_pixels


def _taps(shift):
    """Return (n, 15): the weights by which `psf.shift_matrices` moves a row of pixels, by |shift| <= 1/2."""
    xp = array_module(shift)
    taps = lanczos(xp.arange(-LANCZOS_ORDER, LANCZOS_ORDER + 1)[None, :] - shift[:, None])
    return xp.ascontiguousarray(taps / taps.sum(axis=1, keepdims=True))
