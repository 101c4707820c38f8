"""Sources on one direct image: found, centred and measured, as a host table.

Serves PSF stars, registration and the zero point. Sources of a difference image are
`nightstream.engine.measure`.
"""

from __future__ import annotations

import numpy as np

from nightstream.engine.memory import to_host
from nightstream.engine.values import MaskedImage, Table
from nightstream.kernels.centroid import fit_centroids
from nightstream.kernels.detection import detect
from nightstream.kernels.photometry import aperture_flux, psf_flux
from nightstream.kernels.pixel_flags import pixel_flags
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.target import array_module

BLEND_RATIO = 0.1  # S/N of a neighbour, relative to a source's own, from which it disturbs the fit
MAX_SOURCES = 20_000  # the most significant ones are measured: bounds the memory of the stamps


def measure_sources(
    pixels: MaskedImage, psf: PsfModel, *, threshold: float = 10.0, aperture_radius_pix: float = 12.0,
    max_sources: int = MAX_SOURCES,
) -> Table:  # fmt: skip
    """Detect positive point sources on a background-subtracted image and measure them.

    ``psf`` must be in the pixels' library. At most ``max_sources`` of highest detection S/N are kept.

    Returns host columns, brightest psf_flux first: x, y, x_err, y_err (pixels), psf_flux, psf_flux_err,
    psf_chi2, psf_ndata, ap_flux, ap_flux_err (unit of the image), snr (of the detection), peak (largest pixel
    of the central 3 x 3), footprint, footprint_area, and booleans centroid_flag, psf_flux_flag,
    psf_flux_flag_edge, ap_flux_flag, is_blended (another peak of a tenth of its S/N or more shares its footprint),
    pixel_flags_<plane>[_center] (see `pixel_flags`).
    """
    image, mask, variance = pixels.image, pixels.mask, pixels.variance
    found = detect(image, mask, variance, central_stamp(psf, image.shape), threshold=threshold, polarity="positive")
    return _measured(pixels, psf, found, brightest(found.snr, max_sources), aperture_radius_pix)


def central_stamp(psf: PsfModel, shape):
    """Return the (size, size) PSF at the centre of an image of ``shape``, for detection."""
    xp = array_module(psf.coefficients)
    ny, nx = shape
    return psf.centred(xp.asarray([(nx - 1) / 2]), xp.asarray([(ny - 1) / 2]))[0]


def brightest(snr, limit: int):
    """Return the indices, ascending, of the ``limit`` largest |snr|."""
    xp = array_module(snr)
    return xp.sort(xp.argsort(-xp.abs(snr), kind="stable")[:limit])


def host_table(table: Table) -> Table:
    """Return the table with every column as a NumPy array."""
    return {name: to_host(column) for name, column in table.items()}


def prefixed(prefix: str, columns: Table) -> Table:
    """Return ``columns`` with ``prefix`` put before each name."""
    return {prefix + name: column for name, column in columns.items()}


def _measured(pixels, psf, found, chosen, aperture_radius_pix) -> Table:
    image, mask, variance = pixels.image, pixels.mask, pixels.variance
    centre = fit_centroids(image, mask, variance, found.x[chosen], found.y[chosen], psf)
    x, y = centre["x"], centre["y"]
    flux = psf_flux(image, mask, variance, x, y, psf)
    aperture = aperture_flux(image, mask, variance, x, y, radius_pix=aperture_radius_pix)
    table = {name: centre[name] for name in ("x", "y", "x_err", "y_err")} | {"centroid_flag": centre["flag"]}
    table |= psf_columns(flux) | prefixed("ap_", aperture)
    table = {{"ap_flag": "ap_flux_flag"}.get(name, name): column for name, column in table.items()}
    table |= {"snr": found.snr[chosen], "footprint": found.footprint[chosen]}
    table |= {"footprint_area": found.footprint_area[chosen], "peak": _peak(image, x, y)}
    table |= prefixed("pixel_flags_", pixel_flags(mask, x, y, half_size=psf.size // 4))
    table = host_table(table)
    table["is_blended"] = _is_blended(table["footprint"], table["snr"])
    order = np.argsort(-np.nan_to_num(table["psf_flux"], nan=-np.inf), kind="stable")
    return {name: column[order] for name, column in table.items()}


def _is_blended(footprint, snr) -> np.ndarray:
    """Return (n,) bool: peaks whose footprint holds another of at least ``BLEND_RATIO`` of their S/N."""
    n_labels = int(footprint.max(initial=0)) + 1
    strongest, second = np.zeros(n_labels), np.zeros(n_labels)
    np.maximum.at(strongest, footprint, snr)
    is_strongest = snr == strongest[footprint]
    np.maximum.at(second, footprint[~is_strongest], snr[~is_strongest])
    rival = np.where(is_strongest, second[footprint], strongest[footprint])
    return rival >= BLEND_RATIO * snr


def psf_columns(flux: Table) -> Table:
    """Return the result of `photometry.psf_flux` under its names in a source table."""
    names = {"flux": "psf_flux", "flux_err": "psf_flux_err", "chi2": "psf_chi2", "n_pixels": "psf_ndata"}
    names |= {"flag": "psf_flux_flag", "flag_edge": "psf_flux_flag_edge"}
    return {names[name]: column for name, column in flux.items()}


def _peak(image, x, y):
    """Return the largest pixel within one pixel of the nearest; NaN where there is none."""
    xp = array_module(image)
    ny, nx = image.shape
    best = xp.full(x.shape, -xp.inf, dtype=image.dtype)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            column, row = xp.clip(xp.rint(x) + dx, 0, nx - 1), xp.clip(xp.rint(y) + dy, 0, ny - 1)
            best = xp.fmax(best, image[row.astype(np.int64), column.astype(np.int64)])
    return xp.where(xp.isfinite(best), best, xp.nan)
