"""Alerts beside a run: the database, the publisher and the sender, composed.

| who            | thread    | does                                                              |
|----------------|-----------|-------------------------------------------------------------------|
| `arriving`     | the run's | passes over what is stored, preloads the known objects            |
| `ended`        | the run's | hands a visit over                                                |
| PublishQueue   | "publish" | one visit after the other into the database, alerts into spool    |
| Sender         | "send"    | delivers what the outbox holds, marks it sent                     |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nightstream.engine.config import EngineConfig
from nightstream.engine.values import Array
from nightstream.errors import NightstreamError
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


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertOutcome:
    """What became of a run's alerts."""

    visits: tuple[PublishedVisit, ...]  # in the order of publication
    latencies_s: Mapping[int, Array]  # visit: s from readout to sent, of those that were sent
    failed: Mapping[int, str]  # visit: why it could not be stored
    n_unsent: int  # of all that the outbox holds
    trouble: str  # what held them up


class AlertStream:
    """Everything between a run's products and the world. Use as a context; leaving it publishes and sends what is left."""

    def __init__(self, camera: RawCamera, output_dir: str | Path, engine: EngineConfig, config: AlertsConfig) -> None:
        self._output_dir, self._config = Path(output_dir), config.located(Path(output_dir))
        config = self._config
        ephemerides = read_ephemerides(config.ephemerides) if config.ephemerides else None
        filters = UserFilters(config.filters, config.alerts_dir / "filtered", config.filter_limits)
        self._output_dir.mkdir(parents=True, exist_ok=True)  # where the embedded database lies, by default
        self._database = open_database(config.database)
        publisher = Publisher(
            database=self._database, engine=engine, spool_dir=config.spool_dir, on_alerts=filters.apply,
            schema_version=config.schema_version, ephemerides=ephemerides,
        )  # fmt: skip
        self._preload = Preload(database=self._database, camera=camera, output_dir=self._output_dir, engine=engine)
        self._sender = Sender(self._database, make_sink(config), config.spool_dir)
        self._queue = PublishQueue(self._publish, self._failed)
        self._publisher = publisher
        self._visits: list[PublishedVisit] = []
        self._failures: dict[int, str] = {}
        self._outcome: AlertOutcome | None = None

    def __enter__(self) -> AlertStream:
        try:
            self._sender.start()
        except BaseException:
            self._database.close()
            raise
        self._queue.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._queue.close()
        if kind is None:
            self._sender.drain(self._config.drain_timeout_s)
        trouble = self._sender.status.trouble
        self._sender.close()
        self._outcome = self._ended(trouble)
        self._database.close()

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
            stored = self._database.published_detectors(visit.visit)
            raws = {detector: path for detector, path in visit.raw_paths.items() if detector not in stored}
            skipped(len(visit.raw_paths) - len(raws))
            if raws:
                self._queue.expect(visit.visit, now_mjd_tai())
                yield self._preload(visit._replace(raw_paths=raws))

    def ended(self, visit: int, reports: Iterable[DetectorReport]) -> None:
        """Hand over a visit whose detectors have all ended."""
        self._queue.offer(visit, [Path(report.output) for report in reports if report.status == "done"])

    def _publish(self, ended: EndedVisit) -> None:
        self._visits.append(self._publisher.publish(ended))
        self._sender.wake()
        discard_preload(self._output_dir, [ended.visit])

    def _failed(self, visit: int, error: Exception) -> None:
        self._failures[visit] = str(error) if isinstance(error, NightstreamError) else f"{type(error).__name__}: {error}"

    def _ended(self, trouble: str) -> AlertOutcome:
        return AlertOutcome(
            visits=tuple(self._visits),
            latencies_s={done.visit: self._database.latencies(done.visit) for done in self._visits},
            failed=self._failures,
            n_unsent=sum(file.n_unsent for file in self._database.unsent_files()),
            trouble=trouble,
        )
