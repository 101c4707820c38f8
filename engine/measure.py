"""From a difference image to its table of DIASources: detect, centre, measure, classify.

Fluxes leave this file in nJy, on the host. Positions known beforehand are `nightstream.engine.force`.
"""

from __future__ import annotations

import numpy as np

from nightstream.engine.config import MeasureConfig
from nightstream.engine.sources import central_stamp, host_table, prefixed, psf_columns
from nightstream.engine.values import Exposure, ExposureInfo, Table
from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.centroid import fit_centroids
from nightstream.kernels.detection import Detections, detect
from nightstream.kernels.dipole import classify_dipoles, fit_dipoles, pair_lobes
from nightstream.kernels.photometry import aperture_flux, psf_flux
from nightstream.kernels.pixel_flags import pixel_flags
from nightstream.kernels.stamp_fit import pixel_of
from nightstream.kernels.target import array_module
from nightstream.kernels.wcs import Wcs

INDEX_BITS, DETECTOR_BITS, VISIT_BITS = 14, 8, 41  # of a 63-bit source number: LSST visits are below 2^41


def measure_dia_sources(difference: Exposure, science: Exposure, matched_template: Exposure, config: MeasureConfig) -> Table:
    """Detect and measure the sources of a difference image.

    The three exposures are on one pixel grid, each with its PSF and ``njy_per_unit``; ``difference`` has
    white noise and a WCS, or None, in which case ra and dec are NaN.

    Returns host columns in the APDB's snake_case names, in raster order of detection: fluxes in nJy,
    positions in degrees and pixels. One row a peak; a dipole is one row, that of its stronger lobe, with
    ``is_dipole`` and the
    ``dipole_`` columns. ``star_residual`` marks what is small against the star it sits on, or next to
    saturation. Nothing detected gives columns of length 0. Raises UnprocessableError on more than
    ``config.max_sources`` peaks: the subtraction has failed.
    """
    found = _detect(difference, config)
    pixels = difference.pixels
    planes = pixels.image, pixels.mask, pixels.variance
    centre = fit_centroids(*planes, found.x, found.y, difference.psf, max_shift_pix=config.max_shift_pix)
    dipole, kept = _dipole_columns(difference, found, config)
    x, y = centre["x"][kept], centre["y"][kept]
    half = _fwhm_pix(difference) * config.flag_radius_fwhm
    table = {name: centre[name][kept] for name in ("x", "y", "x_err", "y_err")}
    table["centroid_flag"] = centre["flag"][kept]
    table |= {name: getattr(found, name)[kept] for name in ("is_negative", "snr", "bbox_size")}
    table |= {name: column[kept] for name, column in dipole.items()}
    table |= measured_fluxes(difference, science, matched_template, x, y, config)
    table |= prefixed("pixel_flags_", pixel_flags(pixels.mask, x, y, half_size=max(1, round(half))))
    table["star_residual"] = _is_star_residual(table, matched_template, config)
    table = host_table(table)
    return identity_columns(difference.info, len(table["x"])) | sky_columns(difference.wcs, table) | table


def _detect(difference: Exposure, config: MeasureConfig) -> Detections:
    pixels = difference.pixels
    stamp = central_stamp(difference.psf, pixels.shape)
    found = detect(pixels.image, pixels.mask, pixels.variance, stamp, threshold=config.threshold)
    if len(found) > config.max_sources:
        raise UnprocessableError(f"{len(found)} detections on the difference image, wanted at most {config.max_sources}")
    return found


def measured_fluxes(difference, science, matched_template, x, y, config: MeasureConfig) -> Table:
    """Return the PSF and aperture fluxes on the difference, and those forced on science and template, in
    nJy."""
    pixels, unit = difference.pixels, difference.njy_per_unit
    aperture = aperture_flux(pixels.image, pixels.mask, pixels.variance, x, y, radius_pix=config.aperture_radius_pix)
    flux = forced_flux(difference, x, y)
    table = psf_columns(flux) | {"psf_flux_flag_no_good_pixels": flux["n_pixels"] == 0}
    table |= {"ap_flux": aperture["flux"] * unit, "ap_flux_err": aperture["flux_err"] * unit}
    table["ap_flux_flag"] = aperture["flag"]
    now, before = forced_flux(science, x, y), forced_flux(matched_template, x, y)
    for name, flux in (("science", now), ("template", before)):
        table |= {f"{name}_flux": flux["flux"], f"{name}_flux_err": flux["flux_err"]}
    table |= {"forced_psf_flux_flag": now["flag"], "forced_psf_flux_flag_edge": now["flag_edge"]}
    return table | {"forced_psf_flux_flag_no_good_pixels": now["n_pixels"] == 0}


