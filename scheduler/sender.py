"""The sender: a thread beside the pipeline that carries what the outbox holds to the sink, and books it.

Transactional outbox: alerts are rows of the database from the transaction that made them on, and leave the list of
unsent ones only after the sink has them. Nobody waits for the sender; while the sink is away, it waits by itself.
"""

from __future__ import annotations

import fcntl
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from nightstream.engine.values import Array, Table
from nightstream.errors import DeliveryError, FileError, NightstreamError
from nightstream.io.alerts.distribution import AlertSink, Consignment
from nightstream.io.clock import SECONDS_PER_DAY

logger = logging.getLogger(__name__)

LOCK_NAME = ".sender.lock"


class OutboxFile(Protocol):
    """What the outbox tells of a spool file with unsent alerts."""

    name: str
    visit: int
    schema_version: str
    progress: str


class Outbox(Protocol):
    """The database, as far as the sender uses it. Every change is durable when the method returns."""

    def unsent_files(self) -> Sequence[OutboxFile]:
        """Spool files with alerts neither sent nor failed, oldest first."""

    def unsent_alerts(self, name: str) -> Table:
        """Those alerts of one file, in file order: dia_source_id, offset, length, readout_mjd_tai."""

    def save_progress(self, name: str, text: str) -> None:
        """Keep the sink's progress with the file."""

    def mark_sent(self, ids: Array, sent_mjd_tai: Array | float) -> None:
        """These alerts (diaSourceIds) have been sent at these times."""

    def mark_failed(self, ids: Array, reason: str) -> None:
        """These alerts can never be sent; they stay, with the reason, and are listed as unsent no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderStatus:
    """How far the sender is."""

    n_sent: int = 0  # alerts since the start
    n_failed: int = 0
    n_waiting: int = 0  # unsent alerts of the last look at the outbox that are still unsent
    latest_s: float = float("nan")  # s from readout to sent, of the latest of the alerts booked last
    trouble: str = ""  # what holds things up; empty while all is well


class Sender:
    """Sends what the outbox holds, in the order of its files, until closed. One sender serves one outbox.

    ``spool_dir`` holds the files that the outbox names. While the sink is away the pause between attempts doubles
    from ``retry_s`` up to ``max_retry_s``; an error of one file never holds up the others. ``on_file`` hears, in the sender's
    thread, each visit whose alerts were booked.
    """

    def __init__(
        self,
        database: Outbox,
        sink: AlertSink,
        spool_dir: str | Path,
        *,
        poll_s: float = 5.0,
        retry_s: float = 1.0,
        max_retry_s: float = 60.0,
        on_file: Callable[[int, SenderStatus], None] = lambda visit, status: None,
    ) -> None:
        self._outbox, self._sink, self._spool_dir = database, sink, Path(spool_dir)
        self._poll_s, self._retry_s, self._max_retry_s = poll_s, retry_s, max_retry_s
        self._on_file = on_file
        self._status = SenderStatus()
        self._news = threading.Condition()  # guards what follows, and tells drain and the thread's own pauses
        self._is_woken = self._is_stopping = False
        self._is_away = False  # was the sink, or the database, in the last pass?
        self._left_behind = ""  # the trouble of a file of this pass, which others that go out do not end
        self._begun, self._emptied = 0, -1  # passes over the outbox; the last one that left nothing
        self._n_draining = 0  # callers that wait for the outbox to be empty: no long pauses meanwhile
        self._thread: threading.Thread | None = None

    @property
    def status(self) -> SenderStatus:
        """How far it is, now."""
        return self._status

    def start(self) -> Sender:
        """Begin in the background. Raises FileError if another process sends from the same spool folder."""
        lock = _lock(self._spool_dir)
        self._thread = threading.Thread(target=self._run, args=(lock,), name="send", daemon=True)
        self._thread.start()
        return self

    def wake(self) -> None:
        """Look at the outbox soon. Never waits for anything."""
        with self._news:
            self._is_woken = True
            self._news.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything that is in the outbox now is sent or failed; False if that takes longer than ``timeout_s``."""
        with self._news:
            begun = self._begun
            self._is_woken = True
            self._n_draining += 1
            self._news.notify_all()
            try:
                return self._news.wait_for(lambda: self._emptied > begun, timeout_s)
            finally:
                self._n_draining -= 1

    def close(self, timeout_s: float = 30.0) -> None:
        """Stop soon. What is unsent stays in the outbox; what is under way is found out by the next sender."""
        with self._news:
            self._is_stopping = True
            self._news.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                logger.warning("the sender does not stop; its alerts stay in the outbox")
            self._thread = None

    def _run(self, lock) -> None:
        pause_s = self._retry_s
        with lock:
            while not self._is_stopping:
                if self._pass():
                    pause_s = self._retry_s
                    self._pause(self._poll_s, until=lambda: self._is_woken)
                else:
                    self._pause(self._retry_s, until=self._has_news)
                    self._pause(pause_s - self._retry_s, until=lambda: self._n_draining > 0 or self._has_news())
                    pause_s = min(2 * pause_s, self._max_retry_s)
            self._sink.close()

    def _pause(self, seconds: float, until: Callable[[], bool]) -> None:
        with self._news:
            self._news.wait_for(lambda: self._is_stopping or until(), seconds)

    def _has_news(self) -> bool:
        """Is there something to send, and somebody who takes it? A file with an error of its own must not delay the next ones."""
        return self._is_woken and not self._is_away

    def _pass(self) -> bool:
        """Go once through the outbox; True if nothing in it is left unsent."""
        with self._news:
            self._begun += 1
            self._is_woken = self._is_away = False
        self._left_behind = ""
        try:
            files = list(self._outbox.unsent_files())
            is_empty = all([self._send(file) for file in files])  # a list: a file that fails must not hide the next
        except Exception as error:  # the sink or the database is away: the thread must live to try again
            self._is_away = True
            if not self._is_stopping:
                self._note(error)
            return False
        if self._is_stopping or not is_empty:
            return False
        with self._news:
            self._status = replace(self._status, n_waiting=0, trouble="")
            self._emptied = self._begun
            self._news.notify_all()
        return True

    def _send(self, file: OutboxFile) -> bool:
        """Send one file; False if it has an error of its own. Raises DeliveryError if the sink is away."""
        if self._is_stopping:
            return False
        alerts = self._outbox.unsent_alerts(file.name)
        if len(alerts["dia_source_id"]) == 0:
            return True
        books = _Books(self, file.name, alerts)
        self._status = replace(self._status, n_waiting=len(alerts["dia_source_id"]))
        try:
            self._sink.deliver(_consignment(self._spool_dir / file.name, file, alerts), books)
        except DeliveryError:
            raise
        except Exception as error:
            self._note(error.locate(visit=file.visit) if isinstance(error, NightstreamError) else error)
            self._left_behind = self._status.trouble
            return False
        self._status = replace(self._status, trouble=self._left_behind)
        self._on_file(file.visit, self._status)
        return True

    def _note(self, error: Exception) -> None:
        is_expected = isinstance(error, NightstreamError)
        text = str(error) if is_expected else f"{type(error).__name__}: {error}"
        logger.warning("alerts wait: %s", text, exc_info=None if is_expected else error)
        self._status = replace(self._status, trouble=text)


