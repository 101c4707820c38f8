"""Alerts in numbers: how many and how late, visit by visit, and how right they are where the truth is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nightstream.engine.tables import take
from nightstream.engine.values import Array, Table
from nightstream.kernels.sky_frames import unit_vectors

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from nightstream.scheduler.alert_stream import AlertOutcome

LATE_QUANTILE = 0.98  # of the alerts of a visit, in 60 s: what LSST promises
MATCH_RADIUS_ARCSEC = 0.9
TRAIL_RADIUS_ARCSEC = 2.0  # an asteroid's peak may lie anywhere on its trail
FALSE = "false"
KINDS = ("transient", "variable", "asteroid", FALSE)
FIXED = ("transient", "variable")  # kinds that stay where they are

Identity = tuple[str, int]  # kind and true_id


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitAlerts:
    """The alerts of one visit."""

    visit: int
    n_alerts: int
    n_new_objects: int  # DIAObjects that began with one of them
    n_solar_system: int  # attributed to a known Solar System object
    latencies_s: Array  # readout to sent, of those that were sent


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationScore:
    """Do the sources of one true object make one DIAObject? Objects with two sources or more count."""

    n_true: int  # objects that stay where they are, with several sources
    n_sources: int  # theirs
    n_together: int  # of those, in the DIAObject that holds most of the object's sources
    n_extra: int  # DIAObjects beyond one for each true object
    n_mixed: int  # DIAObjects with sources of several true objects, or of a true one and false ones

    @property
    def purity(self) -> float:
        """Share of the sources that are together; NaN without any."""
        return self.n_together / self.n_sources if self.n_sources else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class SolarSystemScore:
    """Which sources were attributed to Solar System objects."""

    n_known: int  # sources of asteroids that are in the ephemerides
    n_right: int  # of those, with the number of their asteroid
    n_wrong: int  # sources with a number that is not theirs: of another asteroid, or of none that is known


def of_outcome(outcome: AlertOutcome) -> list[VisitAlerts]:
    """Return the numbers of each visit of a run, in the order of publication."""
    return [
        VisitAlerts(
            visit=done.visit,
            n_alerts=done.n_alerts,
            n_new_objects=done.n_new_objects,
            n_solar_system=done.n_solar_system,
            latencies_s=outcome.latencies_s.get(done.visit, np.empty(0)),
        )
        for done in outcome.visits
    ]


def latency_quantiles(latencies_s: Array) -> tuple[float, float, float]:
    """Return median, 98 % quantile and maximum (s) of finite latencies; NaN where there are none.

    The 98 % quantile is a latency that was measured, with at least 98 % of all at or below it.
    """
    if not len(latencies_s):
        return (float("nan"),) * 3
    late = np.quantile(latencies_s, LATE_QUANTILE, method="inverted_cdf")
    return float(np.median(latencies_s)), float(late), float(np.max(latencies_s))


def alerts_table(visits: Iterable[VisitAlerts]) -> RichTable:
    """Return a row a visit, and one for all together where there are several."""
    from rich.table import Table as RichTable

    visits = list(visits)
    table = RichTable(title="Alerts; latency in seconds from readout to sent", title_justify="left")
    for name in ("visit", "alerts", "new objects", "Solar System", "median", "98 %", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for visit in visits:
        table.add_row(str(visit.visit), *_cells(visit))
    if len(visits) > 1:
        table.add_section()
        table.add_row("all", *_cells(_all_together(visits)))
    return table


def _all_together(visits: list[VisitAlerts]) -> VisitAlerts:
    sums = {name: sum(getattr(visit, name) for visit in visits) for name in ("n_alerts", "n_new_objects", "n_solar_system")}
    return VisitAlerts(visit=0, latencies_s=np.concatenate([visit.latencies_s for visit in visits]), **sums)


def _cells(visit: VisitAlerts) -> list[str]:
    seconds = [f"{value:.2f}" if np.isfinite(value) else "-" for value in latency_quantiles(visit.latencies_s)]
    return [str(visit.n_alerts), str(visit.n_new_objects), str(visit.n_solar_system), *seconds]


def add_truth(sources: Table, changes: Table) -> Table:
    """Return ``sources`` with ``kind`` (one of `KINDS`) and ``true_id`` (-1 for false): the nearest true change of their visit.

    ``sources`` has visit, ra, dec (deg); ``changes`` is the simulator's table, or has its columns kind, id, visit, ra, dec.
    """
    kind, true_id = np.full(len(sources["ra"]), FALSE, dtype="U10"), np.full(len(sources["ra"]), -1, dtype=np.int64)
    for visit in np.unique(sources["visit"]):
        here, true = np.flatnonzero(sources["visit"] == visit), np.flatnonzero(changes["visit"] == visit)
        nearest = _nearest(take(sources, here), take(changes, true))
        found = nearest >= 0
        kind[here[found]] = changes["kind"][true[nearest[found]]]
        true_id[here[found]] = changes["id"][true[nearest[found]]]
    return sources | {"kind": kind, "true_id": true_id}


def count_kinds(sources: Table) -> dict[str, int]:
    """Return how many rows of `add_truth` are of each kind."""
    return {kind: int((sources["kind"] == kind).sum()) for kind in KINDS}


def score_association(sources: Table) -> AssociationScore:
    """Judge the dia_object_id of rows of `add_truth`, of all visits together; 0 is no object."""
    objects_of: dict[Identity, Counter] = {}  # what truly is there: how many of its sources each DIAObject has
    truths_of: dict[int, set[Identity]] = {}  # DIAObject: what its sources truly are
    for identity, number in zip(_identities(sources), sources["dia_object_id"].tolist(), strict=True):
        objects_of.setdefault(identity, Counter())[number] += 1
        truths_of.setdefault(number, set()).add(identity)
    held = [counts for (kind, _), counts in objects_of.items() if kind in FIXED and counts.total() > 1]
    named = [[count for number, count in counts.items() if number] for counts in held]
    mixed = [number for number, truths in truths_of.items() if number and len(truths) > 1 and _has_fixed(truths)]
    return AssociationScore(
        n_true=len(held),
        n_sources=sum(counts.total() for counts in held),
        n_together=sum(max(counts, default=0) for counts in named),
        n_extra=sum(max(len(counts) - 1, 0) for counts in named),
        n_mixed=len(mixed),
    )


def score_solar_system(sources: Table, asteroids: Table) -> SolarSystemScore:
    """Judge the ss_object_id (0 for none) of rows of `add_truth`; ``asteroids`` has id and ss_object_id, 0 for undiscovered."""
    true = np.zeros(len(sources["ra"]), dtype=np.int64)
    for number, ss_object_id in zip(asteroids["id"], asteroids["ss_object_id"], strict=True):
        true[(sources["kind"] == "asteroid") & (sources["true_id"] == number)] = ss_object_id
    given = sources["ss_object_id"]
    return SolarSystemScore(
        n_known=int((true != 0).sum()),
        n_right=int(((true != 0) & (given == true)).sum()),
        n_wrong=int(((given != 0) & (given != true)).sum()),
    )


def accuracy_table(sources: Table, asteroids: Table) -> RichTable:
    """Return what the alerts were truly of, and how well they were associated; ``sources`` are rows of `add_truth`."""
    from rich.table import Table as RichTable

    together, solar, kinds = score_association(sources), score_solar_system(sources, asteroids), count_kinds(sources)
    table = RichTable(title="Alerts against the truth", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("of transients, variables, asteroids", ", ".join(str(kinds[kind]) for kind in KINDS[:3]))
    table.add_row("of nothing that changed", str(kinds[FALSE]))
    share = f" ({together.purity:.1%})" if together.n_sources else ""
    table.add_row("sources of one object in one DIAObject", f"{together.n_together} of {together.n_sources}{share}")
    table.add_row("DIAObjects too many, mixed", f"{together.n_extra}, {together.n_mixed}")
    table.add_row("known asteroids recognised", f"{solar.n_right} of {solar.n_known}; {solar.n_wrong} wrongly")
    return table


def _identities(sources: Table) -> list[Identity]:
    """What each source truly is; all false ones are the same."""
    return list(zip(sources["kind"].tolist(), sources["true_id"].tolist(), strict=True))


def _has_fixed(truths: set[Identity]) -> bool:
    return any(kind in FIXED for kind, _ in truths)


def _nearest(sources: Table, changes: Table) -> Array:
    """Row of the nearest change within reach of each source, -1 for none; distances count in units of the reach."""
    best, row = np.full(len(sources["ra"]), np.inf), np.full(len(sources["ra"]), -1)
    moves = changes["kind"] == "asteroid"
    for rows, reach in ((np.flatnonzero(~moves), MATCH_RADIUS_ARCSEC), (np.flatnonzero(moves), TRAIL_RADIUS_ARCSEC)):
        distance, nearest = _closest(sources, take(changes, rows))
        closer = (distance <= reach) & (distance / reach < best)
        best[closer], row[closer] = (distance / reach)[closer], rows[nearest[closer]]
    return row


def _closest(sources: Table, changes: Table) -> tuple[Array, Array]:
    """Distance (arcsec) and row of the nearest change; infinite where there is none."""
    from scipy.spatial import cKDTree

    if not len(changes["ra"]):
        return np.full(len(sources["ra"]), np.inf), np.zeros(len(sources["ra"]), dtype=np.int64)
    chord, row = cKDTree(unit_vectors(changes["ra"], changes["dec"])).query(unit_vectors(sources["ra"], sources["dec"]))
    return np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1))) * 3600.0, row
