"""Alert packets: encoded rows and pictures spliced into whole Avro bodies, a block of alerts at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nightstream.engine.values import Table
from nightstream.errors import InputError
from nightstream.io.alerts.avro_rows import RowEncoder, zigzag
from nightstream.io.alerts.avro_schema import NEWEST

Bytes = bytes | memoryview
CUTOUTS = ("difference", "science", "template")
_BLOCK = 200  # alerts encoded together; with 40 + 60 rows of history some 4 MB
_NULL, _VALUE = b"\x00", b"\x02"  # which branch of ["null", something] follows


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertInput:
    """What the alerts of one visit are made of. Tables have the columns of `io.apdb`; an empty dict has no rows.

    Histories must be sorted by the object they are found by, and within an object by time. The pictures are asked for one
    alert after another and dropped, so that a sequence may make them then and they need not be in memory together.
    """

    dia_sources: Table  # one alert each, in this order
    dia_objects: Table  # those the sources belong to, in any order
    prv_dia_sources: Table  # 12 months of their other sources
    prv_dia_forced_sources: Table  # 12 months of their forced sources, this visit's included
    prv_moving_sources: Table  # 12 months of the other sources of Solar System objects, found by ss_object_id
    ss_sources: Table  # those of the sources that are known Solar System objects, in any order
    mpc_orbits: Table  # orbits of these, in any order, found by designation
    cutouts: tuple[Sequence[Bytes], Sequence[Bytes], Sequence[Bytes]]  # FITS: difference, science, template; one per alert
    observation_reason: str = ""  # of the visit; empty is null
    target_name: str = ""


class Records(NamedTuple):
    """Some encoded records, one after the other."""

    number: int
    body: Bytes


class Packet(NamedTuple):
    """The encoded parts of one packet; None is null."""

    dia_source_id: int
    observation_reason: str
    target_name: str
    dia_source: Bytes
    prv_dia_sources: Records | None
    prv_dia_forced_sources: Records | None
    dia_object: Bytes | None
    ss_source: Bytes | None
    mpc_orbits: Bytes | None
    cutouts: tuple[Bytes | None, ...]  # difference, science, template


def pack_alerts(alerts: AlertInput, version: str = NEWEST) -> Iterator[bytes]:
    """Yield the Avro body of every alert, in the order of ``alerts.dia_sources``.

    As in Rubin's packets a first detection has null instead of an empty list of previous sources, and sources without
    DIAObject have null for all that belongs to one; other than Rubin's, those of Solar System objects have their previous
    sources. `encode_rows` says which values become null.

    Raises InputError when a source's DIAObject is missing, histories are not sorted, pictures are fewer than alerts, or a
    table lacks a column: all before the first packet. A picture that is empty and values that a column cannot hold
    are InputErrors when their turn comes.
    """
    parts = _parts(alerts, version)
    n_alerts = len(_ids(alerts.dia_sources, "dia_source_id"))
    if any(len(pictures) != n_alerts for pictures in alerts.cutouts):
        raise InputError(f"got {[len(pictures) for pictures in alerts.cutouts]} cutouts, wanted {n_alerts} of each kind")
    return _packets(alerts, parts, n_alerts)


def splice_packet(packet: Packet) -> bytes:
    """Return the Avro body of one packet from its encoded parts."""
    return b"".join(
        (
            zigzag(packet.dia_source_id),
            *_text(packet.observation_reason),
            *_text(packet.target_name),
            packet.dia_source,
            *_array(packet.prv_dia_sources),
            *_array(packet.prv_dia_forced_sources),
            *_optional(packet.dia_object),
            *_optional(packet.ss_source),
            *_optional(packet.mpc_orbits),
            *(part for cutout in packet.cutouts for part in _sized(cutout)),
        )
    )


class _Part:
    """One table as the alerts use it: alert ``i`` holds ``counts[i]`` rows of it from row ``starts[i]`` on."""

    def __init__(self, encoder: RowEncoder, starts: np.ndarray, counts: np.ndarray) -> None:
        self.encoder, self.starts, self.counts = encoder, starts, counts

    def encode(self, block: slice) -> list[Records]:
        """Return the rows of some alerts, encoded together."""
        counts = self.counts[block]
        ends = counts.cumsum()
        rows = np.repeat(self.starts[block] - (ends - counts), counts) + np.arange(counts.sum())
        encoded = self.encoder.encode(rows)
        body, edges = memoryview(encoded.buffer.data), encoded.offsets[np.concatenate([[0], ends])].tolist()
        return [Records(count, body[start:end]) for count, start, end in zip(counts.tolist(), edges[:-1], edges[1:], strict=True)]


def _parts(alerts: AlertInput, version: str) -> list[_Part]:
    """Return the parts in the order of the packet's fields; the previous sources of both kinds of objects."""
    sources, moving = alerts.dia_sources, _ids(alerts.dia_sources, "ss_object_id")
    objects = _ids(sources, "dia_object_id")
    own, rows = _ids(sources, "dia_source_id"), np.arange(len(objects))
    found = _find(objects, _ids(alerts.dia_objects, "dia_object_id"))
    missing = (found[1] == 0) & (objects != 0)
    if missing.any():
        raise InputError(f"DIAObject {objects[missing][0]} of DIASource {own[missing][0]} is not among the objects")
    known = _find(own, _ids(alerts.ss_sources, "dia_source_id"))
    return [
        _Part(RowEncoder(table, record, version), *places)
        for table, record, places in (
            (sources, "diaSource", (rows, np.ones_like(rows))),
            (alerts.prv_dia_sources, "diaSource", _history(objects, alerts.prv_dia_sources)),
            (alerts.prv_moving_sources, "diaSource", _history(moving, alerts.prv_moving_sources, "ss_object_id")),
            (alerts.prv_dia_forced_sources, "diaForcedSource", _history(objects, alerts.prv_dia_forced_sources)),
            (alerts.dia_objects, "diaObject", found),
            (alerts.ss_sources, "ssSource", known),
            (alerts.mpc_orbits, "mpc_orbits", _orbits(alerts, *known)),
        )
    ]


