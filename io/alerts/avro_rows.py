"""Rows of a table as Avro records: all rows of a column at once, in compiled code. Bytes equal fastavro's.

A record of the packet is a run of fields, each a byte that says whether it is null (if it may be) and the value. Columns are
first laid out as 8-byte slots, field by field, and then written row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np

from nightstream.engine.values import Table
from nightstream.errors import InputError
from nightstream.io.alerts.avro_schema import NEWEST, Field, record_fields
from nightstream.io.schema import Column, cast_column
from nightstream.kernels.target import NUMBA_OPTIONS

# How a slot becomes bytes.
INTEGER, TIME, FLOAT, DOUBLE, BOOLEAN, TEXT, ABSENT = range(7)
_KINDS = {"<i8": INTEGER, "<i4": INTEGER, "<i2": INTEGER, "<M8[us]": TIME, "<f4": FLOAT, "<f8": DOUBLE, "?": BOOLEAN}
_SLOT_BYTES = 11  # most that a number takes: null byte and ten of a 64-bit integer
_CHUNK = 2048  # rows laid out at a time: their slots stay in the cache


class Rows(NamedTuple):
    """Encoded records: row ``i`` is ``buffer[offsets[i] : offsets[i + 1]]``."""

    buffer: np.ndarray  # (offsets[-1],) uint8
    offsets: np.ndarray  # (n + 1,) int64

    def row(self, index: int) -> bytes:
        """Return the record of one row."""
        return self.buffer[self.offsets[index] : self.offsets[index + 1]].tobytes()


def encode_rows(table: Table, record: str, version: str = NEWEST) -> Rows:
    """Return every row of ``table`` as an Avro record.

    ``record`` is a name of `avro_schema.RECORDS`, e.g. "diaSource"; ``table`` has its columns, equally long, in any order;
    columns that the record does not have are ignored. NaN, empty text, NaT and 0 in an integer that may be null become
    null, and so does a column that is missing; in a masked array the masked values do, and nothing else. Missing counts
    that may not be null are 0. Raises InputError for another missing column, a masked value that may not be null, and for
    values that the column's type cannot hold.
    """
    n_rows = len(next(iter(table.values()))) if table else 0
    return RowEncoder(table, record, version).encode(np.arange(n_rows))


class RowEncoder:
    """One table, ready to give any of its rows as Avro records; `encode_rows` says how values are written."""

    def __init__(self, table: Table, record: str, version: str = NEWEST) -> None:
        fields = record_fields(record, version)
        _check(table, record, fields)
        self._sources = [_source(field, table.get(field.column.name)) for field in fields]
        self._plan = _plan(self._sources)

    def encode(self, rows: np.ndarray) -> Rows:
        """Return the rows of these numbers, in this order."""
        chunks = [self._encode_chunk(rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK)]
        if len(chunks) == 1:
            return chunks[0]
        lengths = [np.diff(offsets) for _, offsets in chunks]
        offsets = np.concatenate([[0], *lengths]).cumsum()
        return Rows(np.concatenate([np.empty(0, np.uint8), *(buffer for buffer, _ in chunks)]), offsets)

    def _encode_chunk(self, rows: np.ndarray) -> Rows:
        n_fields, n_rows = len(self._sources), len(rows)
        slots, text, masked = np.zeros((n_fields, n_rows), np.int64), [np.zeros(0, np.uint32)], [np.zeros((0, n_rows), np.bool_)]
        for index, source in enumerate(self._sources):
            if source.values is None:
                continue
            if source.kind == TEXT:
                text.append(source.values[rows].ravel())
            else:
                slots[index] = _bits(cast_column(source.values.take(rows), source.column))
            if source.masked is not None:
                masked.append(source.masked[None, rows])
        most = n_rows * int(n_fields * _SLOT_BYTES + 4 * self._plan.widths.sum())
        out, offsets = np.empty(most, np.uint8), np.empty(n_rows + 1, np.int64)
        _write_rows(*self._plan, slots, np.concatenate(text), np.concatenate(masked), out, offsets)
        return Rows(out[: offsets[-1]].copy(), offsets)


class _Source(NamedTuple):
    """Where one field's values come from. Nothing is copied before its row is asked for."""

    column: Column
    kind: int
    nullable: bool
    values: np.ndarray | None  # (n,) as they are; text: (n, width) code points; None: missing
    masked: np.ndarray | None  # (n,) bool


class _Plan(NamedTuple):
    """What the compiled loop knows of the fields, an array each."""

    kinds: np.ndarray
    nullable: np.ndarray
    widths: np.ndarray  # text: characters a value takes
    before: np.ndarray  # text: characters a row takes in the columns before
    masks: np.ndarray  # which of the masked columns it is, or -1


def _plan(sources: list[_Source]) -> _Plan:
    widths = np.array([0 if s.values is None or s.kind != TEXT else s.values.shape[1] for s in sources], np.int64)
    masked = np.array([source.masked is not None for source in sources])
    return _Plan(
        np.array([source.kind for source in sources], np.uint8),
        np.array([source.nullable for source in sources]),
        widths,
        widths.cumsum() - widths,
        np.where(masked, masked.cumsum() - 1, -1),
    )


