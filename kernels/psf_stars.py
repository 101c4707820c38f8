"""Choose the stars that a PSF may be fitted to: bright, alone, clean and of the common size."""

from __future__ import annotations

from nightstream.errors import UnprocessableError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.moments import gaussian_moments
from nightstream.kernels.psf import polynomial_terms
from nightstream.kernels.target import array_module

DEFAULT_PLANES = MaskPlane.BAD | MaskPlane.SAT | MaskPlane.CR | MaskPlane.NO_DATA | MaskPlane.SUSPECT
MAX_MASKED_FRACTION = 0.02  # of the Gaussian weight on a star
NEIGHBOUR_PEAK = 0.03  # a neighbour inside the isolation radius may have this fraction of a star's peak
SIZE_WINDOW = 0.15  # half width of the first cut in ln(size) around the most common size


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
    no neighbour within ``isolation_pix`` pixels with more than 3 % of the peak, and a size on the stars'
    locus: the most common ln(size), then a quadratic in position clipped at 3 robust sigma. At most
    ``max_stars``. ``image`` is background subtracted. Raises `UnprocessableError` when none is left.
    """
    xp = array_module(image)
    x, y = (xp.atleast_1d(xp.asarray(value, dtype=xp.float64)) for value in (x, y))
    found = gaussian_moments(image, mask, variance, x, y, half_size=half_size, planes=planes)
    snr = xp.nan_to_num(found["flux"] / found["flux_err"])
    index = xp.flatnonzero(is_clean(found, image.shape, half_size) & (snr >= min_snr))
    index = index[xp.argsort(-snr[index], kind="stable")][: 4 * max_stars]
    index = index[is_alone(image, x, y, index, isolation_pix)]
    index = index[is_star_sized(found, index, image.shape)] if index.size else index
    if index.size == 0:
        raise UnprocessableError(
            f"no PSF star among {x.size} sources: {int((snr >= min_snr).sum())} have S/N >= {min_snr:g}, "
            "none of them is unmasked, alone and of stellar size"
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


def is_star_sized(found, index, shape):
    """Return which of ``index`` lie on the locus of ln(size) that most of them share."""
    xp = array_module(found["x"])
    size = xp.log(found["sigma_pix"][index])
    keep = xp.abs(size - half_sample_mode(size)) < SIZE_WINDOW
    ny, nx = shape
    u, v = 2 * found["x"][index] / nx - 1, 2 * found["y"][index] / ny - 1
    order = 2 if index.size >= 24 else 1 if index.size >= 12 else 0
    design = polynomial_terms(u, v, order)
    for _ in range(3):
        locus = xp.linalg.lstsq(design[keep], size[keep], rcond=None)[0]
        deviation = xp.abs(size - design @ locus)
        keep = deviation <= xp.maximum(3 * 1.4826 * xp.median(deviation[keep]), 0.02)
    return keep


def half_sample_mode(values) -> float:
    """Return the mode: repeatedly keep the half of the sorted sample that spans least (Bickel 2006)."""
    xp = array_module(values)
    values = xp.sort(values)
    while values.size > 3:
        half = (values.size + 1) // 2
        start = int(xp.argmin(values[half - 1 :] - values[: values.size - half + 1]))
        values = values[start : start + half]
    return float(xp.median(values))
