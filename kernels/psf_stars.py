"""Choose the stars that a PSF may be fitted to: bright, alone, clean and of the common size and shape."""

from __future__ import annotations

import numpy as np

from nightstream.errors import UnprocessableError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.moments import gaussian_moments
from nightstream.kernels.psf import polynomial_terms
from nightstream.kernels.target import array_module

DEFAULT_PLANES = MaskPlane.BAD | MaskPlane.SAT | MaskPlane.CR | MaskPlane.NO_DATA | MaskPlane.SUSPECT
MAX_MASKED_FRACTION = 0.02  # of the Gaussian weight on a star
NEIGHBOUR_PEAK = 0.03  # a neighbour inside the isolation radius may have this fraction of a star's peak
# Widths, in ln(size) and ellipticity, of the window that closes in on the locus, and the locus' order in position then.
LOCUS_STEPS = ((0.06, 0), (0.06, 1), (0.04, 2), (0.03, 2), (0.02, 2), (0.02, 2))
SOURCES_PER_TERM = 4  # fewer candidates than this lower that order
TILT_PRIOR = 0.01  # 1 sigma of the locus' slope with ln(flux): brighter-fatter, linearity
LOCUS_FLOOR = 0.005  # scatter of stars about the locus besides noise
SIZE_ERROR, SHAPE_ERROR = 1.1, 0.75  # of ln(size) and of e1, e2, times S/N; Gaussian moments of Moffat profiles
CLIP_SIGMA = 3.0


def select_psf_stars(
    image,
    mask,
    variance,
    x,
    y,
    *,
    min_snr: float = 50.0,
    max_stars: int = 200,
    isolation_pix: float = 12.0,
    half_size: int = 12,
    planes: MaskPlane = DEFAULT_PLANES,
):
    """Return the indices (int64, brightest first) of those sources at ``x, y`` (n,) that make good PSF stars.

    ``x, y`` are the peaks of *all* sources found: the others decide who is alone. Wanted: S/N of the
    Gaussian flux at least ``min_snr``, weight hardly masked, whole box of ``half_size`` inside the image,
    no neighbour within ``isolation_pix`` pixels with more than 3 % of the peak, nor so much light all around (a galaxy's;
    unless there are only such), and size and shape on the stars' locus (`is_on_locus`). At most ``max_stars``.
    ``image`` is background subtracted. Raises `UnprocessableError` when none is left.
    """
    xp = array_module(image)
    x, y = (xp.atleast_1d(xp.asarray(value, dtype=xp.float64)) for value in (x, y))
    found = gaussian_moments(image, mask, variance, x, y, half_size=half_size, planes=planes)
    snr = xp.nan_to_num(found["flux"] / found["flux_err"])
    index = xp.flatnonzero(is_clean(found, image.shape, half_size) & (snr >= min_snr))
    index = index[xp.argsort(-snr[index], kind="stable")][: 4 * max_stars]
    index = index[is_alone(image, x, y, index, isolation_pix)]
    free = stands_free(image, x[index], y[index], half_size)
    index = index[free] if bool(free.any()) else index
    index = index[is_on_locus(found, index, image.shape)] if index.size else index
    if index.size == 0:
        raise UnprocessableError(
            f"no PSF star among {x.size} sources: {int((snr >= min_snr).sum())} have S/N >= {min_snr:g}, "
            "none of them is unmasked, alone and of stellar size and shape"
        )
    return index[:max_stars]


def is_clean(found, shape, half_size):
    """Return which sources converged, have their whole box inside the image and are hardly masked."""
    xp = array_module(found["x"])
    ny, nx = shape
    x, y = xp.nan_to_num(found["x"], nan=-1.0), xp.nan_to_num(found["y"], nan=-1.0)
    inside = (x >= half_size) & (x <= nx - 1 - half_size) & (y >= half_size) & (y <= ny - 1 - half_size)
    return inside & (found["masked_fraction"] < MAX_MASKED_FRACTION)


def is_alone(image, x, y, index, isolation_pix):
    """Return which of ``index`` have no neighbour among all sources at ``x, y`` with a comparable peak.

    Peaks, not fluxes: bumps in the wings of a bright star are listed too, and their moments drift to the star.
    """
    xp = array_module(x)
    row, column = (xp.clip(xp.rint(v), 0, n - 1).astype(xp.int64) for v, n in zip((y, x), image.shape, strict=True))
    peak = xp.nan_to_num(image[row, column])
    dx, dy = x[index, None] - x[None, :], y[index, None] - y[None, :]
    near = dx * dx + dy * dy < isolation_pix**2
    rival = near & (peak[None, :] > NEIGHBOUR_PEAK * peak[index, None])
    rival[xp.arange(index.size), index] = False
    return ~rival.any(axis=1)


