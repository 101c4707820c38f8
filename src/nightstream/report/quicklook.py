"""A quick-look picture of one product: its planes side by side, mask planes in colour, sources circled."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nightstream.engine.values import DetectorProducts, MaskedImage, Table
from nightstream.errors import InputError
from nightstream.io.calibrations import CONTENT as CALIBRATIONS
from nightstream.io.hdf5_file import open_file
from nightstream.io.hdf5_values import read_masked_image
from nightstream.io.products import CONTENT as PRODUCTS
from nightstream.io.products import read_detector_products
from nightstream.io.templates import CONTENT as TEMPLATE
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
NOTHING = MaskPlane(0)
OVERLAY_ALPHA = 0.55
PANEL_INCHES = 6.5
MASK_PIX = 512  # longest side of a drawn mask


@dataclass(frozen=True, slots=True)
class Panel:
    """One image of a picture: sources to circle, mask planes in colour or not, a linear or an asinh stretch."""

    title: str
    pixels: MaskedImage
    sources: Table = field(default_factory=dict)
    with_mask: bool = field(default=False, kw_only=True)
    linear: bool = field(default=False, kw_only=True)


def save_quicklook(path_h5: str | Path, out_png: str | Path) -> Path:
    """Draw the HDF5 file ``path_h5`` (detector products, a template or calibrations) into ``out_png``; return its path.

    Raises FileError when the file is missing or broken, InputError when it holds anything else.
    """
    with open_file(path_h5, PRODUCTS, TEMPLATE, CALIBRATIONS) as file:
        content = file.attrs["content"]
        if content == TEMPLATE:
            pixels = read_masked_image(file["template"])
            panels, heading = _image_panels(pixels), f"template, band {file.attrs['band']}, detector {file.attrs['detector']}"
        elif content == CALIBRATIONS:
            names = [name for name in ("bias", "dark", "flat") if name in file]
            panels = [_master_panel(name, read_masked_image(file[name]), file[name]["image"].attrs["unit"]) for name in names]
            heading = f"calibrations, {file.attrs['camera']}, detector {file.attrs['detector']}"
    if content == PRODUCTS:
        panels, heading = _product_panels(read_detector_products(path_h5))
    return save_panels(panels, out_png, heading)


def _master_panel(name: str, pixels: MaskedImage, unit: str) -> Panel:
    level, noise = level_and_noise(pixels.image)
    return Panel(f"master {name}: {level:.4g} ± {noise:.2g} {unit}".rstrip(), pixels, linear=True)


def _image_panels(pixels: MaskedImage) -> list[Panel]:
    return [Panel("image", pixels), Panel("mask", pixels, with_mask=True)]


def _product_panels(products: DetectorProducts) -> tuple[list[Panel], str]:
    info = products.visit_image.info
    panels = _image_panels(products.visit_image.pixels)
    if products.difference is not None:
        sources = products.dia_sources
        reliable = is_reliable(sources)
        title = f"difference: {int(reliable.sum())} clean (red), {int((~reliable).sum())} flagged sources (blue)"
        panels.append(Panel(title, products.difference.pixels, sources, with_mask=True, linear=True))
    return panels, f"visit {info.visit}, detector {info.detector}, band {info.band}, {info.exposure_time_s:g} s"


def save_panels(panels: list[Panel], out_png: str | Path, heading: str) -> Path:
    """Draw panels side by side and write a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not panels:
        raise InputError("the file holds no image to draw")
    ny, nx = panels[0].pixels.shape
    figure = Figure(figsize=(PANEL_INCHES * len(panels), PANEL_INCHES * ny / nx + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(heading, fontsize=14, fontweight="bold")
    used: set[MaskPlane] = set()
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        used |= draw_panel(axes, panel, hide=FOOTPRINTS if panel.sources else NOTHING)
    draw_legend(figure, used)
    path = Path(out_png)
    figure.savefig(path, dpi=100)
    return path


def draw_panel(axes, panel: Panel, *, hide: MaskPlane = NOTHING) -> set[MaskPlane]:
    """Draw one panel and return the mask planes painted on it; planes in ``hide`` would cover what is to be seen."""
    _draw_image(axes, panel)
    used = _draw_mask(axes, np.asarray(panel.pixels.mask), hide) if panel.with_mask else set()
    _draw_sources(axes, panel.sources)
    axes.set_title(panel.title)
    return used


def _draw_image(axes, panel: Panel) -> None:
    image = np.asarray(panel.pixels.image, dtype=np.float64)
    level, noise = level_and_noise(image)
    if panel.linear:
        axes.imshow(image, origin="lower", cmap="gray_r", vmin=level - 6 * noise, vmax=level + 6 * noise)
    else:
        finite = image[np.isfinite(image)]
        top = float(np.percentile(finite, 99.8)) if finite.size else 1.0
        axes.imshow(asinh_stretch(image, level, noise, top), origin="lower", cmap="gray_r", vmin=0.0, vmax=1.0)


def _draw_mask(axes, mask: np.ndarray, hide: MaskPlane) -> set[MaskPlane]:
    """Paint the coloured planes but those in ``hide`` over the image; return those that occur."""
    from matplotlib.colors import to_rgb

    factor = -(-max(mask.shape) // MASK_PIX)
    mask = _coarse(mask, factor)
    paint = np.zeros((*mask.shape, 4))
    used = set()
    for plane, colour in MASK_COLOURS.items():
        here = (mask & int(plane)) != 0
        if here.any() and plane not in hide:
            used.add(plane)
            paint[here] = (*to_rgb(colour), OVERLAY_ALPHA)
    axes.imshow(
        paint,
        origin="lower",
        interpolation="nearest",
        extent=(-0.5, mask.shape[1] * factor - 0.5, -0.5, mask.shape[0] * factor - 0.5),
    )
    return used


def _coarse(mask: np.ndarray, factor: int) -> np.ndarray:
    """Or together blocks of ``factor`` pixels a side: a dead column must not vanish in a picture of fewer pixels."""
    ny, nx = mask.shape
    padded = np.pad(mask, ((0, -ny % factor), (0, -nx % factor)))
    blocks = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor)
    return np.bitwise_or.reduce(np.bitwise_or.reduce(blocks, axis=3), axis=1)


def _draw_sources(axes, sources: Table) -> None:
    if not sources or not len(sources["x"]):
        return
    reliable = is_reliable(sources)
    for rows, colour in ((reliable, "#d62728"), (~reliable, "#1f77b4")):
        axes.plot(sources["x"][rows], sources["y"][rows], "o", mfc="none", mec=colour, ms=11, mew=1.0)


def draw_legend(figure, used: set[MaskPlane]) -> None:
    """Say below the figure which colour is which of the ``used`` mask planes."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=plane.name) for plane, colour in MASK_COLOURS.items() if plane in used]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
