"""Alerts leave as files, each exactly once, whatever is killed or away; and the sender that carries them."""

from __future__ import annotations

import errno
import os
import threading
import time

import numpy as np
import pytest
from fake_outbox import FakeOutbox, spool
from send_alerts import publish_visit, run_sender, sent_of

from nightstream.errors import DeliveryError, FileError
from nightstream.io.alerts.distribution import Consignment, FileSink, publish, read_progress
from nightstream.io.clock import mjd_tai, now_mjd_tai
from nightstream.io.database.prompt_database import open_database
from nightstream.scheduler.alerts_config import AlertsConfig, make_sink
from nightstream.scheduler.sender import Sender

ENDED_S = 10.0


class Crash(BaseException):
    """The process ends here."""


class Books:
    """A ledger that remembers, and that can crash at its n-th use."""

    is_stopping = False

    def __init__(self, crash_at: int = -1) -> None:
        self.progress, self.ids, self.crash_at = "", [], crash_at

    def _use(self) -> None:
        self.crash_at -= 1
        if self.crash_at == 0:
            raise Crash

    def save_progress(self, text: str) -> None:
        self._use()
        self.progress = text

    def sent(self, ids, sent_mjd_tai) -> None:
        self._use()
        self.ids += ids.tolist()


class ListSink:
    """Keeps what it is given; raises ``errors`` one after the other before that."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.got, self.closed = list(errors), [], 0

    def deliver(self, consignment, ledger) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.got += consignment.alerts["dia_source_id"].tolist()
        ledger.sent(consignment.alerts["dia_source_id"], now_mjd_tai())

    def close(self) -> None:
        self.closed += 1


def consignment(path, visit: int = 7, progress: str = "") -> Consignment:
    alerts = {"dia_source_id": np.array([1, 2, 3])}
    return Consignment(path=path, visit=visit, schema_version="11.1", progress=progress, alerts=alerts)


@pytest.fixture
def spooled(tmp_path):
    """Two spool files of one visit."""
    paths = tmp_path / "spool-a", tmp_path / "spool-b"
    for path in paths:
        path.write_bytes(path.name.encode() * 100)
    return paths


def sending(outbox, sink, folder, **more) -> Sender:
    return Sender(outbox, sink, folder, poll_s=0.05, retry_s=0.01, max_retry_s=0.05, **more).start()


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_batches_of_a_visit_are_numbered(spooled, tmp_path):
    """visit=7.avro, then visit=7.2.avro; each is its spool file, byte for byte, on the same place of the disk."""
    sink, public = FileSink(tmp_path / "alerts"), tmp_path / "alerts"
    for path in spooled:
        sink.deliver(consignment(path), Books())
    assert names(public) == ["visit=7.2.avro", "visit=7.avro"]
    assert (public / "visit=7.avro").samefile(spooled[0]) and (public / "visit=7.2.avro").samefile(spooled[1])


@pytest.mark.parametrize("crash_at", [1, 2])
def test_a_file_is_published_once_wherever_the_sink_is_killed(spooled, tmp_path, crash_at):
    """Before the name is saved, or before the alerts are booked: the next attempt ends with one file and one booking."""
    sink, public = FileSink(tmp_path / "alerts"), tmp_path / "alerts"
    sink.deliver(consignment(spooled[0]), Books())
    books = Books(crash_at)
    with pytest.raises(Crash):
        sink.deliver(consignment(spooled[1]), books)
    sink.deliver(consignment(spooled[1], progress=books.progress), books)
    assert names(public) == ["visit=7.2.avro", "visit=7.avro"]
    assert books.ids == [1, 2, 3] and read_progress(books.progress) == {"published": "visit=7.2.avro"}


def test_a_lost_booking_does_not_publish_again(spooled, tmp_path):
    """A spool file that stands in the public folder already, under whichever name, gets no second one."""
    sink = FileSink(tmp_path / "alerts")
    sink.deliver(consignment(spooled[0]), Books())
    sink.deliver(consignment(spooled[0]), Books())
    assert names(tmp_path / "alerts") == ["visit=7.avro"]


def test_another_disk_gets_a_copy(spooled, tmp_path, monkeypatch):
    """Where no hard link can be made the file is copied, complete or not at all."""

    def refuse(source, path):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    FileSink(tmp_path / "alerts").deliver(consignment(spooled[0]), Books())
    published = tmp_path / "alerts" / "visit=7.avro"
    assert published.read_bytes() == spooled[0].read_bytes() and not published.samefile(spooled[0])
    assert names(tmp_path / "alerts") == ["visit=7.avro"]


def test_a_published_file_is_never_replaced(spooled, tmp_path):
    """Publishing under a name that is taken leaves what is there."""
    publish(spooled[0], tmp_path / "alerts" / "a.avro")
    publish(spooled[1], tmp_path / "alerts" / "a.avro")
    assert (tmp_path / "alerts" / "a.avro").read_bytes() == spooled[0].read_bytes()


def test_a_missing_spool_file_is_one_clear_error(tmp_path):
    """It names visit and file."""
    with pytest.raises(FileError, match=r"could not publish the alerts: No such file.*visit 7.*gone\]"):
        FileSink(tmp_path / "alerts").deliver(consignment(tmp_path / "gone"), Books())


def test_progress_of_another_sink_is_no_progress():
    """Text that is no record reads as none."""
    assert read_progress("") == read_progress("done") == read_progress("[1]") == {}


def test_the_sender_empties_the_outbox_in_order(tmp_path):
    """File after file, and those that come while it runs; every alert is booked once."""
    outbox, sink = FakeOutbox(), ListSink()
    spool(outbox, tmp_path, 1, np.arange(5))
    sender = sending(outbox, sink, tmp_path)
    assert sender.drain(ENDED_S)
    spool(outbox, tmp_path, 2, np.arange(5, 9))
    assert sender.drain(ENDED_S)
    sender.close()
    assert sink.got == list(outbox.sent()) == list(range(9)) and sink.closed == 1
    assert sender.status.n_sent == 9 and sender.status.n_waiting == 0
    assert outbox._do("select distinct bookings from alerts") == [(1,)]


@pytest.mark.parametrize("engine", ["duckdb", "postgresql"])
def test_both_engines_serve_as_outbox(engine, request, tmp_path):
    """Two visits from the prompt database to public files; each alert's latency, readout to sent, is known afterwards."""
    is_file = engine == "duckdb"
    url = tmp_path / "prompt.duckdb" if is_file else request.getfixturevalue("postgres_server").new_database()
    with open_database(url) as database:
        sender = sending(database, FileSink(tmp_path / "alerts"), tmp_path)
        for visit in (1, 2):
            publish_visit(database, tmp_path, visit, np.arange(4) + 10 * visit)
            sender.wake()
        assert sender.drain(ENDED_S)
        sender.close()
        assert database.unsent_files() == [] and names(tmp_path / "alerts") == ["visit=1.avro", "visit=2.avro"]
        assert len(database.latencies()) == 8 and sender.status.latest_s == pytest.approx(database.latencies(2).max(), abs=1e-3)


