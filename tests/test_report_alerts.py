"""Alerts in numbers: counts and latencies, and the judgement of alerts by the truth."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from nightstream.report.alerts import (
    VisitAlerts,
    accuracy_table,
    add_truth,
    alerts_table,
    count_kinds,
    latency_quantiles,
    of_outcome,
    score_association,
    score_solar_system,
)

ASTEROIDS = {"id": np.array([0, 1, 2]), "ss_object_id": np.array([1001, 1002, 0])}


def printed(table) -> str:
    console = Console(width=120, record=True)
    console.print(table)
    return console.export_text()


def of_visit(number, latencies_s=(), **counts) -> VisitAlerts:
    """The alerts of a visit: three, of which none is special, unless told otherwise."""
    return VisitAlerts(
        visit=number, latencies_s=np.array(latencies_s), **{"n_alerts": 3, "n_new_objects": 0, "n_solar_system": 0} | counts
    )


def changes(**columns) -> dict:
    """True changes, numbered from 0, of visit 1 at dec 2, unless told otherwise."""
    count = len(next(iter(columns.values())))
    table = {"id": np.arange(count), "visit": np.ones(count, int), "ra": np.full(count, 150.0), "dec": np.full(count, 2.0)}
    return table | {"kind": np.full(count, "transient")} | {name: np.asarray(values) for name, values in columns.items()}


def judged(kind, true_id, dia_object_id, ss_object_id=None) -> dict:
    """Sources whose truth is known."""
    count = len(kind)
    none = np.zeros(count, int)
    table = {"visit": np.arange(count), "ra": np.zeros(count), "dec": np.zeros(count), "kind": np.array(kind)}
    table |= {"true_id": np.array(true_id), "dia_object_id": np.array(dia_object_id)}
    return table | {"ss_object_id": none if ss_object_id is None else np.array(ss_object_id)}


def test_numbers_of_a_run_come_in_the_order_of_publication():
    """Each visit with its own latencies."""
    published = [SimpleNamespace(visit=visit, n_alerts=visit, n_new_objects=1, n_solar_system=0) for visit in (9, 8)]
    outcome = SimpleNamespace(visits=published, latencies_s={8: np.array([8.0]), 9: np.array([9.0])})
    assert [(visit.visit, visit.n_alerts, visit.latencies_s[0]) for visit in of_outcome(outcome)] == [(9, 9, 9.0), (8, 8, 8.0)]


def test_no_alerts_are_no_visits():
    """The table of nothing is its heading."""
    assert "new objects" in printed(alerts_table([]))


def test_late_quantile_was_measured_and_holds_for_98_percent():
    """Of a hundred latencies two are later than the 98 % quantile."""
    seconds = np.random.default_rng(1).permutation(np.arange(1.0, 101.0))
    assert latency_quantiles(seconds) == (50.5, 98.0, 100.0)
    assert latency_quantiles(np.array([4.0])) == (4.0, 4.0, 4.0)
    assert np.isnan(latency_quantiles(np.zeros(0))).all()


def test_alerts_table_has_a_row_a_visit_and_one_for_all():
    """Latencies to a hundredth of a second; a dash where nothing was sent."""
    text = printed(alerts_table([of_visit(7, [1.0, 2.0], n_new_objects=1), of_visit(8, n_solar_system=2)]))
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in text.splitlines() if line.startswith("│")]
    assert rows == [
        ["7", "3", "1", "0", "1.50", "2.00", "2.00"],
        ["8", "3", "0", "2", "-", "-", "-"],
        ["all", "6", "1", "2", "1.50", "2.00", "2.00"],
    ]


def test_sources_are_what_is_nearest_in_their_visit():
    """Within reach the nearest change counts, an asteroid's trail reaches farther, other visits do not count."""
    arcsec = 1 / 3600
    true = changes(
        dec=2.0 + np.array([0.0, 1.0, 30.0, 60.0]) * arcsec, kind=["transient", "variable", "asteroid", "transient"],
        id=[4, 5, 6, 7], visit=[1, 1, 1, 2],
    )  # fmt: skip
    dec = 2.0 + np.array([0.2, 0.6, -1.0, 31.5, 33.0, 60.0]) * arcsec
    table = add_truth({"visit": np.ones(6, int), "ra": np.full(6, 150.0), "dec": dec}, true)
    assert table["kind"].tolist() == ["transient", "variable", "false", "asteroid", "false", "false"]
    assert table["true_id"].tolist() == [4, 5, -1, 6, -1, -1]
    assert count_kinds(table) == {"transient": 1, "variable": 1, "asteroid": 1, "false": 3}


