"""The harness that kills and compares: it kills all of a command, at the moment it was told, and misses no difference."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import fastavro
import pytest
from kill_harness import (
    FileTrigger,
    GrowthTrigger,
    after,
    compare_alerts,
    compare_databases,
    differences,
    kill_repeatedly,
    random_delays,
    run_and_kill,
    run_to_end,
)

# Writes step 0, 1, ... that are not there yet, each under a temporary name first, so slowly that a killer comes in time.
COMMAND = """
import os, subprocess, sys, time
from pathlib import Path
root = Path(sys.argv[1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(root / "child").write_text(str(child.pid))
for step in range(6):
    if not (root / f"step={step}").exists():
        (root / f".step={step}.tmp").write_text("x")
        time.sleep(float(sys.argv[2]))
        os.replace(root / f".step={step}.tmp", root / f"step={step}")
        with open(root / "journal", "a") as journal:
            journal.write("line\\n")
child.kill()
child.wait()
print("done")
"""


def command(root: Path, step_s: float = 0.3) -> list[str]:
    return [sys.executable, "-c", COMMAND, str(root), str(step_s)]


def is_alive(process: int) -> bool:
    """Does the process run? One that was killed and waits for its parent to notice does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def steps(root: Path) -> int:
    return len(list(root.glob("step=*")))


@pytest.mark.parametrize("occurrence", [1, 3])
def test_command_is_killed_when_the_nth_file_appears(occurrence, tmp_path):
    """So many files are there and the next one is not: the killer is quicker than a step."""
    outcome = run_and_kill(command(tmp_path), FileTrigger(tmp_path, "step=*", occurrence), log=tmp_path / "log")
    assert outcome.killed and outcome.status == -9
    assert steps(tmp_path) == occurrence


def test_children_die_with_the_command(tmp_path):
    """Nothing of the process group is left."""
    run_and_kill(command(tmp_path), FileTrigger(tmp_path, "step=*"), log=tmp_path / "log")
    child, until = int((tmp_path / "child").read_text()), time.monotonic() + 5
    while is_alive(child) and time.monotonic() < until:
        os.sched_yield()
    assert not is_alive(child)


def test_files_that_vanish_are_seen(tmp_path):
    """A temporary file is a moment to kill at, too: what it becomes is not there yet."""
    outcome = run_and_kill(command(tmp_path), FileTrigger(tmp_path, ".step=*.tmp", 2), log=tmp_path / "log")
    assert outcome.killed and steps(tmp_path) == 1


def test_growth_of_a_file_is_seen(tmp_path):
    """The third line of a journal is a moment as well."""
    outcome = run_and_kill(command(tmp_path), GrowthTrigger(tmp_path, "journal", 3), log=tmp_path / "log")
    assert outcome.killed and steps(tmp_path) >= 3


def test_old_files_do_not_count(tmp_path):
    """A restart is killed at the first file it makes itself, not at one of the run before."""
    triggers = [FileTrigger(tmp_path, "step=*"), FileTrigger(tmp_path, "step=*")]
    outcomes = [run_and_kill(command(tmp_path), trigger, log=tmp_path / "log") for trigger in triggers]
    assert [outcome.killed for outcome in outcomes] == [True, True] and steps(tmp_path) == 2


def test_killed_again_and_again_it_ends_well(tmp_path):
    """The last run is left in peace and completes what the others began."""
    outcomes = kill_repeatedly(command(tmp_path, 0.02), [FileTrigger(tmp_path, "step=*"), after(0.0)], log=tmp_path / "log")
    assert [outcome.killed for outcome in outcomes] == [True, True, False]
    assert steps(tmp_path) == 6 and (tmp_path / "log").read_text() == "done\n"


def test_command_that_is_too_quick_was_not_killed(tmp_path):
    """A trigger that never fires lets the command come to its end."""
    outcome = run_and_kill(command(tmp_path, 0.0), FileTrigger(tmp_path, "nothing"), log=tmp_path / "log")
    assert (outcome.killed, outcome.status) == (False, 0)


def test_command_that_hangs_is_ended(tmp_path):
    """After the time-out the command is gone, and an error says so."""
    with pytest.raises(TimeoutError, match="still runs"):
        run_to_end([sys.executable, "-c", "import time; time.sleep(60)"], log=tmp_path / "log", timeout_s=0.2)


def test_last_run_that_fails_is_an_error_with_its_output(tmp_path):
    """What it printed is in the message."""
    with pytest.raises(AssertionError, match="no luck"):
        kill_repeatedly([sys.executable, "-c", "import sys; sys.exit('no luck')"], [], log=tmp_path / "log")


def test_random_delays_come_from_the_seed():
    """As many triggers as asked for; those of zero length fire at once."""
    assert len(random_delays(1, 10, 5.0)) == 10
    assert all(trigger() for trigger in random_delays(1, 3, 0.0))


def database(path: Path, rows: str, more: str = "") -> Path:
    import duckdb

    with duckdb.connect(str(path)) as connection:
        connection.execute('CREATE TABLE "DiaSource" ("diaSourceId" BIGINT, flux FLOAT, "timeProcessedMjdTai" DOUBLE)')
        connection.execute(f'INSERT INTO "DiaSource" VALUES {rows}; {more}')
    return path


def test_equal_databases_are_equal_whatever_the_order_and_the_times(tmp_path):
    """Order of rows and processing times do not count; NULL equals NULL and NaN equals NaN."""
    a = database(tmp_path / "a.duckdb", "(1, 1.5, 10), (2, NULL, 11), (3, 'NaN', 12)")
    b = database(tmp_path / "b.duckdb", "(3, 'NaN', 7), (1, 1.5, 8), (2, NULL, 9)")
    assert compare_databases(a, b) == []


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ("(1, 1.5, 1)", "", "1 rows only in the first, such as (2, 2.5)"),
        ("(1, 1.5, 1), (2, 2.5, 1), (2, 2.5, 1)", "", "1 rows only in the second, such as (2, 2.5)"),
        ("(1, 1.5, 1), (2, 2.6, 1)", "", "rows only in the first"),
        ("(1, 1.5, 1), (2, 2.5, 1)", "CREATE TABLE extra (a INT)", "extra"),
        ("(1, 1.5, 1), (2, 2.5, 1)", 'ALTER TABLE "DiaSource" ADD COLUMN b INT', "differs in its columns"),
    ],
)
def test_unequal_databases_are_told(rows, more, message, tmp_path):
    """A row less, a row twice, another value, table or column: each is a line."""
    a = database(tmp_path / "a.duckdb", "(1, 1.5, 1), (2, 2.5, 1)")
    lines = compare_databases(a, database(tmp_path / "b.duckdb", rows, more))
    assert lines and any(message in line for line in lines)


