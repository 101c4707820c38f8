"""Small tables of DIASources, DIAObjects and predictions about one direction of the sky, for tests of association."""

from __future__ import annotations

import numpy as np

from nightstream.kernels.sky_frames import ARCSEC_PER_RADIAN, sky_from_vectors, tangent_basis, unit_vectors

MJD = 61000.0


def offset_sky(ra, dec, east_arcsec, north_arcsec):
    """Return ra, dec (deg) of directions so many arcsec east and north of one, straight even across a pole."""
    east, north = tangent_basis(ra, dec)
    dx, dy = np.asarray(east_arcsec, float)[..., None], np.asarray(north_arcsec, float)[..., None]
    return sky_from_vectors(unit_vectors(ra, dec) + (dx * east + dy * north) / ARCSEC_PER_RADIAN)


def make_sources(east, north=0.0, *, ra=150.0, dec=-30.0, error=0.05, ids=None, detector=1, mjd=MJD, **columns):
    """Return DIASources at offsets (arcsec) from ra, dec (deg), with one error (arcsec) in both coordinates."""
    n = len(np.atleast_1d(east))
    at_ra, at_dec = offset_sky(ra, dec, np.broadcast_to(east, n), np.broadcast_to(north, n))
    sigma = np.broadcast_to(np.asarray(error) / 3600.0, n).astype(np.float64)
    return {
        "dia_source_id": np.arange(1001, 1001 + n) if ids is None else np.asarray(ids, dtype=np.int64),
        "visit": np.full(n, 77),
        "detector": np.broadcast_to(np.int16(detector), n).copy(),
        "ra": at_ra,
        "dec": at_dec,
        "ra_err": sigma.copy(),
        "dec_err": sigma.copy(),
        "midpoint_mjd_tai": np.full(n, mjd),
        "snr": np.full(n, 10.0),
        **{name: np.broadcast_to(values, n).copy() for name, values in columns.items()},
    }


def make_objects(east, north=0.0, *, ids=None, error=0.02, mjd=MJD, **columns):
    """Return DIAObjects in the same way, numbered from 1."""
    table = make_sources(east, north, error=error, **columns)
    n = len(table["ra"])
    for name in ("dia_source_id", "visit", "detector", "midpoint_mjd_tai", "snr"):
        del table[name]
    numbers = np.arange(1, n + 1) if ids is None else np.asarray(ids, dtype=np.int64)
    return {"dia_object_id": numbers, "radec_mjd_tai": np.full(n, mjd)} | table


def make_predictions(east, north=0.0, *, ids=None, error=0.1, mjd=MJD, rates=(0.0, 0.0), **columns):
    """Return predictions in the same way, with rates (deg/day, east and north on the sky), numbered from 9001."""
    table = make_sources(east, north, error=error, **columns)
    n = len(table["ra"])
    for name in ("dia_source_id", "visit", "detector", "midpoint_mjd_tai", "snr"):
        del table[name]
    numbers = np.arange(9001, 9001 + n) if ids is None else np.asarray(ids, dtype=np.int64)
    return table | {
        "ss_object_id": numbers,
        "designation": np.array([f"2026 AA{number}" for number in numbers]),
        "mjd": np.full(n, mjd),
        "ra_rate": np.full(n, rates[0]) / np.cos(np.radians(table["dec"])),
        "dec_rate": np.full(n, rates[1]),
        "mag": np.full(n, 20.0),
    }


def reordered(table, order):
    """Return the rows of ``table`` in another order."""
    return {name: np.asarray(column)[order] for name, column in table.items()}


def joined(*tables):
    """Return one table below the other."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
