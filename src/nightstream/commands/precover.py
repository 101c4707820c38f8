"""``nightstream precover``: forced photometry of new DIAObjects on the stored images of the days before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nightstream.commands.common import Failures, console, errors_end_the_command
from nightstream.errors import FileError

if TYPE_CHECKING:
    from nightstream.scheduler.precover import PrecoverySummary


def precover_command(database: str, products: Path, days: float) -> None:
    """Precover behind a progress bar; exit with 1 if a product could not be used."""
    from rich.progress import Progress

    with errors_end_the_command(), Progress(console=console) as progress:
        task = progress.add_task("products", total=None)
        summary = _precover(database, products, days, lambda done, total: progress.update(task, completed=done, total=total))
        progress.update(task, completed=summary.n_products, total=summary.n_products)
    console.print(
        f"{summary.n_done} of {summary.n_objects} new objects precovered: {summary.n_rows} forced sources on "
        f"{summary.n_products - len(summary.failures)} products",
        markup=False,
    )
    Failures(map(str, summary.failures)).stop_if_any()


def _precover(database: str, products: Path, days: float, progress) -> PrecoverySummary:
    from nightstream.io.clock import now_mjd_tai
    from nightstream.io.database.prompt_database import open_database
    from nightstream.scheduler.precover import precover

    if "://" not in database and not Path(database).is_file():
        raise FileError("there is no such database", path=database)  # which would be made, and empty
    with open_database(database) as opened:
        return precover(opened, products, now_mjd_tai=now_mjd_tai(), days=days, progress=progress)
