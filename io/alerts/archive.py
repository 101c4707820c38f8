"""Alerts that were made, found again: by the number of their source or object, as packets, stamps and light curves.

The database says in which spool file a packet is, and where; the file holds the bytes that were sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nightstream.engine.tables import n_rows
from nightstream.engine.values import Table
from nightstream.errors import FileError, InputError
from nightstream.io.alerts.files import decode_body, read_alert_file, read_body
from nightstream.io.apdb import DIA_OBJECT, DIA_SOURCE, SS_SOURCE
from nightstream.io.atomic import complete_or_absent
from nightstream.io.clock import SECONDS_PER_DAY
from nightstream.io.database.prompt_database import PromptDatabase
from nightstream.io.schema import Column, Schema

CUTOUTS = {"science": "cutoutScience", "template": "cutoutTemplate", "difference": "cutoutDifference"}

Packet = Mapping[str, Any]  # an alert as its Avro schema has it, decoded


@dataclass(frozen=True, slots=True)
class ArchivedAlert:
    """A packet, the file it lies in, and, where a database knows it, when its visit was read out and it was sent."""

    packet: Packet
    path: Path
    schema_version: str = ""
    readout_mjd_tai: float = np.nan
    sent_mjd_tai: float = np.nan

    @property
    def latency_s(self) -> float:
        """Seconds from readout to sent; NaN if it is not known to have left."""
        return (self.sent_mjd_tai - self.readout_mjd_tai) * SECONDS_PER_DAY


@dataclass(frozen=True, slots=True)
class Stamp:
    """One cutout, nJy: planes of one shape [y, x] (variance, mask and PSF may be missing), and the source's pixel in it."""

    image: np.ndarray
    variance: np.ndarray | None
    mask: np.ndarray | None
    psf: np.ndarray | None
    x: float
    y: float


def find_alerts(
    database: PromptDatabase, number: int, spool: Path | None = None, *, of_object: bool = False
) -> list[ArchivedAlert]:
    """Return the alert of the source ``number``, or all alerts of that DIAObject or Solar System object, the oldest first.

    ``spool`` is the folder of the files that the database names; None: a server's database knows the folder of each. Raises
    InputError if there is no such alert, or no folder is known, FileError if a file is missing or damaged.
    """
    rows = database.alerts_of_object(number) if of_object else database.find_alert(number)
    if not n_rows(rows):
        raise InputError(f"the database has no alert of {'object' if of_object else 'source'} {number}")
    names = rows["alert_file"].tolist()
    folders = dict.fromkeys(names, spool) if spool is not None else database.spool_dirs(names)
    if not all(folders.values()):
        raise InputError("the database does not know where its files of alerts are; name the folder (--spool)")
    return [_archived(rows, row, Path(folders[name])) for row, name in enumerate(names)]


def find_in_file(path: Path, number: int, *, of_object: bool = False) -> list[ArchivedAlert]:
    """Return what `find_alerts` does from a file of alerts. Raises InputError if it holds none."""
    fields = ("diaObjectId", "ssObjectId") if of_object else ("diaSourceId",)
    found = [packet for packet in read_alert_file(path) if number in (packet["diaSource"].get(field) for field in fields)]
    if not found:
        raise InputError(f"no alert of {'object' if of_object else 'source'} {number}", path=str(path))
    return [ArchivedAlert(packet, path) for packet in found]


def object_id(packet: Packet) -> int:
    """Return the diaObjectId of an alert, 0 without one."""
    return int(packet["diaSource"].get("diaObjectId") or 0)


