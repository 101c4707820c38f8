"""Where alerts leave the house: what every sink is given and must do, and the sink of public files.

A sink may be killed at any moment and is then given the same consignment again. It keeps what it needs to find out how far
it came in the ledger's progress text, written before it does anything that the world can see.
"""

from __future__ import annotations

import errno
import filecmp
import json
import os
import shutil
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

from nightstream.engine.values import Array, Table
from nightstream.errors import FileError
from nightstream.io.atomic import complete_or_absent, flush
from nightstream.io.clock import now_mjd_tai

NO_HARD_LINKS = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}  # another disk, or a disk without them


@dataclass(frozen=True, slots=True, kw_only=True)
class Consignment:
    """The unsent alerts of one spool file.

    ``alerts`` has one row an alert, in file order, with ``dia_source_id``, and ``offset`` and ``length`` of its bytes in
    the file. ``progress`` is what the sink last saved for this file; empty before its first attempt.
    """

    path: Path
    visit: int
    schema_version: str
    progress: str
    alerts: Table


class Ledger(Protocol):
    """The sender's books for one consignment. What a method was told is durable when it returns."""

    @property
    def is_stopping(self) -> bool:
        """Must `AlertSink.deliver` return soon, with what is left unsent?"""

    def save_progress(self, text: str) -> None:
        """Keep ``text`` for the next attempt at this consignment."""

    def sent(self, ids: Array, sent_mjd_tai: Array | float) -> None:
        """These alerts have left, at these times (MJD TAI)."""

    def failed(self, ids: Array, reason: str) -> None:
        """These alerts can never leave."""

    def trouble(self, text: str) -> None:
        """Something holds things up; it will be tried again."""


class AlertSink(Protocol):
    """Takes alerts out of the house, each exactly once."""

    def deliver(self, consignment: Consignment, ledger: Ledger) -> None:
        """Send every alert of ``consignment`` that has not left yet, and book it as sent or failed.

        Returns when all are booked, or soon after the ledger wants to stop. Raises DeliveryError when the other side
        is away, FileError when the spool file cannot be read; what is booked by then stays so.
        """

    def close(self) -> None:
        """Let go of connections. Alerts under way are not waited for: the next attempt finds out about them."""


class FileSink:
    """Publishes whole spool files as ``<directory>/visit=<V>.avro``, later ones of a visit as ``visit=<V>.2.avro`` and so on.

    A file appears complete, at once, and never replaces another. It is a hard link of the durable spool file where the
    disk allows, so it takes no room; else a copy.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def deliver(self, consignment: Consignment, ledger: Ledger) -> None:
        """Publish the file under the first free name, saved beforehand, and book all its alerts as sent."""
        name = _published_name(consignment.progress)
        if name is None:
            name = self._free_name(consignment)
            ledger.save_progress(json.dumps({"published": name}))
        publish(consignment.path, self.directory / name, visit=consignment.visit)
        ledger.sent(consignment.alerts["dia_source_id"], now_mjd_tai())

    def close(self) -> None:
        """Nothing is held open."""

    def _free_name(self, consignment: Consignment) -> str:
        """The first name of the visit that is not taken by other bytes."""
        for number in count(1):
            name = f"visit={consignment.visit}.avro" if number == 1 else f"visit={consignment.visit}.{number}.avro"
            path = self.directory / name
            if not path.exists() or _is_same(consignment.path, path):
                return name
        raise AssertionError("there is always a free name")


def publish(source: Path, path: Path, *, visit: int | None = None) -> None:
    """Make the file ``source`` appear as ``path`` too, complete or not at all, durably. Nothing happens if it is there already.

    Raises FileError if it cannot be done.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _link_or_copy(source, path, visit)
        flush(path.parent)
    except FileError:
        raise
    except OSError as error:
        where = path if source.exists() else source
        raise FileError(f"could not publish the alerts: {error.strerror or error}", visit=visit, path=str(where)) from error


def _link_or_copy(source: Path, path: Path, visit: int | None) -> None:
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        with complete_or_absent(path, visit=visit) as temporary:
            shutil.copyfile(source, temporary)


def _published_name(progress: str) -> str | None:
    """The name that an earlier attempt chose, if one did."""
    value = read_progress(progress).get("published")
    return value if isinstance(value, str) else None


def read_progress(text: str) -> dict:
    """Progress as a record; empty where there is none, or where another kind of sink left something else."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _is_same(a: Path, b: Path) -> bool:
    return a.exists() and (a.samefile(b) or filecmp.cmp(a, b, shallow=False))
