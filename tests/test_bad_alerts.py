"""What can go wrong between products and the world: one clear line, the rest goes on, a later run does what is left."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from catalogue_night import MJD, make_visit, true_sky
from small_survey import CAMERA, load_small_camera
from typer.testing import CliRunner

from nightstream.cli import app
from nightstream.engine.config import EngineConfig
from nightstream.errors import DatabaseError
from nightstream.io.alerts.files import read_alert_file
from nightstream.io.database.prompt_database import PromptDatabase, open_database
from nightstream.io.products import product_path, visit_directory
from nightstream.scheduler.alert_stream import AlertStream
from nightstream.scheduler.alerts_config import AlertsConfig, KafkaConfig
from nightstream.scheduler.messages import DetectorReport
from nightstream.scheduler.preload import Preload, preload_path
from nightstream.scheduler.publish import PublishedVisit, Publisher
from nightstream.scheduler.run import Visit
from nightstream.simulate.catalogue import write_visit

PASSWORD = "open sesame"
BAD, GOOD = 0, 1  # detectors

pytestmark = pytest.mark.usefixtures("one_thread")


# Before anything is processed: the command ends with one line


def run_command(survey, output: Path, *options, stores: bool = True):
    """``nightstream run`` on one visit."""
    arguments = ["run", survey.science, "--camera", CAMERA, "--output", output, "--calibrations", survey.calibrations,
                 "--executor", "local", "--device", "cpu", "--visit", survey.visits[0], *options]  # fmt: skip
    return CliRunner().invoke(app, [str(part) for part in (*arguments, *(["--templates", survey.templates] if stores else []))])


def alerts_section(folder: Path, text: str) -> Path:
    """A configuration file with a section ``alerts``."""
    path = folder / "config.yaml"
    path.write_text("alerts:\n" + "".join(f"  {line}\n" for line in text.splitlines()))
    return path


def check_refused(result, status: int, *parts: str) -> None:
    """One line of error that has all ``parts``, and no traceback."""
    lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert result.exit_code == status and len(lines) == 1 and "Traceback" not in result.output, result.output
    assert all(part in lines[0] for part in parts), lines[0]


def test_a_database_in_use_is_told_with_its_file(small_survey, tmp_path):
    """Two runs with one DuckDB file: the second ends at once and says who has it."""
    path = tmp_path / "prompt.duckdb"
    hold = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        result = run_command(small_survey, tmp_path / "out", "--database", path)
    check_refused(result, 1, "in use by another process", f"PID {holder.pid}", f"file {path}")
    assert list((tmp_path / "out").rglob("*.h5")) == []


def test_a_database_of_another_version_is_told(small_survey, tmp_path):
    """The line says what was got and wanted, and nothing is processed."""
    import duckdb

    path = tmp_path / "prompt.duckdb"
    open_database(path).close()
    with duckdb.connect(str(path)) as connection:
        connection.execute("""UPDATE metadata SET "value" = '0' WHERE "name" = 'format'""")
    result = run_command(small_survey, tmp_path / "out", "--database", path)
    check_refused(result, 1, "another version of Nightstream: format 0 (wanted", f"file {path}")


def garbled(path: Path) -> Path:
    path.write_bytes(b"ss_object_id,ra,dec\n1,many,\x00words\n")
    return path


def doubled(path: Path) -> Path:
    path.write_text("ss_object_id,ra,dec,visit\n7,1.0,2.0,5\n8,1.0,2.0,5\n7,1.1,2.0,5\n")
    return path


def ragged(path: Path) -> Path:
    path.write_text("ss_object_id,ra,dec\n7,1.0\n")
    return path


EPHEMERIDES = {
    "missing": (lambda path: path, "no such file"),
    "garbled": (garbled, "column ra: could not convert"),
    "ragged": (ragged, "row 1 has not as many cells as the header"),
    "doubled": (doubled, "Solar System object 7 has several rows for visit 5, wanted one"),
}


@pytest.mark.parametrize("case", EPHEMERIDES)
def test_wrong_ephemerides_end_the_run_at_its_start(case, small_survey, tmp_path):
    """Better no alerts than a night of asteroids that are taken for supernovae."""
    make, message = EPHEMERIDES[case]
    path = make(tmp_path / "ephemerides.csv")
    config = alerts_section(tmp_path, f"ephemerides: {path}")
    check_refused(run_command(small_survey, tmp_path / "out", "--config", config), 1, message, f"file {path}")


SETTINGS = {
    "schema": ("schema_version: '42.0'", "alerts.schema_version", "42.0"),
    "no broker": (f"kafka: {{topic: a, settings: {{sasl.password: {PASSWORD}}}}}", "alerts.kafka.settings", "bootstrap.servers"),
    "no topic": (f"kafka: {{settings: {{bootstrap.servers: x, sasl.password: {PASSWORD}}}}}", "alerts.kafka.topic", "required"),
    "weak": (f"kafka: {{topic: a, settings: {{bootstrap.servers: x, acks: 1, sasl.password: {PASSWORD}}}}}", "wanted all"),
    "unknown": (f"kafka: {{topic: a, settings: {{bootstrap.servers: x, sasl.pass: {PASSWORD}}}}}", '"sasl.pass"'),
    "type": (f"kafka: {{topic: a, settings: {{bootstrap.servers: x, sasl.password: [{PASSWORD}]}}}}", "alerts.kafka.settings"),
    "database": (f"database: [postgresql://me:{PASSWORD}@host]", "alerts.database"),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_wrong_settings_are_named_and_no_password_is_shown(case, small_survey, tmp_path):
    """A wrong configuration is a usage error; its line names the setting."""
    if "kafka" in SETTINGS[case][0]:
        pytest.importorskip("confluent_kafka")
    text, *parts = SETTINGS[case]
    result = run_command(small_survey, tmp_path / "out", "--config", alerts_section(tmp_path, text))
    lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 2 and all(any(part in line for line in lines) for part in parts), result.output
    assert PASSWORD not in result.output


@pytest.mark.parametrize("name", ["out", "out/spool", "out/prompt.duckdb"])
def test_a_file_in_the_way_is_told(name, small_survey, tmp_path):
    """Whatever should be a folder or a database and is a text."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("in the way of everything else, and longer than any header" * 100)
    check_refused(run_command(small_survey, tmp_path / "out"), 1, f"file {path}")


