"""PSF fluxes at given sky positions, on a visit image and its difference image."""

from __future__ import annotations

import numpy as np

from nightstream.engine.measure import forced_flux, source_ids
from nightstream.engine.sources import host_table
from nightstream.engine.values import Exposure, Table
from nightstream.errors import InputError
from nightstream.kernels.target import array_module

WANTED = ("ra", "dec", "dia_object_id")


def force_photometry(visit_image: Exposure, difference: Exposure | None, positions: Table) -> Table:
    """Measure the flux at each position of the sky, without moving it.

    ``positions`` has the columns ra, dec (deg, ICRS) and dia_object_id (int64); either library. Both images
    are on one pixel grid. Positions whose nearest pixel is not on the image are dropped; those on unusable
    pixels are kept, with their flags set and NaN fluxes if nothing could be measured. ``difference`` None
    gives NaN difference fluxes.

    Returns host columns, in the order of ``positions``: dia_forced_source_id, dia_object_id, visit, detector,
    band, midpoint_mjd_tai, ra, dec, x, y, psf_flux, psf_flux_err (on the difference, nJy), psf_flux_flag,
    psf_flux_flag_edge, science_flux, science_flux_err, science_flux_flag, science_flux_flag_edge.
    Raises InputError when a column or the WCS is missing.
    """
    missing = [name for name in WANTED if name not in positions]
    if missing or visit_image.wcs is None:
        raise InputError(f"forced photometry wants columns {', '.join(WANTED)} and a WCS, without: {missing or 'a WCS'}")
    xp = array_module(visit_image.pixels.image)
    positions = host_table({name: positions[name] for name in WANTED})
    x, y = visit_image.wcs.pixel_from_sky(positions["ra"], positions["dec"])
    ny, nx = visit_image.pixels.shape
    inside = np.flatnonzero((x >= -0.5) & (x < nx - 0.5) & (y >= -0.5) & (y < ny - 0.5))
    x, y = x[inside], y[inside]
    info, n = visit_image.info, len(inside)
    table = {"dia_forced_source_id": source_ids(info.visit, info.detector, n)}
    table |= {"dia_object_id": positions["dia_object_id"][inside].astype(np.int64)}
    table |= {"visit": np.full(n, info.visit, np.int64), "detector": np.full(n, info.detector, np.int16)}
    table |= {"band": np.full(n, info.band), "midpoint_mjd_tai": np.full(n, info.midpoint_mjd_tai)}
    table |= {"ra": positions["ra"][inside], "dec": positions["dec"][inside], "x": x, "y": y}
    at = xp.asarray(x), xp.asarray(y)
    return host_table(table | _columns("psf", difference, *at) | _columns("science", visit_image, *at))


def _columns(name: str, exposure: Exposure | None, x, y) -> Table:
    xp = array_module(x)
    n = len(x)
    if exposure is None:
        nothing, failed = xp.full(n, xp.nan), xp.ones(n, dtype=bool)
        out = {"flux": nothing, "flux_err": nothing, "flag": failed, "flag_edge": ~failed}
    else:
        out = forced_flux(exposure, x, y)
    names = {"flux": f"{name}_flux", "flux_err": f"{name}_flux_err"}
    names |= {"flag": f"{name}_flux_flag", "flag_edge": f"{name}_flux_flag_edge"}
    return {column: out[key] for key, column in names.items()}
