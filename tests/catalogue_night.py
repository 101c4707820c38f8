"""Nights without pixels: visits of known sources on two small detectors, published one after the other."""

from __future__ import annotations

import numpy as np

from nightstream.engine.config import EngineConfig
from nightstream.io.alerts.files import read_alert_file
from nightstream.io.database.prompt_database import open_database
from nightstream.scheduler.publish import Publisher
from nightstream.scheduler.publish_queue import EndedVisit
from nightstream.simulate.catalogue import CatalogueVisit, write_visit

SIDE = 256
STEP_DEG = SIDE * 0.2 / 3600  # between detectors
MJD = 61000.0


def true_sky(n=12, seed=3, overlap_pix=0):
    """Positions (deg) well inside two neighbouring detectors, and fluxes."""
    rng = np.random.default_rng(seed)
    ra = 150.0 + rng.uniform(-0.4, 1.4, n) * STEP_DEG
    dec = rng.uniform(-0.4, 0.4, n) * STEP_DEG
    near_the_joint = np.abs(ra - 150.0 - 0.5 * STEP_DEG) < 0.05 * STEP_DEG
    return ra[~near_the_joint], dec[~near_the_joint], rng.uniform(2000, 9000, (~near_the_joint).sum())


def make_visit(number, mjd=MJD, **kwargs):
    return CatalogueVisit(visit=number, midpoint_mjd_tai=mjd, side_pix=SIDE, **kwargs)


class Night:
    """A database with its publisher."""

    def __init__(self, folder, **publisher):
        self.folder = folder
        self.database = open_database(folder / "prompt.duckdb")
        wanted = {"engine": EngineConfig(), "schema_version": "11.1"} | publisher
        self.publisher = Publisher(database=self.database, spool_dir=folder / "spool", **wanted)

    def detect(self, visit, ra, dec, flux, **kwargs):
        """Publish a visit that saw these."""
        return self.publish(visit, write_visit(self.folder, visit, ra, dec, flux, **kwargs))

    def publish(self, visit, products):
        return self.publisher.publish(EndedVisit(visit.visit, tuple(products), visit.midpoint_mjd_tai))

    def alerts(self):
        """All packets, by number."""
        packets = [packet for path in sorted((self.folder / "spool").glob("*.avro")) for packet in read_alert_file(path)]
        return {packet["diaSourceId"]: packet for packet in packets}