def _packets(alerts: AlertInput, parts: list[_Part], n_alerts: int) -> Iterator[bytes]:
    own = _ids(alerts.dia_sources, "dia_source_id").tolist()
    for start in range(0, n_alerts, _BLOCK):
        encoded = [part.encode(slice(start, start + _BLOCK)) for part in parts]
        for index, (source, *before, forced, dia_object, ss_source, orbit) in enumerate(zip(*encoded, strict=True), start):
            yield splice_packet(
                Packet(
                    dia_source_id=own[index],
                    observation_reason=alerts.observation_reason,
                    target_name=alerts.target_name,
                    dia_source=source.body,
                    prv_dia_sources=next((records for records in before if records.number), None),
                    prv_dia_forced_sources=forced if dia_object.number else None,
                    dia_object=dia_object.body if dia_object.number else None,
                    ss_source=ss_source.body if ss_source.number else None,
                    mpc_orbits=orbit.body if orbit.number else None,
                    cutouts=tuple(_picture(alerts, own, kind, index) for kind in range(len(CUTOUTS))),
                )
            )


def _picture(alerts: AlertInput, own: list[int], kind: int, index: int) -> Bytes:
    picture = alerts.cutouts[kind][index]
    if not picture:
        raise InputError(f"the alert of DIASource {own[index]} has no {CUTOUTS[kind]} cutout")
    return picture


def _ids(table: Table, name: str) -> np.ndarray:
    """Return an integer column; masked values are 0, and so is a column that is missing."""
    n_rows = len(next(iter(table.values()))) if table else 0
    return np.ma.filled(np.ma.asarray(table.get(name, np.zeros(n_rows, np.int64))), 0)


def _find(wanted: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where in ``ids`` the wanted ones are, and how many there are: 1 or 0; the number 0 is nowhere."""
    order = np.argsort(ids, kind="stable")
    place = np.searchsorted(ids, wanted, sorter=order)
    inside = place < len(ids)
    start = np.zeros(len(wanted), np.int64)
    start[inside] = order[place[inside]]
    found = inside & (wanted != 0)
    found[found] = ids[start[found]] == wanted[found]
    return start, found.astype(np.int64)


def _history(objects: np.ndarray, table: Table, name: str = "dia_object_id") -> tuple[np.ndarray, np.ndarray]:
    """Return where in a history sorted by the column ``name`` each object's rows begin, and how many there are."""
    ids = _ids(table, name)
    if (ids[1:] < ids[:-1]).any():
        raise InputError(f"the history must be sorted by {name}")
    starts = np.searchsorted(ids, objects, "left")
    counts = np.searchsorted(ids, objects, "right") - starts
    return starts, np.where(objects == 0, 0, counts)


def _orbits(alerts: AlertInput, known: np.ndarray, n_known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which orbit belongs to each alert: by any of its designations, for packets name some packed, some not."""
    names = ("packed_primary_provisional_designation", "unpacked_primary_provisional_designation", "designation")
    columns = [np.ma.filled(alerts.mpc_orbits[name], "").tolist() for name in names if name in alerts.mpc_orbits]
    row_of = {name: row for column in columns for row, name in enumerate(column) if name}
    seen = np.ma.filled(alerts.ss_sources.get("designation", np.full(len(known), "")), "")
    found = [row_of.get(str(seen[row]), -1) if number else -1 for row, number in zip(known, n_known, strict=True)]
    rows = np.array(found, np.int64)
    return np.maximum(rows, 0), (rows >= 0).astype(np.int64)


def _text(text: str) -> tuple[Bytes, ...]:
    return _sized(text.encode() or None)


def _sized(body: Bytes | None) -> tuple[Bytes, ...]:
    return (_NULL,) if body is None else (_VALUE, zigzag(len(body)), body)


def _optional(record: Bytes | None) -> tuple[Bytes, ...]:
    return (_NULL,) if record is None else (_VALUE, record)


def _array(records: Records | None) -> tuple[Bytes, ...]:
    """Return an Avro array as one block and its end; an empty array is only the end."""
    if records is None:
        return (_NULL,)
    return (_VALUE, zigzag(records.number), records.body, b"\x00") if records.number else (_VALUE, b"\x00")
