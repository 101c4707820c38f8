"""The columns of DIAObjects, recomputed from the history of their detections and forced fluxes, all objects at once.

Owns which rows count and what the columns are called. The statistics are kernels: `light_curve`, `periodogram`,
`space_motion`. Which detection belongs to which object is `associate`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nightstream.engine.config import DiaObjectConfig
from nightstream.engine.values import Array, Table
from nightstream.errors import InputError
from nightstream.kernels.light_curve import segment_statistics, weighted_means
from nightstream.kernels.periodogram import false_alarm_probability, find_periods
from nightstream.kernels.sky_frames import earth_position
from nightstream.kernels.space_motion import fit_space_motion

BANDS = ("u", "g", "r", "i", "z", "y")
# Column of one band: statistic of `segment_statistics`.
DETECTED = {
    "mean": "mean", "mean_err": "mean_err", "sigma": "sigma", "min": "minimum", "max": "maximum", "err_mean": "err_mean",
    "max_slope": "max_slope", "chi2": "chi2", "mad": "mad", "skew": "skew", "stetson_j": "stetson_j",
    "linear_slope": "slope", "linear_intercept": "intercept",
} | {f"percentile{percent}": f"percentile{percent}" for percent in ("05", "25", "50", "75", "95")}  # fmt: skip
# Column of a DIAObject: result of `fit_space_motion`; those of POSITION stay float64.
POSITION = {"ra": "ra", "dec": "dec", "radec_mjd_tai": "epoch"}
MOTION = {name: name for name in ("ra_err", "dec_err", "ra_dec_cov", "pm_ra", "pm_ra_err", "pm_dec", "pm_dec_err")}
MOTION |= {name: name for name in ("parallax", "parallax_err", "pm_ra_pm_dec_cov", "pm_ra_parallax_cov")}
MOTION |= {"pm_dec_parallax_cov": "pm_dec_parallax_cov", "pm_parallax_chi2": "chi2"}
DEGREES_PER_ARCSEC = 1 / 3600.0


class LightCurves(NamedTuple):
    """Fluxes sorted by object, band and time; the rows of band b of object k begin at ``start[6 k + b]``."""

    flux: Array  # (n,) float64, finite
    err: Array  # (n,) float64, > 0
    time: Array  # (n,) MJD TAI
    segment: Array  # (n,) int64
    start: Array  # (6 n_objects + 1,) int64

    @property
    def n_rows(self) -> Array:
        """Rows of each segment."""
        return np.diff(self.start)


def summarize_objects(object_ids: Array, sources: Table, forced: Table, mjd_tai: float, config: DiaObjectConfig) -> Table:
    """Compute every DIAObject column from the history of the last ``config.history_days`` before ``mjd_tai``.

    ``object_ids`` (n,) int64, ascending, each once. ``sources`` (DIASources) and ``forced`` (forced sources) hold the
    history and the current visit, rows in any order, NaN or masked for what is missing; rows of other objects are
    ignored. Of both: dia_object_id, band, midpoint_mjd_tai, psf_flux, psf_flux_err; of sources ra, dec, ra_err,
    dec_err, ra_dec_cov (optional); of forced science_flux, science_flux_err. A flux counts where it and its error are
    finite, the error positive and the band one of ugrizy; a position where ra and dec are finite.

    Returns n rows in the order of ``object_ids``: this version's columns, times float64, statistics float32, numbers
    int32; NaN where there are too few data, also ra and dec of an object without detections. The result does not
    depend on the order of rows. Raises InputError for ids out of order or missing columns.
    """
    object_ids = np.asarray(object_ids, dtype=np.int64)
    if np.any(object_ids[1:] <= object_ids[:-1]):
        raise InputError("object ids must ascend, each once")
    since, n = mjd_tai - config.history_days, len(object_ids)
    sources = _history(object_ids, sources, ("psf_flux", "psf_flux_err", "ra", "dec", "ra_err", "dec_err", "ra_dec_cov"), since)
    forced = _history(object_ids, forced, ("psf_flux", "psf_flux_err", "science_flux", "science_flux_err"), since)
    first, last, number = _times(sources, n)
    detected, differences = (_light_curves(table, "psf", n) for table in (sources, forced))
    table = {"dia_object_id": object_ids, "validity_start_mjd_tai": np.full(n, float(mjd_tai))}
    table |= {"validity_end_mjd_tai": np.full(n, np.nan)} | _positions(sources, n, config)
    table |= {"first_dia_source_mjd_tai": first, "last_dia_source_mjd_tai": last, "n_dia_sources": number}
    table |= _detected_columns(detected, first) | _forced_columns(differences, _light_curves(forced, "science", n))
    return table | _period_columns(detected if config.period_flux == "dia_sources" else differences, first, config)


def _history(object_ids: Array, table: Table, names: tuple[str, ...], since: float) -> Table:
    """Return the rows of these objects since then, by object and time: float64 columns, "object" (index) and "band" (code)."""
    wanted = ("dia_object_id", "band", "midpoint_mjd_tai", *names)
    missing = [name for name in wanted if name not in table and name != "ra_dec_cov"] if len(table) else []
    if missing:
        raise InputError(f"a history of DIAObjects wants the columns {', '.join(missing)}")
    if not table or not len(object_ids):
        return {name: np.zeros(0) for name in (*wanted, "time")} | {name: np.zeros(0, np.int64) for name in ("object", "band")}
    owner, time = np.asarray(table["dia_object_id"], dtype=np.int64), _plain(table["midpoint_mjd_tai"])
    place = np.minimum(np.searchsorted(object_ids, owner), len(object_ids) - 1)
    rows = np.flatnonzero((object_ids[place] == owner) & (time > since))
    rows = rows[_in_order(place[rows], time[rows], _plain(table["psf_flux"])[rows])]
    kept = {"object": place[rows], "time": time[rows], "band": _band_codes(np.asarray(table["band"]))[rows]}
    return kept | {name: _plain(table[name])[rows] if name in table else np.full(len(rows), np.nan) for name in names}


def _in_order(place: Array, time: Array, flux: Array) -> Array:
    """Return the order by object, time and, to break ties whatever the order was, flux: quick if objects are in order."""
    order = np.argsort(place, kind="stable")
    placed, timed = place[order], time[order]
    later = (placed[1:] > placed[:-1]) | (timed[1:] > timed[:-1])
    return order if later.all() else np.lexsort((flux, time, place))


def _plain(column: Array) -> Array:
    """Return a column as float64 with NaN where it is masked."""
    return np.ma.filled(np.ma.asarray(column).astype(np.float64), np.nan) if np.ma.isMA(column) else np.asarray(column, float)


def _band_codes(band: Array) -> Array:
    codes = np.full(len(band), -1, np.int64)
    for code, name in enumerate(BANDS):
        codes[band == name] = code
    return codes


def _light_curves(table: Table, kind: str, n: int) -> LightCurves:
    """Return the usable fluxes of ``kind`` ("psf", "science")."""
    flux, err = table[f"{kind}_flux"], table[f"{kind}_flux_err"]
    rows = np.flatnonzero(np.isfinite(flux) & np.isfinite(err) & (err > 0) & (table["band"] >= 0))
    segment = table["object"][rows] * len(BANDS) + table["band"][rows]
    order = np.argsort(segment, kind="stable")
    rows, segment = rows[order], segment[order]
    start = np.searchsorted(segment, np.arange(n * len(BANDS) + 1))
    return LightCurves(flux[rows], err[rows], table["time"][rows], segment, start)


def _times(sources: Table, n: int) -> tuple[Array, Array, Array]:
    """Return the first and last time of each object's detections, and their number."""
    start = np.searchsorted(sources["object"], np.arange(n + 1))
    number = np.diff(start).astype(np.int32)
    first, last = np.full(n, np.nan), np.full(n, np.nan)
    seen = number > 0
    first[seen], last[seen] = sources["time"][start[:-1][seen]], sources["time"][start[1:][seen] - 1]
    return first, last, number


