"""Whole packets: real Rubin alerts come back equal, bytes are fastavro's, and every alert gets its own history."""

import io

import fastavro
import numpy as np
import pytest
from alert_records import KnownSchemas, fastavro_bytes, random_table, records_from, table_from
from realdata import real_data
from rubin_alerts import VERSION, rubin_alerts

from nightstream.errors import InputError
from nightstream.io.alerts.avro_rows import encode_rows
from nightstream.io.alerts.avro_schema import VERSIONS, schema_version
from nightstream.io.alerts.files import decode_body, split_message, wire_message
from nightstream.io.alerts.packets import AlertInput, Packet, Records, pack_alerts, splice_packet

ONE = {"diaSource": "diaSource", "diaObject": "diaObject", "ssSource": "ssSource", "mpc_orbits": "mpc_orbits"}
MANY = {"prvDiaSources": "diaSource", "prvDiaForcedSources": "diaForcedSource"}
FOUND_BY = {"diaObjectId": ("prv_dia_sources", "prv_dia_forced_sources", "dia_objects"), "ssObjectId": ("prv_moving_sources",)}
CUTOUTS = ("cutoutDifference", "cutoutScience", "cutoutTemplate")


def our_body(alert, version):
    """Return the body of one alert (a dict) as our encoder writes it, whatever is null."""
    encoded = {name: encode_rows(table_from([alert[name]], ONE[name]), ONE[name], version).row(0) if alert[name] else None
               for name in ONE}  # fmt: skip
    arrays = {}
    for name, record in MANY.items():
        rows = None if alert[name] is None else encode_rows(table_from(alert[name], record), record, version)
        arrays[name] = rows and Records(len(alert[name]), rows.buffer.tobytes())
    texts = (alert["observation_reason"] or "", alert["target_name"] or "")
    records = (encoded[name] for name in ("diaObject", "ssSource", "mpc_orbits"))
    cutouts = tuple(alert[name] for name in CUTOUTS)
    return splice_packet(Packet(alert["diaSourceId"], *texts, encoded["diaSource"], *arrays.values(), *records, cutouts))


@pytest.fixture(scope="module")
def deserializer():
    """Return Confluent's own deserializer, or skip."""
    avro = pytest.importorskip("confluent_kafka.schema_registry.avro")
    return avro.AvroDeserializer(KnownSchemas())


@pytest.mark.real
def test_real_alerts_come_back_equal(deserializer):
    """The 25 Rubin alerts: our bytes are fastavro's, and fastavro and Confluent read the same records from them."""
    alerts = rubin_alerts()
    bodies = [our_body(alert, VERSION) for alert in alerts]
    assert len(bodies) == 25
    assert bodies == fastavro_bytes(alerts, "alert", VERSION)
    assert [decode_body(body, VERSION) for body in bodies] == alerts
    assert [deserializer(wire_message(body, VERSION)) for body in bodies] == alerts


@pytest.mark.real
def test_real_alerts_from_tables():
    """The same 25 from tables in any order: each finds its history, object, orbit; null and empty are where Rubin has them."""
    alerts = rubin_alerts()
    bodies = list(pack_alerts(tables_from(alerts), VERSION))
    assert [decode_body(body, VERSION) for body in bodies] == [alert | scheduler(alerts[0]) for alert in alerts]


def scheduler(alert):
    """Return what belongs to the visit."""
    return {name: alert[name] for name in ("observation_reason", "target_name")}


def tables_from(alerts):
    """Return the alerts as tables; objects, Solar System sources and orbits in another order than the alerts."""
    histories = sorted((s for a in alerts for s in a["prvDiaSources"] or ()), key=lambda s: s["diaObjectId"])
    single = {name: [alert[name] for alert in reversed(alerts) if alert[name]] for name in ONE}
    orbits = {entry["designation"]: entry for entry in single["mpc_orbits"]}
    return AlertInput(
        dia_sources=table_from([alert["diaSource"] for alert in alerts], "diaSource"),
        dia_objects=table_from(single["diaObject"], "diaObject"),
        prv_dia_sources=table_from(histories, "diaSource"),
        prv_dia_forced_sources={},
        prv_moving_sources={},
        ss_sources=table_from(single["ssSource"], "ssSource"),
        mpc_orbits=table_from(list(orbits.values()), "mpc_orbits"),
        cutouts=tuple([alert[name] for alert in alerts] for name in CUTOUTS),
        observation_reason=alerts[0]["observation_reason"],
        target_name=alerts[0]["target_name"],
    )