def _source(field: Field, values) -> _Source:
    """Return one column as the loop wants it."""
    column, nullable = field
    if values is None:
        return _Source(column, ABSENT if nullable else INTEGER, nullable, None, None)
    masked = np.broadcast_to(np.ma.getmask(values), len(values)) if isinstance(values, np.ma.MaskedArray) else None
    if masked is not None and not nullable and masked.any():
        raise InputError(f"column {column.apdb} holds masked values, but may not be null")
    kind, values = _KINDS.get(column.dtype, TEXT), np.ma.getdata(values)
    return _Source(column, kind, nullable, _code_points(values) if kind == TEXT else values, masked)


def _code_points(values: np.ndarray) -> np.ndarray:
    """Return text as (n, width) code points, filled up with zeros."""
    letters = np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
    letters = np.ascontiguousarray(letters, dtype=np.str_)
    return letters.view(np.uint32).reshape(len(letters), letters.dtype.itemsize // 4)


def _bits(values: np.ndarray) -> np.ndarray:
    """Return floats and times as the integers of the same bits."""
    return values.view(f"i{values.itemsize}") if values.dtype.kind in "fM" else values


def _check(table: Table, record: str, fields: Sequence[Field]) -> None:
    lengths = {len(values) for values in table.values()}
    if len(lengths) > 1:
        raise InputError(f"columns of {record} must have one length, got {sorted(lengths)}")
    absent = [c.apdb for c, nullable in fields if not nullable and c.dtype != "<i4" and c.name not in table]
    if table and absent:
        raise InputError(f"{record} wants the columns {', '.join(absent)}")


@lru_cache(1024)  # lengths repeat
def zigzag(value: int) -> bytes:
    """Return an integer the way Avro writes it: 7 bits a byte, small ones first, the sign in the lowest bit."""
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_compiled: Callable = numba.njit(**NUMBA_OPTIONS)  # type: ignore[call-overload]


@_compiled
def _write_rows(kinds, nullable, widths, before, masks, slots, text, masked, out, offsets):
    n_fields, n_rows = slots.shape
    at = 0
    for row in range(n_rows):
        offsets[row] = at
        for field in range(n_fields):
            kind, slot = kinds[field], slots[field, row]
            first = before[field] * n_rows + row * widths[field]
            if nullable[field]:
                if masks[field] >= 0:
                    null = masked[masks[field], row]
                else:
                    null = _is_null(kind, slot, text, first, widths[field])
                out[at] = 0 if null else 2
                at += 1
                if null:
                    continue
            if kind == FLOAT:
                at = _write_bits(slot, 4, out, at)
            elif kind == DOUBLE:
                at = _write_bits(slot, 8, out, at)
            elif kind == BOOLEAN:
                out[at] = slot
                at += 1
            elif kind == TEXT:
                at = _write_text(text[first : first + widths[field]], out, at)
            else:
                at = _write_integer(slot, out, at)
    offsets[n_rows] = at


@_compiled
def _is_null(kind, slot, text, first, width):
    if kind == FLOAT:
        return (slot & 0x7FFFFFFF) > 0x7F800000
    if kind == DOUBLE:
        return (slot & 0x7FFFFFFFFFFFFFFF) > 0x7FF0000000000000
    if kind == INTEGER:
        return slot == 0
    if kind == TIME:
        return slot == -0x8000000000000000
    if kind == TEXT:
        return width == 0 or text[first] == 0
    return kind == ABSENT


@_compiled
def _write_bits(slot, n_bytes, out, at):
    for byte in range(n_bytes):
        out[at + byte] = (slot >> (8 * byte)) & 0xFF
    return at + n_bytes


@_compiled
def _write_integer(value, out, at):
    rest = np.uint64((value << 1) ^ (value >> 63))
    while rest > np.uint64(0x7F):
        out[at] = np.uint8(rest & np.uint64(0x7F)) | np.uint8(0x80)
        rest >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(rest)
    return at + 1


@_compiled
def _write_text(letters, out, at):
    """Write UTF-8 with its length before it; ``letters`` are code points, filled up with zeros at the end."""
    n_letters = letters.size
    while n_letters > 0 and letters[n_letters - 1] == 0:
        n_letters -= 1
    n_bytes = 0
    for letter in letters[:n_letters]:
        n_bytes += 1 + (letter > 0x7F) + (letter > 0x7FF) + (letter > 0xFFFF)
    at = _write_integer(np.int64(n_bytes), out, at)
    for letter in letters[:n_letters]:
        at = _write_letter(np.int64(letter), out, at)
    return at


@_compiled
def _write_letter(letter, out, at):
    if letter <= 0x7F:
        out[at] = letter
        return at + 1
    n_more = 1 + (letter > 0x7FF) + (letter > 0xFFFF)
    out[at] = ((0xFF00 >> (n_more + 1)) & 0xFF) | (letter >> (6 * n_more))
    for index in range(n_more):
        out[at + 1 + index] = 0x80 | ((letter >> (6 * (n_more - 1 - index))) & 0x3F)
    return at + 1 + n_more
