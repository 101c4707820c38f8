"""PostgreSQL's binary COPY format to and from NumPy columns, without a Python object per value.

A row is a count of fields, then for each its length (-1 for NULL) and its bytes, all big-endian.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numba import njit

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = b"\xff\xff"
ROWS_AT_ONCE = 20_000  # bounds the memory of encoding
POINTER = np.dtype([("start", "<i8"), ("length", "<i8")])  # where a text is in the buffer


def encode_rows(columns: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """Yield the COPY stream of equally long columns: numbers, booleans, text as ``S`` (UTF-8) or ``U``; masked is NULL."""
    yield HEADER
    arrays = [_bytes_of_text(values) for values in columns.values()]
    for start in range(0, len(arrays[0]) if arrays else 0, ROWS_AT_ONCE):
        yield _encode([values[start : start + ROWS_AT_ONCE] for values in arrays])
    yield TRAILER


def decode_rows(buffer: bytes | bytearray, dtypes: Sequence[str]) -> list[np.ndarray]:
    """Return the columns in a COPY stream: numbers with their ``dtypes``, text as ``str``. NULL is not expected."""
    data = np.frombuffer(buffer, np.uint8)
    kinds = [np.dtype(dtype) for dtype in dtypes]
    is_text = np.array([kind.kind in "SU" for kind in kinds])
    record = np.dtype([(f"c{i}", POINTER if is_text[i] else kind) for i, kind in enumerate(kinds)])
    offsets = np.array([record.fields[name][1] for name in record.names], np.int64)
    first = len(HEADER)
    rows = np.zeros(_count_rows(data, first), record)
    if len(rows):
        _read_rows(data, first, offsets, is_text, rows.view(np.uint8).reshape(len(rows), record.itemsize))
    columns = (rows[name] for name in record.names)
    return [_texts(data, c) if text else np.ascontiguousarray(c) for c, text in zip(columns, is_text, strict=True)]


def _bytes_of_text(values: np.ndarray) -> np.ndarray:
    if np.ma.getdata(values).dtype.kind != "U":
        return values
    return np.ma.array(np.char.encode(np.ma.getdata(values), "utf-8"), mask=np.ma.getmask(values))


def _encode(columns: list[np.ndarray]) -> bytes:
    """The bytes of some rows: all fields at their full width, then those taken out that are not there."""
    n = len(columns[0])
    widths = [4 + values.dtype.itemsize for values in columns]
    matrix = np.zeros((n, 2 + sum(widths)), np.uint8)
    keep = np.ones(matrix.shape, bool)
    matrix[:, :2] = np.array([len(columns)], ">i2").view(np.uint8)
    position = 2
    for values, width in zip(columns, widths, strict=True):
        field = slice(position + 4, position + width)
        data, null = np.ma.getdata(values), np.ma.getmaskarray(values)
        big = np.ascontiguousarray(data.astype(data.dtype.newbyteorder(">")))
        matrix[:, field] = big.view(np.uint8).reshape(n, width - 4)
        length = np.char.str_len(data) if data.dtype.kind == "S" else np.full(n, width - 4)
        keep[:, field] = np.arange(width - 4) < np.where(null, 0, length)[:, None]
        matrix[:, position : position + 4] = np.where(null, -1, length).astype(">i4")[:, None].view(np.uint8)
        position += width
    return matrix[keep].tobytes()


@njit(cache=True)
def _int32(data, at):
    return np.int32(
        (np.uint32(data[at]) << 24) | (np.uint32(data[at + 1]) << 16) | (np.uint32(data[at + 2]) << 8) | np.uint32(data[at + 3])
    )


@njit(cache=True)
def _count_rows(data, at):
    n = 0
    while at + 2 <= data.size and data[at] != 255:
        fields = (np.int64(data[at]) << 8) | np.int64(data[at + 1])
        at += 2
        for _ in range(fields):
            at += 4 + max(_int32(data, at), 0)
        n += 1
    return n


@njit(cache=True)
def _read_rows(data, at, offsets, is_text, rows):
    for i in range(rows.shape[0]):
        at += 2
        for j in range(offsets.size):
            length = max(_int32(data, at), 0)
            at += 4
            out = offsets[j]
            if is_text[j]:
                for byte in range(8):
                    rows[i, out + byte] = np.uint8((np.int64(at) >> (8 * byte)) & 255)
                    rows[i, out + 8 + byte] = np.uint8((np.int64(length) >> (8 * byte)) & 255)
            else:
                for byte in range(length):
                    rows[i, out + length - 1 - byte] = data[at + byte]
            at += length


def _texts(data: np.ndarray, pointers: np.ndarray) -> np.ndarray:
    """The texts that ``pointers`` tell the places of."""
    width = int(pointers["length"].max(initial=0))
    if width == 0:
        return np.zeros(len(pointers), "U1")
    places = np.minimum(pointers["start"][:, None] + np.arange(width), data.size - 1)
    letters = np.where(np.arange(width) < pointers["length"][:, None], data[places], 0).astype(np.uint8)
    return np.char.decode(letters.view(f"S{width}")[:, 0], "utf-8")
