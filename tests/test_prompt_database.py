"""Claims about the prompt database, each tested on both engines."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from prompt_tables import MJD, alerts, detector_visits, forced, objects, sources, whole_visit

from nightstream.errors import ConflictError, DatabaseError, InputError
from nightstream.io.apdb import ALERT, DIA_FORCED_SOURCE, DIA_OBJECT, DIA_OBJECT_LAST, DIA_SOURCE
from nightstream.io.database import prompt_database
from nightstream.io.database.prompt_database import VisitBatch, open_database, wanted_metadata

FIELD = [np.array([[9.9, -20.1], [10.1, -20.1], [10.1, -19.9], [9.9, -19.9]])]
EVER = -np.inf


@pytest.fixture(params=["duckdb", "postgresql"])
def url(request, tmp_path) -> str:
    """Where an empty database may be made."""
    if request.param == "duckdb":
        return str(tmp_path / "prompt.duckdb")
    return request.getfixturevalue("postgres_server").new_database()


@pytest.fixture
def database(url):
    with open_database(url) as opened:
        yield opened


def store_objects(database, table, visit: int = 1) -> None:
    mjd = float(table["validity_start_mjd_tai"][0])
    database.write(VisitBatch(visit=visit, detector_visits=detector_visits(visit, mjd=mjd), dia_objects=table))


def names(schema) -> list[str]:
    return [column.name for column in schema.columns]


def test_a_new_database_has_every_table_and_column(database):
    """Empty reads return every column of the schema, with its type, and no rows."""
    history = database.history(np.array([1]), EVER)
    found = [*history, database.dia_objects([1]), database.objects_in(FIELD, 0, MJD), database.find_alert(1)]
    for table, schema in zip(found, (DIA_SOURCE, DIA_FORCED_SOURCE, DIA_OBJECT, DIA_OBJECT_LAST, ALERT), strict=True):
        assert list(table) == names(schema)
        for column in schema.columns:
            assert len(table[column.name]) == 0
            assert table[column.name].dtype.kind == np.dtype(column.dtype).kind.replace("S", "U")
    assert database.published_detectors(1) == set() and len(database.claimed_objects(1)) == 0
    assert database.unsent_files() == [] and len(database.latencies()) == 0 and database.next_forced_id() == 1
    assert set(database.row_counts().values()) == {0}


def test_metadata_tells_the_schema(database):
    """The versions and the columns that the database was made with are noted in it."""
    assert database.metadata() == wanted_metadata()
    assert wanted_metadata()["schema"] == "ApdbSchema 10.0.0"


def test_another_version_is_refused(url, monkeypatch):
    """A database made by another version is one clear error, which names both versions and the database."""
    open_database(url).close()
    monkeypatch.setattr(prompt_database, "FORMAT_VERSION", "99")
    with pytest.raises(DatabaseError, match=r"another version of Nightstream: format 2 \(wanted 99\).*(prompt.duckdb|/test)"):
        open_database(url)


def test_what_is_stored_comes_back(url):
    """Objects, sources and forced sources are read back as they were written, also after reopening."""
    with open_database(url) as database:
        assert database.write(whole_visit(7)) == {1, 2}
    ids = [1001, 1002, 1003, 2001, 2002, 2003]
    with open_database(url) as database:
        dia_sources, forced_sources = database.history(ids, EVER)
        np.testing.assert_array_equal(dia_sources["dia_object_id"], ids)
        np.testing.assert_array_equal(dia_sources["psf_flux"], np.float32([100, 101, 102] * 2))
        assert set(dia_sources["band"]) == {"r"} and np.isnan(dia_sources["ap_flux"]).all()
        np.testing.assert_array_equal(forced_sources["dia_object_id"], ids)
        np.testing.assert_array_equal(database.dia_objects(ids)["dia_object_id"], ids)
        assert database.published_detectors(7) == {1, 2} and database.published_detectors(8) == set()
        np.testing.assert_array_equal(database.claimed_objects(7), ids)


def test_every_value_survives(database):
    """Extremes of every type and text in any alphabet come back the same."""
    columns = {
        "psf_flux": np.float32([np.finfo("f4").max, -1e-30, np.inf]),
        "midpoint_mjd_tai": np.array([61000.123456789012, 0.1, 1e300]),
        "reliability_version": np.array(["ümläut", "", "sixteen letters!"]),
        "trail_algorithm": np.array([2**31 - 1, -(2**31), 1]),
        "is_negative": np.array([True, False, True]),
    }
    table = sources([2**62, 2, 3], [2**62 + 1, 5, 6], 7, 1, **columns)
    database.write(VisitBatch(visit=7, detector_visits=detector_visits(7), dia_sources=table))
    found, _ = database.history([5, 6, 2**62 + 1], EVER)
    order = [1, 2, 0]
    for name, values in (columns | {"dia_source_id": table["dia_source_id"]}).items():
        np.testing.assert_array_equal(found[name], values[order])


def test_null_is_what_nobody_measured(database):
    """NaN, empty text and 0 in a column that may be NULL are stored as NULL; a masked array says itself what is."""
    flux = np.ma.array([1.0, np.nan, 3.0], mask=[True, False, False])
    table = sources([1, 2, 3], [0, 5, 0], 7, 1, psf_flux=flux, ss_object_id=np.array([9, 0, 9]))
    database.write(VisitBatch(visit=7, detector_visits=detector_visits(7), dia_sources=table))
    with database._store.transaction() as session:
        null = 'SELECT count(*) FROM "DiaSource" WHERE "{}" IS NULL'
        counts = {
            name: session.fetch(null.format(name), ["i8"])[0][0] for name in ("psfFlux", "diaObjectId", "ssObjectId", "apFlux")
        }
    assert counts == {"psfFlux": 1, "diaObjectId": 2, "ssObjectId": 1, "apFlux": 3}
    np.testing.assert_array_equal(database.claimed_objects(7), [5, 9])


def test_objects_in_reads_the_footprint_and_its_padding(database):
    """Objects inside come, those up to the padding outside with it, those beyond do not; sorted by id."""
    outside = 10 / 3600 / np.cos(np.radians(20))
    store_objects(database, objects([9, 4, 5, 6], [10.0, 10.05, 10.1 + outside, 10.1 + 3 * outside], [-20.0] * 4))
    np.testing.assert_array_equal(database.objects_in(FIELD, 0, MJD)["dia_object_id"], [4, 9])
    np.testing.assert_array_equal(database.objects_in(FIELD, 15.0, MJD)["dia_object_id"], [4, 5, 9])
    assert list(database.objects_in(FIELD, 15.0, MJD, columns=["dec", "dia_object_id"])) == ["dec", "dia_object_id"]
    assert len(database.objects_in([], 15.0, MJD)["ra"]) == 0


@pytest.mark.parametrize(
    "ra, dec, place",
    [
        ([359.95, 0.05, 0.2, 359.8], [0.0] * 4, [[359.9, -0.1], [0.1, -0.1], [0.1, 0.1], [359.9, 0.1]]),
        ([0.0, 90.0, 200.0, 10.0], [89.95, 89.99, 89.8, -89.9], [[0, 89.9], [90, 89.9], [180, 89.9], [270, 89.9]]),
        ([0.0, 90.0, 200.0, 10.0], [-89.95, -89.99, -89.8, 89.9], [[0, -89.9], [90, -89.9], [180, -89.9], [270, -89.9]]),
    ],
    ids=["ra wrap", "north pole", "south pole"],
)
def test_objects_in_knows_the_sphere(database, ra, dec, place):
    """At the wrap of right ascension and at both poles a footprint holds what is in it and nothing else."""
    store_objects(database, objects([1, 2, 3, 4], ra, dec))
    np.testing.assert_array_equal(database.objects_in([np.array(place)], 1.0, MJD)["dia_object_id"], [1, 2])


def test_several_footprints_give_each_object_once(database):
    """Overlapping footprints do not double the objects that they share."""
    store_objects(database, objects([1, 2, 3], [10.0, 10.15, 10.4], [-20.0] * 3))
    np.testing.assert_array_equal(database.objects_in([FIELD[0], FIELD[0] + [0.1, 0]], 0, MJD)["dia_object_id"], [1, 2])


def test_objects_not_seen_for_a_year_are_forgotten(database):
    """Only objects with a DIASource in the last 12 months come, or since the time that is asked for."""
    store_objects(database, objects([1, 2], last_dia_source_mjd_tai=np.array([MJD - 400, MJD - 300])))
    np.testing.assert_array_equal(database.objects_in(FIELD, 0, MJD)["dia_object_id"], [2])
    assert len(database.objects_in(FIELD, 0, MJD, since_mjd_tai=MJD - 500)["ra"]) == 2


def test_history_of_no_time_is_empty(database):
    """A history of 0 months holds nothing; a longer one what is not older."""
    for visit in (1, 2, 3):
        database.write(whole_visit(visit, (1,)))
    for since, n in ((MJD + 4, 0), (MJD + 3, 1), (MJD + 2, 2), (EVER, 3)):
        assert [len(table["ra"]) for table in database.history([1002], since)] == [n, n]


def test_history_is_sorted_by_object_then_time(database):
    """Whatever the order of writing, and only of the objects asked for, with only the columns asked for."""
    for visit in (3, 1, 2):
        database.write(whole_visit(visit))
    found, _ = database.history([2001, 1003], EVER)
    np.testing.assert_array_equal(found["dia_object_id"], [1003] * 3 + [2001] * 3)
    np.testing.assert_array_equal(found["visit"], [1, 2, 3] * 2)
    narrow = database.history([2001], EVER, source_columns=["visit"], forced_columns=["band", "visit"])
    assert [list(table) for table in narrow] == [["visit"], ["band", "visit"]]
    assert [len(table["ra"]) for table in database.history(np.empty(0, int), EVER)] == [0, 0]


def test_history_of_solar_system_objects_is_sorted_by_object_then_time(database):
    """Their sources have no DIAObject; those of others, older, withdrawn or of nothing asked for are left out."""
    for visit in (3, 1, 2):
        known = np.array([52, 51, 53, 0])
        withdrawn = np.where((visit == 1) & (known == 51), MJD, np.nan)
        moving = sources(
            100 * visit + np.arange(4), [0, 0, 0, 7], visit, mjd=MJD + visit, ss_object_id=known,
            time_withdrawn_mjd_tai=withdrawn,
        )  # fmt: skip
        database.write(VisitBatch(visit=visit, detector_visits=detector_visits(visit), dia_sources=moving))
    found = database.solar_system_history([52, 51], EVER)
    np.testing.assert_array_equal(found["ss_object_id"], [51, 51, 52, 52, 52])
    np.testing.assert_array_equal(found["visit"], [2, 3, 1, 2, 3])
    assert len(database.solar_system_history([51], MJD + 3)["ra"]) == 1
    assert len(database.solar_system_history([], EVER)["ra"]) == 0


def test_withdrawn_sources_are_no_history(database):
    """A source that was withdrawn is not part of the history."""
    table = sources([1, 2], [5, 5], 7, 1, time_withdrawn_mjd_tai=np.array([np.nan, MJD + 1]))
    database.write(VisitBatch(visit=7, detector_visits=detector_visits(7), dia_sources=table))
    np.testing.assert_array_equal(database.history([5], EVER)[0]["dia_source_id"], [1])


def test_a_new_version_ends_the_one_before(database):
    """Versions of an object follow each other without gap, and the last is current."""
    for visit, mjd in enumerate((MJD, MJD + 1, MJD + 2)):
        store_objects(database, objects([1, 2], mjd=mjd), visit)
    versions = database.object_versions(1)
    np.testing.assert_array_equal(versions["validity_start_mjd_tai"], [MJD, MJD + 1, MJD + 2])
    np.testing.assert_array_equal(versions["validity_end_mjd_tai"], [MJD + 1, MJD + 2, np.nan])
    np.testing.assert_array_equal(database.dia_objects([1, 2])["validity_start_mjd_tai"], [MJD + 2] * 2)
    np.testing.assert_array_equal(database.objects_in(FIELD, 0, MJD)["last_dia_source_mjd_tai"], [MJD + 2] * 2)
    assert database.row_counts()["DiaObjectLast"] == 2


def test_a_late_version_takes_its_place_in_the_past(database):
    """A version older than the current one ends where the next begins, and the current one stays."""
    for visit, mjd in enumerate((MJD, MJD + 2, MJD + 1)):
        store_objects(database, objects([1], mjd=mjd), visit)
    versions = database.object_versions(1)
    np.testing.assert_array_equal(versions["validity_end_mjd_tai"], [MJD + 1, MJD + 2, np.nan])
    assert database.objects_in(FIELD, 0, MJD)["validity_start_mjd_tai"] == [MJD + 2]


def test_a_version_of_the_same_start_replaces_the_older(database):
    """Detectors of a visit that are published later make the version of that visit again, not a second one."""
    store_objects(database, objects([1], mjd=MJD), 0)
    for visit, number in ((1, 2), (2, 3)):
        store_objects(database, objects([1], mjd=MJD + 1, n_dia_sources=np.array([number])), visit)
    versions = database.object_versions(1)
    np.testing.assert_array_equal(versions["n_dia_sources"], [1, 3])
    np.testing.assert_array_equal(versions["validity_end_mjd_tai"], [MJD + 1, np.nan])
    assert database.objects_in(FIELD, 0, MJD)["n_dia_sources"] == [3]


def test_a_moving_object_is_found_where_it_is_now(database):
    """An object that left the footprint is in the next one, and no more in the first."""
    store_objects(database, objects([1], [10.0], [-20.0], MJD), 1)
    store_objects(database, objects([1], [10.5], [-20.0], MJD + 1), 2)
    assert len(database.objects_in(FIELD, 0, MJD)["ra"]) == 0
    assert database.objects_in([FIELD[0] + [0.5, 0]], 0, MJD)["ra"] == [10.5]


def test_writing_twice_changes_nothing(database):
    """A batch written again is answered with no detector, and every table stays as it was."""
    database.write(whole_visit(7))
    before = database.row_counts()
    assert database.write(whole_visit(7)) == set()
    assert database.row_counts() == before and len(database.unsent_files()) == 1


def test_detectors_stored_before_are_left_out(database):
    """Of a visit stored in part, only the rows of the other detectors are added."""
    assert database.write(whole_visit(7, (1,), file="first.avro")) == {1}
    assert database.write(whole_visit(7, (1, 2), file="second.avro")) == {2}
    counts = database.row_counts()
    assert [counts[name] for name in ("DiaSource", "DiaForcedSource", "DiaObject", "Alert")] == [6, 6, 6, 6]
    assert [(file.name, file.n_alerts) for file in database.unsent_files()] == [("first.avro", 3), ("second.avro", 3)]


def test_a_detector_without_sources_is_stored_too(database):
    """A detector on which nothing was found is published all the same."""
    assert database.write(VisitBatch(visit=7, detector_visits=detector_visits(7, (4, 5)))) == {4, 5}
    assert database.published_detectors(7) == {4, 5} and database.unsent_files() == []


def test_forced_sources_are_numbered_densely(database):
    """Numbers follow detector and object, without gap, over visits, whatever the order of the rows."""
    batch = whole_visit(7)
    shuffled = {name: values[::-1] for name, values in batch.forced_sources.items()}
    database.write(replace(batch, forced_sources=shuffled))
    database.write(whole_visit(8))
    _, found = database.history([1001, 1002, 1003, 2001, 2002, 2003], EVER)
    np.testing.assert_array_equal(found["dia_forced_source_id"][found["visit"] == 7], np.arange(1, 7))
    np.testing.assert_array_equal(found["dia_forced_source_id"][found["visit"] == 8], np.arange(7, 13))
    assert database.next_forced_id() == 13


def test_numbers_that_somebody_took_are_a_conflict(database):
    """Forced sources numbered from a number that is no more the next are refused, and nothing of the batch is stored."""
    first = database.next_forced_id()
    numbered = {"dia_forced_source_id": first + np.arange(6)}
    batches = [replace(b, forced_sources=b.forced_sources | numbered) for b in (whole_visit(7), whole_visit(8))]
    assert database.write(batches[0]) == {1, 2}
    with pytest.raises(ConflictError, match="numbered from 1, but 7 is next"):
        database.write(batches[1])
    assert database.published_detectors(8) == set() and database.row_counts()["DiaSource"] == 6


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dia_sources": sources([1], [1], 8)}, "rows of another visit"),
        ({"dia_sources": sources([1], [1], 7, 9)}, "detector 9, which detector_visits lacks"),
        ({"dia_sources": sources([1, 1], [1, 2], 7)}, "diaSourceId twice"),
        ({"dia_objects": objects([1, 1])}, "diaObjectId twice"),
        ({"dia_sources": sources([1], [1], 7, snrr=np.ones(1))}, "no column snrr"),
        ({"alerts": alerts([1], [1], 7)}, "must lie in the file"),
        ({"dia_sources": sources([1], [1], 7, bbox_size=np.ma.masked_all(1, int))}, "must have a value"),
    ],
)
def test_tables_that_do_not_fit_are_refused(database, change, message):
    """A batch that cannot be right is an InputError before anything is stored."""
    with pytest.raises(InputError, match=message):
        database.write(VisitBatch(visit=7, detector_visits=detector_visits(7), alert_file="b.avro", **change))
    assert set(database.row_counts().values()) == {0}


def test_an_error_inside_a_write_leaves_nothing(database, monkeypatch):
    """When the last statement of a write fails, no table has a row of it, and the next write works."""
    from nightstream.io.database import writing

    def fail(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(writing, "_write_alerts", fail)
    with pytest.raises(RuntimeError, match="broken"):
        database.write(whole_visit(7))
    assert set(database.row_counts().values()) == {0}
    monkeypatch.undo()
    assert database.write(whole_visit(7)) == {1, 2}


def test_the_outbox_holds_alerts_until_they_are_sent(database):
    """Files come in the order of writing with their alerts in file order, and go when nothing in them is left."""
    for visit in (8, 7):
        database.write(whole_visit(visit))
    assert [(f.name, f.visit, f.n_alerts, f.n_unsent, f.schema_version) for f in database.unsent_files()] == [
        ("visit=8.avro", 8, 6, 6, "11.1"),
        ("visit=7.avro", 7, 6, 6, "11.1"),
    ]
    waiting = database.unsent_alerts("visit=8.avro")
    np.testing.assert_array_equal(waiting["offset"], 100 * np.arange(6))
    database.mark_sent(waiting["dia_source_id"][:4], MJD + 9)
    assert database.unsent_files()[0].n_unsent == 2
    np.testing.assert_array_equal(database.unsent_alerts("visit=8.avro")["offset"], [400, 500])
    database.mark_failed(waiting["dia_source_id"][4:], "too large")
    database.mark_failed(waiting["dia_source_id"][4:], "too large")
    assert [file.name for file in database.unsent_files()] == ["visit=7.avro"]
    assert len(database.unsent_alerts("visit=8.avro")["offset"]) == 0


def test_progress_of_a_file_is_kept(url):
    """What a sink notes is there after reopening."""
    with open_database(url) as database:
        database.write(whole_visit(7))
        database.save_progress("visit=7.avro", '{"offsets": "100 %s ?"}')
    with open_database(url) as database:
        assert database.unsent_files()[0].progress == '{"offsets": "100 %s ?"}'


def test_latency_is_from_readout_to_sent(database):
    """Each alert has its own time; the first that was noted stands; unsent ones have none."""
    database.write(whole_visit(7, (1,)))
    database.write(whole_visit(8, (1,)))
    ids = database.unsent_alerts("visit=7.avro")["dia_source_id"]
    database.mark_sent(ids[:2], MJD + 7 + np.array([10, 20]) / 86400)
    database.mark_sent(ids, MJD + 7 + 30 / 86400)
    for found in (database.latencies(7), database.latencies()):
        np.testing.assert_allclose(found, [10, 20, 30], atol=1e-5)  # half a unit in the last place of an MJD: 3e-7 s, twice
    assert len(database.latencies(8)) == 0


def test_alerts_are_found_by_source_and_by_object(database):
    """The archive knows every alert, sent or not, in order of time."""
    for visit in (8, 7):
        database.write(whole_visit(visit))
    found = database.find_alert(7_001_002)
    assert found["alert_file"] == ["visit=7.avro"] and found["offset"] == [100] and found["visit"] == [7]
    np.testing.assert_array_equal(database.alerts_of_object(1002)["visit"], [7, 8])
    assert len(database.find_alert(99)["visit"]) == 0 and len(database.alerts_of_object(99)["visit"]) == 0


def test_precovery_asks_for_new_objects_once(database):
    """Objects first seen since a time come until they were looked for."""
    store_objects(database, objects([1, 2, 3], first_dia_source_mjd_tai=np.array([MJD - 99, MJD, MJD])))
    np.testing.assert_array_equal(database.objects_without_precovery(MJD - 30)["dia_object_id"], [2, 3])
    database.mark_precovered([2, 2], MJD + 1)
    database.mark_precovered([2], MJD + 2)
    np.testing.assert_array_equal(database.objects_without_precovery(MJD - 30)["dia_object_id"], [3])


def test_added_forced_sources_are_not_doubled(database):
    """A row per object, visit and detector: those that are there are left out, and the numbers go on."""
    database.write(whole_visit(7))
    rows = forced([1001, 5], 7, 1)
    assert database.add_forced(rows) == 1 and database.add_forced(rows) == 0
    assert database.add_forced(forced([5, 5], 6, 1)) == 1 and database.add_forced({}) == 0
    _, found = database.history([5], EVER)
    np.testing.assert_array_equal(found["dia_forced_source_id"], [7, 8])


def test_a_read_only_database_is_read_only(url):
    """Reading works, writing is one clear error, and there must be a database to read."""
    with pytest.raises(DatabaseError):
        open_database(url, read_only=True)
    with open_database(url) as database:
        database.write(whole_visit(7))
    with open_database(url, read_only=True) as database:
        assert database.published_detectors(7) == {1, 2}
        assert len(database.history([1001], EVER)[0]["ra"]) == 1
        with pytest.raises(DatabaseError, match="read-only"):
            database.write(whole_visit(8))


def test_threads_share_a_database(database):
    """Eight threads that write and read at once store every visit once, with dense numbers."""
    failures = []

    def work(visit: int) -> None:
        try:
            database.write(whole_visit(visit))
            database.write(whole_visit(visit % 4))
            assert len(database.history([1001], EVER)[0]["ra"]) > 0
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(visit,)) for visit in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert database.row_counts()["DiaSource"] == 48 and database.next_forced_id() == 49
    assert len(database.object_versions(1001)["ra"]) == 8


def test_nobody_writes_while_one_is_alone(url):
    """Another writer waits until the block has ended; the one that is alone reads and writes in it, and nothing changed."""
    with open_database(url) as database:
        with database.alone():
            before = database.revision()
            other = threading.Thread(target=database.write, args=(whole_visit(8),))
            other.start()
            other.join(0.2)
            assert other.is_alive() and database.revision() == before
            database.write(replace(whole_visit(7), revision=before))
        other.join()
        assert database.published_detectors(7) == database.published_detectors(8) == {1, 2}


def test_a_batch_made_from_what_has_changed_is_a_conflict(database):
    """Whatever others stored, also detectors without forced sources, or forced sources on older images."""
    for number, change in enumerate((lambda: database.write(VisitBatch(visit=1, detector_visits=detector_visits(1))),
                                     lambda: database.add_forced(forced([1001], 6)))):  # fmt: skip
        batch = VisitBatch(visit=7, detector_visits=detector_visits(7), revision=database.revision())
        change()
        with pytest.raises(ConflictError, match=f"revision {number}, but {number + 1}"):
            database.write(batch)
        change()
        assert database.revision() == number + 1  # done twice it changes nothing
    assert database.write(replace(batch, revision=2)) == {1} and database.write(replace(batch, revision=3)) == set()
