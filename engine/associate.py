"""Which DIASource belongs to which object: all sources of a visit at once, so that no order of detectors can matter.

First come sources seen twice on overlapping detectors, then known Solar System objects, then DIAObjects; what is left
becomes new DIAObjects, unless its flags forbid. Host tables only; nothing is written here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from nightstream.engine.config import AssociateConfig
from nightstream.engine.matching import Positions, candidates, float_column, object_positions, positions_of, select, unique_ids
from nightstream.engine.solar_system import match_predictions, predictions_for, ss_sources
from nightstream.engine.values import Table
from nightstream.errors import InputError
from nightstream.kernels.assignment import assign

WANTED = ("dia_source_id", "detector", "ra", "dec", "midpoint_mjd_tai")
NO_OBJECTS = {"dia_object_id": np.zeros(0, np.int64), "ra": np.zeros(0), "dec": np.zeros(0)}
NO_PREDICTIONS = {"ss_object_id": np.zeros(0, np.int64), "ra": np.zeros(0), "dec": np.zeros(0)}
# An unmatched source with one of these is not taken for a new object.
MARGINAL_FLAGS = (
    "centroid_flag",
    *(f"pixel_flags_{plane}_center" for plane in ("cr", "nodata", "interpolated", "saturated", "suspect", "streak")),
    "glint_trail",
    "star_residual",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """What became of the n sources of a visit, in the order they were given.

    A source to be stored has a DIAObject or a Solar System object, never both; all others are left out, for the reason that
    one of ``is_marginal``, ``is_duplicate`` or ``is_refused`` gives.
    """

    dia_object_id: np.ndarray  # int64, 0 none; a new object has the number of its first source
    ss_object_id: np.ndarray  # int64, 0 none
    is_new: np.ndarray  # bool: the first source of a new DIAObject
    is_marginal: np.ndarray  # bool: belongs to nothing known and is flagged, or has no position
    is_duplicate: np.ndarray  # bool: the same light as a better source of another detector of this visit
    is_refused: np.ndarray  # bool: its detector has too many new objects
    separation_arcsec: np.ndarray  # float64, to the object's predicted position; NaN where there was none
    ss_sources: Table  # SSSource rows, ordered by dia_source_id
    refused: dict[int, str] = field(default_factory=dict)  # detector: why nothing of it was associated

    @property
    def is_stored(self) -> np.ndarray:
        """(n,) bool: sources that belong to an object."""
        return (self.dia_object_id != 0) | (self.ss_object_id != 0)


def associate(
    sources: Table, objects: Table, config: AssociateConfig, *, ephemerides: Table | None = None, claimed=()
) -> Association:
    """Say which of the objects each DIASource of one visit belongs to.

    ``sources``: dia_source_id, detector, ra, dec (deg, ICRS), midpoint_mjd_tai and, where known, ra_err, dec_err,
    ra_dec_cov (deg; ra's times cos(dec)), snr, science_flux and its error, visit, reliability and flags. ``objects``:
    dia_object_id, ra, dec and, where known, their errors, radec_mjd_tai, pm_ra, pm_dec (mas/yr) and their errors.
    ``ephemerides``: predictions of one visit or many (`solar_system.predictions_for`). ``claimed``: objects (of either kind)
    that have a source of this visit already, from detectors that were stored before; a source that would be theirs is a
    duplicate.

    A pair costs -ln of its Gaussian density under the errors of both, with a floor; of all one-to-one matches within
    ``config.radius_arcsec`` the one of least total cost is taken, where a source alone costs ``config.no_match_cost``.
    Sources and objects with NaN positions match nothing. The result depends on no order: ties are broken by number.
    A detector with more than ``config.max_new_objects_per_detector`` new objects is refused whole, and the others are
    associated as if it were not there. Raises InputError on missing columns, numbers that occur twice, or several visits.
    """
    visit, mjd = _check(sources)
    object_ids = unique_ids(objects or NO_OBJECTS, "dia_object_id")
    where = positions_of(sources, config)
    predictions = predictions_for(ephemerides or NO_PREDICTIONS, visit, mjd, config)
    known = object_positions(objects or NO_OBJECTS, mjd, config), object_ids
    detector = np.asarray(sources["detector"])
    refused: dict[int, str] = {}
    while True:
        active = ~np.isin(detector, list(refused))
        result = _associate(sources, where, active, known, predictions, np.asarray(claimed, dtype=np.int64), config)
        names, counts = np.unique(detector[result.is_new], return_counts=True)
        crowded = {int(n): int(k) for n, k in zip(names, counts, strict=True) if k > config.max_new_objects_per_detector}
        if not crowded:
            return replace(result, refused=dict(sorted(refused.items())))
        for name, count in crowded.items():
            refused[name] = f"{count} new DIAObjects, wanted at most {config.max_new_objects_per_detector}"


def _check(sources: Table) -> tuple[int, float]:
    """Return the visit, 0 where not told, and its time, NaN where no source has one."""
    missing = [name for name in WANTED if name not in sources]
    if missing:
        raise InputError(f"association wants the columns {', '.join(WANTED)} of sources, without: {', '.join(missing)}")
    unique_ids(sources, "dia_source_id")
    visits = np.unique(np.asarray(sources["visit"])) if "visit" in sources else np.zeros(0, np.int64)
    if len(visits) > 1:
        raise InputError(f"sources of one visit are associated at a time, got visits {', '.join(map(str, visits))}")
    mjd = float_column(sources, "midpoint_mjd_tai")
    mjd = mjd[np.isfinite(mjd)]
    return (int(visits[0]) if len(visits) else 0), (float(np.median(mjd)) if len(mjd) else np.nan)


def _associate(sources, where, active, known, predictions, claimed, config) -> Association:
    """Associate the ``active`` sources as if there were no others."""
    ids = np.asarray(sources["dia_source_id"], dtype=np.int64)
    has_position, flagged = np.isfinite(where.vectors).all(axis=1), _is_flagged(sources, config)
    is_duplicate = _seen_twice(sources, where, np.flatnonzero(active & has_position), flagged, config)
    rows = np.flatnonzero(active & has_position & ~is_duplicate)
    rows = rows[np.argsort(ids[rows])]
    numbers, separation = np.zeros((2, len(ids)), np.int64), np.full(len(ids), np.nan)
    seen = select(sources, rows)
    match = match_predictions(seen, predictions, config)
    numbers[0, rows[match.source]] = predictions["ss_object_id"][match.prediction]
    separation[rows[match.source]] = match.separation_arcsec
    rest = rows[numbers[0, rows] == 0]
    numbers[1, rest], separation[rest] = _known_objects(where.take(rest), ids[rest], known, config)
    is_taken = np.isin(numbers, claimed[claimed != 0])
    is_duplicate |= is_taken.any(axis=0)
    is_unmatched = active & ~is_duplicate & (numbers == 0).all(axis=0)
    is_marginal = is_unmatched & (flagged | ~has_position)
    is_new = is_unmatched & ~is_marginal
    numbers[is_taken], numbers[1, is_new] = 0, ids[is_new]
    ss_table = ss_sources(seen, predictions, match)
    return Association(
        dia_object_id=numbers[1],
        ss_object_id=numbers[0],
        is_new=is_new,
        is_marginal=is_marginal,
        is_duplicate=is_duplicate,
        is_refused=~active,
        separation_arcsec=np.where((numbers != 0).any(axis=0), separation, np.nan),
        ss_sources=select(ss_table, np.flatnonzero(~np.isin(ss_table["ss_object_id"], claimed))),
    )


def _known_objects(where: Positions, ids, known, config):
    """Return (object number or 0, arcsec or NaN) of each source: the least assignment to the ``known`` DIAObjects."""
    objects, object_ids = known
    near = candidates(where, objects, config)
    kept = assign(ids[near.first], object_ids[near.second], near.cost, config.no_match_cost)
    number, separation = np.zeros(len(ids), np.int64), np.full(len(ids), np.nan)
    number[near.first[kept]] = object_ids[near.second[kept]]
    separation[near.first[kept]] = near.separation_arcsec[kept]
    return number, separation


def _is_flagged(sources: Table, config: AssociateConfig) -> np.ndarray:
    """Return (n,) bool: sources that make no object of their own."""
    flagged = float_column(sources, "reliability") < config.min_reliability  # NaN is not below anything
    error = float_column(sources, "science_flux_err")
    flagged |= (error > 0) & (float_column(sources, "science_flux") < config.min_science_snr * error)
    for name in MARGINAL_FLAGS:
        if name in sources:
            flagged |= np.asarray(sources[name], dtype=bool)
    return flagged


def _seen_twice(sources: Table, where: Positions, rows, flagged, config) -> np.ndarray:
    """Return (n,) bool: sources that are a better source of another detector, seen again where the two overlap.

    Links join sources of two detectors one to one, at the costs of a match. A source is kept unless it is linked to a kept
    one that is better: unflagged before flagged, then of larger |snr|, then of lower number.
    """
    ids, detector = np.asarray(sources["dia_source_id"], dtype=np.int64), np.asarray(sources["detector"])
    is_duplicate = np.zeros(len(ids), dtype=bool)
    if len(np.unique(detector[rows])) < 2:
        return is_duplicate
    one, two = _links(where, rows[np.argsort(ids[rows])], detector, config)
    linked = np.unique(np.concatenate([one, two]))
    snr = np.nan_to_num(np.abs(float_column(sources, "snr")))
    neighbours: dict[int, list[int]] = {row: [] for row in linked.tolist()}
    for i, j in zip(one.tolist(), two.tolist(), strict=True):
        neighbours[i].append(j)
        neighbours[j].append(i)
    for row in linked[np.lexsort((ids[linked], -snr[linked], flagged[linked]))].tolist():
        if not is_duplicate[row]:
            is_duplicate[neighbours[row]] = True
    return is_duplicate


def _links(where: Positions, rows, detector, config):
    """Return pairs of rows of different detectors that are the same light: for every two detectors, one to one."""
    positions = where.take(rows)
    near = candidates(positions, positions, config)
    names, number = np.unique(detector[rows], return_inverse=True)
    lower = np.flatnonzero(number[near.first] < number[near.second])
    i, j, cost = near.first[lower], near.second[lower], near.cost[lower]
    # a source has one place for each other detector, so that one assignment serves all pairs of detectors
    kept = assign(i * len(names) + number[j], j * len(names) + number[i], cost, config.no_match_cost)
    return rows[i[kept]], rows[j[kept]]