def _positions(sources: Table, n: int, config: DiaObjectConfig) -> Table:
    rows = np.flatnonzero(np.isfinite(sources["ra"]) & np.isfinite(sources["dec"]))
    start = np.searchsorted(sources["object"][rows], np.arange(n + 1))
    time = sources["time"][rows]
    covariance = _position_covariance(sources, rows, config)
    fit = fit_space_motion(
        sources["ra"][rows], sources["dec"][rows], covariance, time, _earth_at(time), start,
        min_epochs=config.motion_min_epochs, min_days=config.motion_min_days,
    )  # fmt: skip
    table = {name: fit[result] for name, result in POSITION.items()}
    table |= {name: fit[result].astype(np.float32) for name, result in MOTION.items()}
    return table | {"pm_parallax_ndata": fit["n_data"]}


def _earth_at(time: Array) -> Array:
    """Return the (n, 3) positions of the Earth, between those of each midnight: 4e-5 AU off at most."""
    days = np.arange(np.floor(time.min()), time.max() + 2) if len(time) else np.zeros(1)
    return np.stack([np.interp(time, days, axis) for axis in earth_position(days).T], axis=-1)


def _position_covariance(sources: Table, rows: Array, config: DiaObjectConfig) -> Array:
    """Return (n, 3) deg^2: errors with the floor added, the fallback where there are none, always positive definite."""
    floor, fallback = config.position_floor_arcsec * DEGREES_PER_ARCSEC, config.missing_error_arcsec * DEGREES_PER_ARCSEC
    error = np.stack([sources["ra_err"][rows], sources["dec_err"][rows]], axis=-1)
    both = sources["ra_dec_cov"][rows]
    usable = np.isfinite(error) & (error > 0)
    error = np.where(usable, error, fallback)
    usable = usable.all(axis=-1) & (np.abs(both) < error[:, 0] * error[:, 1])
    variance = error**2 + floor**2
    return np.stack([variance[:, 0], variance[:, 1], np.where(usable, both, 0.0)], axis=-1)


