"""How many cards, or cores, a camera needs: what `perf/stages.py` recorded of one detector, times all of them.

A unit, a card or a core, has one detector at a time; with n units a visit takes ceil(detectors / n) turns. A card's turn
is the clock time of the stages that it works on, files being read, moved and written meanwhile; a core's turn is
all core-seconds. Costs grow in proportion to pixels. The latency of a visit is its turns, a card's first file and last
product, and then what `perf/publish.py` recorded for its alerts. Where the record has them, optional steps of the engine
are known by what a detector costs less without each.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nightstream.errors import FileError, InputError

HOST_STAGES = ("read", "upload", "download", "write")  # that a card does not wait for: other jobs compute meanwhile
TOTAL = "total"


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage of one detector."""

    name: str
    clock_s: float
    core_s: float


@dataclass(frozen=True, slots=True)
class OptionalStep:
    """A step that a facility may leave out."""

    saved: StageCost  # what one detector costs less without it
    is_clear: bool  # beyond the noise of the record, for the time that keeps a unit busy


@dataclass(frozen=True, slots=True)
class DetectorCost:
    """What a record says of one detector."""

    device: str  # "cpu" or "gpu"
    hardware: str  # what it was measured on
    pixels: int
    stages: tuple[StageCost, ...]
    optional: tuple[OptionalStep, ...] = ()

    def unit_s(self, stage: StageCost) -> float:
        """Seconds that a stage keeps a unit busy."""
        if self.device == "cpu":
            return stage.core_s
        return 0.0 if stage.name in HOST_STAGES else stage.clock_s

    def without(self, step: OptionalStep) -> DetectorCost:
        """What one detector costs if ``step`` is left out."""
        saved = step.saved
        return replace(self, stages=(*self.stages, StageCost(f"without {saved.name}", -saved.clock_s, -saved.core_s)))


@dataclass(frozen=True, slots=True)
class Capacity:
    """What ``units`` do with one visit of ``detectors``."""

    units: int
    turns: int  # detectors that the busiest unit has
    turn_s: float
    files_s: float  # first file in, last product out, where the units do not do that themselves
    publish_s: float
    host_core_s: float  # that all detectors of the visit need

    @property
    def visit_s(self) -> float:
        """How long the units are busy with a visit: the shortest cadence they hold."""
        return self.turns * self.turn_s

    @property
    def latency_s(self) -> float:
        """From the last pixel on disk to the last alert sent, for a visit that finds the units idle."""
        return self.visit_s + self.files_s + self.publish_s

    def holds(self, cadence_s: float, budget_s: float) -> bool:
        """Whether visits every ``cadence_s`` do not queue, and alerts leave within ``budget_s``."""
        return self.visit_s <= cadence_s and self.latency_s <= budget_s


def read_detector_cost(path: Path) -> DetectorCost:
    """Read a record of `perf/stages.py`. Raises FileError for a file that is none."""
    record = _read_record(path)
    try:
        header, (ny, nx) = record["header"], record["shape"]
        stages = tuple(
            StageCost(name, float(cost["median_s"]), float(cost["core_s"]))
            for name, cost in record["stages"].items()
            if name != TOTAL
        )
        hardware = header["cpu"] if header["device"] == "cpu" else (header["gpu"] or {}).get("name", "card")
        return DetectorCost(header["device"], hardware, ny * nx, stages, _optional_steps(record))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"no record of perf/stages.py: {error!r}", path=str(path)) from None


def read_publish_seconds(path: Path, alerts: int) -> float:
    """Read from a record of `perf/publish.py` how long so many ``alerts`` of a visit take from products to sent."""
    record = _read_record(path)
    try:
        return float(record["sent_s"]) * alerts / int(record["alerts"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise FileError(f"no record of perf/publish.py: {error!r}", path=str(path)) from None


def capacity(cost: DetectorCost, units: int, *, detectors: int, pixels: int, publish_s: float = 0.0) -> Capacity:
    """Return what ``units`` (cards for a record of a card, else cores) do with ``detectors`` of so many ``pixels`` each."""
    if min(units, detectors, pixels) < 1:
        raise InputError(f"got {units} units, {detectors} detectors of {pixels} pixels, wanted at least 1 of each")
    scale = pixels / cost.pixels
    files = sum(s.clock_s for s in cost.stages if s.name in HOST_STAGES) if cost.device == "gpu" else 0.0
    return Capacity(
        units=units,
        turns=math.ceil(detectors / units),
        turn_s=scale * sum(map(cost.unit_s, cost.stages)),
        files_s=scale * files,
        publish_s=publish_s,
        host_core_s=scale * detectors * sum(s.core_s for s in cost.stages),
    )


def fewest_units(cost: DetectorCost, cadence_s: float, budget_s: float, **visit) -> int | None:
    """Return the least number of units that holds cadence and budget; None if one detector alone takes too long.

    ``visit`` as in `capacity`. More units than detectors are of no use.
    """
    return next((n for n in range(1, visit["detectors"] + 1) if capacity(cost, n, **visit).holds(cadence_s, budget_s)), None)


def _optional_steps(record: Any) -> tuple[OptionalStep, ...]:
    unit = "core" if record["header"]["device"] == "cpu" else "clock"
    return tuple(
        OptionalStep(StageCost(name, float(saved["clock_s"]), float(saved["core_s"])), not least <= 0 <= most)
        for name, saved in record.get("optional", {}).items()
        for least, most in [saved[f"{unit}_range_s"]]
    )


def _read_record(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise FileError("no such record; the scripts in perf/ make them", path=str(path)) from None
    except (OSError, ValueError) as error:
        raise FileError(f"not a readable record: {error}", path=str(path)) from None