def forced_flux(exposure: Exposure, x, y) -> Table:
    """Return `photometry.psf_flux` at fixed pixel positions, the flux in nJy."""
    pixels = exposure.pixels
    out = psf_flux(pixels.image, pixels.mask, pixels.variance, x, y, exposure.psf)
    return out | {name: out[name] * exposure.njy_per_unit for name in ("flux", "flux_err")}


def _dipole_columns(difference: Exposure, found: Detections, config: MeasureConfig) -> tuple[Table, object]:
    """Return (columns for every peak, indices of the peaks to keep): the weaker lobe of a dipole is not
    kept."""
    xp = array_module(found.x)
    n, scale = len(found), difference.wcs.pixel_scale_arcsec if difference.wcs is not None else np.nan
    names = ("mean_flux", "mean_flux_err", "flux_diff", "flux_diff_err", "length", "angle", "chi2")
    columns = {f"dipole_{name}": xp.full(n, xp.nan) for name in names}
    columns |= {"dipole_ndata": xp.zeros(n, np.int32)}
    columns |= {"is_dipole": xp.zeros(n, dtype=bool), "dipole_fit_attempted": xp.zeros(n, dtype=bool)}
    reach = config.dipole_max_separation_fwhm * _fwhm_pix(difference)
    i, j = pair_lobes(found.x, found.y, found.snr, found.footprint, max_separation_pix=reach)
    pixels = difference.pixels
    fit = fit_dipoles(
        pixels.image, pixels.mask, pixels.variance, found.x[i], found.y[i], found.x[j], found.y[j],
        difference.psf,
    )  # fmt: skip
    is_dipole = classify_dipoles(fit, min_chi2_gain=config.dipole_min_chi2_gain, max_lobe_share=config.dipole_max_lobe_share)
    first_is_stronger = xp.abs(found.snr[i]) >= xp.abs(found.snr[j])
    stronger, weaker = xp.where(first_is_stronger, i, j), xp.where(first_is_stronger, j, i)
    for name, values in _dipole_values(fit, difference, scale).items():
        columns[name][stronger] = values
    columns["is_dipole"][stronger] = is_dipole
    columns["dipole_fit_attempted"][stronger] = True
    keep = xp.ones(n, dtype=bool)
    keep[weaker[is_dipole]] = False
    return columns, xp.nonzero(keep)[0]


def _dipole_values(fit: Table, difference: Exposure, scale: float) -> Table:
    """Return the APDB's dipole columns from a fit; length in arcsec, angle (deg) the bearing from - to +
    lobe."""
    xp = array_module(fit["chi2"])
    unit, wcs = difference.njy_per_unit, difference.wcs
    positive, negative, shared = fit["flux_positive"], fit["flux_negative"], 2 * fit["flux_covariance"]
    squares = fit["flux_positive_err"] ** 2 + fit["flux_negative_err"] ** 2
    dx, dy = fit["x_positive"] - fit["x_negative"], fit["y_positive"] - fit["y_negative"]
    angle = xp.full(dx.shape, xp.nan)
    if wcs is not None and len(dx):
        (ra1, dec1), (ra0, dec0) = (wcs.sky_from_pixel(fit[f"x_{lobe}"], fit[f"y_{lobe}"]) for lobe in ("positive", "negative"))
        east = ((ra1 - ra0 + 180) % 360 - 180) * xp.cos(xp.radians(dec0))
        angle = xp.degrees(xp.arctan2(east, dec1 - dec0)) % 360
    return {
        "dipole_mean_flux": unit * (positive + negative) / 2,
        "dipole_mean_flux_err": unit * xp.sqrt(xp.maximum(squares + shared, 0)) / 2,
        "dipole_flux_diff": unit * (positive - negative),
        "dipole_flux_diff_err": unit * xp.sqrt(xp.maximum(squares - shared, 0)),
        "dipole_length": scale * xp.hypot(dx, dy),
        "dipole_angle": angle,
        "dipole_chi2": fit["chi2"],
        "dipole_ndata": fit["n_pixels"],
    }


