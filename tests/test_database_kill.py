"""Claims about the prompt database when processes die, or use it at the same time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nightstream.errors import DatabaseError
from nightstream.io.database.prompt_database import PromptDatabase, open_database

WRITER = Path(__file__).with_name("database_writer.py")
EACH = 500  # sources on each of the two detectors of a visit
OBJECTS = np.concatenate([1000 * d + np.arange(1, EACH + 1) for d in (1, 2)])
KILLS = 5


@pytest.fixture(params=["duckdb", "postgresql"])
def url(request, tmp_path) -> str:
    """Where an empty database may be made."""
    if request.param == "duckdb":
        return str(tmp_path / "prompt.duckdb")
    return request.getfixturevalue("postgres_server").new_database()


def start_writer(url: str, first: int, number: int) -> subprocess.Popen:
    """A writer that has the database open and waits for its line."""
    command = [sys.executable, str(WRITER), url, str(first), str(number), str(EACH)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=WRITER.parent)
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen) -> list[list[int]]:
    """What the writer said: visit and detectors, line by line; a line that was cut off does not count."""
    words = process.stdout.read()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    return [[int(word) for word in line.split()] for line in words[: words.rfind("\n") + 1].splitlines()]


def check_whole(database: PromptDatabase, visits: range) -> set[int]:
    """Every visit is there with all its rows or with none; forced sources are numbered densely. Returns those there."""
    stored = {visit for visit in visits if database.published_detectors(visit)}
    assert all(database.published_detectors(visit) == {1, 2} for visit in stored)
    n = 2 * EACH * len(stored)
    found, forced = database.history(OBJECTS, -np.inf)
    for table in (found, forced):
        assert len(table["visit"]) == n
        assert set(table["visit"]) == stored
    np.testing.assert_array_equal(np.sort(forced["dia_forced_source_id"]), np.arange(1, n + 1))
    counts = database.row_counts()
    assert [counts[name] for name in ("DiaObject", "Alert", "AlertFile")] == [n, n, len(stored)]
    assert counts["DiaObjectLast"] == (2 * EACH if stored else 0)
    current = database.dia_objects(OBJECTS)["validity_start_mjd_tai"]
    assert len(current) == counts["DiaObjectLast"] and len(set(current)) <= 1
    return stored


def kill_while_writing(process: subprocess.Popen, rng: np.random.Generator) -> set[int]:
    """Kill a writer at a random moment after its first new visits; return the visits that it confirmed."""
    process.stdin.write("go\n")
    process.stdin.flush()
    confirmed, wanted = set(), rng.integers(1, 3)
    while len(confirmed) < wanted:
        start = time.perf_counter()
        visit, *detectors = map(int, process.stdout.readline().split())
        confirmed |= {visit} if detectors else set()
    time.sleep(rng.uniform(0, 1.5) * (time.perf_counter() - start))  # of the time that a visit takes
    process.kill()
    return confirmed | {visit for visit, *detectors in finish(process) if detectors}


def test_a_killed_writer_leaves_whole_visits(url):
    """After kill -9 at any moment the database opens, no visit is there by half, and none that was confirmed is lost."""
    visits, rng, confirmed = range(1, 61), np.random.default_rng(3), set()
    for kills in range(1, KILLS + 1):
        confirmed |= kill_while_writing(start_writer(url, 1, len(visits)), rng)
        with open_database(url) as database:
            stored = check_whole(database, visits)
        assert confirmed <= stored
        assert len(stored - confirmed) <= kills  # each killed writer may have stored a visit that it did not live to confirm


def test_two_processes_cannot_both_write_a_visit(postgres_server):
    """Of two processes that write the same visits at the same time, exactly one wins each; nothing is doubled."""
    url = postgres_server.new_database()
    writers = [start_writer(url, 1, 10) for _ in range(2)]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    said = [finish(writer) for writer in writers]
    for (visit, *first), (same, *second) in zip(*said, strict=True):
        assert visit == same and sorted([first, second]) == [[], [1, 2]]
    with open_database(url) as database:
        assert check_whole(database, range(1, 11)) == set(range(1, 11))


def test_processes_with_overlapping_visits_wait_for_each_other(postgres_server):
    """Two processes that write different visits of the same objects lose nothing: versions follow each other."""
    url = postgres_server.new_database()
    writers = [start_writer(url, first, 6) for first in (1, 11)]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert all(detectors == [1, 2] for writer in writers for _, *detectors in finish(writer))
    with open_database(url) as database:
        check_whole(database, range(1, 20))
        versions = database.object_versions(int(OBJECTS[0]))
        np.testing.assert_array_equal(versions["validity_end_mjd_tai"][:-1], versions["validity_start_mjd_tai"][1:])


def test_a_database_in_use_is_told(tmp_path):
    """While another process has the file open, the error names the file and that process."""
    path = tmp_path / "prompt.duckdb"
    process = start_writer(str(path), 1, 1)
    with pytest.raises(DatabaseError, match=rf"in use by another process: .*PID {process.pid}.*prompt\.duckdb"):
        open_database(path)
    process.stdin.write("go\n")
    process.stdin.flush()
    assert finish(process) == [[1, 1, 2]]
    open_database(path).close()
