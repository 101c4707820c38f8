"""What a visit needs before its pixels come: the DIAObjects in the field of each detector, to force photometry at.

They travel to the worker as a small file, ``<output>/visit=<id>/preload/detector=<nnn>.npy``, which is removed when the visit
is published. A detector whose raw header does not say where it points, or whose file cannot be written or is lost, has none;
its objects are measured from the stored product when the visit is published.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nightstream.engine.config import EngineConfig
from nightstream.engine.matching import predicted_positions
from nightstream.engine.values import Table
from nightstream.errors import DatabaseError, NightstreamError
from nightstream.io.atomic import complete_or_absent
from nightstream.io.cameras import RawCamera
from nightstream.io.database.prompt_database import PromptDatabase
from nightstream.io.products import footprint, visit_directory
from nightstream.io.raw import read_info, read_pointing
from nightstream.scheduler.run import Visit

logger = logging.getLogger(__name__)

POSITION_DTYPE = [("dia_object_id", "<i8"), ("ra", "<f8"), ("dec", "<f8")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preload:
    """Read the known objects of a visit's detectors and leave them where the workers find them."""

    database: PromptDatabase
    camera: RawCamera
    output_dir: Path
    engine: EngineConfig
    padding_arcsec: float = 50.0  # by how much the telescope may miss what the header says

    def __call__(self, visit: Visit) -> Visit:
        """Return ``visit`` with the files of positions of the detectors that have any; trouble only makes them fewer."""
        found: dict[int, str] = {}
        for detector, raw in visit.raw_paths.items():
            try:
                path = self._positions(visit.visit, detector, raw)
            except DatabaseError as error:  # away for one, away for all
                logger.warning("no preload: %s", error.locate(visit=visit.visit))
                break
            except NightstreamError as error:
                logger.info("no preload: %s", error.locate(visit=visit.visit, detector=detector))  # the worker will say so, too
                continue
            found |= {detector: str(path)} if path is not None else {}
        return visit._replace(positions=found)

    def _positions(self, visit: int, detector: int, raw: str) -> Path | None:
        wcs, info = read_pointing(raw, self.camera), read_info(raw, self.camera)
        if wcs is None:
            return None
        corners = footprint(wcs, self.camera.detectors[detector].shape)
        mjd = info.midpoint_mjd_tai
        since = mjd - self.engine.dia_object.history_days
        objects = self.database.objects_in([corners], self.padding_arcsec, mjd, since_mjd_tai=since)
        positions = predicted_positions(objects, mjd, self.engine.associate)
        return write_positions(preload_path(self.output_dir, visit, detector), positions)


def preload_path(output_dir: str | Path, visit: int, detector: int) -> Path:
    """Return the file of the positions to force on one detector of a visit."""
    return visit_directory(output_dir, visit) / "preload" / f"detector={detector:03d}.npy"


def write_positions(path: Path, positions: Table) -> Path:
    """Write dia_object_id, ra and dec (deg), complete or not at all."""
    rows = np.empty(len(positions["ra"]), dtype=POSITION_DTYPE)
    for name, _ in POSITION_DTYPE:
        rows[name] = positions[name]
    with complete_or_absent(path) as temporary, open(temporary, "wb") as file:
        np.save(file, rows)
    return path


def discard_preload(output_dir: str | Path, visits: Iterable[int]) -> None:
    """Remove what was preloaded for ``visits``."""
    for visit in visits:
        shutil.rmtree(visit_directory(output_dir, visit) / "preload", ignore_errors=True)