def _per_band(name: str, column: Array, dtype=np.float32) -> Table:
    """Return a column of (object, band) as one column per band."""
    values = np.asarray(column).reshape(-1, len(BANDS)).astype(dtype)
    return {f"{band}_{name}": np.ascontiguousarray(values[:, code]) for code, band in enumerate(BANDS)}


def _detected_columns(curves: LightCurves, first: Array) -> Table:
    found = segment_statistics(curves.flux, curves.err, curves.time, curves.start, np.repeat(first, len(BANDS)))
    table = _per_band("psf_flux_ndata", curves.n_rows, np.int32)
    for name, statistic in DETECTED.items():
        table |= _per_band(f"psf_flux_{name}", found[statistic])
    return table


def _forced_columns(differences: LightCurves, science: LightCurves) -> Table:
    mean, error, _ = weighted_means(differences.flux, differences.err, differences.start)
    table = _per_band("fp_flux_mean", mean) | _per_band("fp_flux_mean_err", error)
    mean, error, scatter = weighted_means(science.flux, science.err, science.start)
    table |= _per_band("science_flux_mean", mean) | _per_band("science_flux_mean_err", error)
    return table | _per_band("science_flux_sigma", scatter)


def _period_columns(curves: LightCurves, first: Array, config: DiaObjectConfig) -> Table:
    """Return the periodic features: NaN for objects that do not vary, or have too few fluxes in every band."""
    n, n_bands = len(first), len(BANDS)
    chosen = _searched(curves, n, config)
    frequency, power = np.full((n, n_bands + 1), np.nan), np.full((n, n_bands + 1), np.nan)
    amplitude, phase, chance = np.full((n, n_bands), np.nan), np.full((n, n_bands), np.nan), np.full((n, n_bands + 1), np.nan)
    if len(chosen):
        part = _of_objects(curves, chosen, first, config)
        grid = _frequency_grid(part, len(chosen), config)
        found = find_periods(
            part.time, part.flux, part.err, part.start, *grid, n_bands=n_bands, min_points=config.period_min_points
        )
        frequency[chosen], power[chosen] = found.frequency, found.power
        amplitude[chosen], phase[chosen] = found.amplitude, found.phase
        chance[chosen] = _false_alarms(part, found.power, grid)
    table: Table = {}
    for name, column in {"": 1 / frequency, "_power": power, "_fap": chance}.items():
        table |= _per_band(f"psf_flux_period{name}", column[:, :n_bands])
        table["period" + name] = np.ascontiguousarray(column[:, n_bands].astype(np.float32))
    return table | _per_band("psf_flux_period_amplitude", amplitude) | _per_band("psf_flux_period_phase", phase)


