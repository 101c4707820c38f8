"""Alerts beside a run: the database, the publisher and the sender, composed.

| who            | thread    | does                                                              |
|----------------|-----------|-------------------------------------------------------------------|
| `arriving`     | the run's | passes over what is stored, preloads the known objects            |
| `ended`        | the run's | hands a visit over                                                |
| PublishQueue   | "publish" | one visit after the other into the database, alerts into spool    |
| Sender         | "send"    | delivers what the outbox holds, marks it sent                     |
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nightstream.engine.config import EngineConfig
from nightstream.engine.values import Array
from nightstream.errors import DatabaseError, FileError, NightstreamError
from nightstream.io.cameras import RawCamera
from nightstream.io.clock import now_mjd_tai
from nightstream.io.database.prompt_database import open_database
from nightstream.io.ephemerides import read_ephemerides
from nightstream.scheduler.alerts_config import AlertsConfig, make_sink
from nightstream.scheduler.messages import DetectorReport
from nightstream.scheduler.preload import Preload, discard_preload
from nightstream.scheduler.publish import PublishedVisit, Publisher
from nightstream.scheduler.publish_queue import EndedVisit, PublishQueue
from nightstream.scheduler.run import Visit
from nightstream.scheduler.sender import Sender
from nightstream.scheduler.user_filters import UserFilters

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertOutcome:
    """What became of a run's alerts."""

    visits: tuple[PublishedVisit, ...]  # in the order of publication
    latencies_s: Mapping[int, Array]  # visit: s from readout to sent, of those that were sent
    failed: Mapping[int, str]  # visit: why it could not be stored
    n_unsent: int  # of all that the outbox holds
    trouble: str  # what held them up
    n_skipped: int = 0  # detectors that an earlier run has stored
    error: str = ""  # why the database could not tell latencies and what is unsent


class AlertStream:
    """Everything between a run's products and the world. Use as a context; leaving it publishes and sends what is left.

    Left by an error, it publishes what has ended and waits for no sink; by Ctrl-C, it ends after the visit being published. A
    later run does the rest. Pixels never wait: where the database is away, visits are processed and told as not stored.
    """

    def __init__(self, camera: RawCamera, output_dir: str | Path, engine: EngineConfig, config: AlertsConfig) -> None:
        self._camera, self._engine = camera, engine
        self._output_dir, self._config = Path(output_dir), config.located(Path(output_dir))
        config = self._config
        self._ephemerides = read_ephemerides(config.ephemerides) if config.ephemerides else None
        self._filters = UserFilters(config.filters, config.alerts_dir / "filtered", config.filter_limits)
        self._queue = PublishQueue(self._publish, self._failed)
        self._visits: list[PublishedVisit] = []
        self._failures: dict[int, str] = {}
        self._n_skipped = 0
        self._outcome: AlertOutcome | None = None

    @property
    def warnings(self) -> list[str]:
        """What whoever starts the run should know: the filters that were refused."""
        return self._filters.refused

    def __enter__(self) -> AlertStream:
        with ExitStack() as opened:
            self._open(opened)
            self._opened = opened.pop_all()
        self._queue.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._opened:  # whatever happens here, the sender ends, and the database is closed after it
            self._queue.close(at_once=kind is not None and not issubclass(kind, Exception))
            if kind is None:
                self._sender.drain(self._config.drain_timeout_s)
                trouble = self._sender.status.trouble
                self._sender.close()
                self._outcome = self._ended(trouble)

    def _open(self, opened: ExitStack) -> None:
        """Make the parts; what is open already is closed if a later one fails."""
        config, sink = self._config, make_sink(self._config)
        opened.callback(sink.close)
        _make_folder(self._output_dir)  # where the embedded database lies, by default
        self._database = opened.enter_context(open_database(config.database, spool_dir=config.spool_dir))
        self._publisher = Publisher(
            database=self._database, engine=self._engine, spool_dir=config.spool_dir, on_alerts=self._filters.apply,
            schema_version=config.schema_version, ephemerides=self._ephemerides,
        )  # fmt: skip
        self._preload = Preload(database=self._database, camera=self._camera, output_dir=self._output_dir, engine=self._engine)
        self._sender = Sender(self._database, sink, config.spool_dir).start()
        opened.callback(self._sender.close)

    @property
    def outcome(self) -> AlertOutcome:
        """What became of the alerts; there once the context has been left."""
        if self._outcome is None:
            raise RuntimeError("the alerts are still under way")
        return self._outcome

    def arriving(self, visits: Iterable[Visit], skipped: Callable[[int], object] = lambda n: None) -> Iterator[Visit]:
        """Yield the visits with what was preloaded for them, without the detectors that are stored already.

        ``skipped`` is told how many detectors of a visit are passed over.
        """
        for visit in visits:
            left = self._without_stored(visit)
            n_stored = len(visit.raw_paths) - len(left.raw_paths)
            self._n_skipped += n_stored
            skipped(n_stored)
            if left.raw_paths or left.missing:
                self._queue.expect(visit.visit, now_mjd_tai())
                yield self._preload(left)

    def ended(self, visit: int, reports: Iterable[DetectorReport]) -> None:
        """Hand over a visit whose detectors have all ended."""
        products = [Path(report.output) for report in reports if report.status == "done"]
        if not products:
            discard_preload(self._output_dir, [visit])
        self._queue.offer(visit, products)

    def _without_stored(self, visit: Visit) -> Visit:
        try:
            stored = self._database.published_detectors(visit.visit)
        except DatabaseError as error:
            logger.warning("visit %d is processed, stored or not: %s", visit.visit, error)
            return visit
        return visit._replace(raw_paths={d: path for d, path in visit.raw_paths.items() if d not in stored})

    def _publish(self, ended: EndedVisit) -> None:
        try:
            self._visits.append(self._publisher.publish(ended))
        finally:
            discard_preload(self._output_dir, [ended.visit])
        self._sender.wake()

    def _failed(self, visit: int, error: Exception) -> None:
        if not isinstance(error, NightstreamError):
            error = NightstreamError(f"{type(error).__name__}: {' '.join(str(error).split())}")
        self._failures[visit] = str(error.locate(visit=visit))

    def _ended(self, trouble: str) -> AlertOutcome:
        latencies_s, n_unsent, error = {}, 0, ""
        try:
            latencies_s = {done.visit: self._database.latencies(done.visit) for done in self._visits}
            n_unsent = sum(file.n_unsent for file in self._database.unsent_files())
        except DatabaseError as failure:  # what was done is told all the same
            error = str(failure)
        return AlertOutcome(
            visits=tuple(self._visits), latencies_s=latencies_s, failed=self._failures, n_unsent=n_unsent, trouble=trouble,
            n_skipped=self._n_skipped, error=error,
        )  # fmt: skip


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the output folder: {error.strerror}", path=str(path)) from error
