"""Alerts as pictures: science, template and difference stamp, and the light curve; one alert or a page of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nightstream.io.alerts.archive import CUTOUTS, Packet, Stamp, light_curve, object_id, read_stamps
from nightstream.io.apdb import DIA_SOURCE
from nightstream.report.evaluate import DISQUALIFYING_FLAGS
from nightstream.report.stretch import asinh_stretch, level_and_noise

WIDTH_INCH, STAMP_INCH, GAP_INCH, EDGE_INCH = 12.0, 2.0, 0.06, 0.3
ROW_INCH, HEAD_INCH = 2.75, 0.7
BAND_COLOURS = {"u": "#0c71ff", "g": "#49be61", "r": "#c61c00", "i": "#ffc200", "z": "#f341a2", "y": "#5d0000"}
BLANK = "#e8eef5"  # as in the other pictures: no data
PANELS = tuple(CUTOUTS)  # from left to right
DIFFERENCE_RANGE_SIGMA = 8.0  # of the grey scale at least, to each side of zero
LIMIT_SIGMA = 5.0
BETTER_PART = 0.6  # of the objects of a night; the rest may be noise
FLAGS = tuple(DIA_SOURCE.by_name[name].apdb for name in DISQUALIFYING_FLAGS)
KEY = "filled: detections   ·   open: forced fluxes   ·   wedges: 5-sigma limits   ·   ring: this alert"
TIME_UNITS = ((2.0, 1.0, "days"), (2.0 / 24, 24.0, "hours"), (0.0, 1440.0, "minutes"))  # for spans from, per day, name


def save_alert(packet: Packet, path: str | Path, heading: str = "") -> Path:
    """Draw one alert, write a PNG and return its path."""
    return save_alert_page([packet], path, heading or f"Alert {packet['diaSourceId']}")


def save_alert_page(alerts: Sequence[Packet], path: str | Path, heading: str = "") -> Path:
    """Draw alerts one below the other, write a PNG and return its path.

    Each has its stamps as they are in the packet (a missing one is left blank, and so is what lies off the image) and its
    PSF fluxes on differences: detections filled, forced fluxes open, and 5-sigma limits where there was no detection.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = HEAD_INCH + ROW_INCH * max(len(alerts), 1)
    figure = Figure(figsize=(WIDTH_INCH, height), facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(EDGE_INCH / WIDTH_INCH, 1 - 0.3 / height, heading, fontsize=14, fontweight="bold", va="center")
    figure.text(1 - EDGE_INCH / WIDTH_INCH, 1 - 0.3 / height, KEY, fontsize=8, color="0.45", ha="right", va="center")
    for row, packet in enumerate(alerts):
        _draw_alert(figure, packet, height - HEAD_INCH - ROW_INCH * row)
    figure.savefig(path, dpi=110, format="png")
    return Path(path)


def choose_alerts(alerts: Sequence[Packet], count: int = 6) -> list[Packet]:
    """Return alerts that make a telling page: of each object the one with the longest history, bright and faint ones.

    Objects with a history come before those without; where there are too many, those come that are evenly spread over the
    better part, ranked by length of history, then |S/N|. The first known Solar System object in that rank comes last.
    Flagged alerts do not come.
    """
    clean = [packet for packet in alerts if not any(packet["diaSource"].get(flag) for flag in FLAGS)]
    moving = [packet for packet in clean if packet.get("ssSource")]
    best: dict[int, Packet] = {}
    for packet in sorted((packet for packet in clean if not packet.get("ssSource")), key=_length_then_snr):
        best[object_id(packet) or packet["diaSourceId"]] = packet
    last = sorted(moving, key=_length_then_snr)[-1:] if count else []
    room = count - len(last)
    ranked = sorted(best.values(), key=_length_then_snr, reverse=True)
    chosen = _spread([packet for packet in ranked if packet.get("prvDiaSources")], room)
    others = [packet for packet in ranked if not packet.get("prvDiaSources")]
    return chosen + _spread(others, room - len(chosen)) + last


def describe_alert(packet: Packet) -> tuple[str, str]:
    """Return (title, caption): what it is; where, how bright, how surely real."""
    source = packet["diaSource"]
    history = packet.get("prvDiaSources") or ()
    moving = packet.get("ssSource")
    what = f"object {object_id(packet)}" if history else "new object"
    if moving:
        what = f"Solar System object {moving.get('designation') or moving.get('ssObjectId')}"
    if history:
        days = source["midpointMjdTai"] - min(row["midpointMjdTai"] for row in history)
        what += f", {len(history) + 1} detections in {_span(days)}"
    where = f"visit {source['visit']}, detector {source['detector']}, {source.get('band') or '?'}"
    title = f"{packet['diaSourceId']}  ·  {what}  ·  {where}"
    caption = f"S/N {_number(source.get('snr'), '.1f')}  ·  {_number(source.get('psfFlux'), '.2f', 1e3)}"
    caption += f" ± {_number(source.get('psfFluxErr'), '.2f', 1e3)} µJy  ·  ra {source['ra']:.5f}°, dec {source['dec']:+.5f}°"
    if source.get("reliability") is not None:
        caption += f"  ·  reliability {_number(source['reliability'], '.2f')}"
    return title, caption


def _spread(ranked: list[Packet], count: int) -> list[Packet]:
    """All, or ``count`` evenly from the better part."""
    if len(ranked) <= count:
        return ranked
    last = max(count, round(BETTER_PART * len(ranked))) - 1
    return [ranked[pick] for pick in np.linspace(0, last, count).astype(int)]


def _snr(packet: Packet) -> float:
    return float(np.nan_to_num(abs(packet["diaSource"].get("snr") or 0.0)))


def _length_then_snr(packet: Packet) -> tuple[int, float]:
    return len(packet.get("prvDiaSources") or ()), _snr(packet)


def _number(value: float | None, form: str, divisor: float = 1.0) -> str:
    return "?" if value is None or not np.isfinite(value) else format(value / divisor, form)


def _span(days: float) -> str:
    _, factor, unit = next(entry for entry in TIME_UNITS if days >= entry[0])
    return f"{days * factor:.0f} {unit}"


def _draw_alert(figure, packet: Packet, top: float) -> None:
    """One row; ``top`` in inches from the figure's lower edge."""
    height = figure.get_figheight()
    bottom = top - 0.3 - STAMP_INCH

    def place(left: float, low: float, width: float, tall: float) -> tuple[float, float, float, float]:
        return left / WIDTH_INCH, low / height, width / WIDTH_INCH, tall / height

    stamps = read_stamps(packet)
    for index, name in enumerate(PANELS):
        axes = figure.add_axes(place(EDGE_INCH + index * (STAMP_INCH + GAP_INCH), bottom, STAMP_INCH, STAMP_INCH))
        _draw_stamp(axes, stamps, name)
    left = EDGE_INCH + len(PANELS) * (STAMP_INCH + GAP_INCH) + 0.65
    axes = figure.add_axes(place(left, bottom + 0.2, WIDTH_INCH - EDGE_INCH - left, STAMP_INCH - 0.2))
    _draw_light_curve(axes, light_curve(packet))
    title, caption = describe_alert(packet)
    figure.text(
        EDGE_INCH / WIDTH_INCH, (bottom + STAMP_INCH + 0.06) / height, title, fontsize=9.5, fontweight="bold", va="bottom"
    )
    figure.text(EDGE_INCH / WIDTH_INCH, (bottom - 0.06) / height, caption, fontsize=9.5, va="top", color="0.25")


def _draw_stamp(axes, stamps: Mapping[str, Stamp], name: str) -> None:
    """The difference about zero; science and template with one stretch, so that what is new can be seen."""
    axes.set(xticks=[], yticks=[], facecolor=BLANK)
    for spine in axes.spines.values():
        spine.set_color("0.6")
    if name in stamps:
        stamp = stamps[name]
        if name == "difference":
            grey = np.arcsinh(stamp.image / (3.0 * _noise(stamp)))
            limit = np.nanmax(np.abs(grey), initial=np.arcsinh(DIFFERENCE_RANGE_SIGMA / 3.0))
            shown: dict[str, Any] = {"X": grey, "vmin": -limit, "vmax": limit}
        else:
            shown = {"X": asinh_stretch(stamp.image, *_grey_range(stamps)), "vmin": 0.0, "vmax": 1.0}
        axes.imshow(**shown, origin="lower", cmap="gray_r", interpolation="nearest")
        _mark(axes, stamp)
    axes.text(0.03, 0.97, name if name in stamps else f"no {name}", transform=axes.transAxes, fontsize=8, va="top",
              bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5})  # fmt: skip


