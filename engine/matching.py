"""Positions with errors, and which pairs of two lists of them may be one thing. What is done with pairs is the caller's.

Host tables only: positions are few numbers a source, and the process that associates keeps no GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from nightstream.engine.config import AssociateConfig
from nightstream.engine.values import Table
from nightstream.errors import InputError
from nightstream.kernels.sky_frames import ARCSEC_PER_RADIAN, sky_from_vectors, tangent_basis, unit_vectors
from nightstream.kernels.sky_match import gaussian_cost, sky_pairs, turned_covariance

DAYS_PER_YEAR = 365.25
ERRORS = ("ra_err", "dec_err", "ra_dec_cov")
MAX_CORRELATION = 0.99  # of ra and dec: a table's rounding must not make a covariance singular


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """n directions and their errors. NaN positions are allowed, and match nothing."""

    ra: np.ndarray  # deg, of the catalogue: the errors are along its east and north
    dec: np.ndarray  # deg
    vectors: np.ndarray  # (n, 3) unit vectors: where it is now, which is off ra, dec by its proper motion
    errors: Table  # ra_err, dec_err (deg), ra_dec_cov (deg^2) as far as the catalogue has them
    missing_error_arcsec: float  # stands for an error that is missing, NaN or not positive
    growth: np.ndarray  # (n, 2) arcsec^2 that time has added to the variances of east and north

    def take(self, rows: np.ndarray) -> Positions:
        """Return the given rows."""
        arrays = {name: getattr(self, name)[rows] for name in ("ra", "dec", "vectors", "growth")}
        return replace(self, errors=select(self.errors, rows), **arrays)

    def covariance(self, rows: np.ndarray) -> np.ndarray:
        """Return (k, 3) arcsec^2 of east, north and mixed, positive definite, along the axes of each row's own position."""
        table = {"rows": rows} | select(self.errors, rows)
        error = 3600.0 * np.stack([float_column(table, name) for name in ("ra_err", "dec_err")])
        is_missing = ~((error > 0) & np.isfinite(error))
        sigma = np.where(is_missing, self.missing_error_arcsec, error)
        mixed = 3600.0**2 * np.nan_to_num(float_column(table, "ra_dec_cov"))
        most = MAX_CORRELATION * sigma[0] * sigma[1]
        mixed = np.where(is_missing.any(axis=0), 0.0, np.clip(mixed, -most, most))
        return np.stack([*(sigma**2 + self.growth[rows].T), mixed], axis=-1)


class Candidates(NamedTuple):
    """Pairs of rows of two `Positions`, their distance (arcsec) and cost: -ln of the density (arcsec^-2) of that distance."""

    first: np.ndarray
    second: np.ndarray
    separation_arcsec: np.ndarray
    cost: np.ndarray


def float_column(table: Table, name: str, *, fill: float = np.nan) -> np.ndarray:
    """Return a float64 copy of a column, masked values as NaN; all ``fill`` where the table lacks it."""
    if name not in table:
        return np.full(len(next(iter(table.values()), ())), fill)
    return np.ma.filled(np.ma.asarray(table[name]).astype(np.float64), np.nan)


def positions_of(table: Table, config: AssociateConfig) -> Positions:
    """Return the positions of a table with ra, dec and, where known, ra_err, dec_err, ra_dec_cov (deg, deg^2)."""
    ra, dec = float_column(table, "ra"), float_column(table, "dec")
    return Positions(
        ra=ra,
        dec=dec,
        vectors=unit_vectors(ra, dec),
        errors={name: table[name] for name in ERRORS if name in table},
        missing_error_arcsec=config.missing_error_arcsec,
        growth=np.zeros((len(ra), 2)),
    )


