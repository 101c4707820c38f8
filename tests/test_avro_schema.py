"""The packet schemas are Rubin's: same fields, types, order and defaults, in every version."""

import io
import json
from importlib.util import find_spec
from pathlib import Path

import fastavro
import pytest
from realdata import real_data

from nightstream.errors import ConfigError
from nightstream.io.alerts.avro_schema import NEWEST, RECORDS, VERSIONS, alert_schema, record_schema, schema_id, schema_version


def shape(schema):
    """Return what matters of a schema: names, types, order and defaults, without the words."""
    if isinstance(schema, list):
        return [shape(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: shape(value) for key, value in schema.items() if key in ("type", "items", "name", "fields", "logicalType")}
    return kept | ({"default": schema["default"]} if "default" in schema else {})


def rubin_schema(version, record):
    """Return Rubin's schema of ``record`` from the installed package, or skip."""
    if find_spec("lsst") is None or find_spec("lsst.alert.packet") is None:
        pytest.skip("lsst-alert-packet is not installed")
    folder = Path(find_spec("lsst.alert.packet").submodule_search_locations[0]) / "schema" / version.replace(".", "/")
    return json.loads((folder / f"lsst.v{version.replace('.', '_')}.{record}.avsc").read_text())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("record", RECORDS)
def test_records_are_those_of_the_package(record, version):
    """Each record equals that of lsst-alert-packet."""
    theirs, ours = rubin_schema(version, record), record_schema(record, version)
    assert shape(ours) == shape(theirs)
    assert ours["namespace"] == theirs["namespace"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_packet_is_that_of_the_package(version):
    """The packet has Rubin's fields; records it spells out are the ones Rubin names."""
    theirs = json.loads(json.dumps(rubin_schema(version, "alert")).replace(f"lsst.v{version.replace('.', '_')}.", ""))
    ours = json.loads(json.dumps(alert_schema(version)).replace(f"lsst.v{version.replace('.', '_')}.", ""))
    assert shape(named(ours)) == shape(theirs)


def named(packet):
    """Return ``packet`` with every record inside it replaced by its name."""

    def replaced(part):
        if isinstance(part, list):
            return [replaced(entry) for entry in part]
        if not isinstance(part, dict):
            return part
        return part["name"] if part.get("type") == "record" else {key: replaced(value) for key, value in part.items()}

    return packet | {"fields": [replaced(field) for field in packet["fields"]]}


@pytest.mark.real
@pytest.mark.parametrize("version", ["10.0", "11.0"])
@pytest.mark.parametrize("record", RECORDS)
def test_records_are_those_of_the_published_files(record, version):
    """Each record equals the one in the schema files that came with real alerts."""
    name = version.replace(".", "_")
    path = real_data("rubin_alerts") / "schema" / name / f"lsst.v{name}.{record}.avsc"
    assert shape(record_schema(record, version)) == shape(json.loads(path.read_text()))


@pytest.mark.real
@pytest.mark.parametrize("version", ["10.0", "11.0"])
def test_rubin_files_open_with_our_schema(version):
    """A file written with Rubin's schema reads the same when ours is the reader's."""
    data = (real_data("rubin_alerts") / "schema" / version.replace(".", "_") / "fakeAlert.avro").read_bytes()
    theirs = list(fastavro.reader(io.BytesIO(data)))
    assert list(fastavro.reader(io.BytesIO(data), alert_schema(version))) == theirs


@pytest.mark.parametrize("version", VERSIONS)
def test_schemas_are_json_and_explained(version):
    """A schema survives the way through JSON, parses, and explains every field in our words."""
    schema = json.loads(json.dumps(alert_schema(version)))
    fastavro.parse_schema(schema)
    assert all(field["doc"] for record in RECORDS for field in record_schema(record, version)["fields"])


def test_version_numbers():
    """The number on the wire is Rubin's; the newest version is the default; unknown ones are named."""
    assert [schema_id(version) for version in VERSIONS] == [1000, 1100, 1101]
    assert [schema_version(schema_id(version)) for version in VERSIONS] == list(VERSIONS)
    assert alert_schema()["namespace"] == "lsst.v11_1" and list(VERSIONS)[-1] == NEWEST
    with pytest.raises(ConfigError, match=r"got alert schema version '7.4', wanted one of 10.0, 11.0, 11.1"):
        alert_schema("7.4")
