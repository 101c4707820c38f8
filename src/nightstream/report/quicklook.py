"""A quick-look picture of one product: its planes side by side, mask planes in colour, sources circled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nightstream.engine.values import DetectorProducts, MaskedImage, Table
from nightstream.io.products import read_detector_products
from nightstream.kernels.mask import MaskPlane
from nightstream.report.evaluate import is_reliable
from nightstream.report.stretch import asinh_stretch, level_and_noise

# Drawn in this order, later over earlier.
MASK_COLOURS = {
    MaskPlane.NO_DATA: "#9e9e9e", MaskPlane.BAD: "#d62728", MaskPlane.SAT: "#ff7f0e", MaskPlane.SAT_TEMPLATE: "#e7c51b",
    MaskPlane.CR: "#1f9ed6", MaskPlane.STREAK: "#9467bd", MaskPlane.DETECTED_NEGATIVE: "#8c564b",
    MaskPlane.DETECTED: "#2ca02c",
}  # fmt: skip
FOOTPRINTS = MaskPlane.DETECTED | MaskPlane.DETECTED_NEGATIVE
OVERLAY_ALPHA = 0.55
PANEL_INCHES = 6.5


def save_quicklook(path_h5: str | Path, out_png: str | Path) -> Path:
    """Draw the detector product ``path_h5`` into ``out_png``: visit image, its mask, and the difference with its sources."""
    products = read_detector_products(path_h5)
    info = products.visit_image.info
    heading = f"visit {info.visit}, detector {info.detector}, {info.band}, {info.exposure_time_s:g} s"
    panels = [("visit image", products.visit_image.pixels, {}, False), ("mask", products.visit_image.pixels, {}, True)]
    if products.difference is not None:
        panels += [(_difference_title(products), products.difference.pixels, products.dia_sources, True)]
    return save_panels(panels, out_png, heading)


def save_planes(pixels: MaskedImage, out_png: str | Path, heading: str) -> Path:
    """Draw any masked image (a template, a master flat): as it is, and with its mask in colour."""
    return save_panels([("image", pixels, {}, False), ("mask", pixels, {}, True)], out_png, heading)


def save_panels(panels: list[tuple[str, MaskedImage, Table, bool]], out_png: str | Path, heading: str) -> Path:
    """Draw panels of (title, pixels, sources to circle, show the mask?) side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ny, nx = panels[0][1].shape
    figure = Figure(figsize=(PANEL_INCHES * len(panels), PANEL_INCHES * ny / nx + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(heading, fontsize=14, fontweight="bold")
    used: set[MaskPlane] = set()
    for axes, (title, pixels, sources, with_mask) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        _draw_image(axes, pixels, is_difference=title.startswith("difference"))
        if with_mask:
            used |= _draw_mask(axes, np.asarray(pixels.mask), with_detected=not sources)
        _draw_sources(axes, sources)
        axes.set_title(title)
    _draw_legend(figure, used)
    path = Path(out_png)
    figure.savefig(path, dpi=100)
    return path


def _difference_title(products: DetectorProducts) -> str:
    reliable = is_reliable(products.dia_sources)
    return f"difference: {int(reliable.sum())} sources (red), {int((~reliable).sum())} flagged (blue)"


def _draw_image(axes, pixels: MaskedImage, *, is_difference: bool) -> None:
    image = np.asarray(pixels.image, dtype=np.float64)
    level, noise = level_and_noise(image)
    if is_difference:
        axes.imshow(image, origin="lower", cmap="gray_r", vmin=level - 6 * noise, vmax=level + 6 * noise)
    else:
        finite = image[np.isfinite(image)]
        top = float(np.percentile(finite, 99.8)) if finite.size else 1.0
        axes.imshow(asinh_stretch(image, level, noise, top), origin="lower", cmap="gray_r", vmin=0.0, vmax=1.0)


def _draw_mask(axes, mask: np.ndarray, *, with_detected: bool) -> set[MaskPlane]:
    """Paint the coloured planes over the image; return those that occur. Footprints would hide circled sources."""
    from matplotlib.colors import to_rgb

    paint = np.zeros((*mask.shape, 4))
    used = set()
    for plane, colour in MASK_COLOURS.items():
        here = (mask & int(plane)) != 0
        if here.any() and (with_detected or plane not in FOOTPRINTS):
            used.add(plane)
            paint[here] = (*to_rgb(colour), OVERLAY_ALPHA)
    axes.imshow(paint, origin="lower", interpolation="nearest")
    return used


def _draw_sources(axes, sources: Table) -> None:
    if not sources or not len(sources["x"]):
        return
    reliable = is_reliable(sources)
    for rows, colour in ((reliable, "#d62728"), (~reliable, "#1f77b4")):
        axes.plot(sources["x"][rows], sources["y"][rows], "o", mfc="none", mec=colour, ms=11, mew=1.0)


def _draw_legend(figure, used: set[MaskPlane]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=plane.name) for plane, colour in MASK_COLOURS.items() if plane in used]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
