"""Linear least squares of small images (PSFs, their gradients) on the pixels around many sources at once.

The one loop that fluxes, centroids and dipoles share: it sums the normal equations; everything after is
batched algebra.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from nightstream.errors import InputError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch, array_module, hot_loop

RIDGE = 1e-10  # relative, on the scaled normal matrix: keeps a source without usable pixels from being singular
VARIANCE_FLOOR = 0.05  # smallest model variance, as a fraction of the mean variance of the stamp


class StampFit(NamedTuple):
    """Result of `fit_stamps`: n sources, m templates. Sources without usable pixels hold NaN."""

    coefficients: Any  # (n, m) float64
    covariance: Any  # (n, m, m) float64, from the variance plane, whatever the weights were
    chi2: Any  # (n,) float64, sum of weight * residual^2
    n_pixels: Any  # (n,) int32 usable pixels
    seen: Any  # (n,) float64, weighted sum of template[0]^2 over the usable pixels


@hot_loop("stamp_fit")
def stamp_normal_equations(
    image, mask, variance, column, row, templates, weights, bad_planes, ny, nx, n, m, size,
    normal, noise, projection, total, n_pixels,
):  # fmt: skip
    """Sum over the usable pixels of source k: w Ti Tj, w^2 V Ti Tj, w Ti D, w D^2, 1; float64, by rows."""
    half = size // 2
    for k in numba.prange(n):
        count = 0
        for y in range(max(0, half - row[k]), min(size, ny + half - row[k])):
            for x in range(max(0, half - column[k]), min(size, nx + half - column[k])):
                yy = row[k] + y - half
                xx = column[k] + x - half
                d = np.float64(image[yy, xx])
                v = np.float64(variance[yy, xx])
                if (mask[yy, xx] & bad_planes) != 0 or not (d - d == 0.0) or not (v > 0.0) or not (v - v == 0.0):
                    continue
                w = np.float64(weights[k, y, x])
                count += 1
                total[k] += w * d * d
                for i in range(m):
                    wt = w * np.float64(templates[k, i, y, x])
                    projection[k, i] += wt * d
                    for j in range(i, m):
                        term = wt * np.float64(templates[k, j, y, x])
                        normal[k, i, j] += term
                        noise[k, i, j] += term * (w * v)
        n_pixels[k] = count
        for i in range(1, m):
            for j in range(i):
                normal[k, i, j], noise[k, i, j] = normal[k, j, i], noise[k, j, i]


def stamp_normal_equations_reference(image, mask, variance, column, row, templates, weights, planes):
    """Define `stamp_normal_equations`: plain NumPy, one source after the other; returns its five outputs."""
    n, m, size, _ = templates.shape
    normal, noise = np.zeros((n, m, m)), np.zeros((n, m, m))
    projection, total, n_pixels = np.zeros((n, m)), np.zeros(n), np.zeros(n, np.int32)
    offset = np.arange(size) - size // 2
    for k in range(n):
        yy, xx = np.meshgrid(row[k] + offset, column[k] + offset, indexing="ij")
        inside = (yy >= 0) & (yy < image.shape[0]) & (xx >= 0) & (xx < image.shape[1])
        where = yy[inside], xx[inside]
        d, v = image[where].astype(float), variance[where].astype(float)
        usable = ((mask[where] & int(planes)) == 0) & np.isfinite(d) & np.isfinite(v) & (v > 0)
        t = templates[k][:, inside][:, usable].astype(float)
        d, v, w = d[usable], v[usable], weights[k][inside][usable].astype(float)
        normal[k], noise[k] = (w * t) @ t.T, (w * w * v * t) @ t.T
        projection[k], total[k], n_pixels[k] = (w * t) @ d, (w * d * d).sum(), usable.sum()
    return normal, noise, projection, total, n_pixels


def fit_stamps(image, mask, variance, column, row, templates, weights, *, planes=None, damping=0.0) -> StampFit:
    """Fit each source's pixels by a linear combination of its templates, with its weights.

    ``image``, ``mask``, ``variance`` are (ny, nx); ``column, row`` (n,) the detector pixel of a stamp's
    middle; ``templates`` (n, m, size, size), size odd; ``weights`` (n, size, size), any positive numbers: the
    covariance is right for all of them, and smallest for 1 / variance. Pixels off the image, in ``planes``
    (default `MaskPlane.unusable`), not finite or without positive variance do not enter. ``damping`` (n, m)
    multiplies the diagonal of the normal equations by 1 + damping (Levenberg-Marquardt, coefficients drawn to
    0).
    """
    xp = array_module(image)
    n, m, size, width = templates.shape
    if size != width or size % 2 == 0 or weights.shape != (n, size, size):
        raise InputError(
            f"wanted templates (n, m, s, s) with odd s and weights (n, s, s), got {templates.shape} and {weights.shape}"
        )
    sums = _sum_equations(image, mask, variance, column, row, templates, weights, planes)
    normal, noise, projection, total, n_pixels = sums
    diagonal = xp.sqrt(xp.diagonal(normal, axis1=1, axis2=2))
    scale = xp.where(diagonal > 0, 1 / xp.where(diagonal > 0, diagonal, 1.0), 0.0)
    scaled = normal * scale[:, :, None] * scale[:, None, :]
    unit = xp.eye(m) * (xp.where(diagonal > 0, RIDGE, 1.0) + damping)[:, :, None]
    inverse = xp.linalg.inv(scaled + unit) * scale[:, :, None] * scale[:, None, :]
    coefficients = (inverse @ projection[:, :, None])[:, :, 0]
    chi2 = total - (coefficients * projection).sum(axis=1)
    covariance = inverse @ noise @ inverse
    empty = diagonal[:, 0] <= 0
    coefficients[empty], covariance[empty], chi2[empty] = xp.nan, xp.nan, xp.nan
    return StampFit(coefficients, covariance, chi2, n_pixels, normal[:, 0, 0])


def _sum_equations(image, mask, variance, column, row, templates, weights, planes):
    xp = array_module(image)
    n, m, size, _ = templates.shape
    planes = MaskPlane.unusable() if planes is None else planes
    normal, noise = xp.zeros((n, m, m)), xp.zeros((n, m, m))
    projection, total, n_pixels = xp.zeros((n, m)), xp.zeros(n), xp.zeros(n, xp.int32)
    pixels = (np.float32, np.int32, np.float32)
    planes_in = [xp.ascontiguousarray(a, dtype=t) for a, t in zip((image, mask, variance), pixels, strict=True)]
    where = [xp.ascontiguousarray(a, dtype=np.int32) for a in (column, row)]
    stamps = [xp.ascontiguousarray(a, dtype=np.float32) for a in (templates, weights)]
    sizes = [np.int32(v) for v in (planes, *image.shape, n, m, size)]
    out = (normal, noise, projection, total, n_pixels)
    stamp_normal_equations(Launch.over((n * m * m,), (128,)), *planes_in, *where, *stamps, *sizes, *out)
    return out


def model_weights(image, mask, variance, column, row, templates, *, planes=None):
    """Return (weights (n, size, size) float32, seen (n,)): inverse *model* variances, and the usable share.

    A variance plane that holds a source's own photon noise as measured is correlated with the pixels; weights
    made of it pixel by pixel bias fluxes low (Horne 1986, PASP 98, 609). The model is the least-squares fit
    of a constant plus the templates (n, m, size, size) to the variances of the stamp, which averages that
    noise away. ``seen`` is the share of sum(template[0]^2) that lies on usable pixels.
    """
    xp = array_module(image)
    ones = xp.ones_like(templates[:, 0])
    basis = xp.concatenate([templates, ones[:, None]], axis=1)
    fit = fit_stamps(variance, mask, variance, column, row, basis, ones, planes=planes)
    level = xp.maximum(xp.nan_to_num(fit.coefficients), 0.0)
    model = (level[:, :, None, None] * basis).sum(axis=1)
    mean = xp.maximum(model.mean(axis=(1, 2)), 1e-30)[:, None, None]
    seen = fit.seen / xp.maximum((templates[:, 0].astype(np.float64) ** 2).sum(axis=(1, 2)), 1e-30)
    return (1 / xp.maximum(model, VARIANCE_FLOOR * mean)).astype(np.float32), seen


def gradients(stamps):
    """Return (-dP/dx, -dP/dy) of ``stamps`` (n, size, size): the change as the source moves by a pixel.

    Fourth-order central differences over pixels; zeros beyond the border. For a Gaussian of sigma 1.2 pixels
    they are within 2 % of the true slopes, which changes the pace of an iteration and its errors, not where
    it converges.
    """
    xp = array_module(stamps)
    wide = xp.pad(stamps, ((0, 0), (2, 2), (2, 2)))
    size = stamps.shape[-1]
    middle = slice(2, 2 + size)

    def slope(shifted):
        return (8 * (shifted(1) - shifted(-1)) - (shifted(2) - shifted(-2))) / 12

    along_x = slope(lambda i: wide[:, middle, 2 + i : 2 + i + size])
    along_y = slope(lambda i: wide[:, 2 + i : 2 + i + size, middle])
    return -along_x, -along_y


def pixel_of(x, y):
    """Return (column, row) int32: the middle pixels of `PsfModel.stamps` at ``x, y``; NaN gives -2^20."""
    xp = array_module(x)
    far = xp.float64(-(2**20))
    return tuple(xp.rint(xp.clip(xp.nan_to_num(v, nan=far), far, -far)).astype(np.int32) for v in (x, y))


def place_stamps(stamps, d_column, d_row, size: int):
    """Return (n, size, size) zeros with ``stamps`` (n, s, s) put ``d_column, d_row`` off the middle."""
    xp = array_module(stamps)
    n, small, _ = stamps.shape
    offset = xp.arange(size) - size // 2 + small // 2
    yy, xx = offset[None, :] - d_row[:, None], offset[None, :] - d_column[:, None]
    inside = ((yy >= 0) & (yy < small))[:, :, None] & ((xx >= 0) & (xx < small))[:, None, :]
    yy, xx = xp.clip(yy, 0, small - 1), xp.clip(xx, 0, small - 1)
    return xp.where(inside, stamps[xp.arange(n)[:, None, None], yy[:, :, None], xx[:, None, :]], np.float32(0))