@pytest.mark.parametrize(("ra", "dec"), [(0.0, 0.0), (10.0, 90.0), (359.99999, -60.0)])
def test_truth_is_found_anywhere_on_the_sky(ra, dec):
    """Poles and the wrap of right ascension are nothing special."""
    offset = 0.3 / 3600
    at = {"visit": np.array([1]), "ra": np.array([(ra + offset) % 360]), "dec": np.array([min(dec + offset, 90.0)])}
    assert add_truth(at, changes(ra=[ra], dec=[dec]))["kind"].tolist() == ["transient"]


def test_visit_without_changes_has_false_sources_alone():
    """Where nothing changed nothing is true."""
    at = {"visit": np.array([3]), "ra": np.array([150.0]), "dec": np.array([2.0])}
    assert add_truth(at, changes(ra=[150.0]))["true_id"].tolist() == [-1]


def test_perfect_association_is_pure():
    """Each object's sources in one DIAObject: nothing apart, nothing too many; single sources do not count."""
    score = score_association(
        judged(["transient"] * 3 + ["variable"] * 2 + ["transient"], [1, 1, 1, 1, 1, 9], [5, 5, 5, 6, 6, 7])
    )
    assert (score.n_true, score.n_sources, score.n_together, score.n_extra, score.n_mixed) == (2, 5, 5, 0, 0)
    assert score.purity == 1.0


def test_split_object_and_lost_source_are_impure():
    """A second DIAObject is one too many; a source without DIAObject is not together with the others."""
    score = score_association(judged(["transient"] * 4 + ["variable"] * 2, [1, 1, 1, 1, 2, 2], [5, 5, 6, 0, 0, 0]))
    assert (score.n_sources, score.n_together, score.n_extra, score.n_mixed) == (6, 2, 1, 0)
    assert score.purity == pytest.approx(1 / 3)


def test_mixed_objects_are_counted():
    """Two true objects in one DIAObject, or a true and a false one; false ones and asteroids among themselves do not count."""
    kind = ["transient", "variable", "transient", "false", "false", "false", "asteroid"]
    assert score_association(judged(kind, [1, 1, 2, -1, -1, -1, 0], [5, 5, 6, 6, 7, 7, 7])).n_mixed == 2


def test_association_of_nothing_is_an_answer():
    """No sources, no purity."""
    assert np.isnan(score_association(judged([], [], [])).purity)


def test_solar_system_attribution_is_judged():
    """Right with the asteroid's number, missed with none; another's, or any on something else, is wrong."""
    kind = ["asteroid"] * 5 + ["transient"] * 2
    sources = judged(kind, [0, 0, 1, 2, 2, 0, 1], np.zeros(7, int), [1001, 0, 1001, 0, 1002, 1001, 0])
    score = score_solar_system(sources, ASTEROIDS)
    assert (score.n_known, score.n_right, score.n_wrong) == (3, 1, 3)


def test_accuracy_table_tells_all_numbers():
    """Counts by kind, purity, and the Solar System in one table."""
    sources = judged(["transient", "transient", "asteroid", "false"], [1, 1, 0, -1], [5, 5, 0, 8], [0, 0, 1001, 0])
    text = printed(accuracy_table(sources, ASTEROIDS))
    for words in ("2, 0, 1", "2 of 2 (100.0%)", "0, 0", "1 of 1; 0 wrongly"):
        assert words in text
