"""Users' filters within a run: each user's own file, at most so many alerts a visit, and nobody disturbed by another."""

from __future__ import annotations

import numpy as np
import pytest
from test_publish import MJD, Night, make_visit, true_sky

from nightstream.io.alerts.files import read_alert_file
from nightstream.io.alerts.filters import FilterConfig, SiteFilter
from nightstream.scheduler.user_filters import UserFilters
from nightstream.simulate.catalogue import write_visit

BRIGHT = "SELECT diaSourceId FROM diaSource WHERE psfFlux > 5000"
NEW = "SELECT diaSourceId FROM alert WHERE nDiaSources = 1 ORDER BY psfFlux DESC"


@pytest.fixture
def folder(tmp_path):
    """Three users, one of them with a bad filter."""
    filters = tmp_path / "filters"
    filters.mkdir()
    for user, text in (("ada", BRIGHT), ("ben", NEW), ("eve", "DROP TABLE diaSource")):
        (filters / f"{user}.sql").write_text(text)
    return filters


def published(tmp_path, folder, max_alerts=20, visits=(1,)):
    """Publish visits with the filters; return the packets of each user, by visit."""
    users = UserFilters(folder, tmp_path / "filtered", FilterConfig(max_alerts=max_alerts))
    night = Night(tmp_path, on_alerts=users.apply)
    for number in visits:
        visit = make_visit(number, MJD + number)
        for product in write_visit(tmp_path, visit, *true_sky()):
            night.publish(visit, [product])
    night.database.close()
    found = {}
    for path in sorted((tmp_path / "filtered").rglob("*.avro")):
        found.setdefault(path.parent.name, []).extend(read_alert_file(path))
    return found, night.alerts()


def test_each_user_gets_the_packets_asked_for(tmp_path, folder):
    """They are the packets that went out, byte for byte; a refused filter gets nothing and harms nobody."""
    found, alerts = published(tmp_path, folder)
    bright = {number for number, packet in alerts.items() if packet["diaSource"]["psfFlux"] > 5000}
    assert {packet["diaSourceId"] for packet in found["ada"]} == bright and bright
    assert len(found["ben"]) == len(alerts) and "eve" not in found
    assert all(packet == alerts[packet["diaSourceId"]] for packet in found["ben"])


def test_objects_seen_before_are_not_new(tmp_path, folder):
    """The filter sees the DIAObject as it is after this visit."""
    found, _ = published(tmp_path, folder, visits=(1, 2))
    assert {packet["diaSource"]["visit"] for packet in found["ben"]} == {1}


def test_the_cap_holds_for_the_visit_whenever_its_detectors_come(tmp_path, folder):
    """Two detectors are stored one after the other: together they give no more than the cap, the best first of each."""
    found, alerts = published(tmp_path, folder, max_alerts=3)
    assert len(found["ben"]) == 3
    fluxes = [packet["diaSource"]["psfFlux"] for packet in found["ben"]]
    first = [packet["diaSource"]["psfFlux"] for packet in alerts.values() if packet["diaSource"]["detector"] == 0]
    np.testing.assert_array_equal(fluxes, sorted(first, reverse=True)[:3])


def test_a_site_filter_gets_all_it_asks_for(tmp_path, folder, monkeypatch):
    """The cap is for users: a trusted function's packets all come, under the site's name."""
    everything = SiteFilter("site-all", "x:all", lambda tables: tables["dia_sources"]["snr"] > -1e9)
    monkeypatch.setattr("nightstream.scheduler.user_filters.load_site_filters", lambda: [everything])
    found, alerts = published(tmp_path, folder, max_alerts=1)
    assert {packet["diaSourceId"] for packet in found["site-all"]} == set(alerts)
    assert len(found["ben"]) == 1