def _sum_by(segment: Array, values: Array, n: int) -> Array:
    return np.bincount(segment, weights=values, minlength=n)


def _searched(curves: LightCurves, n: int, config: DiaObjectConfig) -> Array:
    """Return the indices of the objects that vary significantly about their means in the bands with enough fluxes."""
    mean = weighted_means(curves.flux, curves.err, curves.start)[0]
    chi2 = _sum_by(curves.segment, ((curves.flux - mean[curves.segment]) / curves.err) ** 2, n * len(BANDS))
    used = curves.n_rows >= config.period_min_points
    chi2, spare = (np.where(used, a, 0.0).reshape(n, len(BANDS)).sum(axis=1) for a in (chi2, curves.n_rows - 1))
    return np.flatnonzero((spare > 0) & (chi2 - spare >= config.period_min_significance * np.sqrt(2 * spare)))


def _of_objects(curves: LightCurves, chosen: Array, first: Array, config: DiaObjectConfig) -> LightCurves:
    """Return the bands with enough fluxes of those objects alone, times counted from each object's first detection."""
    n_bands = len(BANDS)
    place = np.full(len(first), -1)
    place[chosen] = np.arange(len(chosen))
    owner, band = curves.segment // n_bands, curves.segment % n_bands
    rows = np.flatnonzero((place[owner] >= 0) & (curves.n_rows >= config.period_min_points)[curves.segment])
    segment = place[owner[rows]] * n_bands + band[rows]
    start = np.searchsorted(segment, np.arange(len(chosen) * n_bands + 1))
    time = curves.time[rows] - first[owner[rows]]
    return LightCurves(curves.flux[rows], curves.err[rows], time, segment, start)


def _frequency_grid(part: LightCurves, n: int, config: DiaObjectConfig) -> tuple[Array, Array, Array]:
    """Return per object the lowest frequency (one cycle in its baseline), the step, and the number of steps."""
    begin = part.start[:: len(BANDS)][:n]
    span = np.maximum.reduceat(part.time, begin) - np.minimum.reduceat(part.time, begin)
    lowest = 1 / np.where(span > 0, span, np.inf)
    step = lowest / config.period_oversample
    with np.errstate(divide="ignore", invalid="ignore"):
        n_steps = np.floor((1 / config.period_min_days - lowest) / step) + 1
    return lowest, step, np.where(step > 0, np.maximum(n_steps, 0), 0).astype(np.int32)


def _false_alarms(part: LightCurves, power: Array, grid: tuple[Array, Array, Array]) -> Array:
    """Return (n, 7) probabilities that noise reaches ``power``: each band, and all together."""
    n, n_bands = len(power), len(BANDS)
    mean_time, _, _ = weighted_means(part.time, part.err, part.start)
    weight = part.err**-2.0
    spread = _sum_by(part.segment, weight * (part.time - mean_time[part.segment]) ** 2, n * n_bands).reshape(n, n_bands)
    total = _sum_by(part.segment, weight, n * n_bands).reshape(n, n_bands)
    points, highest = part.n_rows.reshape(n, n_bands), grid[0] + (grid[2] - 1) * grid[1]
    is_used = points > 0
    variance = np.where(is_used, spread / np.where(is_used, total, 1.0), np.nan)
    together = np.sum(points * np.where(is_used, variance, 0.0), axis=1) / points.sum(axis=1)
    cycles = highest[:, None] * np.sqrt(4 * np.pi * np.column_stack([variance, together]))
    n_points = np.column_stack([np.where(is_used, points, 5), points.sum(axis=1)])
    bands = np.column_stack([np.ones((n, n_bands)), is_used.sum(axis=1)])
    return false_alarm_probability(power, n_points, bands, cycles)
