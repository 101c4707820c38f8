"""Science, template and difference cutouts side by side, for the best detections of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nightstream.engine.values import Exposure, Template
from nightstream.report.evaluate import Evaluation
from nightstream.report.stretch import asinh_stretch, level_and_noise

HALF_PIX = 25
COLUMNS = 2  # triplets side by side
PANELS = ("science", "template", "difference")
DIFFERENCE_RANGE_SIGMA = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Triplet:
    """Three cutouts of one source, nJy, on the science image's pixels, and what is written next to them."""

    science: np.ndarray
    template: np.ndarray
    difference: np.ndarray
    title: str
    caption: str


def make_triplet(
    visit_image: Exposure, difference: Exposure, template: Template, x: float, y: float, *, title: str, caption: str
) -> Triplet:
    """Cut out ``HALF_PIX`` to each side of ``x, y`` (pixels of the visit image). Outside of an image is NaN."""
    return Triplet(
        science=cutout(visit_image.pixels.image, x, y) * visit_image.njy_per_unit,
        difference=cutout(difference.pixels.image, x, y) * difference.njy_per_unit,
        template=aligned_cutout(template, visit_image, x, y), title=title, caption=caption,
    )  # fmt: skip


def cutout(image: np.ndarray, x: float, y: float, half: int = HALF_PIX) -> np.ndarray:
    """Return the (2 half + 1, 2 half + 1) pixels around the pixel nearest to ``x, y``, float64, NaN outside."""
    image = np.asarray(image, dtype=np.float64)
    ix, iy = int(np.rint(x)), int(np.rint(y))
    padded = np.full((2 * half + 1, 2 * half + 1), np.nan)
    (ny, nx), (x0, y0) = image.shape, (ix - half, iy - half)
    left, right, low, high = max(x0, 0), min(ix + half + 1, nx), max(y0, 0), min(iy + half + 1, ny)
    if right > left and high > low:
        padded[low - y0 : high - y0, left - x0 : right - x0] = image[low:high, left:right]
    return padded


def aligned_cutout(template: Template, visit_image: Exposure, x: float, y: float, half: int = HALF_PIX) -> np.ndarray:
    """Return the template on the visit image's pixels around ``x, y``, cubic interpolation; for the eye only."""
    from scipy.ndimage import map_coordinates

    offset = np.arange(-half, half + 1)
    grid_y, grid_x = np.meshgrid(offset + np.rint(y), offset + np.rint(x), indexing="ij")
    at_x, at_y = template.wcs.pixel_from_sky(*visit_image.wcs.sky_from_pixel(grid_x, grid_y))
    image = np.asarray(template.pixels.image, dtype=np.float64)
    blank = ~np.isfinite(image)
    values = map_coordinates(np.where(blank, 0.0, image), [at_y, at_x], order=3, mode="constant", cval=np.nan)
    empty = map_coordinates(blank.astype(np.float64), [at_y, at_x], order=1, mode="constant", cval=1.0)
    return np.where(empty > 0.5, np.nan, values)


def choose_best(evaluation: Evaluation, count: int = 8) -> list[int]:
    """Return rows of ``evaluation.changes`` that make a telling picture: recovered, bright and faint, of every kind.

    An asteroid and a variable come last; before them transients, evenly spread in the rank of their S/N.
    """
    change = evaluation.changes
    found = (change["source"] >= 0) & change["is_clean"].astype(bool)
    special: list[int] = []
    for kind in ("variable", "asteroid"):
        rows = np.flatnonzero(found & (change["kind"] == kind))
        special += rows[np.argsort(-np.abs(change["snr"][rows]))][:1].tolist()
    rows = np.flatnonzero(found & (change["kind"] == "transient"))
    rows = rows[np.argsort(-change["snr"][rows])]
    _, first = np.unique(change["id"][rows], return_index=True)  # each transient once, at its best
    rows = rows[np.sort(first)]
    picks = np.unique(np.linspace(0, len(rows) - 1, max(count - len(special), 0)).astype(int)) if len(rows) else []
    return [int(rows[pick]) for pick in picks] + special


