"""``nightstream simulate`` and ``nightstream demo``."""

from __future__ import annotations

from pathlib import Path

from nightstream.commands.common import FAILURE, console, errors_end_the_command, stop


def simulate_command(output: Path, detectors: int, template_visits: int, science_visits: int, seed: int) -> None:
    """Simulate a survey behind a progress bar."""
    from rich.progress import Progress

    from nightstream.scheduler.config import usable_cores
    from nightstream.simulate.survey import simulate_survey

    with errors_end_the_command(), Progress(console=console) as progress:
        task = progress.add_task("exposures", total=None)
        survey = simulate_survey(
            output,
            n_detectors=detectors,
            n_template_visits=template_visits,
            n_science_visits=science_visits,
            seed=seed,
            workers=usable_cores(),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    console.print(f"{len(survey.visits)} visits of {len(survey.detectors)} detectors under {survey.output}", markup=False)


def demo_command(output: Path) -> None:
    """Run the demonstration; exit with 1 if a detector failed."""
    with errors_end_the_command():
        from nightstream.demo import run_demo

        if not run_demo(output).run.is_complete:
            stop("not everything was processed; what failed is told above", FAILURE)
