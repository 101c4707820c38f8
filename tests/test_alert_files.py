"""Alerts in files: other readers open them, every packet is where it is said to be, and half a file is never seen."""

import itertools
import os
import struct

import fastavro
import numpy as np
import pytest
from alert_records import fastavro_bytes, random_table, records_from

from nightstream.errors import FileError, InputError
from nightstream.io.alerts import files as alert_files
from nightstream.io.alerts.avro_schema import VERSIONS, alert_schema
from nightstream.io.alerts.files import (
    decode_body,
    read_alert_file,
    read_body,
    split_message,
    wire_message,
    write_alert_file,
)


def make_alerts(n_alerts, version="11.1"):
    """Return some alerts as dicts, with pictures of different sizes."""
    sources = records_from(random_table("diaSource", n_alerts, version=version), "diaSource", version)
    empty = {field["name"]: None for field in alert_schema(version)["fields"]}
    return [
        empty | {"diaSourceId": index + 1, "diaSource": source, "cutoutScience": b"FITS" * (10 * index)}
        for index, source in enumerate(sources)
    ]


def write(path, alerts, version="11.1"):
    """Write alerts that fastavro encoded; return the bodies and their places."""
    bodies = fastavro_bytes(alerts, "alert", version)
    return bodies, write_alert_file(path, iter(bodies), version, ids=[alert["diaSourceId"] for alert in alerts])


@pytest.mark.parametrize("version", VERSIONS)
def test_fastavro_reads_the_file(tmp_path, version):
    """Any Avro reader finds schema and alerts in the file; so does ours."""
    alerts = make_alerts(20, version)
    write(tmp_path / "visit=7.avro", alerts, version)
    with open(tmp_path / "visit=7.avro", "rb") as file:
        reader = fastavro.reader(file)
        assert list(reader) == alerts
        assert reader.writer_schema["name"].endswith("alert") and reader.codec == "deflate"
    assert list(read_alert_file(tmp_path / "visit=7.avro")) == alerts


def test_the_avro_package_reads_the_file(tmp_path):
    """Apache's own reader opens it too."""
    datafile, reader = pytest.importorskip("avro.datafile"), pytest.importorskip("avro.io")
    write(tmp_path / "a.avro", make_alerts(5))
    with datafile.DataFileReader(open(tmp_path / "a.avro", "rb"), reader.DatumReader()) as alerts:
        assert [alert["diaSourceId"] for alert in alerts] == [1, 2, 3, 4, 5]


def test_bodies_are_where_they_are_said_to_be(tmp_path):
    """Every packet's bytes can be read from the middle of the file."""
    bodies, places = write(tmp_path / "a.avro", make_alerts(20))
    assert [read_body(tmp_path / "a.avro", *place) for place in zip(*places, strict=True)] == bodies
    assert places.offset.dtype == places.length.dtype == np.int64


def test_a_file_without_alerts(tmp_path):
    """A visit without alerts has a file, which is empty and complete."""
    assert write_alert_file(tmp_path / "a.avro", [], "11.1", ids=[]).offset.size == 0
    assert list(read_alert_file(tmp_path / "a.avro")) == []


def test_the_same_alerts_make_the_same_file(tmp_path):
    """Writing again after a crash gives the same bytes in the same places."""
    for name in "ab":
        write(tmp_path / name, make_alerts(9))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bodies_are_written_while_others_are_made(tmp_path):
    """Packets are taken a few ahead of the disk, so that a visit's need not be in memory together."""
    seen = []

    def bodies():
        for _ in range(80):
            seen.append(sum(len(path.read_bytes()) for path in tmp_path.iterdir()))
            yield os.urandom(1 << 20)

    write_alert_file(tmp_path / "a.avro", bodies(), "11.1", ids=range(80))
    assert seen[-1] >= 40 << 20