def _consignment(path: Path, file: OutboxFile, alerts: Table) -> Consignment:
    return Consignment(path=path, visit=file.visit, schema_version=file.schema_version, progress=file.progress, alerts=alerts)


class _Books:
    """The ledger of one consignment: writes to the outbox and counts."""

    def __init__(self, sender: Sender, name: str, alerts: Table) -> None:
        self._sender, self._name = sender, name
        self._readout = dict(zip(alerts["dia_source_id"].tolist(), alerts["readout_mjd_tai"].tolist(), strict=True))

    @property
    def is_stopping(self) -> bool:
        return self._sender._is_stopping

    def save_progress(self, text: str) -> None:
        self._sender._outbox.save_progress(self._name, text)

    def sent(self, ids: Array, sent_mjd_tai: Array | float) -> None:
        times = np.broadcast_to(np.asarray(sent_mjd_tai, dtype=float), np.shape(ids))
        self._sender._outbox.mark_sent(ids, times)
        latency_s = (times - np.array([self._readout[dia_source_id] for dia_source_id in ids.tolist()])) * SECONDS_PER_DAY
        self._count(n_sent=len(ids), latest_s=float(np.max(latency_s, initial=-np.inf)))

    def failed(self, ids: Array, reason: str) -> None:
        logger.error("alerts %s cannot be sent: %s", ids.tolist(), reason)
        self._sender._outbox.mark_failed(ids, reason)
        self._count(n_failed=len(ids))

    def trouble(self, text: str) -> None:
        logger.warning("alerts: %s", text)
        self._sender._status = replace(self._sender._status, trouble=text)

    def _count(self, n_sent: int = 0, n_failed: int = 0, **changed: float) -> None:
        status = self._sender._status
        self._sender._status = replace(
            status,
            n_sent=status.n_sent + n_sent,
            n_failed=status.n_failed + n_failed,
            n_waiting=status.n_waiting - n_sent - n_failed,
            trouble=self._sender._left_behind,
            **changed,
        )


def _lock(spool_dir: Path):
    """An open file whose lock says that this process sends from the folder; the system lets go of it when the process dies."""
    handle = None
    try:
        spool_dir.mkdir(parents=True, exist_ok=True)
        handle = open(spool_dir / LOCK_NAME, "w")  # noqa: SIM115  (held as long as the sender runs)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if handle is not None:
            handle.close()
        raise FileError("another process sends the alerts of this spool folder", path=str(spool_dir)) from None
    except OSError as error:
        raise FileError(f"cannot lock the spool folder: {error.strerror}", path=str(spool_dir)) from error
    return handle