def _grey_range(stamps: Mapping[str, Stamp]) -> tuple[float, float, float]:
    """Level, noise and top of the stretch, from the science stamp, or the template where that is missing."""
    stamp = stamps.get("science") or stamps["template"]
    level, _ = level_and_noise(stamp.image)
    noise = _noise(stamp)
    return level, noise, max(float(np.nanmax(stamp.image)), level + 20.0 * noise) if np.isfinite(stamp.image).any() else 1.0


def _noise(stamp: Stamp) -> float:
    """Typical sigma of a pixel: what the variance says, else the scatter."""
    _, scatter = level_and_noise(stamp.image)
    good = stamp.variance[np.isfinite(stamp.variance) & (stamp.variance > 0)] if stamp.variance is not None else np.empty(0)
    return min(float(np.sqrt(np.median(good))), scatter) if good.size else scatter


def _mark(axes, stamp: Stamp) -> None:
    """Two strokes beside the source, as large on a small stamp as on a large one."""
    gap, arm = 0.17 * stamp.image.shape[0], 0.10 * stamp.image.shape[0]
    for dx, dy in ((1, 0), (0, 1)):
        axes.plot([stamp.x - dx * (gap + arm), stamp.x - dx * gap], [stamp.y - dy * (gap + arm), stamp.y - dy * gap],
                  color="#d62728", lw=1.3)  # fmt: skip


