"""PSF fluxes at given sky positions, on a visit image and its difference image."""

from __future__ import annotations

import numpy as np

from nightstream.engine.config import ForceConfig
from nightstream.engine.sources import host_table
from nightstream.engine.values import Exposure, Table
from nightstream.errors import InputError
from nightstream.kernels.forced import forced_psf_flux
from nightstream.kernels.target import array_module

WANTED = ("ra", "dec", "dia_object_id")
LIMIT_SIGMA = 5.0
LIMIT_GRID = 12  # positions along each axis at which the noise of the whole detector is sampled


def force_photometry(
    visit_image: Exposure, difference: Exposure | None, positions: Table, config: ForceConfig | None = None
) -> Table:
    """Measure the flux at each position of the sky, without moving it.

    ``positions`` has the columns ra, dec (deg, ICRS), dia_object_id and, if it likes, dia_source_id (int64, 0 for none);
    either library. Both images are on one pixel grid. Positions whose nearest pixel is not on the image are dropped;
    those on unusable pixels are kept, with their flags set and NaN fluxes if nothing could be measured. ``difference``
    None gives NaN difference fluxes and limits. ``config.chunk_positions`` are measured at a time, so that the memory
    does not grow with their number.

    Returns host columns, in the order of ``positions``: dia_object_id, dia_source_id, visit, detector, band,
    midpoint_mjd_tai, ra, dec, x, y, psf_flux, psf_flux_err (on the difference, nJy), psf_flux_flag, psf_flux_flag_edge,
    science_flux, science_flux_err, science_flux_flag, science_flux_flag_edge, and psf_flux_limit: 5 psf_flux_err, or
    where nothing was measured 5 times the median error on the detector (`flux_limit`).
    Raises InputError when a column or the WCS is missing.
    """
    missing = [name for name in WANTED if name not in positions]
    if missing or visit_image.wcs is None:
        raise InputError(f"forced photometry wants columns {', '.join(WANTED)} and a WCS, without: {missing or 'a WCS'}")
    table = _identity(visit_image, _on_image(visit_image, host_table(positions)))
    chunk = (config or ForceConfig()).chunk_positions
    for name, exposure in (("psf", difference), ("science", visit_image)):
        table |= _measured(name, exposure, table["x"], table["y"], chunk)
    return table | {"psf_flux_limit": _limits(table, difference)}


def flux_limit(exposure: Exposure) -> float:
    """Return 5 times the median error (nJy) of a PSF flux on a coarse grid of positions; NaN if there is none."""
    ny, nx = exposure.pixels.shape
    x, y = np.meshgrid(*(np.rint((np.arange(LIMIT_GRID) + 0.5) * n / LIMIT_GRID - 0.5) for n in (nx, ny)))
    error = _measured("psf", exposure, x.ravel(), y.ravel(), x.size)["psf_flux_err"]
    known = error[np.isfinite(error)]
    return float(LIMIT_SIGMA * np.median(known)) if known.size else float("nan")


def source_positions(sources: Table) -> Table:
    """Return the positions of DIASources for `force_photometry`: any of them may be a new DIAObject, so far without id."""
    ids = sources["dia_source_id"]
    return {"ra": sources["ra"], "dec": sources["dec"], "dia_object_id": np.zeros_like(ids), "dia_source_id": ids}


def join_positions(*tables: Table | None) -> Table:
    """Return ``tables`` (host) one after the other; of rows with the same dia_object_id, not 0, the first."""
    known = [table for table in tables if table is not None]
    names = (*WANTED, "dia_source_id")
    filled = [{"dia_source_id": np.zeros(len(table["ra"]), np.int64)} | table for table in known]
    joined = {name: np.concatenate([np.zeros(0), *(table[name] for table in filled)]) for name in WANTED[:2]}
    joined |= {n: np.concatenate([np.zeros(0, np.int64), *(t[n] for t in filled)]) for n in names[2:]}
    ids = joined["dia_object_id"]
    first = np.zeros(len(ids), dtype=bool)
    first[np.unique(ids, return_index=True)[1]] = True
    return {name: column[first | (ids == 0)] for name, column in joined.items()}


def _on_image(image: Exposure, positions: Table) -> Table:
    """Add x and y, and drop what is not on the image."""
    x, y = image.wcs.pixel_from_sky(positions["ra"], positions["dec"])
    ny, nx = image.pixels.shape
    inside = np.flatnonzero((x >= -0.5) & (x < nx - 0.5) & (y >= -0.5) & (y < ny - 0.5))
    columns = {"dia_source_id": np.zeros(len(x), np.int64)} | positions | {"x": x, "y": y}
    return {name: column[inside] for name, column in columns.items()}


def _identity(image: Exposure, at: Table) -> Table:
    info, n = image.info, len(at["x"])
    table = {name: at[name].astype(np.int64) for name in ("dia_object_id", "dia_source_id")}
    table |= {"visit": np.full(n, info.visit, np.int64), "detector": np.full(n, info.detector, np.int16)}
    table |= {"band": np.full(n, info.band), "midpoint_mjd_tai": np.full(n, info.midpoint_mjd_tai)}
    return table | {name: at[name] for name in ("ra", "dec", "x", "y")}


def _measured(name: str, exposure: Exposure | None, x: np.ndarray, y: np.ndarray, chunk: int) -> Table:
    """Return the host columns of one image, ``chunk`` positions at a time."""
    names = {"flux": f"{name}_flux", "flux_err": f"{name}_flux_err"}
    names |= {"flag": f"{name}_flux_flag", "flag_edge": f"{name}_flux_flag_edge"}
    if exposure is None:
        nothing, failed = np.full(len(x), np.nan), np.ones(len(x), dtype=bool)
        return dict(zip(names.values(), (nothing, nothing, failed, ~failed), strict=True))
    pixels, xp = exposure.pixels, array_module(exposure.pixels.image)
    parts = []
    for start in range(0, max(len(x), 1), chunk):
        at = (xp.asarray(v[start : start + chunk]) for v in (x, y))
        out = forced_psf_flux(pixels.image, pixels.mask, pixels.variance, *at, exposure.psf)
        out |= {key: out[key] * exposure.njy_per_unit for key in ("flux", "flux_err")}
        parts.append(host_table({column: out[key] for key, column in names.items()}))
    return {column: np.concatenate([part[column] for part in parts]) for column in names.values()}


def _limits(table: Table, difference: Exposure | None) -> np.ndarray:
    """Return (n,) nJy: 5 errors, or what the rest of the detector says where there is no error."""
    limit = LIMIT_SIGMA * table["psf_flux_err"]
    unknown = ~np.isfinite(limit)
    return np.where(unknown, flux_limit(difference), limit) if unknown.any() and difference is not None else limit
