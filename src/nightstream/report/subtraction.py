"""One picture that says how good a subtraction is: the images, the noise, the kernel, and what bright stars left."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nightstream.engine.values import Subtraction
from nightstream.kernels.mask import MaskPlane
from nightstream.report.quicklook import FOOTPRINTS, Panel, draw_legend, draw_panel
from nightstream.report.stretch import level_and_noise

SKY = int(MaskPlane.not_sky())
UNUSABLE = int(MaskPlane.unusable() | MaskPlane.SAT_TEMPLATE)
PULL_RANGE = 6.0
MAP_BINS = 24  # along the longer side of the map of mean pulls
BRIGHTNESS_BINS = 12
FAINTEST = 4.0  # sigma of a pixel
TICKS = tuple(base * 10**power for power in range(6) for base in (1, 2, 5))
MIN_PIXELS = 20  # of a brightness to give a width
MAD_ERROR = 1.17  # relative error of a width from the median deviation, times the root of the number
PANEL_INCHES, PLOT_INCHES = 5.5, 4.6  # width of an image, height of the plots below
ASPECT_LIMITS = (0.4, 1.6)  # height of an image's panel over its width
KERNEL_EDGE = 2e-3  # of the kernel's peak: what lies around it and is less is not drawn
CORNERS = ((0.1, 0.9), (0.9, 0.9), (0.5, 0.5), (0.1, 0.1), (0.9, 0.1))  # of the image, in x and y, where kernels are drawn
INK, RED, GREY = "#222222", "#d62728", "#9e9e9e"


def save_subtraction(done: Subtraction, out_png: str | Path) -> Path:
    """Draw ``done`` (on the host) as a PNG; return its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    top = PANEL_INCHES * float(np.clip(done.science.pixels.shape[0] / done.science.pixels.shape[1], *ASPECT_LIMITS))
    figure = Figure(figsize=(3 * PANEL_INCHES, top + PLOT_INCHES + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 12, height_ratios=(top, PLOT_INCHES))
    images = [figure.add_subplot(grid[0, 4 * i : 4 * i + 4]) for i in range(3)]
    plots = [figure.add_subplot(grid[1, 3 * i : 3 * i + 3]) for i in range(4)]
    draw_legend(figure, _draw_images(images, done))
    pull = _pulls(done)
    _draw_histogram(plots[0], done, pull)
    _draw_brightness(plots[1], done, pull)
    _draw_map(figure, plots[2], done, pull)
    _draw_kernels(plots[3], done)
    figure.suptitle(_heading(done), fontsize=13)
    figure.savefig(out_png, dpi=100)
    return Path(out_png)


def _heading(done: Subtraction) -> str:
    numbers = done.diagnostics
    parts = [
        f"FWHM {numbers['science_psf_fwhm_pix']:.2f} - {numbers['template_psf_fwhm_pix']:.2f} pixel",
        f"scale {numbers['photometric_scale']:.4f}",
        f"stars in the kernel's fit: {numbers['n_stamps_used']:.0f}",
    ]
    if "registration_scatter_pix" in numbers:
        parts.append(f"registered to {numbers['registration_scatter_pix']:.3f} pixel")
    elif "n_matched_stars" in numbers:
        parts.append("registered by the WCS alone")
    if "condition_number" in numbers:
        parts.append(f"condition {numbers['condition_number']:.2g}")
    return ", ".join(parts)


def _draw_images(axes, done: Subtraction) -> set[MaskPlane]:
    """Draw the three images; return the mask planes that are painted on the difference."""
    draw_panel(axes[0], Panel("science", done.science.pixels))
    draw_panel(axes[1], Panel("what was subtracted", done.result.matched_template.pixels))
    return draw_panel(axes[2], Panel("difference", done.difference.pixels, with_mask=True, linear=True), hide=FOOTPRINTS)


def _pulls(done: Subtraction) -> np.ndarray:
    pixels = done.difference.pixels
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((pixels.mask & UNUSABLE) == 0, pixels.image / np.sqrt(pixels.variance), np.nan)


def _draw_histogram(axes, done: Subtraction, pull: np.ndarray) -> None:
    """Pulls of empty sky against a unit Gaussian."""
    sky = pull[((done.difference.pixels.mask & SKY) == 0) & np.isfinite(pull)]
    edges = np.linspace(-PULL_RANGE, PULL_RANGE, 61)
    counts, _ = np.histogram(sky, edges)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    expected = sky.size * width * np.exp(-0.5 * middle**2) / np.sqrt(2 * np.pi)
    axes.step(middle, np.maximum(counts, 0.5), where="mid", color=INK, label="empty sky")
    axes.plot(middle, expected, color=RED, label="N(0, 1)")
    axes.set(yscale="log", ylim=(0.5, None), xlabel="pixel / its sigma", title=f"sky: {_moments(sky)}")
    lags = ", ".join(f"{done.diagnostics[f'noise_correlation_{axis}']:+.3f}" for axis in "xy")
    axes.text(0.03, 0.97, f"neighbours x, y:\n{lags}", transform=axes.transAxes, va="top", fontsize=9)
    axes.legend(frameon=False, fontsize=9, loc="upper right")


def _moments(sky: np.ndarray) -> str:
    level, noise = level_and_noise(sky)
    return f"median {level:+.3f}, width {noise:.3f}"


def _draw_brightness(axes, done: Subtraction, pull: np.ndarray) -> None:
    """Robust width of the pull against the brightness of what was subtracted: 1 from faint to bright is perfect.

    Fainter than `FAINTEST`, the noise of what was subtracted would sort pixels by the very pull that is looked at.
    """
    template = done.result.matched_template.pixels.image / np.sqrt(done.difference.pixels.variance)
    good = np.isfinite(pull) & np.isfinite(template) & (template > FAINTEST)
    axes.axhline(1, color=RED, lw=1)
    edges = np.geomspace(FAINTEST, max(float(template[good].max(initial=0.0)), 10 * FAINTEST), BRIGHTNESS_BINS + 1)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        here = pull[good & (template >= low) & (template < high)]
        if here.size > MIN_PIXELS:
            _, width = level_and_noise(here)
            axes.errorbar(np.sqrt(low * high), width, MAD_ERROR * width / np.sqrt(here.size), fmt="o", color=INK, ms=4)
    axes.set(xscale="log", ylim=(0, 2.5), xlabel="subtracted light / sigma of the pixel", title="width of the pull by brightness")
    axes.set_xlim(edges[0], edges[-1])
    ticks = [tick for tick in TICKS if edges[0] <= tick <= edges[-1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _draw_map(figure, axes, done: Subtraction, pull: np.ndarray) -> None:
    """Mean pull of sky pixels in bins, in units of its error: structure is a background or a kernel that is off."""
    sky = np.where((done.difference.pixels.mask & SKY) == 0, pull, np.nan)
    size = max(1, -(-max(sky.shape) // MAP_BINS))
    sums, counts = (_binned(plane, size) for plane in (np.nan_to_num(sky), np.isfinite(sky).astype(float)))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(counts > 0, sums / np.sqrt(counts), np.nan)
    extent = (-0.5, mean.shape[1] * size - 0.5, -0.5, mean.shape[0] * size - 0.5)
    shown = axes.imshow(mean, origin="lower", cmap="RdBu_r", vmin=-4, vmax=4, extent=extent)
    axes.set_title(f"mean of {size} pixel bins / its error")
    figure.colorbar(shown, ax=axes, shrink=0.8)


def _binned(plane: np.ndarray, size: int) -> np.ndarray:
    rows = np.add.reduceat(plane, np.arange(0, plane.shape[0], size), axis=0)
    return np.add.reduceat(rows, np.arange(0, plane.shape[1], size), axis=1)


def _draw_kernels(axes, done: Subtraction) -> None:
    """The kernel in the middle and near the corners, where they lie; one where it is the same everywhere."""
    axes.set(xticks=[], yticks=[], title="matching kernel, middle and corners")
    kernel = done.result.kernel
    if kernel is None:
        axes.text(0.5, 0.5, "proper subtraction:\nno kernel was fitted", ha="center", va="center", color=GREY)
        return
    ny, nx = kernel.shape
    stamps = _core(kernel.kernel_at([fx * (nx - 1) for fx, _ in CORNERS], [fy * (ny - 1) for _, fy in CORNERS]))
    limit = float(np.abs(stamps).max())
    places, half = [(0.18 + 0.8 * (fx - 0.1), 0.18 + 0.8 * (fy - 0.1)) for fx, fy in CORNERS], 0.165
    if np.ptp(stamps, axis=0).max() < 1e-6 * limit:
        places, half = [(0.5, 0.5)], 0.5
        axes.set_title(f"matching kernel, {stamps.shape[1]} pixels of it")
    for (x, y), stamp in zip(places, stamps, strict=False):
        axes.imshow(np.arcsinh(stamp / limit * 30), extent=(x - half, x + half, y - half, y + half), origin="lower",
                    cmap="RdBu_r", vmin=-np.arcsinh(30), vmax=np.arcsinh(30))  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", facecolor="#f7f7f7")  # that of a kernel which is 0


def _core(stamps: np.ndarray) -> np.ndarray:
    """Return the (n, size, size) middle of the stamps that holds all that is to be seen."""
    middle = stamps.shape[1] // 2
    high = np.abs(stamps).max(axis=0) > KERNEL_EDGE * np.abs(stamps).max()
    reach = int(np.abs(np.argwhere(high) - middle).max())
    inner = slice(middle - reach, middle + reach + 1)
    return stamps[:, inner, inner]