def test_settings_show_no_password():
    """Neither in a log nor in a traceback."""
    kafka = KafkaConfig.model_construct(topic="a", settings={"sasl.password": PASSWORD}, registry_url=f"http://me:{PASSWORD}@r")
    config = AlertsConfig(database=f"postgresql://me:{PASSWORD}@host/name").model_copy(update={"kafka": kafka})
    assert PASSWORD not in f"{config} {config!r}"


# The command, from raw frames


def test_run_again_and_run_without(small_survey, tmp_path):
    """A finished night has nothing to do, and says so; --no-alerts makes no database; without templates there are none."""
    output, visit = tmp_path / "out", small_survey.visits[0]
    only = ("--detector", "0")
    assert run_command(small_survey, output, *only, "--no-alerts").exit_code == 0
    assert not (output / "prompt.duckdb").exists() and product_path(output, visit, 0).exists()
    assert run_command(small_survey, output, *only).exit_code == 0
    files = {path: path.stat().st_mtime_ns for path in output.rglob("*.h5")}
    again = run_command(small_survey, output, *only)
    assert again.exit_code == 0 and "1 detector was stored by an earlier run and left alone" in again.output
    assert "latency" not in again.output.lower() and files == {path: path.stat().st_mtime_ns for path in output.rglob("*.h5")}
    plain = run_command(small_survey, tmp_path / "plain", *only, stores=False)
    assert plain.exit_code == 0 and "no --templates" in plain.output and not (tmp_path / "plain" / "prompt.duckdb").exists()