@pytest.mark.real
@pytest.mark.parametrize("version", VERSIONS)
def test_wire_samples_come_back_equal(version, deserializer):
    """A broker's sample messages: their bytes, header included, are what we write for the records in them."""
    name = f"lsst.v{version.replace('.', '_')}.avro"
    message = (real_data("rubin_alerts") / "pittgoogle_wire_samples" / name).read_bytes()
    number, body = split_message(message)
    alert = decode_body(body, schema_version(number))
    assert schema_version(number) == version
    assert wire_message(our_body(alert, version), version) == message
    assert deserializer(message) == alert


@pytest.mark.real
@pytest.mark.parametrize("version", ["10.0", "11.0"])
def test_rubin_example_comes_back_equal(version):
    """Rubin's example file: our bytes for its alert are fastavro's."""
    data = (real_data("rubin_alerts") / "schema" / version.replace(".", "_") / "fakeAlert.avro").read_bytes()
    alerts = list(fastavro.reader(io.BytesIO(data)))
    assert [our_body(alert, version) for alert in alerts] == fastavro_bytes(alerts, "alert", version)


def make_input(n_alerts=7, seed=3, **changes):
    """Return alerts of which one in three is a Solar System object; each object has 0 to 3 rows of history."""
    rng = np.random.default_rng(seed)
    ids, moving = np.arange(1, n_alerts + 1), np.arange(n_alerts) % 3 == 2
    objects, movers = (np.where(chosen, 1000 + rng.permutation(n_alerts), 0) for chosen in (~moving, moving))
    known, numbers = objects[~moving], {"dia_source_id": ids, "dia_object_id": objects, "ss_object_id": movers}
    histories = {
        "prv_dia_sources": history_of(known, "diaSource", seed + 2, "dia_object_id"),
        "prv_dia_forced_sources": history_of(known, "diaForcedSource", seed + 2, "dia_object_id"),
        "prv_moving_sources": history_of(movers[moving], "diaSource", seed + 3, "ss_object_id"),
    }
    names = np.array([f"2026 A{number}" for number in range(moving.sum())], np.str_)
    values = {
        "dia_sources": random_table("diaSource", n_alerts, seed) | numbers,
        "dia_objects": random_table("diaObject", len(known), seed) | {"dia_object_id": rng.permutation(known)},
        **histories,
        "ss_sources": random_table("ssSource", moving.sum(), seed) | {"dia_source_id": ids[moving], "designation": names},
        "mpc_orbits": random_table("mpc_orbits", moving.sum(), seed) | {"designation": names[::-1]},
        "cutouts": tuple([rng.bytes(100 + 60 * kind) for _ in range(n_alerts)] for kind in range(3)),
        "target_name": "cosmos",
    }
    return AlertInput(**(values | changes))


def history_of(objects, record, seed, name):
    """Return 0 to 3 rows of each object, sorted by the column ``name``, which holds its number."""
    n_rows = np.arange(len(objects)) % 4
    return random_table(record, n_rows.sum(), seed) | {name: np.sort(np.repeat(objects, n_rows))}


def expected(alerts, version):
    """Return the packets of ``alerts`` as dicts, found the slow and plain way."""
    tables = {
        name: records_from(getattr(alerts, name), record, version)
        for name, record in {
            "dia_sources": "diaSource",
            "dia_objects": "diaObject",
            "prv_dia_sources": "diaSource",
            "prv_dia_forced_sources": "diaForcedSource",
            "prv_moving_sources": "diaSource",
            "ss_sources": "ssSource",
            "mpc_orbits": "mpc_orbits",
        }.items()
    }
    return [expected_one(source, tables, alerts, index) for index, source in enumerate(tables["dia_sources"])]