def read_stamp(content: bytes) -> Stamp:
    """Return the planes of a cutout in FITS. Raises InputError for anything else.

    The image is the first plane; variance, mask and PSF are known by the names of Astropy's CCDData (UNCERT, MASK) and Rubin's
    (PSFIMAGE). The source lies at the reference pixel of the WCS, else in the middle.
    """
    import io

    from astropy.io import fits

    try:
        with fits.open(io.BytesIO(content)) as file:
            planes = {plane.name: np.array(plane.data) for plane in file[1:] if plane.data is not None}
            image, header = np.array(file[0].data, np.float64), file[0].header
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"a cutout is not FITS: {error}") from None
    if image.ndim != 2:
        raise InputError(f"a cutout must have two dimensions, got {image.ndim}")
    middle = (image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2
    x, y = (float(header[f"CRPIX{axis}"]) - 1 if f"CRPIX{axis}" in header else middle[axis - 1] for axis in (1, 2))
    is_inside = -0.5 <= x < image.shape[1] - 0.5 and -0.5 <= y < image.shape[0] - 0.5
    return Stamp(image, planes.get("UNCERT"), planes.get("MASK"), planes.get("PSFIMAGE"), *((x, y) if is_inside else middle))


def read_stamps(packet: Packet) -> dict[str, Stamp]:
    """Return the stamps that an alert has, by the names of `CUTOUTS`."""
    return {name: read_stamp(packet[field]) for name, field in CUTOUTS.items() if packet.get(field)}


def write_stamps(packet: Packet, folder: Path) -> list[Path]:
    """Write the cutouts as they are, ``<diaSourceId>_<science, template, difference>.fits``; return the paths."""
    paths = []
    for name, field in CUTOUTS.items():
        if packet.get(field):
            paths.append(folder / f"{packet['diaSourceId']}_{name}.fits")
            with complete_or_absent(paths[-1]) as temporary:
                temporary.write_bytes(packet[field])
    return paths


def light_curve(packet: Packet) -> Table:
    """Return all fluxes on differences that an alert holds, by time: the source, its history, forced photometry.

    Columns mjd_tai, band, flux and flux_err (nJy, NaN where not measured), is_forced, is_current (the source itself).
    """
    rows = [(row, False, False) for row in packet.get("prvDiaSources") or ()]
    rows += [(row, True, False) for row in packet.get("prvDiaForcedSources") or ()]
    rows.append((packet["diaSource"], False, True))
    rows.sort(key=lambda entry: (entry[0]["midpointMjdTai"], entry[1], entry[2]))
    return {
        "mjd_tai": np.array([row["midpointMjdTai"] for row, _, _ in rows], np.float64),
        "band": np.array([row.get("band") or "" for row, _, _ in rows]),
        "flux": _numbers(row.get("psfFlux") for row, _, _ in rows),
        "flux_err": _numbers(row.get("psfFluxErr") for row, _, _ in rows),
        "is_forced": np.array([is_forced for _, is_forced, _ in rows]),
        "is_current": np.array([is_current for _, _, is_current in rows]),
    }


def alert_tables(packets: Iterable[Packet]) -> dict[str, Table]:
    """Return the rows of alerts as tables dia_sources, dia_objects and ss_sources, as filters see them; null is masked."""
    packets = list(packets)
    rows = {"dia_sources": [packet["diaSource"] for packet in packets]}
    rows["dia_objects"] = list({object_id(packet): packet["diaObject"] for packet in packets if packet.get("diaObject")}.values())
    rows["ss_sources"] = [packet["ssSource"] for packet in packets if packet.get("ssSource")]
    schemas = {"dia_sources": DIA_SOURCE, "dia_objects": DIA_OBJECT, "ss_sources": SS_SOURCE}
    return {name: _table(rows[name], schema) for name, schema in schemas.items()}


def _table(rows: list[Mapping[str, Any]], schema: Schema) -> Table:
    """The columns of the schema that the rows have."""
    columns = [column for column in schema.columns if rows and column.apdb in rows[0]]
    return {column.name: _column([row[column.apdb] for row in rows], column) for column in columns}


def _column(values: list, column: Column) -> np.ma.MaskedArray:
    """Null, and NaN among floats, masked."""
    mask = np.array([value is None or value != value for value in values])
    dtype = str if np.dtype(column.dtype).kind == "S" else column.dtype
    filler = np.zeros((), dtype).item()
    return np.ma.MaskedArray(np.array([filler if null else value for value, null in zip(values, mask, strict=True)], dtype), mask)


def _archived(rows: Table, row: int, spool: Path) -> ArchivedAlert:
    path = spool / str(rows["alert_file"][row])
    if not path.exists():
        where = f"the alert of source {rows['dia_source_id'][row]} should be in this file, which is not there"
        raise FileError(where, visit=int(rows["visit"][row]), path=str(path))
    version = str(rows["schema_version"][row])
    body = read_body(path, int(rows["offset"][row]), int(rows["length"][row]))
    try:
        packet = decode_body(body, version)
    except InputError as error:
        raise error.locate(visit=int(rows["visit"][row]), path=str(path)) from None
    return ArchivedAlert(packet, path, version, float(rows["readout_mjd_tai"][row]), float(rows["sent_mjd_tai"][row]))


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], np.float64)
