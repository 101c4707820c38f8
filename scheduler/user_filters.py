"""Users' filters over the alerts of a visit: the packets each user asked for, in a file of the user's own.

``<alerts>/filtered/<user>/<spool file>`` appears complete or not at all, before the visit is stored, so that a crash loses
nothing: the visit is then done again and the same file written again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nightstream.engine.values import Array
from nightstream.errors import FileError, NightstreamError, UnprocessableError
from nightstream.io.alerts.files import read_alert_file, read_body, write_alert_file
from nightstream.io.alerts.filters import (
    SITE,
    AnyFilter,
    FilterConfig,
    FilterResult,
    RefusedFilter,
    load_filters,
    load_site_filters,
    run_filters,
)
from nightstream.scheduler.alert_batch import AlertBatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UserFilters:
    """Filters that were read once, and where their alerts go. Site filters always run beside the users'."""

    folder: Path | None
    output_dir: Path
    config: FilterConfig = field(default_factory=FilterConfig)
    filters: list[AnyFilter] = field(init=False)

    def __post_init__(self) -> None:
        users = load_filters(self.folder) if self.folder is not None else []
        object.__setattr__(self, "filters", [*users, *load_site_filters()])

    @property
    def refused(self) -> list[str]:
        """Why some filters do not run, each with user and file."""
        return [one.reason for one in self.filters if isinstance(one, RefusedFilter)]

    def apply(self, batch: AlertBatch) -> list[NightstreamError]:
        """Run all filters over a visit's alerts and write what each user gets.

        An error of a user's own filter goes to the log. Users whose file could not be written are returned; nothing is raised,
        since no filter may keep a visit from being stored.
        """
        try:
            results = self._run(batch)
        except Exception as error:
            logger.error("visit %d: no filter ran", batch.visit, exc_info=error)
            return [UnprocessableError(f"no filter ran: {type(error).__name__}: {error}", visit=batch.visit)]
        return [problem for user, result in results.items() for problem in self._give(batch, user, result)]

    def _run(self, batch: AlertBatch) -> dict[str, FilterResult]:
        tables = batch.tables
        return run_filters(
            self.filters,
            {"dia_sources": tables.dia_sources, "dia_objects": tables.dia_objects, "ss_sources": tables.ss_sources},
            self.config,
        )

    def _give(self, batch: AlertBatch, user: str, result: FilterResult) -> list[NightstreamError]:
        if result.error:
            logger.warning("visit %d: %s", batch.visit, result.error)
        try:
            self._write(batch, user, result.ids)
        except NightstreamError as error:
            return [error.locate(visit=batch.visit)]
        except OSError as error:
            return [FileError(f"{user} got no alerts: {error.strerror}", visit=batch.visit, path=str(self.output_dir / user))]
        return []

    def _write(self, batch: AlertBatch, user: str, ids: Array) -> None:
        path = self.output_dir / user / batch.path.name
        if not user.startswith(SITE):
            ids = ids[: max(0, self.config.max_alerts - self._n_before(path, batch.visit))]
        if not len(ids):
            path.unlink(missing_ok=True)  # of an earlier attempt at the same visit
            return
        order = np.argsort(batch.rows["dia_source_id"])
        rows = order[np.searchsorted(batch.rows["dia_source_id"], ids, sorter=order)]
        places = zip(batch.rows["offset"][rows].tolist(), batch.rows["length"][rows].tolist(), strict=True)
        bodies = (read_body(batch.path, offset, length) for offset, length in places)
        write_alert_file(path, bodies, str(batch.rows["schema_version"][0]), ids=ids, visit=batch.visit)

    def _n_before(self, path: Path, visit: int) -> int:
        """Alerts that the user got of other detectors of this visit, stored earlier."""
        others = [other for other in path.parent.glob(f"visit={visit}.*") if other != path] if path.parent.is_dir() else []
        return sum(1 for other in others for _ in read_alert_file(other))