def test_a_visit_without_master_or_preload_still_has_its_alerts(small_survey, tmp_path, monkeypatch):
    """The master's error is told; objects whose preload vanished are forced on the product."""
    output = tmp_path / "out"
    assert run_command(small_survey, output, "--detector", "0").exit_code == 0
    after = Preload.__call__

    def vanish(preload: Preload, visit: Visit) -> Visit:
        found = after(preload, visit)
        Path(found.positions[0]).unlink()
        return found

    monkeypatch.setattr(Preload, "__call__", vanish)
    monkeypatch.setattr("nightstream.io.products.write_visit_master", broken_disk)
    second = small_survey.visits[1]
    result = run_command(small_survey, output, "--detector", "0", "--visit", second)
    assert result.exit_code == 1 and "1 failed" in result.output and "No space left" in result.output
    packets = [packet for path in (output / "alerts").glob(f"visit={second}.avro") for packet in read_alert_file(path)]
    known = [packet for packet in packets if packet["prvDiaSources"]]
    assert known and all(len(packet["prvDiaForcedSources"]) == 2 for packet in known)


def broken_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_ctrl_c_ends_the_command_with_one_line(small_survey, tmp_path, monkeypatch):
    """Status 130, and the database is free again."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("nightstream.scheduler.run.run_visits", interrupt)
    check_refused(run_command(small_survey, tmp_path / "out"), 130, "interrupted")
    assert not threads() and stored(tmp_path / "out", small_survey.visits[0]) == set()


def test_filters_that_are_refused_are_told_and_stop_nothing(small_survey, tmp_path):
    """A warning with user and file; the run is a success."""
    (tmp_path / "filters").mkdir()
    (tmp_path / "filters" / "eve.sql").write_text("DROP TABLE diaSource")
    (tmp_path / "filters" / "ada.sql").write_text("SELECT diaSourceId FROM diaSource")
    result = run_command(small_survey, tmp_path / "out", "--detector", "0", "--filters", tmp_path / "filters")
    assert result.exit_code == 0 and "warning: filter of eve, file eve.sql:" in result.output
    assert [path.parent.name for path in (tmp_path / "out" / "alerts" / "filtered").rglob("*.avro")] == ["ada"]


def test_no_password_reaches_the_disk(small_survey, tmp_path):
    """While the broker is away, alerts wait in the outbox, and the command says so."""
    pytest.importorskip("confluent_kafka")
    settings = f"{{bootstrap.servers: '127.0.0.1:1', sasl.password: {PASSWORD}}}"
    config = alerts_section(tmp_path, f"drain_timeout_s: 0.5\nkafka: {{topic: a, settings: {settings}}}")
    result = run_command(small_survey, tmp_path / "out", "--detector", "0", "--config", config)
    assert result.exit_code == 1 and "alerts wait to be sent, by a later run" in result.output
    assert PASSWORD not in result.output
    assert not any(PASSWORD.encode() in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())


# The alerts beside a run, from products


class Beside:
    """The alerts beside a run whose products are made from a catalogue."""

    def __init__(self, folder: Path, engine: EngineConfig | None = None, **config) -> None:
        self.folder = folder
        settings = AlertsConfig(**{"drain_timeout_s": 5.0} | config)
        self.alerts = AlertStream(load_small_camera(), folder, engine or EngineConfig(), settings)

    def process(self, number: int, sky=None, damage=lambda product: None, status="done") -> None:
        """Let a visit arrive and end; ``damage`` is done to the product of the bad detector."""
        made = make_visit(number, MJD + number)
        for visit in self.alerts.arriving([Visit(number, {BAD: "absent.fits", GOOD: "absent.fits"})]):
            products = write_visit(self.folder, made, *(true_sky() if sky is None else sky))
            damage(products[BAD])
            self.alerts.ended(number, [self.report(number, d, products[d], status) for d in visit.raw_paths])

    @staticmethod
    def report(visit: int, detector: int, product: Path, status: str) -> DetectorReport:
        return DetectorReport(visit=visit, detector=detector, path="absent.fits", status=status, output=str(product))


def night(folder: Path, *numbers: int, engine: EngineConfig | None = None, config=None, **kwargs):
    """Process some visits; return what became of their alerts."""
    beside = Beside(folder, engine, **config or {})
    with beside.alerts:
        for number in numbers:
            beside.process(number, **kwargs)
    return beside.alerts.outcome


def stored(folder: Path, visit: int) -> set[int]:
    with open_database(folder / "prompt.duckdb") as database:
        return database.published_detectors(visit)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & {"publish", "send"}


def full(*_):
    yield b""
    broken_disk()


@pytest.mark.parametrize("case", ["in the way", "full"])
def test_a_spool_that_takes_nothing_fails_its_visit_and_a_later_run_stores_it(case, tmp_path, monkeypatch):
    """The error names visit and file; products stay; the visit after it is published; then the first one, in another run."""
    spool = tmp_path / "spool" / "visit=1.first=000.n=2.avro"
    with monkeypatch.context() as patch:
        if case == "full":
            patch.setattr("nightstream.scheduler.alert_batch.pack_alerts", full)
        else:
            (spool / "in the way").mkdir(parents=True)
        outcome = night(tmp_path, 1)
    assert list(outcome.failed) == [1] and f"[visit 1, file {spool}]" in outcome.failed[1] and not outcome.visits
    assert not list(spool.parent.glob(".*.tmp")) and stored(tmp_path, 1) == set()
    assert product_path(tmp_path, 1, BAD).exists()
    if case != "full":
        shutil.rmtree(spool)
    outcome = night(tmp_path, 2, 1)
    assert not outcome.failed and [done.visit for done in outcome.visits] == [2, 1] and stored(tmp_path, 1) == {BAD, GOOD}


def test_alerts_that_cannot_be_published_wait_for_a_later_run(tmp_path):
    """A file where the folder should be: all is stored, the reason is told, and once it is gone all is sent."""
    (tmp_path / "alerts").write_text("in the way")
    outcome = night(tmp_path, 1, config={"drain_timeout_s": 0.2})
    assert outcome.n_unsent == outcome.visits[0].n_alerts > 0 and not outcome.failed
    assert f"file {tmp_path / 'alerts' / 'visit=1.avro'}" in outcome.trouble and "visit 1" in outcome.trouble
    (tmp_path / "alerts").unlink()
    assert night(tmp_path).n_unsent == 0
    assert len(list(read_alert_file(tmp_path / "alerts" / "visit=1.avro"))) == outcome.visits[0].n_alerts


def test_a_spool_file_that_vanished_is_named_and_holds_up_no_other(tmp_path):
    """Its alerts stay unsent, as a reminder; those of the next visit go out."""
    (tmp_path / "alerts").write_text("in the way")
    first = night(tmp_path, 1, config={"drain_timeout_s": 0.1}).visits[0]
    (tmp_path / "alerts").unlink()
    spool = tmp_path / "spool" / "visit=1.first=000.n=2.avro"
    spool.unlink()
    outcome = night(tmp_path, 2, config={"drain_timeout_s": 1.0})
    assert outcome.n_unsent == first.n_alerts and f"[visit 1, file {spool}]" in outcome.trouble
    assert len(outcome.latencies_s[2]) == outcome.visits[0].n_alerts > 0


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def lose(name):
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file[name]

    return damage


DAMAGES = {"truncated": truncate, "without stamps": lose("cutouts"), "without pixels": lose("difference/image")}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_product_that_broke_is_told_and_its_neighbour_published(case, tmp_path):
    """The error names visit, detector and file; nothing of the broken one is stored, so that a later run does it again."""
    night(tmp_path, 1)  # the objects of which are forced on the products of the second
    outcome = night(tmp_path, 2, damage=DAMAGES[case])
    (problem,) = outcome.visits[0].problems
    assert str(problem).endswith(f"[visit 2, detector {BAD}, file {product_path(tmp_path, 2, BAD)}]")
    assert not outcome.failed and outcome.visits[0].detectors == (GOOD,) and outcome.visits[0].n_alerts > 0
    assert stored(tmp_path, 2) == {GOOD}
    again = night(tmp_path, 2)
    assert again.visits[0].detectors == (BAD,) and again.n_skipped == 1 and not again.visits[0].problems


def test_visits_without_products_or_sources_hold_up_nobody(tmp_path):
    """All detectors of one failed, another found nothing; the third has its alerts before the run ends."""
    beside = Beside(tmp_path)
    with beside.alerts:
        beside.process(1, status="failed")
        assert not preload_path(tmp_path, 1, BAD).parent.exists()
        beside.process(2, sky=tuple(values[:0] for values in true_sky()))
        beside.process(3)
        for _ in range(500):
            if (tmp_path / "alerts" / "visit=3.avro").exists():
                break
            threading.Event().wait(0.01)
        assert (tmp_path / "alerts" / "visit=3.avro").exists()
    outcome = beside.alerts.outcome
    assert [(done.visit, done.n_alerts > 0, done.problems) for done in outcome.visits] == [(2, False, ()), (3, True, ())]
    assert not outcome.failed and stored(tmp_path, 2) == {BAD, GOOD}
    assert sorted(path.name for path in (tmp_path / "spool").glob("*.avro")) == ["visit=3.first=000.n=2.avro"]


def crowded(limit: int) -> EngineConfig:
    engine = EngineConfig()
    return engine.model_copy(update={"associate": engine.associate.model_copy(update={"max_new_objects_per_detector": limit})})


def test_a_crowded_detector_is_refused_until_the_limit_is_raised(tmp_path):
    """Its neighbour is published. Nothing of it is stored: every run tries it again, until the limit is higher."""
    ra, dec, flux = true_sky()
    left = np.flatnonzero(ra < 150.0 + 0.5 * (ra.max() - ra.min()) / 2)
    right = np.flatnonzero(ra > ra[left].max())
    few = np.concatenate([left[:5], right[:2]])
    sky = ra[few], dec[few], flux[few]
    for detectors, n_skipped in (((GOOD,), 0), ((), 1)):
        outcome = night(tmp_path, 1, engine=crowded(3), sky=sky)
        (problem,) = outcome.visits[0].problems
        assert "new DIAObjects, wanted at most 3" in str(problem) and outcome.n_skipped == n_skipped
        assert str(problem).endswith(f"[visit 1, detector {BAD}, file {product_path(tmp_path, 1, BAD)}]")
        assert outcome.visits[0].detectors == detectors and stored(tmp_path, 1) == {GOOD} and not outcome.failed
    outcome = night(tmp_path, 1, engine=crowded(10), sky=sky)
    assert outcome.visits[0].detectors == (BAD,) and not outcome.visits[0].problems


def test_whatever_the_publisher_raises_stops_no_other_visit(tmp_path, monkeypatch):
    """One line, with the kind of error and the visit."""
    publish = Publisher.publish

    def stumble(publisher, ended):
        if ended.visit == 1:
            raise KeyError("two\nlines")
        return publish(publisher, ended)

    monkeypatch.setattr(Publisher, "publish", stumble)
    outcome = night(tmp_path, 1, 2)
    assert outcome.failed == {1: r"KeyError: 'two\nlines' [visit 1]"} and [done.visit for done in outcome.visits] == [2]
    assert not (visit_directory(tmp_path, 1) / "preload").exists()


def test_an_error_of_the_run_publishes_what_has_ended_and_leaves_no_thread(tmp_path):
    """No sink is waited for, the database is closed, and the error passes."""
    (tmp_path / "alerts").write_text("in the way")
    beside = Beside(tmp_path, drain_timeout_s=600.0)
    with pytest.raises(RuntimeError, match="of the run"), beside.alerts:
        beside.process(1)
        raise RuntimeError("of the run")
    assert not threads() and stored(tmp_path, 1) == {BAD, GOOD}


def test_an_interrupted_run_ends_after_the_visit_being_published(tmp_path, monkeypatch):
    """Of two that wait, the one under way is stored, the other left to a later run."""
    publish, begun = Publisher.publish, threading.Event()

    def slowly(publisher, ended):
        begun.set()
        threading.Event().wait(0.3)
        return publish(publisher, ended)

    monkeypatch.setattr(Publisher, "publish", slowly)
    beside = Beside(tmp_path)
    with pytest.raises(KeyboardInterrupt), beside.alerts:
        beside.process(1)
        beside.process(2)
        begun.wait(10)
        raise KeyboardInterrupt
    assert not threads() and stored(tmp_path, 1) == {BAD, GOOD} and stored(tmp_path, 2) == set()


def test_pixels_do_not_wait_for_a_database_that_is_away(tmp_path, monkeypatch):
    """The visit arrives and ends all the same; that it was not stored is told, and the end of the run is no traceback."""
    arrived = []
    beside = Beside(tmp_path, drain_timeout_s=0.2)

    def away(*_, **__):
        raise DatabaseError("the server is gone", path="postgresql://host/name")

    with beside.alerts:
        for name in ("published_detectors", "objects_in", "unsent_files", "latencies"):
            monkeypatch.setattr(PromptDatabase, name, away)
        beside.process(1, damage=lambda product: arrived.append(product))
    assert len(arrived) == 1 and "the server is gone [visit 1, file postgresql" in beside.alerts.outcome.failed[1]
    assert "the server is gone" in beside.alerts.outcome.error


def test_a_user_whose_folder_cannot_be_written_is_told_and_the_visit_stored(tmp_path):
    """The other user's alerts are there, and so is everybody's."""
    (tmp_path / "filters").mkdir()
    for user in ("ada", "ben"):
        (tmp_path / "filters" / f"{user}.sql").write_text("SELECT diaSourceId FROM diaSource")
    (tmp_path / "alerts" / "filtered").mkdir(parents=True)
    (tmp_path / "alerts" / "filtered" / "ada").write_text("in the way")
    outcome = night(tmp_path, 1, config={"filters": tmp_path / "filters"})
    (problem,) = outcome.visits[0].problems
    assert "filtered/ada" in str(problem) and "visit 1" in str(problem)
    assert stored(tmp_path, 1) == {BAD, GOOD} and not outcome.failed
    assert [path.parent.name for path in (tmp_path / "alerts" / "filtered").rglob("*.avro")] == ["ben"]


def test_a_long_night_takes_little_memory(tmp_path, monkeypatch):
    """Of a visit of 189 detectors at most 3 kB stay in the driver: what the last table shows of it."""
    beside = Beside(tmp_path)
    monkeypatch.setattr(beside.alerts, "_without_stored", lambda visit: visit)
    monkeypatch.setattr(Preload, "__call__", lambda self, visit: visit)
    monkeypatch.setattr(Publisher, "publish", lambda self, ended: PublishedVisit(visit=ended.visit, detectors=(*range(189),)))

    def process(numbers: range) -> int:
        for number in numbers:
            raws = {detector: f"/raw/{number}_{detector}.fits" for detector in range(189)}
            for visit in beside.alerts.arriving([Visit(number, raws)]):
                reports = [Beside.report(number, d, Path(f"/out/{number}/{d}.h5"), "done") for d in visit.raw_paths]
                beside.alerts.ended(number, reports)
        while len(beside.alerts._visits) < numbers.stop:
            threading.Event().wait(0.001)
        return tracemalloc.get_traced_memory()[0]

    with beside.alerts:
        tracemalloc.start()
        before, after = process(range(30)), process(range(30, 60))
        tracemalloc.stop()
    assert len(beside.alerts.outcome.visits) == 60 and after - before < 3000 * 30