def expected_one(source, tables, alerts, index):
    mine = {
        name: [row for row in tables[name] if source[key] is not None and row[key] == source[key]]
        for key, names in FOUND_BY.items()
        for name in names
    }
    known = [row for row in tables["ss_sources"] if row["diaSourceId"] == source["diaSourceId"]]
    orbits = [row for row in tables["mpc_orbits"] if known and row["designation"] == known[0]["designation"]]
    return {
        "diaSourceId": source["diaSourceId"],
        "observation_reason": alerts.observation_reason or None,
        "target_name": alerts.target_name or None,
        "diaSource": source,
        "prvDiaSources": mine["prv_dia_sources"] or mine["prv_moving_sources"] or None,
        "prvDiaForcedSources": mine["prv_dia_forced_sources"] if mine["dia_objects"] else None,
        "diaObject": next(iter(mine["dia_objects"]), None),
        "ssSource": next(iter(known), None),
        "mpc_orbits": next(iter(orbits), None),
        **{name: alerts.cutouts[kind][index] for kind, name in enumerate(CUTOUTS)},
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_packets_are_those_of_fastavro(version):
    """Packets with and without history, object and orbit: our bytes are fastavro's for the record put together plainly."""
    alerts = make_input()
    assert list(pack_alerts(alerts, version)) == fastavro_bytes(expected(alerts, version), "alert", version)


def test_blocks_do_not_show():
    """More alerts than are encoded together come out in order, each as it would alone."""
    alerts = make_input(430)
    bodies = list(pack_alerts(alerts))
    assert [decode_body(body, "11.1")["diaSourceId"] for body in bodies] == list(range(1, 431))
    for index in (0, 199, 200, 429):
        one = {name: values[index : index + 1] for name, values in alerts.dia_sources.items()}
        changes = {"dia_sources": one, "cutouts": tuple(kind[index : index + 1] for kind in alerts.cutouts)}
        assert list(pack_alerts(make_input(430, **changes))) == [bodies[index]]


def test_pictures_are_asked_for_when_needed():
    """Only a few packets are under way at a time: pictures are not asked for before their turn."""
    asked = []

    class Lazy(list):
        def __getitem__(self, index):
            asked.append(index)
            return b"FITS"

    packets = pack_alerts(make_input(70, cutouts=tuple(Lazy(range(70)) for _ in range(3))))
    next(packets)
    assert asked == [0, 0, 0]
    assert len(list(packets)) == 69 and asked[-3:] == [69] * 3


def test_no_alerts():
    """A visit without sources has no packets."""
    nothing = AlertInput(
        dia_sources={}, dia_objects={}, prv_dia_sources={}, prv_dia_forced_sources={}, prv_moving_sources={}, ss_sources={},
        mpc_orbits={}, cutouts=([], [], []),
    )  # fmt: skip
    assert list(pack_alerts(nothing)) == []


def test_a_picture_must_be_there():
    """No packet leaves with a null or empty cutout; the ones before it are good."""
    cutouts = ([b"a"] * 7, [b"a"] * 4 + [b""] * 3, [b"a"] * 7)
    packets = pack_alerts(make_input(cutouts=cutouts))
    assert len([next(packets) for _ in range(4)]) == 4
    with pytest.raises(InputError, match="the alert of DIASource 5 has no science cutout"):
        next(packets)
    with pytest.raises(InputError, match=r"got \[6, 7, 7\] cutouts, wanted 7 of each kind"):
        pack_alerts(make_input(cutouts=([b"a"] * 6, [b"a"] * 7, [b"a"] * 7)))


def test_an_object_must_be_there():
    """A source whose DIAObject is missing is named, before the first packet."""
    objects = {name: values[:0] for name, values in make_input().dia_objects.items()}
    with pytest.raises(InputError, match=r"DIAObject 100\d of DIASource 1 is not among the objects"):
        pack_alerts(make_input(dia_objects=objects))


def test_histories_must_be_sorted():
    """A history in another order would give alerts the wrong rows: it is refused."""
    for history, key in (("prv_dia_sources", "dia_object_id"), ("prv_moving_sources", "ss_object_id")):
        table = {name: values[::-1] for name, values in getattr(make_input(30), history).items()}
        with pytest.raises(InputError, match=f"history must be sorted by {key}"):
            pack_alerts(make_input(30, **{history: table}))
