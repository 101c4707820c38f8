"""What a facility does: the commands on a PostgreSQL server, and several processes that write to it at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from catalogue_night import MJD, STEP_DEG, make_visit, true_sky
from kill_harness import TIMES, compare_alerts, is_ignored, read_packets
from scipy.spatial import cKDTree
from small_survey import CAMERA
from typer.testing import CliRunner

from nightstream.cli import app
from nightstream.engine.config import AssociateConfig, EngineConfig
from nightstream.io.database.prompt_database import PromptDatabase, open_database
from nightstream.io.database.tables import TABLES, StoredTable, quoted, selected
from nightstream.kernels.sky_frames import unit_vectors
from nightstream.scheduler.publish import Publisher
from nightstream.scheduler.publish_queue import EndedVisit
from nightstream.simulate.catalogue import write_visit

OWN_PLACE = ("offset", "length", "spooldir", "productpath")  # where deflated packets with other times lie, and folders
PUBLISHER = Path(__file__).with_name("facility_publisher.py")
FIELD = np.array([[150.0, 0.0]]) + STEP_DEG * np.array([[-1, -1], [2, -1], [2, 1], [-1, 1]])


def succeed(*arguments) -> str:
    """Run a command that must succeed; return what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def run_survey(survey, output: Path, *more) -> None:
    """``nightstream run`` of both visits of the small survey."""
    stores = ("--calibrations", survey.calibrations, "--templates", survey.templates, "--ephemerides", survey.ephemerides)
    succeed("run", survey.science, "-c", CAMERA, "-o", output, *stores, "--executor", "local", *more)


def rows_of(database: PromptDatabase, table: StoredTable) -> dict[str, np.ndarray]:
    """All rows of a table by their key, NULLs as the values that stand for them, but for columns that no two runs share."""
    columns = [column for column in table.columns() if not is_ignored(column.apdb, (*TIMES, *OWN_PLACE))]
    sql = f"SELECT {', '.join(map(selected, columns))} FROM {table.name} ORDER BY {quoted(table.key)}"
    with database._store.transaction() as session:
        values = session.fetch(sql, [column.dtype for column in columns])
    return dict(zip((column.apdb for column in columns), values, strict=True))


@pytest.fixture(scope="module")
def nights(small_survey, postgres_server, tmp_path_factory):
    """The same run with the embedded database and with a server's: (folder, database) of each, folders of the same name."""
    made = []
    for url in (None, postgres_server.new_database()):
        output = tmp_path_factory.mktemp("facility") / "night"
        run_survey(small_survey, output, *(("--database", url) if url else ()))
        made.append((output, url or str(output / "prompt.duckdb")))
    return made


def test_a_run_stores_the_same_rows_in_either_database(nights):
    """Every column of every row of every table is the same but for times; and so are the alerts that went out."""
    (embedded, path), (facility, url) = nights
    with open_database(path, read_only=True) as one, open_database(url, read_only=True) as other:
        for table in TABLES:
            a, b = rows_of(one, table), rows_of(other, table)
            for name in a:
                np.testing.assert_array_equal(a[name], b[name], err_msg=f"{table.name} {name}")
        counts = other.row_counts()
    assert all(counts[name] > 0 for name in ("DiaSource", "DiaObject", "DiaForcedSource", "SSSource", "Alert"))
    assert compare_alerts(embedded / "alerts", facility / "alerts") == []


def test_only_what_nobody_measures_is_empty(nights):
    """Of these tables every column has values, but for those of models and catalogues that the engine does not have."""
    shapes = {f"i{axes}{of}" for axes in ("xx", "yy", "xy") for of in ("", "PSF")}
    moments = {"ssObjectReassocTimeMjdTai", "timeWithdrawnMjdTai"}
    source = {"parentDiaSourceId", "psfLnL", "extendedness", "reliability", "reliabilityVersion"} | shapes | moments
    expected = {
        "DiaSource": source, "DiaForcedSource": {"timeWithdrawnMjdTai", "diaSourceId"}, "Alert": {"reliability"},
        "DetectorVisitProcessingSummary": set(),
    }  # fmt: skip
    with open_database(nights[1][1], read_only=True) as database:
        for table in (table for table in TABLES if table.schema.name in expected):
            empty = {name for name in empty_columns(database, table) if not name.startswith(("trail", "dipole"))}
            assert empty == expected[table.schema.name]


def empty_columns(database: PromptDatabase, table: StoredTable) -> list[str]:
    """The columns of a table that are NULL in all rows."""
    names = [column.apdb for column in table.schema.columns]
    counts = ", ".join(f'count("{name}")' for name in names)
    with database._store.transaction() as session:
        found = session.fetch(f"SELECT {counts} FROM {table.name}", ["i8"] * len(names))
    return [name for name, count in zip(names, found, strict=True) if count[0] == 0]


def test_alerts_are_found_in_a_servers_database(nights, tmp_path):
    """By source and by object, with stamps, picture and VOEvent; the database knows the folder of each file."""
    _, url = nights[1]
    with open_database(url, read_only=True) as database:
        found = rows_of(database, TABLES[0])
    row = np.flatnonzero(found["diaObjectId"])[0]
    source, dia_object = int(found["diaSourceId"][row]), int(found["diaObjectId"][row])
    where = ("--database", url)
    assert f"alert {source}" in succeed("alert", source, *where, "-o", tmp_path, "--voevent")
    assert {path.suffix for path in tmp_path.iterdir()} >= {".fits", ".png", ".xml"}
    assert "of the object" in succeed("alert", dia_object, "--object", *where)