def stands_free(image, x, y, half_size):
    """Return which of the sources at ``x, y`` do not stand on the light of something larger.

    The median of the rim of the box of ``half_size``, which must lie inside the image, is at most 3 % of the peak; a Moffat
    profile of exponent 2.5 has 0.3 % of it left 3 FWHMs from its centre.
    """
    xp = array_module(image)
    offset = xp.arange(-half_size, half_size + 1)
    row, column = (
        xp.clip(xp.rint(v), half_size, n - 1 - half_size).astype(xp.int64) for v, n in zip((y, x), image.shape, strict=True)
    )
    stamps = image[(row[:, None] + offset)[:, :, None], (column[:, None] + offset)[:, None, :]]
    rim = xp.concatenate([stamps[:, 0], stamps[:, -1], stamps[:, 1:-1, 0], stamps[:, 1:-1, -1]], axis=1)
    return xp.median(xp.nan_to_num(rim), axis=1) <= NEIGHBOUR_PEAK * stamps[:, half_size, half_size]


def is_on_locus(found, index, shape):
    """Return which of ``index`` lie where stars do in ln(size), e1 and e2.

    Stars of one place share all three, galaxies and blends scatter: the start is the densest point of the
    candidates. From there the window closes (`LOCUS_STEPS`), while the locus becomes a quadratic in position with a
    slope in ln(flux), held near 0 by `TILT_PRIOR`: stars that grow with flux a little (brighter-fatter) stay, those
    that saturate or a run of galaxies do not carry it away. Last, what is 3 times its scatter away, in any of the
    three, is left out; scatter is noise, `LOCUS_FLOOR` and what the sources inside show beyond that.
    """
    xp = array_module(found["x"])
    ny, nx = shape
    values = xp.stack([xp.log(found["sigma_pix"][index]), found["e1"][index], found["e2"][index]], axis=1)
    flux = xp.log(found["flux"][index])
    noise = (found["flux_err"][index] / found["flux"][index])[:, None] * xp.asarray([SIZE_ERROR, SHAPE_ERROR, SHAPE_ERROR])
    u, v = 2 * found["x"][index] / nx - 1, 2 * found["y"][index] / ny - 1
    deviation = values - densest_point(values, LOCUS_STEPS[0][0])
    for width, order in LOCUS_STEPS:
        weight = xp.exp(-0.5 * (deviation**2 / (width**2 + noise**2)).sum(axis=1))
        deviation = deviation_from_locus(values, noise, weight, locus_design(u, v, flux, order))
    scatter = xp.sqrt(LOCUS_FLOOR**2 + noise**2)
    keep = (xp.abs(deviation) <= CLIP_SIGMA * xp.sqrt(scatter**2 + LOCUS_STEPS[-1][0] ** 2)).all(axis=1)
    for _ in range(3):
        pull = xp.abs(deviation_from_locus(values, noise, keep, locus_design(u, v, flux, order))) / scatter
        unit = xp.maximum(1.4826 * xp.median(pull[keep], axis=0), 1.0) if bool(keep.any()) else 1.0
        keep = (pull <= CLIP_SIGMA * unit).all(axis=1)
    return keep


def densest_point(values, width):
    """Return that row of ``values`` (n, k) with most neighbours in a Gaussian window of ``width``."""
    xp = array_module(values)
    distance = sum((column[:, None] - column[None, :]) ** 2 for column in values.T)
    return values[int(xp.argmax(xp.exp(-0.5 * distance / width**2).sum(axis=1)))]


def locus_design(u, v, flux, order):
    """Return (n, terms): a polynomial of ``order`` in u, v, lowered for few sources, and last the slope in ``flux``."""
    xp = array_module(u)
    while order > 0 and SOURCES_PER_TERM * (order + 1) * (order + 2) // 2 > u.size:
        order -= 1
    return xp.concatenate([polynomial_terms(u, v, order), (flux - flux.mean())[:, None]], axis=1)


def deviation_from_locus(values, noise, weight, design):
    """Return ``values`` (n, k) minus the locus ``design`` (n, terms) that fits those of ``weight`` (n,) best.

    The last term is held to 0 by `TILT_PRIOR`, the others by as little as keeps the fit regular.
    """
    xp = array_module(values)
    stiffness = np.full(design.shape[1], 1e-3)
    stiffness[-1] = TILT_PRIOR**-2.0
    columns = []
    for value, error in zip(values.T, noise.T, strict=True):
        weighted = design * (weight / (LOCUS_FLOOR**2 + error**2))[:, None]
        solution = xp.linalg.solve(weighted.T @ design + xp.diag(xp.asarray(stiffness)), weighted.T @ value)
        columns.append(value - design @ solution)
    return xp.stack(columns, axis=1)