def test_the_sender_tries_again_until_the_sink_is_back(tmp_path):
    """Nothing is lost; trouble is told while it lasts, and forgotten after."""
    outbox, sink = FakeOutbox(), ListSink(*[DeliveryError("the broker is away")] * 4)
    told = []
    spool(outbox, tmp_path, 1, np.arange(3))
    sender = Sender(outbox, sink, tmp_path, retry_s=0.01, max_retry_s=0.02, on_file=lambda *what: told.append(what)).start()
    assert sender.drain(ENDED_S)
    sender.close()
    assert sink.got == [0, 1, 2] and sender.status.trouble == "" and [visit for visit, _ in told] == [1]


def test_whoever_waits_for_the_end_shortens_the_pauses(tmp_path):
    """Fifteen failures would double a millisecond to half a minute; while the run waits to end, they do not."""
    outbox, sink = FakeOutbox(), ListSink(*[DeliveryError("the broker is away")] * 15)
    spool(outbox, tmp_path, 1, np.arange(3))
    sender = Sender(outbox, sink, tmp_path, retry_s=0.001, max_retry_s=1000.0).start()
    assert sender.drain(ENDED_S)
    sender.close()
    assert sink.got == [0, 1, 2]


def test_a_database_that_is_away_does_not_end_the_sender(tmp_path):
    """Its thread lives on and sends when the database is back."""
    outbox, sink = FakeOutbox(), ListSink()
    spool(outbox, tmp_path, 1, np.arange(3))
    outbox.is_away = True
    sender = sending(outbox, sink, tmp_path)
    assert not sender.drain(0.1) and "database is away" in sender.status.trouble
    outbox.is_away = False
    assert sender.drain(ENDED_S)
    sender.close()
    assert sink.got == [0, 1, 2]


