"""Known Solar System objects among the DIASources of a visit: who is where it was predicted, and the SSSource rows.

Predictions are made elsewhere (`nightstream.io.ephemerides` reads them); here they are moved to the time of each source.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nightstream.engine.config import AssociateConfig
from nightstream.engine.matching import float_column, normalised, pair_cost, positions_of, select, unique_ids
from nightstream.engine.values import Table
from nightstream.errors import InputError
from nightstream.kernels.assignment import assign
from nightstream.kernels.sky_frames import (
    ARCSEC_PER_RADIAN,
    ecliptic_from_equatorial,
    galactic_from_equatorial,
    heliocentric_earth,
    sky_from_vectors,
    tangent_basis,
    unit_vectors,
)
from nightstream.kernels.sky_match import MAX_RADIUS_ARCSEC, sky_pairs

AXES = ("x", "y", "z")
DAY_FRACTION = 1e-9  # days; times nearer than that are one time


class SolarSystemMatch(NamedTuple):
    """Which source (row) is which prediction (row): k pairs, by source."""

    source: np.ndarray
    prediction: np.ndarray
    separation_arcsec: np.ndarray
    rank: np.ndarray  # of the source among those near the prediction, 1 the nearest


def predictions_for(ephemerides: Table, visit: int, mjd_tai: float, config: AssociateConfig) -> Table:
    """Return the rows of ``ephemerides`` that say where objects are in a visit in whose middle it is ``mjd_tai``.

    With a column visit: the rows of that visit. Else, with mjd: of each object the row nearest in time, if that is within
    ``config.ephemeris_max_days``. With neither: all. Nothing is moved yet. Raises InputError when an object is left with
    several rows.
    """
    ids = np.asarray(ephemerides["ss_object_id"], dtype=np.int64)
    rows = np.arange(len(ids))
    if "visit" in ephemerides:
        rows = np.flatnonzero(np.asarray(ephemerides["visit"]) == visit)
    elif "mjd" in ephemerides:
        mjd = float_column(ephemerides, "mjd")
        away = np.abs(mjd - mjd_tai)
        order = np.lexsort((mjd, away, ids))
        is_nearest = np.diff(ids[order], prepend=0) != 0
        rows = order[is_nearest & (away[order] <= config.ephemeris_max_days)]
    values, counts = np.unique(ids[rows], return_counts=True)
    if (counts > 1).any():
        raise InputError(f"Solar System object {values[counts > 1][0]} has {counts.max()} predictions, wanted one", visit=visit)
    return select(ephemerides, rows)


def match_predictions(sources: Table, predictions: Table, config: AssociateConfig) -> SolarSystemMatch:
    """Return which source is which predicted object, one to one, at most ``config.radius_arcsec`` apart.

    Each prediction (ra, dec at ``mjd``; rates ra_rate, dec_rate in deg/day, ra_rate not times cos(dec)) is moved to the time
    of the source it is compared with. Costs are those of DIAObjects; ra_err and dec_err of a prediction are honoured.
    """
    one, two = positions_of(sources, config), positions_of(predictions, config)
    mjd = float_column(sources, "midpoint_mjd_tai")
    middle = float(np.nanmedian(mjd)) if np.isfinite(mjd).any() else np.nan
    spread = np.nanmax(np.abs(mjd - middle), initial=0.0)
    fastest = np.nanmax(np.linalg.norm(sky_rates(predictions), axis=1), initial=0.0)  # deg / day
    reach = min(config.radius_arcsec + 3600.0 * fastest * spread, MAX_RADIUS_ARCSEC)
    near = sky_pairs(one.vectors, moved(predictions, middle), reach)
    i, j = near.first, near.second
    there = moved(select(predictions, j), mjd[i])
    apart = 2.0 * np.arcsin(0.5 * np.linalg.norm(there - one.vectors[i], axis=1)) * ARCSEC_PER_RADIAN
    close = apart <= config.radius_arcsec
    i, j, apart, there = i[close], j[close], apart[close], there[close]
    cost = pair_cost(one, two, i, j, config, there)
    source_id, prediction_id = unique_ids(sources, "dia_source_id"), unique_ids(predictions, "ss_object_id")
    kept = assign(source_id[i], prediction_id[j], cost, config.no_match_cost)
    kept = kept[np.argsort(i[kept], kind="stable")]
    return SolarSystemMatch(i[kept], j[kept], apart[kept], _rank(j, apart, source_id[i])[kept])


def sky_rates(predictions: Table) -> np.ndarray:
    """Return (n, 2) deg/day towards east and north; NaN where unknown."""
    cosine = np.cos(np.radians(float_column(predictions, "dec")))
    return np.stack([float_column(predictions, "ra_rate") * cosine, float_column(predictions, "dec_rate")], axis=-1)


def moved(predictions: Table, mjd_tai) -> np.ndarray:
    """Return (n, 3) unit vectors of predictions moved by their rates to a time, scalar or (n,); as is where either is NaN."""
    ra, dec = float_column(predictions, "ra"), float_column(predictions, "dec")
    days = np.nan_to_num(mjd_tai - float_column(predictions, "mjd"))
    days = np.where(np.abs(days) < DAY_FRACTION, 0.0, days)
    east, north = tangent_basis(ra, dec)
    shift = np.radians(np.nan_to_num(sky_rates(predictions)) * days[:, None])
    return normalised(unit_vectors(ra, dec) + shift[:, :1] * east + shift[:, 1:] * north)


def ss_sources(sources: Table, predictions: Table, match: SolarSystemMatch) -> Table:
    """Return the SSSource rows of the matched sources, in their order: every column of the APDB, NaN where not known.

    Offsets are observed minus predicted, at the source's time; across the track is positive north of an eastward motion.
    Vectors are the predictions' own (helio_x .. topo_vz, AU and km/s) or, where only topo_range (AU) is known, follow from
    the direction and the Earth's place.
    """
    source, prediction = select(sources, match.source), select(predictions, match.prediction)
    n = len(match.source)
    ra, dec = float_column(source, "ra"), float_column(source, "dec")
    (lam, beta), (lon, lat) = ecliptic_from_equatorial(ra, dec), galactic_from_equatorial(ra, dec)
    names = np.asarray(prediction["designation"]) if "designation" in prediction else np.full(n, "")
    return {
        "dia_source_id": np.asarray(source["dia_source_id"], dtype=np.int64),
        "ss_object_id": np.asarray(prediction["ss_object_id"], dtype=np.int64),
        "designation": names,
        "ecl_lambda": lam,
        "ecl_beta": beta,
        "gal_lon": lon,
        "gal_lat": lat,
        **_ephemeris_columns(source, prediction),
        **_space_columns(source, prediction),
        "dia_distance_rank": np.minimum(match.rank, np.iinfo(np.int16).max).astype(np.int16),
    }


def _ephemeris_columns(source: Table, prediction: Table) -> Table:
    there = moved(prediction, float_column(source, "midpoint_mjd_tai"))
    ra, dec = sky_from_vectors(there)
    rates = sky_rates(prediction)
    rate = np.linalg.norm(rates, axis=1)
    east, north = tangent_basis(ra, dec)
    apart = (unit_vectors(float_column(source, "ra"), float_column(source, "dec")) - there) * ARCSEC_PER_RADIAN
    dx, dy = (apart * east).sum(axis=1), (apart * north).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mx, my = (rates / rate[:, None]).T
    return {
        "eph_ra": ra,
        "eph_dec": dec,
        "eph_vmag": float_column(prediction, "mag"),
        "eph_rate": rate,
        "eph_rate_ra": rates[:, 0],
        "eph_rate_dec": rates[:, 1],
        "eph_offset": np.hypot(dx, dy),
        "eph_offset_ra": dx,
        "eph_offset_dec": dy,
        "eph_offset_along_track": dx * mx + dy * my,
        "eph_offset_cross_track": dy * mx - dx * my,
    }


def _space_columns(source: Table, prediction: Table) -> Table:
    """Distances, vectors and angles in the Solar System: NaN but for the elongation where no distance is known."""
    mjd = float_column(source, "midpoint_mjd_tai")
    earth, there = heliocentric_earth(mjd), moved(prediction, mjd)
    topo = _known(_vectors(prediction, "topo_"), float_column(prediction, "topo_range")[:, None] * there)
    helio = _known(_vectors(prediction, "helio_"), topo + earth)
    speeds = {name: _vectors(prediction, f"{name}_v") for name in ("helio", "topo")}
    columns = {"elongation": _angle(there, _known(topo - helio, -earth)), "phase_angle": _angle(helio, topo)}
    for name, vector in (("topo", topo), ("helio", helio)):
        distance = np.linalg.norm(vector, axis=1)
        rate = (vector * speeds[name]).sum(axis=1) / distance
        columns[f"{name}_range"] = distance
        columns[f"{name}_range_rate"] = _known(float_column(prediction, f"{name}_range_rate"), rate)
        columns |= {f"{name}_{axis}": vector[:, k] for k, axis in enumerate(AXES)}
        columns |= {f"{name}_v{axis}": speeds[name][:, k] for k, axis in enumerate(AXES)}
        columns[f"{name}_vtot"] = np.linalg.norm(speeds[name], axis=1)
    return columns


def _vectors(table: Table, prefix: str) -> np.ndarray:
    return np.stack([float_column(table, prefix + axis) for axis in AXES], axis=-1)


def _known(values: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, otherwise)


def _angle(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return (n,) deg between vectors, exact for small angles too."""
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(one, two), axis=1), (one * two).sum(axis=1)))


def _rank(prediction, apart, source_id) -> np.ndarray:
    """Return (k,) 1 for the nearest source of each prediction, 2 for the next; equal distances by source id."""
    order = np.lexsort((source_id, apart, prediction))
    first = np.flatnonzero(np.diff(prediction[order], prepend=-1))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order)))) + 1
    return rank
