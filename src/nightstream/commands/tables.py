"""What a run prints: a line a visit, the tables of visits and stages, and what failed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from nightstream.errors import NightstreamError
    from nightstream.scheduler.alert_stream import AlertOutcome
    from nightstream.scheduler.messages import DetectorReport
    from nightstream.scheduler.run import RunSummary, VisitSummary


def visit_line(visit: VisitSummary) -> str:
    """One line that says how a visit ended."""
    done = len(visit.frames) - len(visit.failed)
    sources, megabytes = visit.counts.get("dia_sources", 0), visit.output_bytes / 1e6
    line = f"visit {visit.visit}: {done} of {len(visit.frames)} detectors, {sources} sources, "
    line += f"{visit.seconds:.1f} s, {megabytes:.1f} MB"
    return line if visit.is_complete else f"{line}, FAILED: {_what_failed(visit)}"


def visits_table(summary: RunSummary) -> Table:
    """A row a visit: what was done and found."""
    table = Table(title=f"{_count(len(summary.visits), 'visit')} in {summary.seconds:.1f} s", title_justify="left")
    for name in ("visit", "done", "failed", "sources", "forced", "seconds", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for visit in summary.visits:
        table.add_row(*_cells(visit), style=None if visit.is_complete else "red")
    return table


def stages_table(summary: RunSummary) -> Table:
    """A row a stage: seconds of all detectors together, and of one on average; then the latency."""
    table = Table(title="seconds of each stage", title_justify="left")
    for name in ("stage", "all detectors", "one detector"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    detectors = max(1, sum(len(visit.frames) for visit in summary.visits))
    for stage in dict.fromkeys(stage for visit in summary.visits for stage in visit.timings_s):
        seconds = sum(visit.timings_s.get(stage, 0.0) for visit in summary.visits)
        table.add_row(stage, f"{seconds:.2f}", f"{seconds / detectors:.3f}")
    if len(summary.latency):
        table.add_section()
        table.add_row("latency, median", "", f"{summary.latency.quantile(0.5):.3f}")
        table.add_row("latency, worst", "", f"{summary.latency.quantile(1.0):.3f}")
    return table


def failures_of(
    summary: RunSummary | None, failed: Iterable[DetectorReport], problems: Iterable[NightstreamError]
) -> list[tuple[str, str, str]]:
    """Return (visit, detector, error) of everything that went wrong, unreadable raw files first."""
    rows = [(_known(problem.visit), _known(problem.detector), str(problem)) for problem in problems]
    rows += [(str(report.visit), str(report.detector), report.error) for report in failed]
    masters = summary.visits if summary is not None else ()
    return rows + [(str(visit.visit), "master", visit.error) for visit in masters if visit.error]


def alert_failures(outcome: AlertOutcome) -> list[tuple[str, str, str]]:
    """Return (visit, detector, error) of what could not be stored or sent."""
    problems = [problem for visit in outcome.visits for problem in visit.problems]
    rows = [(_known(problem.visit), _known(problem.detector), str(problem)) for problem in problems]
    rows += [(str(visit), "alerts", message) for visit, message in outcome.failed.items()]
    rows += [("?", "database", outcome.error)] if outcome.error else []
    if outcome.n_unsent:
        reason = f": {outcome.trouble}" if outcome.trouble else ""
        rows.append(("?", "alerts", f"{outcome.n_unsent} alerts wait to be sent, by a later run{reason}"))
    return rows


def print_failures(console: Console, failures: list[tuple[str, str, str]]) -> None:
    """Print what failed as a table."""
    table = Table(title=f"{len(failures)} failed", title_justify="left")
    table.add_column("visit", no_wrap=True)
    table.add_column("detector")
    table.add_column("error", overflow="fold")
    for row in failures:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _cells(visit: VisitSummary) -> list[str]:
    done = len(visit.frames) - len(visit.failed)
    counts = [str(visit.counts.get(name, 0)) for name in ("dia_sources", "forced_sources")]
    numbers = [f"{visit.seconds:.1f}", f"{visit.output_bytes / 1e6:.1f}"]
    return [str(visit.visit), str(done), str(len(visit.failed)), *counts, *numbers]


def _what_failed(visit: VisitSummary) -> str:
    names = [str(frame.detector) for frame in visit.failed]
    return ", ".join([f"detector {name}" for name in names] + (["master"] if visit.error else []))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _known(number: int | None) -> str:
    return "?" if number is None else str(number)
