"""``nightstream plan``: does this hardware hold the cadence of that camera, where does the time go, what do options cost?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from nightstream.commands.common import console, errors_end_the_command
from nightstream.errors import InputError

if TYPE_CHECKING:
    from nightstream.scheduler.capacity import Capacity, DetectorCost

RECORDS = Path("perf/records")  # of a checkout


def plan_command(camera, gpus, cores, cadence_s, budget_s, alerts, record, publish_record) -> None:
    """Print the verdict, a table of stages and, if the record has them, one of optional steps."""
    from nightstream.io.cameras import load_camera
    from nightstream.scheduler.capacity import capacity, read_detector_cost, read_publish_seconds

    with errors_end_the_command():
        if (gpus is None) == (cores is None):
            raise InputError("wanted either --gpus or --cores")
        device = "cpu" if gpus is None else "gpu"
        cost = read_detector_cost(record or RECORDS / f"stages-{device}.json")
        if cost.device != device:
            raise InputError(f"got a record of a {cost.device}, wanted one of a {device}", path=str(record))
        detectors = load_camera(camera).detectors
        pixels = max(d.shape[0] * d.shape[1] for d in detectors.values())
        publish_s = read_publish_seconds(publish_record or RECORDS / "publish-cpu.json", alerts)
        visit = {"detectors": len(detectors), "pixels": pixels, "publish_s": publish_s}
        done = capacity(cost, gpus or cores, **visit)
        for line in verdict(cost, done, cadence_s, budget_s, visit):
            console.print(line, markup=False)
        console.print(stage_table(cost, done, pixels))
        if cost.optional:
            console.print(option_table(cost, done, cadence_s, budget_s, visit))


def verdict(cost: DetectorCost, done: Capacity, cadence_s: float, budget_s: float, visit: dict) -> Iterator[str]:
    """What a facility asks: does it hold, how late are the alerts, and how much would be enough."""
    unit = _unit(cost)
    yield f"{visit['detectors']} detectors on {done.units} {unit}s; one detector measured on {cost.hardware}"
    yield f"a visit keeps them busy for {done.visit_s:.1f} s ({done.turns} x {done.turn_s:.3g} s): " + _against(
        done.visit_s, cadence_s, "cadence"
    )
    yield (
        f"its alerts are out after {done.latency_s:.1f} s (files {done.files_s:.1f} s, publishing {done.publish_s:.1f} s): "
        + _against(done.latency_s, budget_s, "budget")
    )
    yield f"cores of the hosts: {done.host_core_s / cadence_s:.0f}, all busy, at that cadence"
    enough = _enough(cost, cadence_s, budget_s, visit)
    least = f"no number of {unit}s holds both: publishing and one detector alone take too long"
    yield least if enough is None else f"enough: {enough}"


def stage_table(cost: DetectorCost, done: Capacity, pixels: int) -> Table:
    """Where a unit's time goes: what a visit would be shorter by without each stage."""
    table = Table("stage", "s a detector", "share", "s of a visit", "core-s a detector")
    scale, whole = pixels / cost.pixels, sum(map(cost.unit_s, cost.stages)) or 1.0
    for stage in cost.stages:
        busy = cost.unit_s(stage) * scale
        row = f"{busy:.4f}", f"{busy / (whole * scale):.1%}", f"{busy * done.turns:.2f}", f"{stage.core_s * scale:.3f}"
        table.add_row(stage.name, *row)
    return table


def option_table(cost: DetectorCost, done: Capacity, cadence_s: float, budget_s: float, visit: dict) -> Table:
    """What leaving an optional step out would bring; nothing is said of steps whose cost is within the record's noise."""
    table = Table("without", "saves s a detector", "saves s of a visit", "enough")
    for step in cost.optional:
        saved = cost.unit_s(step.saved) * visit["pixels"] / cost.pixels
        enough = _enough(cost.without(step), cadence_s, budget_s, visit) or "no number"
        known = f"{saved:.4f}", f"{saved * done.turns:.2f}", enough
        table.add_row(step.saved.name, *known if step.is_clear else ("within noise",))
    return table


def _enough(cost: DetectorCost, cadence_s: float, budget_s: float, visit: dict) -> str | None:
    """The least number of units, with their name; None if no number is enough."""
    from nightstream.scheduler.capacity import fewest_units

    units = fewest_units(cost, cadence_s, budget_s, **visit)
    return units and f"{units} {_unit(cost)}{'s'[: units > 1]}"


def _unit(cost: DetectorCost) -> str:
    return "card" if cost.device == "gpu" else "core"


def _against(seconds: float, limit_s: float, name: str) -> str:
    return f"holds the {name} of {limit_s:g} s" if seconds <= limit_s else f"does not hold the {name} of {limit_s:g} s"
