"""Whenever the whole run is killed, the restarted one leaves what an undisturbed one leaves, and sends each alert once.

`python tests/test_kill.py FOLDER --times 10 --kills 10` does it at random moments, as often as wanted.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from kill_harness import (
    POINTS,
    TIMES,
    FileTrigger,
    GrowthTrigger,
    Outcome,
    Trigger,
    compare_alerts,
    compare_databases,
    kill_repeatedly,
    random_delays,
    read_packets,
    run_to_end,
)
from small_survey import CAMERA, SmallSurvey, build_survey

OWN_PLACE = ("productpath", "offset", "length")  # the output folder; where deflated packets with other times lie in their file


def command(survey: SmallSurvey, output: Path) -> list[str]:
    """The run of both visits, in one process."""
    start = [sys.executable, "-c", "from nightstream.cli import main; main()", "run", survey.science, "-c", CAMERA, "-o", output]
    stores = ["--calibrations", survey.calibrations, "--templates", survey.templates]
    return [str(part) for part in (*start, *stores, "--ephemerides", survey.ephemerides, "--executor", "local")]


def run_with_kills(survey: SmallSurvey, output: Path, triggers: list[Trigger]) -> list[Outcome]:
    """Start the run again after each kill; the last one comes to its end."""
    return kill_repeatedly(command(survey, output), triggers, log=Path(f"{output}.log"))


def assert_same_night(undisturbed: Path, output: Path) -> None:
    """Both folders hold the same database, but for times, and the same alerts, each once."""
    assert compare_databases(undisturbed / "prompt.duckdb", output / "prompt.duckdb", (*TIMES, *OWN_PLACE)) == []
    assert compare_alerts(undisturbed / "alerts", output / "alerts") == []


@pytest.fixture(scope="module")
def undisturbed(small_survey, tmp_path_factory):
    """Output of a run that nobody killed."""
    output = tmp_path_factory.mktemp("undisturbed")
    outcome = run_to_end(command(small_survey, output), log=Path(f"{output}.log"))
    assert outcome.status == 0, outcome.log.read_text()
    return output


def test_killed_at_every_step_of_a_visit_nothing_is_lost_or_doubled(small_survey, undisturbed, tmp_path):
    """SIGKILL while a product, the alerts, and the database are written, and before the alerts are marked as sent."""
    output = tmp_path / "out"
    points = [(FileTrigger, "product begun"), (FileTrigger, "spool file begun"), (FileTrigger, "spool file"),
              (GrowthTrigger, "database grows"), (FileTrigger, "alert file")]  # fmt: skip
    outcomes = run_with_kills(small_survey, output, [kind(output, POINTS[point]) for kind, point in points])
    assert sum(outcome.killed for outcome in outcomes) >= 3  # a moment of microseconds may be missed
    assert read_packets(undisturbed / "alerts")
    assert_same_night(undisturbed, output)


def test_another_run_changes_nothing(small_survey, undisturbed, tmp_path):
    """All visits are stored: the same command again finds nothing to do."""
    before = read_packets(undisturbed / "alerts")
    assert run_to_end(command(small_survey, undisturbed), log=tmp_path / "log").status == 0
    assert read_packets(undisturbed / "alerts") == before


def main(folder: Path, times: int, kills: int, seed: int = 1) -> None:
    """Kill ``kills`` runs of each of ``times`` nights at random moments; tell how each night compared."""
    folder.mkdir(parents=True, exist_ok=True)
    survey = build_survey(folder / "survey")
    undisturbed = folder / "undisturbed"
    whole = run_to_end(command(survey, undisturbed), log=folder / "undisturbed.log")
    assert whole.status == 0, whole.log.read_text()
    for time in range(times):
        output = folder / f"night-{time}"
        outcomes = run_with_kills(survey, output, random_delays(seed + time, kills, whole.seconds))
        assert_same_night(undisturbed, output)
        killed = ", ".join(f"{outcome.seconds:.1f}" for outcome in outcomes if outcome.killed)
        print(f"night {time}: killed after {killed} s; {len(read_packets(output / 'alerts'))} alerts, each once; database equal")


if __name__ == "__main__":
    from argparse import ArgumentParser

    parser = ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--kills", type=int, default=10)
    main(**vars(parser.parse_args()))
