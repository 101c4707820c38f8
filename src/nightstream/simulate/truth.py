"""The truth on disk: HDF5 tables with units, the registration catalogue and the asteroids' ephemerides. Also what
signal-to-noise to expect.

truth.h5 holds `stars galaxies variables transients asteroids` (see `nightstream.simulate.sky`), `visits` (one
row a visit: the true conditions), `exposures` (one row a raw: cosmic rays) and `changes` (one row a source,
visit and detector that differs from the template: true position and pixel, fluxes, expected S/N of the
difference, `is_clean`).
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np

from nightstream.engine.values import Table
from nightstream.simulate.detector import PEDESTAL_ADU, DetectorTruth
from nightstream.simulate.psf import MoffatPsf
from nightstream.simulate.sky import Sky, asteroid_positions, flux_from_magnitude

REFERENCE_FAINTEST = 22.5  # AB magnitude
REFERENCE_POSITION_ARCSEC, REFERENCE_FLUX_ERROR = 0.01, 0.005
EPHEMERIS_ERROR_ARCSEC, EPHEMERIS_ERROR_MAG = 0.05, 0.1  # of a predicted position (each axis) and magnitude
SNR_HALF_PIX = 9
CLEAN_HALF_PIX = 3  # a defect so near lies in the core of the PSF
CLEAN_BORDER_PIX = 48  # dithers and pointing move the template's edge by less
UNITS = {
    "ra": "deg", "dec": "deg", "x": "pixel", "y": "pixel", "flux_njy": "nJy", "flux_njy_err": "nJy",
    "peak_flux_njy": "nJy", "template_flux_njy": "nJy", "difference_flux_njy": "nJy", "half_light_arcsec": "arcsec",
    "period_day": "d", "decay_day": "d", "onset_mjd_tai": "d", "epoch_mjd_tai": "d", "midpoint_mjd_tai": "d",
    "motion_ra": "arcsec / d", "motion_dec": "arcsec / d", "fwhm_arcsec": "arcsec", "rotation_deg": "deg",
    "exposure_time_s": "s", "cosmic_ray_electrons": "electron", "ra_err": "deg", "dec_err": "deg",
    "mjd": "d", "ra_rate": "deg / d", "dec_rate": "deg / d", "mag": "mag",
}  # fmt: skip


def expected_snr(
    built: DetectorTruth, light: np.ndarray, dark_time_s: float, psf: MoffatPsf, table: Table, electrons: np.ndarray,
    n_templates: int,
) -> Table:  # fmt: skip
    """Return ``snr`` (of the difference flux, PSF-weighted) and ``is_clean`` for the rows of ``table``.

    The variance is that of the science image plus, for a template of ``n_templates`` like visits, that of the
    same sky without the change. A clean source lies inside by `CLEAN_BORDER_PIX`, on no defect and on no
    saturated pixel.
    """
    read_noise = float(np.mean([amplifier.read_noise for amplifier in built.detector.amplifiers]))
    full_well = min((a.suspect_adu - PEDESTAL_ADU) * a.gain for a in built.detector.amplifiers)
    expected = light * built.response + built.dark * dark_time_s
    bad = built.dead | (expected > full_well)
    ny, nx = expected.shape
    snr, clean = np.zeros(len(electrons)), np.zeros(len(electrons), dtype=bool)
    for row, (x, y, change) in enumerate(zip(table["x"], table["y"], electrons, strict=True)):
        ix, iy, stamp = psf.stamp(x, y, SNR_HALF_PIX)
        border = min(ix, iy, nx - 1 - ix, ny - 1 - iy)
        clean[row] = border >= CLEAN_BORDER_PIX and not bad[_box(ix, iy, CLEAN_HALF_PIX)].any()
        if border < SNR_HALF_PIX:
            continue
        variance = expected[_box(ix, iy, SNR_HALF_PIX)] + read_noise**2
        static = np.maximum(variance - stamp * max(change, 0.0), read_noise**2)
        total = variance + static / n_templates if n_templates else variance
        snr[row] = change * np.sqrt(np.sum(stamp**2 / total))
    return {"snr": snr, "is_clean": clean}


def _box(ix: int, iy: int, half: int) -> tuple[slice, slice]:
    return slice(iy - half, iy + half + 1), slice(ix - half, ix + half + 1)


def write_truth(path: Path, sky: Sky, records: list[dict], visits) -> None:
    """Write ``truth.h5``."""
    tables = {field.name: getattr(sky, field.name) for field in fields(sky)}
    names = (
        "id",
        "role",
        "midpoint_mjd_tai",
        "exposure_time_s",
        "fwhm_arcsec",
        "transparency",
        "sky_magnitude",
        "rotation_deg",
    )
    tables["visits"] = {name: np.array([getattr(visit, name) for visit in visits]) for name in names}
    keys = ("visit", "detector", "role", "cosmic_ray_pixels", "cosmic_ray_electrons")
    tables["exposures"] = {key: np.array([record[key] for record in records]) for key in keys}
    changes = [record["changes"] for record in records if "changes" in record]
    if changes:
        tables["changes"] = {name: np.concatenate([table[name] for table in changes]) for name in changes[0]}
    write_tables(path, tables)


def write_reference(path: Path, stars: Table, rng: np.random.Generator) -> None:
    """Write the registration catalogue: the brighter stars, with small errors in position and flux."""
    rows = np.flatnonzero(stars["flux_njy"] > flux_from_magnitude(REFERENCE_FAINTEST))
    position_error = np.full(len(rows), REFERENCE_POSITION_ARCSEC / 3600.0)
    dec = stars["dec"][rows] + position_error * rng.standard_normal(len(rows))
    ra = stars["ra"][rows] + position_error * rng.standard_normal(len(rows)) / np.cos(np.radians(dec))
    flux_error = REFERENCE_FLUX_ERROR * stars["flux_njy"][rows]
    flux = stars["flux_njy"][rows] + flux_error * rng.standard_normal(len(rows))
    write_tables(path, {"stars": {
        "id": stars["id"][rows], "ra": ra, "dec": dec, "ra_err": position_error, "dec_err": position_error,
        "flux_njy": flux, "flux_njy_err": flux_error,
    }})  # fmt: skip


def write_positions(path: Path, sky: Sky) -> None:
    """Write the positions of transients and variables, to force photometry at; ids of variables are negative."""
    ids = np.concatenate([sky.transients["id"] + 1, -(sky.variables["id"] + 1)])
    position = {name: np.concatenate([sky.transients[name], sky.variables[name]]) for name in ("ra", "dec")}
    write_tables(path, {"positions": {"dia_object_id": ids} | position})


def write_ephemerides(path: Path, sky: Sky, visits, rng: np.random.Generator) -> None:
    """Write where the known asteroids should be in the middle of each science visit: one row a visit and asteroid.

    An orbit is wrong by as much in one visit as in the next: each asteroid has one error in position and magnitude.
    ``ra_err`` is, and ``ra_rate`` is not, times cos(dec).
    """
    rows = np.flatnonzero(sky.asteroids["ss_object_id"] > 0)
    off_ra, off_dec = EPHEMERIS_ERROR_ARCSEC / 3600.0 * rng.standard_normal((2, len(rows)))
    off_mag = EPHEMERIS_ERROR_MAG * rng.standard_normal(len(rows))
    science = [visit for visit in visits if visit.role == "science"]
    which, visit = np.tile(np.arange(len(rows)), len(science)), np.repeat(np.arange(len(science)), len(rows))
    known = {name: values[rows[which]] for name, values in sky.asteroids.items()}
    mjd = np.array([visit.midpoint_mjd_tai for visit in science], dtype=np.float64)[visit]
    at = asteroid_positions(known, mjd)
    cos_dec, error = np.cos(np.radians(at["dec"])), np.full(len(mjd), EPHEMERIS_ERROR_ARCSEC / 3600.0)
    write_tables(path, {"ephemerides": {
        "ss_object_id": known["ss_object_id"], "designation": np.array([f"SIM {number}" for number in known["id"]], "U16"),
        "visit": np.array([visit.id for visit in science], dtype=np.int64)[visit], "mjd": mjd,
        "ra": at["ra"] + off_ra[which] / cos_dec, "dec": at["dec"] + off_dec[which], "ra_err": error, "dec_err": error,
        "ra_rate": known["motion_ra"] / 3600.0 / cos_dec, "dec_rate": known["motion_dec"] / 3600.0,
        "mag": 31.4 - 2.5 * np.log10(known["flux_njy"]) + off_mag[which],
    }})  # fmt: skip


def write_tables(path: Path, tables: dict[str, Table]) -> None:
    """Write tables as HDF5 compound datasets; the attribute ``units`` lists one unit a column."""
    import h5py

    with h5py.File(path, "w") as file:
        for name, table in tables.items():
            columns = {key: _storable(np.asarray(values)) for key, values in table.items()}
            rows = np.empty(len(next(iter(columns.values()))), dtype=[(key, c.dtype) for key, c in columns.items()])
            for key, values in columns.items():
                rows[key] = values
            file.create_dataset(name, data=rows).attrs["units"] = [UNITS.get(key, "") for key in columns]


def read_table(path: str | Path, name: str) -> Table:
    """Read one table of ``truth.h5`` or ``reference.h5``; text comes back as str."""
    import h5py

    with h5py.File(path, "r") as file:
        rows = file[name][()]
    return {key: rows[key].astype("U") if rows[key].dtype.kind == "S" else rows[key] for key in rows.dtype.names}


def _storable(values: np.ndarray) -> np.ndarray:
    return values.astype("S") if values.dtype.kind == "U" else values
