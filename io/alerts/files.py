"""Alerts in files and on the wire: Avro object container files with a known place for every packet, Confluent's header.

Each packet is a block of its own, deflated by itself, so that it can be read, and sent, from the middle of a file. Stamps are
half zeros and padding: deflated packets take a third of the disk, and with ISA-L (the ``fast`` extra) little time.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nightstream.errors import FileError, InputError
from nightstream.io.alerts.avro_rows import zigzag
from nightstream.io.alerts.avro_schema import alert_schema, schema_id
from nightstream.io.atomic import complete_or_absent

_MAGIC = b"Obj\x01"
_WIRE = struct.Struct(">bi")  # 0, number of the schema
_BUFFER_BYTES = 1 << 20
_LEVEL = 1  # of compression
_THREADS, _GROUP = 2, 8  # that deflate; packets they take at once
FLUSH_BYTES = 32 << 20


class Places(NamedTuple):
    """Where the packets are in a file: packet ``i`` is deflated in the ``length[i]`` bytes from ``offset[i]`` on."""

    offset: np.ndarray  # (n,) int64
    length: np.ndarray  # (n,) int64


def write_alert_file(
    path: str | Path, bodies: Iterable[bytes], version: str, *, ids: Sequence[int], visit: int | None = None
) -> Places:
    """Write Avro bodies of schema ``version`` as an object container file, complete or not at all.

    ``ids`` are the packets' diaSourceIds, in the order of ``bodies``; the same packets give the same file. Only a few
    bodies are in memory at a time. Raises InputError when there are more or fewer bodies than ids, and FileError when the file
    cannot be written; errors from ``bodies`` pass through. Either way nothing is left behind.
    """
    lengths, ends = [], []
    sync = hashlib.blake2b(np.asarray(ids, np.int64).tobytes(), digest_size=16).digest()
    with complete_or_absent(path, visit=visit) as temporary, _early_file(temporary) as file, ThreadPoolExecutor(_THREADS) as pool:
        position = file.write(_header(version, sync))
        for data in _ahead(pool, _deflate(), bodies):
            position += file.write(_block_start(len(data))) + file.write(data)
            lengths.append(len(data))
            ends.append(position)
            position += file.write(sync)
        if len(lengths) != len(ids):
            raise InputError(f"got {len(lengths)} packets for {len(ids)} alerts")
    length = np.array(lengths, np.int64)
    return Places(np.array(ends, np.int64) - length, length)


def read_alert_file(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the alerts of a file as dicts. Raises FileError when it is missing, cut short or something else."""
    import fastavro

    try:
        with open(path, "rb") as file:
            for alert in fastavro.reader(file):
                yield _as_alert(alert)
    except OSError as error:
        raise FileError(f"could not read the alerts: {error.strerror or error}", path=str(path)) from error
    except (ValueError, EOFError, IndexError, KeyError) as error:
        raise FileError(f"not a complete file of alerts: {error}", path=str(path)) from error


def read_body(path: str | Path, offset: int, length: int) -> bytes:
    """Return one packet's body from its place in a file. Raises FileError when there is no packet, whole, at that place."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(length)
    except OSError as error:
        raise FileError(f"could not read an alert: {error.strerror or error}", path=str(path)) from error
    if len(data) != length:
        raise FileError(f"got {len(data)} bytes at {offset}, wanted {length}", path=str(path))
    try:
        return zlib.decompress(data, wbits=-zlib.MAX_WBITS)
    except zlib.error as error:
        raise FileError(f"not an alert at {offset}: {error}", path=str(path)) from error


def decode_body(body: bytes, version: str) -> dict[str, Any]:
    """Return the alert of an Avro body as a dict. Raises InputError when it is no packet of that version."""
    import io

    import fastavro

    try:
        return _as_alert(fastavro.schemaless_reader(io.BytesIO(body), _parsed_schema(version), None))
    except (ValueError, EOFError, IndexError) as error:
        raise InputError(f"not an alert of schema {version}: {error}") from error


def wire_message(body: bytes, version: str | int) -> bytes:
    """Return a body with Confluent's header: 0 and the schema's number at the registry, big end first.

    ``version`` is a schema version, which has Rubin's number, or the number that another registry gave it.
    """
    return _WIRE.pack(0, schema_id(version) if isinstance(version, str) else version) + body


def split_message(message: bytes) -> tuple[int, bytes]:
    """Return the schema's number and the body of a wire message. Raises InputError for anything else."""
    if len(message) < _WIRE.size or message[0]:
        raise InputError(f"got a message that begins with {message[: _WIRE.size].hex()}, wanted 00 and a schema's number")
    return _WIRE.unpack_from(message)[1], message[_WIRE.size :]


class _EarlyFile:
    """A file that goes to the disk while it is written, so that little is left to wait for at the end."""

    def __init__(self, file: BinaryIO, pool: Executor) -> None:
        self.file, self.pool = file, pool
        self.waiting = 0  # bytes since the last flush began
        self.flush: Future | None = None

    def write(self, body: bytes) -> int:
        """Write, and flush in the background now and then; errors of an earlier flush are raised."""
        self.waiting += len(body)
        if self.waiting >= FLUSH_BYTES and (self.flush is None or self.flush.done()):
            self.check()
            self.flush, self.waiting = self.pool.submit(os.fsync, self.file.fileno()), 0
        return self.file.write(body)

    def check(self) -> None:
        """Wait for the last flush. A disk tells of an error once: who would not listen here would never know."""
        if self.flush is not None:
            self.flush.result()


@contextmanager
def _early_file(path: Path) -> Iterator[_EarlyFile]:
    with ThreadPoolExecutor(1) as pool, open(path, "wb", buffering=_BUFFER_BYTES) as file:
        early = _EarlyFile(file, pool)
        yield early
        early.check()


def _as_alert(record: Any) -> dict[str, Any]:
    """Return a record, if it is one."""
    if not isinstance(record, dict):
        raise ValueError(f"got a {type(record).__name__}, wanted a record")
    return record


def _ahead(pool: Executor, work: Callable[[bytes], bytes], bodies: Iterable[bytes]) -> Iterator[bytes]:
    """Yield ``work`` of each body, in order; a few groups are worked on while the next ones are made."""
    waiting: deque[Future] = deque()
    bodies = iter(bodies)
    while group := list(islice(bodies, _GROUP)):
        waiting.append(pool.submit(lambda group: [work(body) for body in group], group))
        if len(waiting) > _THREADS:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _deflate() -> Callable[[bytes], bytes]:
    """What deflates one packet, without header and checksum, as Avro's codec wants it."""
    try:
        from isal import isal_zlib as library
    except ImportError:
        library = zlib

    return lambda body: library.compress(body, _LEVEL, wbits=-zlib.MAX_WBITS)  # at once: other threads run meanwhile


@cache
def _parsed_schema(version: str) -> Any:
    import fastavro

    return fastavro.parse_schema(alert_schema(version))


def _header(version: str, sync: bytes) -> bytes:
    entries = {"avro.codec": b"deflate", "avro.schema": json.dumps(alert_schema(version)).encode()}
    metadata = b"".join(_sized(name.encode()) + _sized(value) for name, value in entries.items())
    return _MAGIC + zigzag(len(entries)) + metadata + zigzag(0) + sync


def _block_start(length: int) -> bytes:
    return zigzag(1) + zigzag(length)


def _sized(value: bytes) -> bytes:
    return zigzag(len(value)) + value
