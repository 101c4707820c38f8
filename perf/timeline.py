"""The time line of one detector as a picture: a bar a stage and a step of it, shaded by the cores that it kept busy.

python perf/timeline.py perf/records/stages-cpu.json     # draws the record's picture again, beside it
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROW_INCH, WIDTH_INCH, HEAD_INCH = 0.23, 11.0, 1.1
SHORTEST = 0.004  # of the whole: steps that take less are left out
THINNEST = 0.001  # of the whole: shorter bars are drawn as wide as that, to be seen
ROOM = 0.15  # of the whole, on the right, for what the last bars say
STAGE_HEIGHT, STEP_HEIGHT = 0.82, 0.5
INK, GREY, BAND, SHADES = "#222222", "#6f6f6f", "#f3f5f8", "YlGnBu"

Span = dict[str, Any]  # as records keep it
Row = list[Span]  # the calls of one step


def save_timeline(record: dict[str, Any], out_png: str | Path) -> Path:
    """Draw the ``timeline`` of a record of `perf/stages.py` as a PNG; return its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    whole, rows = record["timeline"][0]["end_s"], timeline_rows(record["timeline"])
    figure = Figure(figsize=(WIDTH_INCH, HEAD_INCH + ROW_INCH * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shades = ScalarMappable(Normalize(-0.2 * record["header"]["cores"], record["header"]["cores"]), SHADES)
    for y, row in enumerate(rows):
        _draw_row(axes, y, row, whole, shades)
    _label(axes, rows, whole)
    axes.set_title(heading(record), fontsize=11, loc="left", color=INK)
    bar = figure.colorbar(shades, ax=axes, label="cores busy", aspect=50, pad=0.01, ticks=MaxNLocator(integer=True))
    bar.ax.set_ylim(0, record["header"]["cores"])
    figure.savefig(out_png, dpi=90)
    return Path(out_png)


def timeline_rows(timeline: list[Span]) -> list[Row]:
    """Return the rows of the picture from spans in the order of their beginnings: every stage, each followed by its steps,
    the calls of one step together. The whole, and steps too short to be seen, have none."""
    whole, *spans = timeline
    rows: dict[tuple[str, str], Row] = {}
    stage = ""
    for span in spans:
        stage = span["name"] if span["depth"] == 1 else stage
        rows.setdefault((stage, span["name"] if span["depth"] > 1 else ""), []).append(span)
    return [row for row in rows.values() if row[0]["depth"] == 1 or _clock_s(row) > SHORTEST * whole["end_s"]]


def heading(record: dict[str, Any]) -> str:
    """What was timed, on what, and how long it took."""
    header, whole = record["header"], record["timeline"][0]
    ny, nx = record["shape"]
    card = [header["gpu"]["name"]] if header["gpu"] else []
    cost = f"{whole['end_s']:.2f} s, {whole['core_s']:.1f} core-seconds"
    machine = ", ".join([*card, f"{header['cores']} cores of {header['cpu']}"])
    return f"One detector of {ny} x {nx} pixels, raw file to HDF5 product: {cost}\n{machine}"


def _draw_row(axes, y: int, row: Row, whole: float, shades) -> None:
    is_stage = row[0]["depth"] == 1
    if is_stage:
        axes.axhspan(y - 0.5, y + 0.5, color=BAND, lw=0, zorder=0)
    height = STAGE_HEIGHT if is_stage else STEP_HEIGHT
    for span in row:
        width = max(span["end_s"] - span["start_s"], THINNEST * whole)
        colour = shades.to_rgba(_cores([span]))
        axes.barh(y, width, height, left=span["start_s"], color=colour, edgecolor=INK, lw=0.4)
    size, colour = (9, INK) if is_stage else (8, GREY)
    axes.annotate(_cost(row), (row[-1]["end_s"], y), (5, 0), textcoords="offset points", va="center", fontsize=size, color=colour)


def _label(axes, rows: list[Row], whole: float) -> None:
    axes.set(xlim=(0, whole * (1 + ROOM)), ylim=(len(rows) - 0.4, -0.6), xlabel="seconds since the raw file was opened")
    axes.set_yticks(range(len(rows)), [row[0]["name"] for row in rows])
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        is_stage = row[0]["depth"] == 1
        tick.set(fontsize=9 if is_stage else 8, fontweight="bold" if is_stage else "normal", color=INK if is_stage else GREY)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _cost(row: Row) -> str:
    seconds = _clock_s(row)
    if seconds < 0.1:  # the clock of the cores is too coarse to say more
        return f"{1e3 * seconds:.0f} ms" if seconds >= 1e-3 else "< 1 ms"
    return f"{seconds:.2f} s, {_cores(row):.1f} cores"


def _clock_s(row: Row) -> float:
    return sum(span["end_s"] - span["start_s"] for span in row)


def _cores(row: Row) -> float:
    return sum(span["core_s"] for span in row) / max(_clock_s(row), 1e-6)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("record", type=Path)
    path = options.parse_args().record
    print(save_timeline(json.loads(path.read_text()), path.with_suffix(".png")))


if __name__ == "__main__":
    main()