def test_half_a_file_is_never_seen(tmp_path):
    """When a packet fails, or their number is wrong, nothing is left, and an older file stays as it was."""
    path = tmp_path / "a.avro"
    with pytest.raises(InputError, match=r"got 2 packets for 3 alerts \[visit 7, file .*a.avro\]"):
        write_alert_file(path, [b"1", b"2"], "11.1", ids=[1, 2, 3], visit=7)
    assert list(tmp_path.iterdir()) == []
    write(path, make_alerts(2))
    before = path.read_bytes()
    with pytest.raises(InputError, match="no picture"):
        write_alert_file(path, itertools.chain([b"1"], failing()), "11.1", ids=[1, 2])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fails_early_is_heard(tmp_path, monkeypatch):
    """The file goes to the disk while it is written; an error then is an error of the file, and nothing is left."""
    monkeypatch.setattr(alert_files, "FLUSH_BYTES", 100)
    heard = iter([OSError(5, "Input/output error")])

    def fails_once(_handle):
        for error in heard:
            raise error

    monkeypatch.setattr(alert_files.os, "fsync", fails_once)
    with pytest.raises(FileError, match=r"could not write the file: Input/output error .*a.avro"):
        write_alert_file(tmp_path / "a.avro", [bytes(200)] * 9, "11.1", ids=range(9))
    assert list(tmp_path.iterdir()) == []


def failing():
    """Yield nothing and fail."""
    raise InputError("no picture")
    yield


def test_broken_files_are_named(tmp_path):
    """Missing, foreign and cut files are one clear error each."""
    path = tmp_path / "a.avro"
    with pytest.raises(FileError, match="could not read the alerts: No such file.*a.avro"):
        list(read_alert_file(path))
    with pytest.raises(FileError, match="could not read an alert: No such file.*a.avro"):
        read_body(path, 0, 1)
    path.write_bytes(b"not Avro at all")
    with pytest.raises(FileError, match="not a complete file of alerts.*a.avro"):
        list(read_alert_file(path))
    _, places = write(path, make_alerts(3))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(FileError, match="not a complete file of alerts.*a.avro"):
        list(read_alert_file(path))
    with pytest.raises(FileError, match=rf"got \d+ bytes at {places.offset[2]}, wanted {places.length[2]}"):
        read_body(path, places.offset[2], places.length[2])


def test_the_wire_header():
    """On the wire a body follows 0 and the schema's number: Rubin's own, or the one a registry gave."""
    assert wire_message(b"body", "11.1") == b"\x00" + struct.pack(">i", 1101) + b"body"
    assert split_message(wire_message(b"body", 42)) == (42, b"body")
    for message in (b"", b"\x00\x00\x00", b"\x01\x00\x00\x00\x2abody"):
        with pytest.raises(InputError, match="wanted 00 and a schema's number"):
            split_message(message)


def test_a_body_of_another_schema_is_refused():
    """Bytes that are no packet are an error."""
    with pytest.raises(InputError, match="not an alert of schema 11.1"):
        decode_body(b"\x02\x04", "11.1")


def test_rubin_reads_the_file(tmp_path):
    """Rubin's alert package finds the schema in the file and all alerts."""
    packet = pytest.importorskip("lsst.alert.packet")
    alerts = make_alerts(4)
    write(tmp_path / "a.avro", alerts)
    with open(tmp_path / "a.avro", "rb") as file:
        schema, read = packet.retrieve_alerts(file)
        assert list(read) == alerts
    assert schema.definition["name"] == "lsst.v11_1.alert"


@pytest.mark.parametrize("old", ["10.0", "11.0"])
def test_readers_of_older_schemas_get_the_newest_alerts(tmp_path, old):
    """A broker that still reads with an older schema gets every field it knows."""
    alerts = make_alerts(4)
    write(tmp_path / "a.avro", alerts)
    with open(tmp_path / "a.avro", "rb") as file:
        read = list(fastavro.reader(file, alert_schema(old)))
    for new, seen in zip(alerts, read, strict=True):
        assert seen["diaSource"] == {name: new["diaSource"][name] for name in seen["diaSource"]}


def test_a_file_of_something_else_is_refused(tmp_path):
    """A container of plain numbers is Avro, but not alerts."""
    with open(tmp_path / "a.avro", "wb") as file:
        fastavro.writer(file, "int", [1, 2])
    with pytest.raises(FileError, match="not a complete file of alerts: got a int, wanted a record"):
        list(read_alert_file(tmp_path / "a.avro"))
