"""Avro records as tables and back, and made-up tables of any record: what the tests of the alert packets share."""

import datetime
import io
import json

import fastavro
import numpy as np

from nightstream.io.alerts.avro_schema import RECORDS, alert_schema, record_fields, record_schema, schema_version


def table_from(records, record):
    """Return a table of ``records`` (dicts with Avro names); None becomes masked, everything else is a value."""
    columns = {column.apdb: column for column in RECORDS[record].columns}
    names = records[0] if records else [field.column.apdb for field in record_fields(record)]
    return {columns[name].name: _masked([entry[name] for entry in records], columns[name]) for name in names}


def _masked(values, column):
    mask = [value is None for value in values]
    if column.dtype.startswith("S"):
        return np.ma.MaskedArray(np.array(["" if value is None else value for value in values], np.str_), mask)
    if column.dtype == "<M8[us]":
        values = [None if value is None else np.datetime64(value.replace(tzinfo=None), "us") for value in values]
        return np.ma.MaskedArray(np.array(values, column.dtype), mask)
    return np.ma.MaskedArray(np.array([0 if value is None else value for value in values], column.dtype), mask)


def random_table(record, n_rows, seed=0, version="11.1"):
    """Return a table with every column of ``record``: a third of the nullable values are NULL by the plain arrays' rules."""
    rng = np.random.default_rng(seed)
    return {column.name: _random(column, nullable, n_rows, rng) for column, nullable in record_fields(record, version)}


def _random(column, nullable, n_rows, rng):
    null = nullable & (rng.random(n_rows) < 1 / 3)
    dtype = np.dtype(column.dtype)
    if dtype.kind == "S":
        words = np.array(["g", "2001 SB97", "né", "名前", "🌠 long text " * 20, "x" * 70])
        return np.where(null, "", rng.choice(words, n_rows))
    if dtype.kind == "b":
        return rng.random(n_rows) < 0.5
    if dtype.kind == "M":
        return np.where(null, np.datetime64("NaT", "us"), (rng.integers(-(2**50), 2**50, n_rows)).astype(column.dtype))
    if dtype.kind == "f":
        return np.where(null, np.nan, rng.normal(size=n_rows) * 10.0 ** rng.integers(-30, 30, n_rows)).astype(dtype)
    bits = rng.integers(1, 8 * dtype.itemsize, n_rows)
    return np.where(null, 0, rng.choice([-1, 1], n_rows) * (1 << (bits - 1))).astype(dtype)


def records_from(table, record, version="11.1"):
    """Return the rows of ``table`` as dicts with Avro names, NULLs as None: the rules, written out plainly."""
    fields = record_fields(record, version)
    n_rows = len(next(iter(table.values())))
    return [{column.apdb: _value(table, column, nullable, row) for column, nullable in fields} for row in range(n_rows)]


def _value(table, column, nullable, row):
    if column.name not in table:
        return None if nullable else 0
    values = table[column.name]
    if isinstance(values, np.ma.MaskedArray):
        return None if values.mask[row] else _plain(values.data[row])
    value = _plain(values[row])
    is_null = value is None or value == "" or value != value or (value == 0 and not isinstance(value, bool | float))
    return None if nullable and is_null else value


def _plain(value):
    value = value.item()
    return value.replace(tzinfo=datetime.UTC) if isinstance(value, datetime.datetime) else value


def fastavro_bytes(records, record, version="11.1"):
    """Return what fastavro writes for each of ``records``; ``record`` may be "alert"."""
    schema = fastavro.parse_schema(alert_schema(version) if record == "alert" else record_schema(record, version))
    written = []
    for entry in records:
        buffer = io.BytesIO()
        fastavro.schemaless_writer(buffer, schema, entry)
        written.append(buffer.getvalue())
    return written


class KnownSchemas:
    """Stands for Confluent's registry client: knows our schemas by their numbers."""

    def get_schema(self, number, *_args, **_kwargs):
        from confluent_kafka.schema_registry import Schema

        return Schema(json.dumps(alert_schema(schema_version(number))), "AVRO")

    def config(self):
        return {}
