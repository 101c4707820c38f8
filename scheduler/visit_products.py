"""The small tables of all detectors of one visit, read back from their products and put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nightstream.engine.tables import stack
from nightstream.engine.values import Table
from nightstream.errors import InputError, NightstreamError, UnprocessableError
from nightstream.io.products import DetectorTables, footprint, read_dia_tables


@dataclass(frozen=True)
class VisitProducts:
    """What the detectors of a visit found, without its pixels. ``problems`` tells which products could not be used."""

    visit: int
    tables: dict[int, DetectorTables]  # by detector, in order
    paths: dict[int, Path]
    problems: tuple[NightstreamError, ...] = ()

    @property
    def detectors(self) -> tuple[int, ...]:
        """The detectors, in order."""
        return tuple(self.tables)

    @cached_property
    def dia_sources(self) -> Table:
        """All DIASources, by detector, then number."""
        return stack(tables.dia_sources for tables in self.tables.values())

    @property
    def midpoint_mjd_tai(self) -> float:
        """The middle of the exposure, MJD TAI."""
        return float(np.mean([tables.info.midpoint_mjd_tai for tables in self.tables.values()]))

    @property
    def footprints(self) -> list[np.ndarray]:
        """The corners of each detector on the sky, (k, 2) ra and dec, deg."""
        return [footprint(tables.wcs, tables.shape) for tables in self.tables.values()]

    def without(self, refused: Mapping[int, str]) -> VisitProducts:
        """Return the visit without some of its detectors, and with the reasons for that among its problems."""
        kept = {detector: tables for detector, tables in self.tables.items() if detector not in refused}
        problems = [
            UnprocessableError(reason, visit=self.visit, detector=detector, path=str(self.paths[detector]))
            for detector, reason in refused.items()
        ]
        return VisitProducts(self.visit, kept, {d: self.paths[d] for d in kept}, (*self.problems, *problems))


def read_visit(visit: int, paths: Sequence[Path], skip: Iterable[int] = ()) -> VisitProducts:
    """Read the tables of a visit's products. ``skip`` names detectors to leave out.

    A product that cannot be read, is of another visit, or has no difference image is a problem, and the others are read.
    """
    found, problems, skip = {}, [], set(skip)
    for path in paths:
        try:
            tables = read_dia_tables(path)
            _check(tables, visit)
            found[tables.info.detector] = tables, Path(path)
        except NightstreamError as error:
            problems.append(error.locate(visit=visit, detector=detector_of(path), path=str(path)))
    chosen = [detector for detector in sorted(found) if detector not in skip]
    tables, where = ({detector: found[detector][i] for detector in chosen} for i in (0, 1))
    return VisitProducts(visit, tables, where, tuple(problems))


def detector_of(path: str | Path) -> int | None:
    """The detector that a product's name tells."""
    number = Path(path).stem.rpartition("=")[2]
    return int(number) if number.isdigit() else None


def _check(tables: DetectorTables, visit: int) -> None:
    if tables.info.visit != visit:
        raise InputError(f"got a product of visit {tables.info.visit}, wanted {visit}")
    if tables.wcs is None:
        raise InputError("has no WCS, so that its sources have no place on the sky", detector=tables.info.detector)