def test_precovery_works_on_a_servers_database(nights):
    """Both databases get the same forced sources, once."""
    counts = []
    for output, database in nights:
        assert "new objects precovered" in succeed("precover", "--database", database, "--products", output)
        assert "0 of 0 new" in succeed("precover", "--database", database, "--products", output)
        with open_database(database, read_only=True) as opened:
            counts.append(opened.row_counts())
    assert counts[0] == counts[1] and counts[0]["Precovery"] > 0


def test_a_visit_is_published_though_the_server_restarts(postgres_server, tmp_path):
    """The server is gone and back while the alerts are packed; the visit is stored without being done again by hand."""
    visit, calls = make_visit(1), []

    def restart(batch) -> tuple:
        calls.append(batch.visit)
        if len(calls) == 1:
            postgres_server.stop()
            postgres_server.start()
        return ()

    with open_database(postgres_server.new_database(), spool_dir=tmp_path / "spool") as database:
        publisher = Publisher(
            database=database, engine=EngineConfig(), spool_dir=tmp_path / "spool", schema_version="11.1", on_alerts=restart
        )
        done = publisher.publish(EndedVisit(1, tuple(write_visit(tmp_path, visit, *lonely_stars(20))), MJD))
        assert done.n_alerts == database.row_counts()["Alert"] > 0


@pytest.fixture(scope="module")
def crowded(postgres_server, tmp_path_factory):
    """Two processes publish eight visits of one field at once, each its own: (url, folders, what they said, number of stars)."""
    root, url = tmp_path_factory.mktemp("crowded"), postgres_server.new_database()
    sky, tasks = lonely_stars(40), ([], [])
    for number in range(1, 9):
        visit = make_visit(number, MJD + number / 100)
        products = write_visit(root, visit, *sky)
        tasks[number % 2].append(f"{number}:{visit.midpoint_mjd_tai}:{','.join(map(str, products))}")
    folders = [root / "even", root / "odd"]
    processes = [start_publisher(url, folder, work) for folder, work in zip(folders, tasks, strict=True)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0].split("\n") for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return url, folders, said, len(sky[0])


def lonely_stars(n: int) -> list[np.ndarray]:
    """Positions (deg) and fluxes of stars that have no neighbour within 2 arcsec."""
    ra, dec, flux = true_sky(n)
    nearest = cKDTree(unit_vectors(ra, dec)).query(unit_vectors(ra, dec), k=2)[0][:, 1]
    return [values[nearest > np.radians(2 / 3600)] for values in (ra, dec, flux)]


def start_publisher(url: str, folder: Path, work: list[str]) -> subprocess.Popen:
    """A publisher that has the database open and waits for its line."""
    command = [sys.executable, str(PUBLISHER), url, str(folder), "0.3", *work]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PUBLISHER.parent)
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_make_one_object_of_each_star(crowded):
    """They overtake each other; still no two objects are within the radius of a match, and each has all its sources."""
    url, _, said, n_stars = crowded
    assert sum(words.count("overtaken") for words in said) > 0
    with open_database(url, read_only=True) as database:
        objects = database.objects_in([FIELD], 0.0, MJD + 1)
        sources, forced = database.history(objects["dia_object_id"], 0.0)
        assert database.row_counts()["DiaObjectLast"] == database.revision() * n_stars / 8 == len(objects["ra"]) == n_stars
    places = unit_vectors(objects["ra"], objects["dec"])
    nearest = cKDTree(places).query(places, k=2)[0][:, 1]
    assert np.degrees(nearest.min()) * 3600 > AssociateConfig().radius_arcsec
    for table in (sources, forced):
        np.testing.assert_array_equal(table["visit"].reshape(n_stars, 8), np.tile(np.arange(1, 9), (n_stars, 1)))
    np.testing.assert_array_equal(np.sort(forced["dia_forced_source_id"]), np.arange(1, 8 * n_stars + 1))


def test_two_processes_send_each_alert_once(crowded):
    """Each sends its own alerts, all of them; together they are those of all sources, none twice, with the newest history."""
    url, folders, said, n_stars = crowded
    assert [words[-2] for words in said] == ["unsent 0"] * 2
    packets = [packet for folder in folders for copies in read_packets(folder / "alerts").values() for packet in copies]
    ids = [packet["diaSourceId"] for packet in packets]
    assert len(ids) == len(set(ids)) == 8 * n_stars
    with open_database(url, read_only=True) as database:
        assert database.row_counts()["DiaSource"] == database.row_counts()["Alert"] == len(database.latencies()) == len(ids)
        order = {visit: place for place, visit in enumerate(in_order_of_writing(database))}
    for packet in packets:
        visit, before = packet["diaSource"]["visit"], packet["prvDiaSources"] or []
        assert {source["visit"] for source in before} == {other for other in order if order[other] < order[visit]}


def in_order_of_writing(database: PromptDatabase) -> list[int]:
    with database._store.transaction() as session:
        return session.fetch('SELECT "visit" FROM "Revision" ORDER BY "number"', ["i8"])[0].tolist()
