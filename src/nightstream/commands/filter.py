"""``nightstream filter``: which users' filters would run, and what each would get of a file of alerts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from nightstream.commands.common import FAILURE, console, error_console, errors_end_the_command

if TYPE_CHECKING:
    from nightstream.io.alerts.filters import AnyFilter, FilterResult

SHOWN_IDS = 3


def filter_command(folder: Path, alerts: Path | None) -> None:
    """Check the filters of a folder and those of the site; run them on the alerts of a file, if there is one.

    Ends with status 1 if a filter is refused or fails.
    """
    import typer

    from nightstream.io.alerts.filters import RefusedFilter, load_filters, load_site_filters, run_filters

    with errors_end_the_command():
        filters = [*load_filters(folder), *load_site_filters()]
        errors = [one.reason for one in filters if isinstance(one, RefusedFilter)]
        if alerts is None:
            console.print(checks_table(filters))
        else:
            results = run_filters(filters, _tables(alerts))
            console.print(results_table(results))
            errors = [result.error for result in results.values() if result.error]
        for error in errors:
            error_console.print(f"error: {error}", style="red", markup=False)
        if errors:
            raise typer.Exit(FAILURE)


def checks_table(filters: Sequence[AnyFilter]) -> Table:
    """Return a row a filter."""
    from nightstream.io.alerts.filters import RefusedFilter

    table = Table(title=f"{len(filters)} filters", title_justify="left")
    for name in ("user", "file", "runs"):
        table.add_column(name, no_wrap=True)
    for one in filters:
        is_refused = isinstance(one, RefusedFilter)
        table.add_row(Text(one.user), Text(one.path), "no" if is_refused else "yes", style="red" if is_refused else None)
    return table


def results_table(results: Mapping[str, FilterResult]) -> Table:
    """Return a row a user: how many alerts, which come first, how long it took."""
    table = Table(title=f"{len(results)} users", title_justify="left")
    for name in ("user", "alerts", "ms", "first"):
        table.add_column(name, justify="right" if name in ("alerts", "ms") else "left", no_wrap=True)
    for user, result in results.items():
        first = ", ".join(map(str, result.ids[:SHOWN_IDS])) + (", ..." if len(result.ids) > SHOWN_IDS else "")
        row = (Text(user), str(len(result.ids)), f"{result.seconds * 1e3:.0f}", first)
        table.add_row(*row, style="red" if result.error else None)
    return table


def _tables(alerts: Path) -> dict:
    from nightstream.io.alerts.archive import alert_tables
    from nightstream.io.alerts.files import read_alert_file

    return alert_tables(read_alert_file(alerts))
