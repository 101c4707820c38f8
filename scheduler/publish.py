"""From the products of one visit to the prompt database and its alerts: read, associate, force, summarize, pack, commit.

    products (HDF5) --> DIASources --> associate <-- DIAObjects, read again just before
                                          |
                        forced rows, DIAObject columns from 12 months of history
                                          |
                        spool file with the alerts, durable    (written again if this is broken off)
                                          |
                        one transaction: all tables and the outbox; done twice it changes nothing

Nothing is sent here: `nightstream.scheduler.sender` delivers what the outbox holds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nightstream.engine.associate import Association, associate
from nightstream.engine.config import EngineConfig
from nightstream.engine.dia_objects import summarize_objects
from nightstream.engine.tables import n_rows, stack, take
from nightstream.engine.values import Table
from nightstream.errors import ConflictError, DisconnectedError, NightstreamError
from nightstream.io.clock import now_mjd_tai
from nightstream.io.database.prompt_database import PromptDatabase, VisitBatch
from nightstream.scheduler.alert_batch import AlertBatch, AlertTables, spool_alerts
from nightstream.scheduler.forced_rows import forced_rows
from nightstream.scheduler.publish_queue import EndedVisit
from nightstream.scheduler.visit_products import VisitProducts, detector_of, read_visit
from nightstream.scheduler.visit_stamps import VisitStamps
from nightstream.scheduler.visit_summary import detector_visit_rows

logger = logging.getLogger(__name__)

ATTEMPTS = 5  # at a visit, when other processes wrote to the same database meanwhile, or its server was restarted


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedVisit:
    """What became of a visit."""

    visit: int
    detectors: tuple[int, ...] = ()  # stored now; those stored before are left out
    n_alerts: int = 0
    n_new_objects: int = 0
    n_solar_system: int = 0
    n_marginal: int = 0  # flagged sources without an object: kept in the products alone
    n_duplicates: int = 0  # seen on two detectors
    problems: tuple[NightstreamError, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """Publishes visits, one after the other.

    ``on_alerts`` gets the alerts of a visit just before they are stored; again, if storing them is broken off. What it returns
    is told among the problems.
    """

    database: PromptDatabase
    engine: EngineConfig
    spool_dir: Path
    schema_version: str
    ephemerides: Table | None = None  # predictions of Solar System objects
    on_alerts: Callable[[AlertBatch], Iterable[NightstreamError]] = lambda batch: ()

    def publish(self, ended: EndedVisit) -> PublishedVisit:
        """Store and pack what the detectors of a visit found that are not stored yet.

        A product that cannot be used, or has too many new objects, is told among the problems and does not stop the others;
        nothing of it is stored, so that the next run does its detector again.
        """
        start = time.perf_counter()
        for attempt in range(ATTEMPTS):
            try:
                with self.database.alone() if attempt else nullcontext():  # who was overtaken once makes the others wait
                    done = self._attempt(ended)
            except (ConflictError, DisconnectedError) as error:
                logger.info("attempt %d at visit %d: %s", attempt + 1, ended.visit, error)
                failure = error
                continue
            return replace(done, seconds=time.perf_counter() - start)
        raise ConflictError(f"not stored in {ATTEMPTS} attempts: {failure.message}", visit=ended.visit) from failure

    def _attempt(self, ended: EndedVisit) -> PublishedVisit:
        revision = self.database.revision()  # before anything else is read: it tells if others write meanwhile
        stored = self.database.published_detectors(ended.visit)
        paths, broken = list(ended.products), []
        while True:
            products = read_visit(ended.visit, paths, skip=stored)
            try:
                done = self._publish(products, ended.arrived_mjd_tai, revision)
            except NightstreamError as error:  # of pixels or stamps, which are read later than the tables
                if error.path is None or error.path not in map(str, paths):
                    raise
                paths = [path for path in paths if str(path) != error.path]
                broken.append(error.locate(visit=ended.visit, detector=detector_of(error.path)))
            else:
                return replace(done, problems=(*broken, *done.problems))

    def _publish(self, products: VisitProducts, arrived_mjd_tai: float, revision: int) -> PublishedVisit:
        if not products.detectors:
            return PublishedVisit(visit=products.visit, problems=products.problems)
        mjd = products.midpoint_mjd_tai
        since = mjd - self.engine.dia_object.history_days
        first_forced_id = self.database.next_forced_id()
        # all of them: one that comes back after a quiet year is no new one
        objects = self.database.objects_in(products.footprints, self._padding_arcsec, mjd, since_mjd_tai=-np.inf)
        found = self._associate(products, objects)
        sources, products = _associated(products.dia_sources, found), products.without(found.refused)
        if not products.detectors:
            return PublishedVisit(visit=products.visit, problems=products.problems)
        new = take(sources, found.is_new[found.is_stored])
        active = (objects["last_dia_source_mjd_tai"] >= since) | np.isin(objects["dia_object_id"], found.dia_object_id)
        forced = forced_rows(products, take(objects, active), new, self.engine.associate)
        sources, forced = _processed(sources), _processed(forced)
        forced["dia_forced_source_id"] = first_forced_id + np.arange(n_rows(forced), dtype=np.int64)
        with VisitStamps(products) as stamps:
            tables = self._with_history(sources, forced, found.ss_sources, mjd, since)
            alerts = spool_alerts(products, stamps, tables, self.spool_dir, self.schema_version, arrived_mjd_tai)
        problems = self.on_alerts(alerts)
        self.database.write(replace(_batch(products, tables, forced, alerts), revision=revision))
        return _summary(products, found, alerts, problems)

    def _with_history(self, sources: Table, forced: Table, ss_sources: Table, mjd: float, since: float) -> AlertTables:
        """What was known of the sources' objects before, and what they are now."""
        ids = np.unique(sources["dia_object_id"][sources["dia_object_id"] > 0])
        before, forced_before = self.database.history(ids, since)
        moving = np.unique(sources["ss_object_id"][sources["ss_object_id"] > 0])
        of_ids = take(forced, np.isin(forced["dia_object_id"], ids))
        all_forced = _by_object(stack([forced_before, of_ids]))
        objects = summarize_objects(ids, stack([before, sources]), all_forced, mjd, self.engine.dia_object)
        return AlertTables(
            dia_sources=sources,
            dia_objects=objects,
            prv_dia_sources=before,
            prv_dia_forced_sources=all_forced,
            prv_moving_sources=self.database.solar_system_history(moving, since) if len(moving) else {},
            ss_sources=ss_sources,
        )

    @property
    def _padding_arcsec(self) -> float:
        return 2 * self.engine.associate.radius_arcsec

    def _associate(self, products: VisitProducts, objects: Table) -> Association:
        claimed = self.database.claimed_objects(products.visit)
        config = self.engine.associate
        return associate(products.dia_sources, objects, config, ephemerides=self.ephemerides, claimed=claimed)