def _draw_light_curve(axes, curve: Mapping[str, np.ndarray]) -> None:
    """Flux in uJy against time before this alert; a colour a band."""
    now = curve["mjd_tai"][curve["is_current"]][0]
    span = float(np.ptp(curve["mjd_tai"]))
    _, factor, unit = next(entry for entry in TIME_UNITS if span >= entry[0])
    times, flux, error = (curve["mjd_tai"] - now) * factor, curve["flux"] / 1e3, curve["flux_err"] / 1e3
    axes.axhline(0.0, color="0.8", lw=0.8, zorder=0)
    for band in sorted(set(curve["band"].tolist()), key="ugrizy".find):
        rows = curve["band"] == band
        style = {"color": BAND_COLOURS.get(band, "0.3")}
        _draw_band(axes, times, flux, error, rows, curve["is_forced"], style, band)
    here = curve["is_current"]
    axes.plot(times[here], flux[here], "o", ms=11, mfc="none", mec="0.3", mew=0.9)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.2 * (high - low))  # room for the names of the bands
    margin = 0.05 * span * factor or 1.0
    axes.set_xlim(times.min() - margin, times.max() + margin)
    axes.set_xlabel(f"{unit} from this alert" if span else "nothing measured here before", fontsize=8, labelpad=1)
    if not span:
        axes.set_xticks([])
    axes.set_ylabel("difference flux (µJy)", fontsize=8, labelpad=2)
    axes.tick_params(labelsize=8, direction="in", color="0.6")
    for spine in axes.spines.values():
        spine.set_color("0.6")
    axes.legend(loc="upper left", fontsize=8, frameon=False, ncols=6, handletextpad=0.1, columnspacing=0.8, borderpad=0.1)


def _draw_band(axes, times, flux, error, rows, is_forced, style: dict[str, str], band: str) -> None:
    """Detections filled, forced fluxes open and small, and a limit where a forced flux is missing or below it."""
    seen, forced = rows & ~is_forced, rows & is_forced & np.isfinite(flux)
    limits = rows & is_forced & np.isfinite(error) & ~(np.abs(flux) >= LIMIT_SIGMA * error)
    axes.plot(times[limits], LIMIT_SIGMA * error[limits], ls="none", marker=11, ms=5, alpha=0.35, mew=0, **style)
    axes.errorbar(times[forced], flux[forced], error[forced], fmt="o", ms=4, mfc="white", mew=1.0, elinewidth=0.8, **style)
    axes.errorbar(times[seen], flux[seen], error[seen], fmt="o", ms=5, elinewidth=1.0, zorder=3, **style)
    axes.plot([], [], "o", ms=5, label=band or "?", **style)