def _is_star_residual(table: Table, template: Exposure, config: MeasureConfig):
    """Return (n,) bool: |difference flux| small against a template star below it or near it, or near saturation."""
    xp = array_module(table["x"])
    flux = xp.abs(table["psf_flux"])
    on_star = xp.fmax(brightest_star(template, table, config.star_residual_radius_fwhm), table["template_flux"])
    near_star = brightest_star(template, table, config.star_wing_radius_fwhm)
    small = (flux < config.star_residual_fraction * on_star) | (flux < config.star_wing_fraction * near_star)
    return small | table["pixel_flags_saturated"] | table["pixel_flags_saturated_template"]


def brightest_star(template: Exposure, table: Table, radius_fwhm: float):
    """Return (n,) nJy: the flux a star would have whose peak is the brightest template pixel within ``radius_fwhm``."""
    psf = template.psf
    peak = psf.centred(table["x"], table["y"])[:, psf.size // 2, psf.size // 2]
    radius = max(1, round(radius_fwhm * _fwhm_pix(template)))
    return brightest_near(template.pixels.image, table["x"], table["y"], radius) / peak * template.njy_per_unit


def brightest_near(image, x, y, radius: int):
    """Return (n,) the largest finite pixel within ``radius`` pixels in x and y of each position; 0 at the
    least."""
    xp = array_module(image)
    column, row = pixel_of(x, y)
    ny, nx = image.shape
    offset = xp.arange(-radius, radius + 1)
    yy = xp.clip(row[:, None, None] + offset[None, :, None], 0, ny - 1)
    xx = xp.clip(column[:, None, None] + offset[None, None, :], 0, nx - 1)
    return xp.maximum(xp.nan_to_num(image[yy, xx]), 0).max(axis=(1, 2))


def _fwhm_pix(exposure: Exposure) -> float:
    ny, nx = exposure.pixels.shape
    return float(exposure.psf.fwhm_pix(nx / 2, ny / 2)[0])


def sky_columns(wcs: Wcs | None, table: Table) -> Table:
    """Return ra, dec (deg), their errors (ra's times cos dec) and covariance, from x, y and their errors."""
    x, y = table["x"], table["y"]
    if wcs is None:
        return {name: np.full(len(x), np.nan) for name in ("ra", "dec", "ra_err", "dec_err", "ra_dec_cov")}
    ra, dec = wcs.sky_from_pixel(x, y)
    half = 0.5  # pixels: the derivative over the source's own pixel
    slopes = []
    for dx, dy in ((half, 0.0), (0.0, half)):
        (ra1, dec1), (ra0, dec0) = wcs.sky_from_pixel(x + dx, y + dy), wcs.sky_from_pixel(x - dx, y - dy)
        slopes.append((((ra1 - ra0 + 180) % 360 - 180) * np.cos(np.radians(dec)), dec1 - dec0))
    (ra_x, dec_x), (ra_y, dec_y) = slopes
    var_x, var_y = table["x_err"] ** 2, table["y_err"] ** 2
    return {
        "ra": ra,
        "dec": dec,
        "ra_err": np.sqrt(ra_x**2 * var_x + ra_y**2 * var_y),
        "dec_err": np.sqrt(dec_x**2 * var_x + dec_y**2 * var_y),
        "ra_dec_cov": ra_x * dec_x * var_x + ra_y * dec_y * var_y,
    }


def identity_columns(info: ExposureInfo, n: int) -> Table:
    """Return what is the same for all ``n`` sources of an exposure, and their numbers."""
    return {
        "dia_source_id": source_ids(info.visit, info.detector, n),
        "visit": np.full(n, info.visit, np.int64),
        "detector": np.full(n, info.detector, np.int16),
        "band": np.full(n, info.band),
        "midpoint_mjd_tai": np.full(n, info.midpoint_mjd_tai),
        "exposure_time": np.full(n, info.exposure_time_s, np.float32),
    }


def source_ids(visit: int, detector: int, n: int) -> np.ndarray:
    """Return ``n`` int64 numbers: visit in the high 41 bits, then detector (8 bits), then 0..n-1 (14
    bits)."""
    for name, value, bits in (("visit", visit, VISIT_BITS), ("detector", detector, DETECTOR_BITS)):
        if not 0 <= value < 1 << bits:
            raise InputError(f"{name} of a source number must be in 0..{(1 << bits) - 1}, got {value}")
    if n > 1 << INDEX_BITS:
        raise InputError(f"at most {1 << INDEX_BITS} sources can be numbered, got {n}")
    return np.int64(((visit << DETECTOR_BITS) | detector) << INDEX_BITS) + np.arange(n, dtype=np.int64)