SCHEMA = fastavro.parse_schema({
    "name": "alert", "type": "record", "fields": [
        {"name": "diaSourceId", "type": "long"}, {"name": "flux", "type": ["null", "float"]},
        {"name": "timeProcessedMjdTai", "type": "double"},
        {"name": "history", "type": {"type": "array", "items": "double"}},
    ],
})  # fmt: skip


def alert(number, flux=1.0, time=0.0, history=(1.0,)):
    return {"diaSourceId": number, "flux": flux, "timeProcessedMjdTai": time, "history": list(history)}


def alert_folder(path: Path, *visits) -> Path:
    path.mkdir()
    for visit, packets in enumerate(visits):
        with (path / f"visit={visit}.avro").open("wb") as file:
            fastavro.writer(file, SCHEMA, packets)
    return path


def test_equal_alerts_are_equal_whatever_their_file_and_order(tmp_path):
    """Sets of alerts are compared, without the times of processing."""
    a = alert_folder(tmp_path / "a", [alert(1, float("nan")), alert(2)], [alert(3)])
    b = alert_folder(tmp_path / "b", [alert(3, time=9.0), alert(2)], [alert(1, float("nan"))])
    assert compare_alerts(a, b) == []


@pytest.mark.parametrize(
    ("packets", "message"),
    [
        ([alert(1)], "alert 2 is missing in"),
        ([alert(1), alert(2), alert(4)], "alert 4 is missing in"),
        ([alert(1), alert(2), alert(2)], "alert 2 is 2 times in"),
        ([alert(1), alert(2, flux=None)], "alert 2 differs in packet.flux"),
        ([alert(1), alert(2, history=[2.0])], "alert 2 differs in packet.history[0]"),
        ([alert(1), alert(2, history=[])], "alert 2 differs in packet.history"),
    ],
)
def test_unequal_alerts_are_told(packets, message, tmp_path):
    """Lost, invented, doubled, changed: each is a line."""
    lines = compare_alerts(alert_folder(tmp_path / "a", [alert(1), alert(2)]), alert_folder(tmp_path / "b", packets))
    assert len(lines) == 1 and message in lines[0]


def test_missing_field_is_a_difference():
    """None and absent are the same, anything else is not."""
    assert differences({"a": 1}, {"a": 1, "b": None}) == []
    assert differences({"a": 1}, {"a": 1, "b": {"c": 0}}) == ["packet.b"]
