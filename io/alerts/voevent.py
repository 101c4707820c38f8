"""One alert as VOEvent 2.0, the XML that telescopes and people subscribe to (IVOA Recommendation of 2011).

VOEvent's times are UTC; everything else here is TAI. Pictures and the history stay in the packet: an event is a few
kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree

from nightstream.io.apdb import DIA_OBJECT, DIA_SOURCE, SS_SOURCE
from nightstream.io.clock import SECONDS_PER_DAY, UNIX_EPOCH_MJD, now_mjd_tai, tai_minus_utc_s
from nightstream.io.schema import Column, Schema

NAMESPACE = "http://www.ivoa.net/xml/VOEvent/v2.0"
SCHEMA_LOCATION = f"{NAMESPACE} http://www.ivoa.net/xml/VOEvent/VOEvent-v2.0.xsd"
_SCHEMA_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
FRAME = "UTC-ICRS-TOPO"
_GROUPS: dict[str, Schema] = {"diaSource": DIA_SOURCE, "diaObject": DIA_OBJECT, "ssSource": SS_SOURCE}
_TYPES = {bool: "string", int: "int", float: "float", str: "string"}


def voevent(
    packet: Mapping[str, Any],
    *,
    stream: str = "nightstream/alerts",
    observatory: str = "unknown",
    is_test: bool = False,
    now_tai: float | None = None,
) -> bytes:
    """Return an alert, a decoded packet, as a VOEvent document in UTF-8.

    ``stream`` is the path of the event's IVORN, ``ivo://<stream>#<diaSourceId>``, and of its author's. The measurements are
    parameters in the groups diaSource, diaObject and ssSource, with unit, UCD and meaning; what was not measured is left
    out. ``importance`` is the reliability. The alert of the object's latest earlier source is cited. ``now_tai``, MJD, is
    when the document was made; by default now.
    """
    ElementTree.register_namespace("voe", NAMESPACE)
    ElementTree.register_namespace("xsi", _SCHEMA_INSTANCE)
    source = packet["diaSource"]
    event = ElementTree.Element(f"{{{NAMESPACE}}}VOEvent", {
        f"{{{_SCHEMA_INSTANCE}}}schemaLocation": SCHEMA_LOCATION, "version": "2.0", "role": "test" if is_test else "observation",
        "ivorn": ivorn(stream, packet["diaSourceId"]),
    })  # fmt: skip
    _add_who(event, stream, now_mjd_tai() if now_tai is None else now_tai)
    _add_what(event, packet)
    _add_where_when(event, source, observatory)
    _add_why(event, source, packet.get("ssSource"))
    _add_citations(event, packet, stream)
    ElementTree.indent(event)
    return ElementTree.tostring(event, encoding="utf-8", xml_declaration=True)


def ivorn(stream: str, dia_source_id: int) -> str:
    """Return the name of an alert among all events of the world."""
    return f"ivo://{stream}#{int(dia_source_id)}"


def utc_iso(mjd_tai: float) -> str:
    """Return a time, MJD (TAI), as ISO 8601 in UTC, to the millisecond; VOEvent wants no zone.

    Within the leap second itself the result is the second after it.
    """
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=(mjd_tai - UNIX_EPOCH_MJD) * SECONDS_PER_DAY)
    utc = moment - timedelta(seconds=tai_minus_utc_s(moment))
    utc = moment - timedelta(seconds=tai_minus_utc_s(utc))  # in the seconds before a leap second the first guess is late
    return (utc + timedelta(microseconds=500)).replace(tzinfo=None).isoformat(timespec="milliseconds")


def _add_who(event: ElementTree.Element, stream: str, now_tai: float) -> None:
    who = ElementTree.SubElement(event, "Who")
    _text(who, "AuthorIVORN", f"ivo://{stream}")
    _text(who, "Date", utc_iso(now_tai).partition(".")[0])
    author = ElementTree.SubElement(who, "Author")
    _text(author, "title", "Nightstream alerts")
    _text(author, "shortName", "Nightstream")


def _add_what(event: ElementTree.Element, packet: Mapping[str, Any]) -> None:
    what = ElementTree.SubElement(event, "What")
    for name, schema in _GROUPS.items():
        params = list(_params(packet.get(name) or {}, schema))
        if params:
            group = ElementTree.SubElement(what, "Group", {"name": name, "type": "catalogue row"})
            group.extend(params)


def _params(row: Mapping[str, Any], schema: Schema) -> Iterator[ElementTree.Element]:
    """Everything measured, in the order of the schema."""
    for column in schema.columns:
        value = row.get(column.apdb)
        if value is not None and not (isinstance(value, float) and math.isnan(value)):
            yield _param(column, value)


def _param(column: Column, value: Any) -> ElementTree.Element:
    plain = value.item() if hasattr(value, "item") else value
    text = str(plain).lower() if isinstance(plain, bool) else str(plain)
    attributes = {"name": column.apdb, "value": text, "dataType": _TYPES.get(type(plain), "string")}
    attributes |= {key: word for key, word in (("unit", column.unit), ("ucd", column.ucd)) if word}
    param = ElementTree.Element("Param", attributes)
    _text(param, "Description", column.description)
    return param


def _add_where_when(event: ElementTree.Element, source: Mapping[str, Any], observatory: str) -> None:
    where = ElementTree.SubElement(ElementTree.SubElement(event, "WhereWhen"), "ObsDataLocation")
    ElementTree.SubElement(where, "ObservatoryLocation", {"id": observatory})
    observation = ElementTree.SubElement(where, "ObservationLocation")
    ElementTree.SubElement(observation, "AstroCoordSystem", {"id": FRAME})
    coords = ElementTree.SubElement(observation, "AstroCoords", {"coord_system_id": FRAME})
    instant = ElementTree.SubElement(ElementTree.SubElement(coords, "Time", {"unit": "s"}), "TimeInstant")
    _text(instant, "ISOTime", utc_iso(source["midpointMjdTai"]))
    position = ElementTree.SubElement(coords, "Position2D", {"unit": "deg"})
    _text(position, "Name1", "RA")
    _text(position, "Name2", "Dec")
    value = ElementTree.SubElement(position, "Value2")
    _text(value, "C1", f"{source['ra']:.8f}")
    _text(value, "C2", f"{source['dec']:.8f}")
    errors = [source.get(name) for name in ("raErr", "decErr")]
    radius = math.hypot(*(error for error in errors if error is not None and math.isfinite(error)))
    _text(position, "Error2Radius", f"{radius:.3g}")


def _add_why(event: ElementTree.Element, source: Mapping[str, Any], moving: Mapping[str, Any] | None) -> None:
    """How real it is, and, where it is a known Solar System object, which."""
    reliability = source.get("reliability")
    is_known = reliability is not None and math.isfinite(reliability)
    if not is_known and not moving:
        return
    why = ElementTree.SubElement(event, "Why", {"importance": f"{reliability:.4g}"} if is_known else {})
    if is_known:
        _text(why, "Description", "importance is the reliability, the probability that the source is real")
    if moving:
        inference = ElementTree.SubElement(why, "Inference", {"relation": "identified"})
        _text(inference, "Name", str(moving.get("designation") or moving.get("ssObjectId")))
        _text(inference, "Description", "known Solar System object")


def _add_citations(event: ElementTree.Element, packet: Mapping[str, Any], stream: str) -> None:
    earlier = [row for row in packet.get("prvDiaSources") or () if row["midpointMjdTai"] < packet["diaSource"]["midpointMjdTai"]]
    if earlier:
        latest = max(earlier, key=lambda row: row["midpointMjdTai"])
        citations = ElementTree.SubElement(event, "Citations")
        _text(citations, "EventIVORN", ivorn(stream, latest["diaSourceId"])).set("cite", "followup")


def _text(parent: ElementTree.Element, name: str, text: str) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, name)
    child.text = text
    return child
