"""The LSST alert packet's Avro schemas, made from the tables of `io.apdb`; one version's rules are a few lines.

Field names, order, types and defaults are those of the schemas that Rubin publishes; the descriptions are ours.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cache
from typing import Any, NamedTuple

from nightstream.errors import ConfigError
from nightstream.io import apdb
from nightstream.io.schema import Column

# Records a packet is made of, in the order in which a packet first mentions them.
RECORDS = {
    "diaSource": apdb.DIA_SOURCE,
    "diaForcedSource": apdb.DIA_FORCED_SOURCE,
    "diaObject": apdb.DIA_OBJECT,
    "ssSource": apdb.SS_SOURCE,
    "mpc_orbits": apdb.MPC_ORBITS,
}
AVRO_TYPES = {"<i8": "long", "<i4": "int", "<i2": "int", "<f4": "float", "<f8": "double", "?": "boolean"}
TIMESTAMP = {"type": "long", "logicalType": "timestamp-micros"}


class Rules(NamedTuple):
    """How the records of one schema version differ from the APDB's tables."""

    left_out: frozenset[str]  # columns
    nullable: tuple[str, ...] = ()  # patterns of columns that may be null, though the APDB's may not


_NEVER = frozenset({"ssObjectReassocTimeMjdTai", "validityEndMjdTai"})
_NEW_IN_11_1 = frozenset({"exposureTime", "trailAlgorithm", "trail_flag", "reliabilityVersion"})
VERSIONS = {
    "10.0": Rules(_NEVER | _NEW_IN_11_1, ("psfNdata", "trailNdata", "dipoleNdata", "bboxSize", "*_psfFluxNdata")),
    "11.0": Rules(_NEVER | _NEW_IN_11_1),
    "11.1": Rules(_NEVER),
}
NEWEST = "11.1"


class Field(NamedTuple):
    """One field of a record: the column it holds, and whether it may be null."""

    column: Column
    nullable: bool


def schema_id(version: str) -> int:
    """Return the number of ``version`` in the wire header and at Rubin's schema registry: 11.1 is 1101."""
    _rules(version)
    major, minor = version.split(".")
    return 100 * int(major) + int(minor)


def schema_version(number: int) -> str:
    """Return the version whose `schema_id` is ``number``. Raises ConfigError when there is none."""
    version = f"{number // 100}.{number % 100}"
    _rules(version)
    return version


@cache
def record_fields(record: str, version: str = NEWEST) -> tuple[Field, ...]:
    """Return the fields of ``record`` (a name of `RECORDS`) in order. Raises ConfigError for an unknown version."""
    rules = _rules(version)
    return tuple(
        Field(column, not column.required or any(fnmatchcase(column.apdb, pattern) for pattern in rules.nullable))
        for column in RECORDS[record].columns
        if not column.optional and column.apdb not in rules.left_out
    )


def alert_schema(version: str = NEWEST) -> dict[str, Any]:
    """Return the schema of a whole packet as one JSON-able dict; each record is spelled out where it comes first.

    Raises ConfigError for an unknown version.
    """
    records = {name: record_schema(name, version) for name in RECORDS}
    again = f"lsst.v{version.replace('.', '_')}.diaSource"
    fields = [
        {"name": "diaSourceId", "type": "long", "doc": "number of the source that made this alert"},
        _nullable("observation_reason", "string", "why the scheduler took this exposure"),
        _nullable("target_name", "string", "what the scheduler aimed at"),
        {"name": "diaSource", "type": records["diaSource"], "doc": "the source that made this alert"},
        _nullable("prvDiaSources", {"type": "array", "items": again}, "its object's sources of the last 12 months"),
        _nullable(
            "prvDiaForcedSources",
            {"type": "array", "items": records["diaForcedSource"]},
            "its object's forced measurements of the last 12 months and of this visit",
        ),
        _nullable("diaObject", records["diaObject"], "the object it belongs to"),
        _nullable("ssSource", records["ssSource"], "the source as an observation of a known Solar System object"),
        _nullable("mpc_orbits", records["mpc_orbits"], "orbit of that Solar System object"),
        *(_nullable(f"cutout{name}", "bytes", f"FITS file: {text} around the source") for name, text in _CUTOUTS.items()),
    ]
    doc = f"An alert: a source on a difference image, its history and its pictures. LSST schema {version}"
    return _record("alert", version, fields) | {"doc": doc}


def record_schema(record: str, version: str = NEWEST) -> dict[str, Any]:
    """Return the schema of one record of a packet. Raises ConfigError for an unknown version."""
    return _record(record, version, [_field(*field) for field in record_fields(record, version)])


_CUTOUTS = {"Difference": "difference image", "Science": "visit image", "Template": "matched template"}


def _rules(version: str) -> Rules:
    if version not in VERSIONS:
        raise ConfigError(f"got alert schema version {version!r}, wanted one of {', '.join(VERSIONS)}")
    return VERSIONS[version]


def _record(name: str, version: str, fields: list[dict]) -> dict[str, Any]:
    return {"type": "record", "namespace": f"lsst.v{version.replace('.', '_')}", "name": name, "fields": fields}


def _field(column: Column, nullable: bool) -> dict[str, Any]:
    avro = TIMESTAMP if column.dtype == "<M8[us]" else AVRO_TYPES.get(column.dtype, "string")
    doc = f"{column.description} [{column.unit}]" if column.unit else column.description
    return _nullable(column.apdb, avro, doc) if nullable else {"name": column.apdb, "type": avro, "doc": doc}


def _nullable(name: str, avro: Any, doc: str) -> dict[str, Any]:
    return {"name": name, "type": ["null", avro], "default": None, "doc": doc}
