"""Visits as catalogues: products with honest tables and blank pixels, to exercise everything after the pixels at scale.

The sources of a visit scatter about their true places and fluxes as their errors say; the images are zero with constant
variance, so that forced photometry finds nothing, and compress to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nightstream.engine.config import EngineConfig
from nightstream.engine.cutouts import cut_stamps
from nightstream.engine.force import flux_limit, force_photometry, join_positions, source_positions
from nightstream.engine.measure import identity_columns
from nightstream.engine.values import Array, DetectorProducts, Exposure, ExposureInfo, MaskedImage, Table
from nightstream.io.products import write_detector_products
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.wcs import Wcs

PIXEL_SCALE_ARCSEC = 0.2
POSITION_ERROR_ARCSEC = 0.06
FLUX_ERROR_NJY = 100.0
PIXEL_VARIANCE = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueVisit:
    """One visit of a camera whose detectors lie side by side along right ascension on the equator."""

    visit: int
    midpoint_mjd_tai: float
    band: str = "r"
    n_detectors: int = 2
    side_pix: int = 1024
    overlap_pix: int = 0  # by which neighbours overlap on the sky

    def wcs(self, detector: int) -> Wcs:
        """Return where a detector looks."""
        step = (self.side_pix - self.overlap_pix) * PIXEL_SCALE_ARCSEC / 3600
        middle = (self.side_pix - 1) / 2
        return Wcs.tan(detector * step + 150.0, 0.0, middle, middle, PIXEL_SCALE_ARCSEC)

    def info(self, detector: int) -> ExposureInfo:
        """Return who and when."""
        return ExposureInfo(
            visit=self.visit, detector=detector, camera="catalogue", kind="science", band=self.band, exposure_time_s=30.0,
            dark_time_s=30.0, midpoint_mjd_tai=self.midpoint_mjd_tai,
        )  # fmt: skip


def write_visit(
    output: str | Path, visit: CatalogueVisit, ra: Array, dec: Array, flux: Array, seed: int = 1, known: Table | None = None
) -> list[Path]:
    """Write the products of a visit that detects every true source (deg, nJy) on a detector; return their paths.

    Photometry is forced at the sources, and at ``known`` (dia_object_id, ra, dec), as a worker does with what was preloaded.
    """
    return [_write_detector(output, visit, detector, ra, dec, flux, seed, known) for detector in range(visit.n_detectors)]


def _write_detector(output, visit: CatalogueVisit, detector: int, ra, dec, flux, seed: int, known: Table | None) -> Path:
    wcs, info = visit.wcs(detector), visit.info(detector)
    rng = np.random.default_rng([seed, visit.visit, detector])
    x, y = wcs.pixel_from_sky(ra, dec)
    inside = np.flatnonzero((x >= 0) & (x < visit.side_pix - 1) & (y >= 0) & (y < visit.side_pix - 1))
    sources = source_table(info, wcs, x[inside], y[inside], flux[inside], rng)
    blank = _blank(visit, info, wcs)
    config = EngineConfig()
    products = DetectorProducts(
        visit_image=blank, difference=blank, dia_sources=sources,
        forced_sources=force_photometry(blank, blank, join_positions(known, source_positions(sources)), config.force),
        summary={"psf_fwhm_pix": 4.0, "psf_flux_limit": flux_limit(blank)}, timings_s={}, provenance={},
        cutouts=cut_stamps(blank, blank, blank, sources, config.cutout),
    )  # fmt: skip
    return write_detector_products(output, products)


def source_table(info: ExposureInfo, wcs: Wcs, x: Array, y: Array, flux: Array, rng: np.random.Generator) -> Table:
    """Return DIASources at true pixel positions ``x``, ``y`` with true ``flux`` (nJy), scattered by their errors."""
    n, error = len(x), POSITION_ERROR_ARCSEC / PIXEL_SCALE_ARCSEC
    x, y = (np.asarray(v) + rng.normal(0, error, n) for v in (x, y))
    ra, dec = wcs.sky_from_pixel(x, y)
    measured = flux + rng.normal(0, FLUX_ERROR_NJY, n)
    in_degrees = np.full(n, POSITION_ERROR_ARCSEC / 3600, np.float32)
    return identity_columns(info, n) | {
        "ra": ra,
        "dec": dec,
        "ra_err": in_degrees,
        "dec_err": in_degrees,
        "ra_dec_cov": np.zeros(n, np.float32),
        "x": x.astype(np.float32),
        "y": y.astype(np.float32),
        "psf_flux": measured.astype(np.float32),
        "psf_flux_err": np.full(n, FLUX_ERROR_NJY, np.float32),
        "science_flux": measured.astype(np.float32),
        "science_flux_err": np.full(n, FLUX_ERROR_NJY, np.float32),
        "snr": (measured / FLUX_ERROR_NJY).astype(np.float32),
        "psf_ndata": np.full(n, 441, np.int32),
        "bbox_size": np.full(n, 21, np.int32),
        "is_negative": measured < 0,
    }


def _blank(visit: CatalogueVisit, info: ExposureInfo, wcs: Wcs) -> Exposure:
    shape = visit.side_pix, visit.side_pix
    pixels = MaskedImage(np.zeros(shape, np.float32), np.zeros(shape, np.int32), np.full(shape, PIXEL_VARIANCE, np.float32))
    return Exposure(info=info, pixels=pixels, wcs=wcs, psf=PsfModel.gaussian(1.7), njy_per_unit=1.0)
