"""``nightstream alert``: find an alert that was made, print it, write its stamps, its picture and its VOEvent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from nightstream.commands.common import console, errors_end_the_command

if TYPE_CHECKING:
    from nightstream.io.alerts.archive import ArchivedAlert

UNKNOWN = "-"
AB_ZERO_POINT = 31.4  # magnitude of 1 nJy
FLUXES = (("psf", "psfFlux"), ("aperture", "apFlux"), ("on the visit image", "scienceFlux"), ("on the template", "templateFlux"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertOptions:
    """What the command line said."""

    number: int
    database: str
    spool: Path | None
    alerts: Path | None
    of_object: bool
    output: Path | None
    voevent: bool


def alert_command(options: AlertOptions) -> None:
    """Print the alert of a source, or those of an object with the newest in full; write files of each into the output folder.

    Without an output folder the VOEvent of the newest is printed instead of its table.
    """
    with errors_end_the_command():
        found = _found(options)
        if options.voevent and options.output is None:
            from nightstream.io.alerts.voevent import voevent

            console.out(voevent(found[-1].packet).decode(), highlight=False)
            return
        if options.of_object:
            console.print(history_table(found))
        console.print(alert_table(found[-1]))
        for path in _written(found, options.output, options.voevent) if options.output is not None else ():
            console.print(f"wrote {path}", markup=False)


def alert_table(alert: ArchivedAlert) -> Table:
    """Return what, where, when, how bright and how late."""
    packet = alert.packet
    table = Table(title=f"alert {packet['diaSourceId']}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for rows in (
        _what(packet),
        _where_when(packet["diaSource"]),
        _how_bright(packet["diaSource"]),
        _known_before(packet),
        _kept(alert),
    ):
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        table.add_section()
    return table


def history_table(alerts: list[ArchivedAlert]) -> Table:
    """Return a row an alert, the oldest first."""
    table = Table(title=f"{len(alerts)} alert{'s' * (len(alerts) != 1)} of the object", title_justify="left")
    for name in ("alert", "visit", "MJD (TAI)", "band", "S/N", "flux (µJy)", "latency (s)"):
        table.add_column(name, justify="right", no_wrap=True)
    for alert in alerts:
        source = alert.packet["diaSource"]
        flux = _flux(source, "psfFlux")
        cells = (alert.packet["diaSourceId"], source["visit"], f"{source['midpointMjdTai']:.6f}", source.get("band") or UNKNOWN,
                 _formatted(source.get("snr"), ".1f"), flux, _formatted(alert.latency_s, ".1f"))  # fmt: skip
        table.add_row(*map(str, cells))
    return table


def _found(options: AlertOptions) -> list[ArchivedAlert]:
    from nightstream.io.alerts.archive import find_alerts, find_in_file
    from nightstream.io.database.prompt_database import open_database

    if options.alerts is not None:
        return find_in_file(options.alerts, options.number, of_object=options.of_object)
    spool = _spool(options)
    with open_database(options.database, read_only=True) as database:
        return find_alerts(database, options.number, spool, of_object=options.of_object)


def _spool(options: AlertOptions) -> Path | None:
    """Beside an embedded database, where a run puts it; None where the database knows, unless the option says otherwise."""
    if options.spool is not None or "://" in options.database:
        return options.spool
    return Path(options.database).parent / "spool"


def _written(found: list[ArchivedAlert], output: Path, with_voevent: bool) -> Iterator[Path]:
    """Stamps, picture and VOEvent of each alert; yields the paths."""
    from nightstream.io.alerts.archive import write_stamps
    from nightstream.io.alerts.voevent import voevent
    from nightstream.io.atomic import complete_or_absent
    from nightstream.report.stamps import save_alert

    for alert in found:
        path = output / str(alert.packet["diaSourceId"])
        yield from write_stamps(alert.packet, output)
        with complete_or_absent(path.with_suffix(".png")) as temporary:
            save_alert(alert.packet, temporary)
        yield path.with_suffix(".png")
        if with_voevent:
            with complete_or_absent(path.with_suffix(".xml")) as temporary:
                temporary.write_bytes(voevent(alert.packet))
            yield path.with_suffix(".xml")


def _what(packet: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    source, moving, thing = packet["diaSource"], packet.get("ssSource"), packet.get("diaObject")
    if moving:
        yield "Solar System object", str(moving.get("designation") or moving.get("ssObjectId"))
        yield "from its prediction", _formatted(moving.get("ephOffset"), '.3f"')
    if thing:
        count = f"{thing['nDiaSources']:.0f} sources" if thing.get("nDiaSources") is not None else "how many sources is unknown"
        yield "object", f"{source.get('diaObjectId') or thing['diaObjectId']:.0f}, {count}"
    yield "visit, detector", f"{source['visit']}, {source['detector']}"
    for name, key in (("observed for", "observation_reason"), ("field", "target_name")):
        if packet.get(key):
            yield name, packet[key]
    yield "reliability", _formatted(source.get("reliability"), ".3f")
    flags = [name for name, value in source.items() if value is True]
    yield "flags", ", ".join(flags) or "none"


def _where_when(source: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from nightstream.io.alerts.voevent import utc_iso

    errors = (_formatted(source.get(name), '.3f"', 3600.0) for name in ("raErr", "decErr"))
    yield "ra, dec (ICRS)", f"{source['ra']:.6f}°, {source['dec']:+.6f}° (± {', '.join(errors)})"
    yield "x, y", f"{source['x']:.2f}, {source['y']:.2f} pixel"
    yield "middle of exposure", f"MJD {source['midpointMjdTai']:.6f} TAI, {utc_iso(source['midpointMjdTai'])} UTC"


def _how_bright(source: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "band, S/N", f"{source.get('band') or UNKNOWN}, {_formatted(source.get('snr'), '.1f')}"
    for name, column in FLUXES:
        yield f"flux, {name}", f"{_flux(source, column)} µJy{_magnitude(source.get(column))}"


def _known_before(packet: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    history, forced = packet.get("prvDiaSources") or (), packet.get("prvDiaForcedSources") or ()
    now = packet["diaSource"]["midpointMjdTai"]
    for name, rows in (("earlier sources", history), ("forced photometry", forced)):
        since = f", the oldest of {now - min(row['midpointMjdTai'] for row in rows):.2f} d before" if len(rows) else ""
        yield name, f"{len(rows)}{since}"
    sizes = [
        f"{name} {len(packet.get(f'cutout{name.capitalize()}') or b'') / 1e3:.1f}"
        for name in ("science", "template", "difference")
    ]
    yield "stamps (kB)", ", ".join(sizes)


def _kept(alert: ArchivedAlert) -> Iterator[tuple[str, str]]:
    yield "file", str(alert.path)
    if alert.schema_version:
        yield "schema", alert.schema_version
        sent = f"{alert.latency_s:.1f} s after readout" if np.isfinite(alert.latency_s) else "not yet"
        yield "sent", sent


def _flux(source: Mapping[str, Any], column: str) -> str:
    flux, error = source.get(column), source.get(f"{column}Err")
    return f"{_formatted(flux, '.3f', 1e-3)} ± {_formatted(error, '.3f', 1e-3)}"


def _magnitude(flux: float | None) -> str:
    return f" ({AB_ZERO_POINT - 2.5 * np.log10(flux):.2f} mag)" if flux is not None and flux > 0 else ""


def _formatted(value: float | None, form: str, factor: float = 1.0) -> str:
    """A number, with the arcsecond sign where the form ends in one; a dash where it is not known."""
    if value is None or not np.isfinite(value):
        return UNKNOWN
    unit = '"' if form.endswith('"') else ""
    return f"{format(value * factor, form.rstrip(unit) if unit else form)}{unit}"
