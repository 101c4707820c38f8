"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from nightstream.report.evaluate import Evaluation, VisitScore
from nightstream.scheduler.run import VisitSummary

if TYPE_CHECKING:
    from rich.table import Table as RichTable

STAGES = ("read", "upload", "isr", "characterize", "difference", "measure", "force", "cutouts", "download", "write")


def visit_table(visits: Iterable[VisitSummary], scores: Mapping[int, VisitScore]) -> RichTable:
    """Return one column a visit: seconds a stage (summed over detectors), sources, recovered transients, false positives."""
    from rich.table import Table as RichTable

    visits = list(visits)
    table = RichTable(title="Visits; seconds are summed over detectors", title_justify="left")
    table.add_column("")
    for visit in visits:
        table.add_column(_named(visit), justify="right")
    for stage in (stage for stage in STAGES if any(stage in visit.timings_s for visit in visits)):
        table.add_row(f"{stage} (s)", *(f"{visit.timings_s.get(stage, 0.0):.2f}" for visit in visits))
    table.add_row("arrival to last product (s)", *(f"{visit.seconds:.1f}" for visit in visits), end_section=True)
    found = [_found(scores.get(visit.visit)) for visit in visits]
    for index, name in enumerate(("sources found", "without flags", "transients recovered", "false positives")):
        table.add_row(name, *(numbers[index] for numbers in found))
    return table


def accuracy_table(evaluation: Evaluation) -> RichTable:
    """Return what was recovered above two signal-to-noise ratios, and how right the fluxes are."""
    from rich.table import Table as RichTable

    table = RichTable(title="Against the truth", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for snr in (5.0, 7.0):
        rows = evaluation.transients(snr)
        found = int((evaluation.changes["source"][rows] >= 0).sum())
        share = f"{evaluation.completeness(snr):.1%}" if len(rows) else "-"
        table.add_row(f"injected transients recovered, expected S/N >= {snr:g}", f"{found} of {len(rows)} ({share})")
    pulls = evaluation.flux_pulls()
    if len(pulls) > 1:
        text = f"{pulls.mean():+.2f} +- {pulls.std(ddof=1):.2f}"
        table.add_row("their flux pulls, (measured - true) / error, S/N >= 7", text)
    table.add_row("false positives, all visits", str(len(evaluation.false_positives())))
    return table


def _named(visit: VisitSummary) -> str:
    return str(visit.visit) if visit.is_complete else f"[red]{visit.visit} ({len(visit.failed)} failed)"


def _found(score: VisitScore | None) -> tuple[str, str, str, str]:
    if score is None:
        return "-", "-", "-", "-"
    recovered = f"{score.n_recovered} of {score.n_transients}"
    return str(score.n_sources), str(score.n_reliable), recovered, str(score.n_false)
