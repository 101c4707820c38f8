"""A row for each detector of a visit: when, where, how deep, and in which file."""

from __future__ import annotations

import numpy as np

from nightstream.engine.tables import n_rows, stack
from nightstream.engine.values import Table
from nightstream.io.products import DetectorTables
from nightstream.kernels.psf import FWHM_PER_SIGMA
from nightstream.scheduler.visit_products import VisitProducts

CORNERS = ("llc", "ulc", "urc", "lrc")


def detector_visit_rows(products: VisitProducts) -> Table:
    """Return the rows of DetectorVisitProcessingSummary, by detector."""
    return stack(_row(products, detector, tables) for detector, tables in products.tables.items())


def _row(products: VisitProducts, detector: int, tables: DetectorTables) -> Table:
    info, summary, (ny, nx) = tables.info, tables.summary, tables.shape
    x, y = np.array([0, 0, nx - 1, nx - 1, (nx - 1) / 2]), np.array([0, ny - 1, ny - 1, 0, (ny - 1) / 2])
    ra, dec = tables.wcs.sky_from_pixel(x, y)
    fwhm = summary.get("psf_fwhm_pix", np.nan)
    values = {
        "visit": np.int64(info.visit),
        "detector": np.int16(detector),
        "band": info.band,
        "midpoint_mjd_tai": info.midpoint_mjd_tai,
        "exposure_time": info.exposure_time_s,
        "ra": ra[4],
        "dec": dec[4],
        "pixel_scale": tables.wcs.pixel_scale_arcsec,
        "zero_point": summary.get("zero_point_mag", np.nan),
        "psf_sigma": fwhm / FWHM_PER_SIGMA,
        "seeing": fwhm * tables.wcs.pixel_scale_arcsec,
        "sky_bg": summary.get("sky_background_electron", np.nan),
        "sky_noise": summary.get("sky_noise_electron", np.nan),
        "astrom_offset_mean": summary.get("astrometric_offset_mean_arcsec", np.nan),
        "astrom_offset_std": summary.get("astrometric_offset_std_arcsec", np.nan),
        "x_size": np.int64(nx),
        "y_size": np.int64(ny),
        "n_psf_star": np.int32(summary.get("n_psf_stars", 0)),
        "psf_flux_limit": summary.get("psf_flux_limit", np.nan),
        "n_dia_sources": np.int32(n_rows(tables.dia_sources)),
        "product_path": "/".join(products.paths[detector].parts[-2:]),
    }
    for corner, place_ra, place_dec in zip(CORNERS, ra, dec, strict=False):
        values |= {f"{corner}ra": place_ra, f"{corner}dec": place_dec}
    return {name: np.array([value]) for name, value in values.items()}