def object_positions(table: Table, mjd_tai: float, config: AssociateConfig) -> Positions:
    """Return where DIAObjects are at a time: `positions_of`, moved by their proper motion since ``radec_mjd_tai``.

    Proper motions (pm_ra times cos(dec), pm_dec, their errors; mas/yr) of less than ``config.proper_motion_snr`` sigma are
    not used: a few points a day apart would throw an object across the field. Used ones widen the errors with time.
    """
    at = positions_of(table, config)
    if not (np.isfinite(mjd_tai) and all(name in table for name in ("pm_ra", "pm_dec", "radec_mjd_tai"))):
        return at
    rows = np.flatnonzero(np.isfinite(table["pm_ra"]) & np.isfinite(table["pm_dec"]) & np.isfinite(table["radec_mjd_tai"]))
    part = select(table, rows)
    motion, error = (
        np.stack([float_column(part, name + suffix, fill=0.0) for name in ("pm_ra", "pm_dec")], axis=-1) / 1000.0
        for suffix in ("", "_err")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        is_significant = (motion**2 / error**2).sum(axis=1) >= config.proper_motion_snr**2
    rows, motion, error = rows[is_significant], motion[is_significant], error[is_significant]
    years = (mjd_tai - float_column(part, "radec_mjd_tai")[is_significant])[:, None] / DAYS_PER_YEAR
    east, north = tangent_basis(at.ra[rows], at.dec[rows])
    shift = motion * years / ARCSEC_PER_RADIAN
    at.vectors[rows] = normalised(at.vectors[rows] + shift[:, :1] * east + shift[:, 1:] * north)
    at.growth[rows] = (error * years) ** 2
    return at


def predicted_positions(objects: Table, mjd_tai: float, config: AssociateConfig) -> Table:
    """Return dia_object_id, ra and dec (deg) of DIAObjects at a time; see `object_positions`."""
    ra, dec = sky_from_vectors(object_positions(objects, mjd_tai, config).vectors)
    return {"dia_object_id": np.asarray(objects["dia_object_id"], np.int64), "ra": ra, "dec": dec}


def candidates(first: Positions, second: Positions, config: AssociateConfig) -> Candidates:
    """Return all pairs at most ``config.radius_arcsec`` apart, with their costs; quick where ``first`` is the short list."""
    pairs = sky_pairs(first.vectors, second.vectors, config.radius_arcsec)
    return Candidates(*pairs, pair_cost(first, second, pairs.first, pairs.second, config))


def pair_cost(
    first: Positions, second: Positions, i: np.ndarray, j: np.ndarray, config: AssociateConfig, there: np.ndarray | None = None
) -> np.ndarray:
    """Return (k,) -ln of the density of the distance between rows ``i`` and ``j``, under both their errors and the floor.

    ``there`` (k, 3) stands for the directions of ``second`` where they differ from pair to pair.
    """
    east, north = tangent_basis(first.ra[i], first.dec[i])
    apart = ((second.vectors[j] if there is None else there) - first.vectors[i]) * ARCSEC_PER_RADIAN
    offset = np.stack([(apart * axis).sum(axis=-1) for axis in (east, north)], axis=-1)
    turned = turned_covariance(second.covariance(j), second.ra[j], second.dec[j], first.ra[i], first.dec[i])
    floor = config.position_floor_arcsec**2 * np.array([1.0, 1.0, 0.0])
    return gaussian_cost(offset, first.covariance(i) + turned + floor)


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Return (n, 3) vectors of length 1 of the same directions."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def select(table: Table, rows: np.ndarray) -> Table:
    """Return rows of a table; masked columns stay masked."""
    return {name: np.asanyarray(column)[rows] for name, column in table.items()}


def unique_ids(table: Table, name: str) -> np.ndarray:
    """Return an id column as int64. Raises InputError when it is missing or an id occurs twice."""
    if name not in table:
        raise InputError(f"got columns {', '.join(table)}, wanted {name} too")
    ids = np.asarray(table[name], dtype=np.int64)
    if (np.diff(ids) > 0).all():  # as databases give them
        return ids
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise InputError(f"{name} must be unique, got {values[counts > 1][0]} {counts.max()} times")
    return ids