def _associated(sources: Table, found: Association) -> Table:
    """The sources that belong to an object, with its number."""
    rows = np.flatnonzero(found.is_stored)
    return take(sources, rows) | {name: getattr(found, name)[rows] for name in ("dia_object_id", "ss_object_id")}


def _processed(table: Table) -> Table:
    """The table with the time of now in it."""
    return table | {"time_processed_mjd_tai": np.full(n_rows(table), now_mjd_tai())}


def _by_object(table: Table) -> Table:
    """The rows by object, then time, as packets want them."""
    return take(table, np.lexsort((table["midpoint_mjd_tai"], table["dia_object_id"])))


def _batch(products: VisitProducts, tables: AlertTables, forced: Table, alerts: AlertBatch) -> VisitBatch:
    return VisitBatch(
        visit=products.visit,
        detector_visits=_processed(detector_visit_rows(products)),
        dia_sources=tables.dia_sources,
        dia_objects=tables.dia_objects,
        forced_sources=forced,
        ss_sources=tables.ss_sources,
        alerts=alerts.rows,
        alert_file=alerts.path.name,
    )


def _summary(
    products: VisitProducts, found: Association, alerts: AlertBatch, problems: Iterable[NightstreamError]
) -> PublishedVisit:
    return PublishedVisit(
        visit=products.visit,
        detectors=products.detectors,
        n_alerts=n_rows(alerts.rows),
        n_new_objects=int(found.is_new.sum()),
        n_solar_system=int((found.ss_object_id > 0).sum()),
        n_marginal=int(found.is_marginal.sum()),
        n_duplicates=int(found.is_duplicate.sum()),
        problems=(*products.problems, *problems),
    )