def describe(evaluation: Evaluation, row: int, hosts: np.ndarray | None = None) -> tuple[str, str]:
    """Return (title, caption) of one change: what it is and where; S/N and flux against the truth."""
    change, sources = evaluation.changes, evaluation.sources
    source = change["source"][row]
    kind = str(change["kind"][row])
    if kind == "transient" and hosts is not None:
        kind += " in a galaxy" if hosts[change["id"][row]] >= 0 else ", no host"
    title = f"{kind}  ·  visit {change['visit'][row]}, detector {change['detector'][row]}"
    flux, error = sources["psf_flux"][source] / 1e3, sources["psf_flux_err"][source] / 1e3
    true = change["difference_flux_njy"][row] / 1e3
    # a variable's template flux depends on the coadd's weights, and a PSF misses the ends of a trail
    word = {"variable": "truth about", "asteroid": "whole trail"}.get(str(change["kind"][row]), "truth")
    caption = f"S/N {sources['snr'][source]:.0f}  ·  {flux:.2f} ± {error:.2f} µJy  ·  {word} {true:.2f} µJy"
    return title, caption


def save_triplets(triplets: list[Triplet], out_png: str | Path, heading: str = "") -> Path:
    """Draw the triplets, two side by side, and write a PNG; return its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max(-(-len(triplets) // COLUMNS), 1)
    figure = Figure(figsize=(13.0, 0.9 + 2.55 * rows), facecolor="white")
    FigureCanvasAgg(figure)
    height = 0.9 + 2.55 * rows
    figure.text(0.02, 1 - 0.28 / height, heading, fontsize=14, fontweight="bold", va="center")
    for index, triplet in enumerate(triplets):
        row, column = divmod(index, COLUMNS)
        _draw_triplet(figure, triplet, 0.02 + 0.495 * column, 1 - (0.55 + 2.55 * (row + 1)) / height, height, row == 0)
    path = Path(out_png)
    figure.savefig(path, dpi=110)
    return path


def _draw_triplet(figure, triplet: Triplet, left: float, bottom: float, height: float, is_first: bool) -> None:
    """Three panels of 2 inches at (left, bottom) in figure fractions, the title above and the caption below."""
    width, tall = 2.0 / 13.0, 2.0 / height
    bottom += 0.27 / height
    for index, name in enumerate(PANELS):
        axes = figure.add_axes((left + index * (width + 0.05 / 13.0), bottom, width, tall))
        _draw_panel(axes, triplet, name)
        axes.text(0.03, 0.97, name, transform=axes.transAxes, fontsize=8, va="top", color="black",
                  bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5})  # fmt: skip
    figure.text(left, bottom + tall + 0.06 / height, triplet.title, fontsize=9.5, fontweight="bold", va="bottom")
    figure.text(left, bottom - 0.05 / height, triplet.caption, fontsize=9.5, va="top", color="0.25")


def _draw_panel(axes, triplet: Triplet, name: str) -> None:
    image = getattr(triplet, name)
    if name == "difference":
        _, noise = level_and_noise(image)
        limit = DIFFERENCE_RANGE_SIGMA * noise
        axes.imshow(image, origin="lower", cmap="gray_r", vmin=-limit, vmax=limit, interpolation="nearest")
    else:
        level, noise = level_and_noise(triplet.science)
        top = max(np.nanmax(triplet.science), level + 20.0 * noise) if np.isfinite(triplet.science).any() else 1.0
        axes.imshow(asinh_stretch(image, level, noise, top), origin="lower", cmap="gray_r", vmin=0.0, vmax=1.0,
                    interpolation="nearest")  # fmt: skip
    axes.set(xticks=[], yticks=[], facecolor="#e8eef5")
    middle, gap, arm = image.shape[0] // 2, 8.0, 5.0
    for dx, dy in ((1, 0), (0, 1)):
        axes.plot([middle - dx * (gap + arm), middle - dx * gap], [middle - dy * (gap + arm), middle - dy * gap],
                  color="#d62728", lw=1.3)  # fmt: skip
    for spine in axes.spines.values():
        spine.set_color("0.6")