def test_a_damaged_spool_file_does_not_hold_up_the_others(tmp_path):
    """The error is told; the other visits' alerts go out; the damaged file's stay unsent."""
    outbox, sink = FakeOutbox(), FileSink(tmp_path / "alerts")
    spool(outbox, tmp_path, 1, np.arange(3)).unlink()
    spool(outbox, tmp_path, 2, np.arange(3, 6))
    sender = sending(outbox, sink, tmp_path)
    assert not sender.drain(0.3)
    sender.close()
    assert list(outbox.sent()) == [3, 4, 5] and "visit 1" in sender.status.trouble


def test_a_killed_sender_publishes_every_file_once(tmp_path):
    """SIGKILL at once, and ever later: every visit's file stands once in the public folder, and every alert is booked."""
    kills, delays = 0, (0.0, 0.005, 0.01, 0.02, None)
    path, ids = tmp_path / "prompt.duckdb", np.arange(36) + 2**60
    with open_database(path) as database:
        spooled = {visit: publish_visit(database, tmp_path, visit, part) for visit, part in enumerate(np.split(ids, 12))}
    public = tmp_path / "alerts"
    while not run_sender(path, tmp_path, "files", str(public), kill_after_s=delays[kills]):
        kills += 1
    assert kills >= 1
    assert names(public) == sorted(f"visit={visit}.avro" for visit in spooled)
    assert all((public / f"visit={visit}.avro").read_bytes() == file.read_bytes() for visit, file in spooled.items())
    assert sent_of(path) == (ids.tolist(), 0)


def test_nobody_waits_for_a_slow_sink(tmp_path):
    """While the sink hangs, alerts can be entered, the sender woken and its status read."""
    release, begun = threading.Event(), threading.Event()

    class Hanging(ListSink):
        def deliver(self, consignment, ledger) -> None:
            begun.set()
            assert release.wait(ENDED_S)
            super().deliver(consignment, ledger)

    outbox, sink = FakeOutbox(), Hanging()
    spool(outbox, tmp_path, 1, np.arange(3))
    sender = sending(outbox, sink, tmp_path)
    assert begun.wait(ENDED_S)
    for visit in range(2, 30):
        spool(outbox, tmp_path, visit, np.arange(3) + 3 * visit)
        sender.wake()
    assert sender.status.n_waiting == 3 and not sender.drain(0.05)
    release.set()
    assert sender.drain(ENDED_S)
    sender.close()
    assert len(sink.got) == 3 * 29


def test_close_leaves_the_rest_in_the_outbox(tmp_path):
    """A closed sender stops within its sink's next look at the ledger, and another carries on."""

    class OneByOne(ListSink):
        def deliver(self, consignment, ledger) -> None:
            for row in range(len(consignment.alerts["dia_source_id"])):
                if ledger.is_stopping:
                    return
                ledger.sent(consignment.alerts["dia_source_id"][row : row + 1], now_mjd_tai())
                time.sleep(0.002)

    outbox = FakeOutbox()
    spool(outbox, tmp_path, 1, np.arange(1000))
    sender = sending(outbox, OneByOne(), tmp_path)
    while not outbox.sent():
        time.sleep(0.001)
    sender.close()
    assert 0 < len(outbox.sent()) < 1000
    sender = sending(outbox, ListSink(), tmp_path)
    assert sender.drain(ENDED_S)
    sender.close()
    assert list(outbox.sent()) == list(range(1000))
    assert outbox._do("select distinct bookings from alerts") == [(1,)]


def test_two_senders_do_not_share_a_spool_folder(tmp_path):
    """The second is refused while the first lives, and welcome after."""
    first = sending(FakeOutbox(), ListSink(), tmp_path)
    with pytest.raises(FileError, match="another process sends the alerts"):
        sending(FakeOutbox(), ListSink(), tmp_path)
    first.close()
    sending(FakeOutbox(), ListSink(), tmp_path).close()


def test_files_are_the_default_sink(tmp_path):
    """Without a kafka section alerts are published as files in the run's output folder."""
    config = AlertsConfig().located(tmp_path)
    assert config.database == str(tmp_path / "prompt.duckdb") and config.spool_dir == tmp_path / "spool"
    assert make_sink(config).directory == tmp_path / "alerts"


def test_an_unknown_schema_version_is_refused():
    """When the configuration is read, not when the first alert is to go."""
    with pytest.raises(ValueError, match="schema version '3.0'"):
        AlertsConfig(schema_version="3.0")


def test_the_clock_counts_leap_seconds():
    """2017-01-01T00:00:00 UTC is 37 s later in TAI; arrays and numbers alike."""
    expected = 57754.0 + 37.0 / 86400.0
    assert mjd_tai(1483228800.0) == expected
    np.testing.assert_array_equal(mjd_tai(np.array([1483228800.0, 1483228800.0 + 86400.0])), [expected, expected + 1])
