"""Kill a command at chosen moments, start it again, and compare what it left with what an undisturbed one leaves.

Moments are found by watching the files that appear, so that the command needs no hooks. `POINTS` names those of ``nightstream
run`` in its output folder:

    outcomes = kill_repeatedly(command, [FileTrigger(output, POINTS["spool file"], 2), after(1.5)], log=tmp_path / "log")
    assert any(outcome.killed for outcome in outcomes)
    assert compare_databases(undisturbed / "prompt.duckdb", output / "prompt.duckdb") == []
    assert compare_alerts(undisturbed / "alerts", output / "alerts") == []
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

Trigger = Callable[[], bool]  # asked again and again while the command runs; True: kill it now
LOOK_S = 0.001  # between two looks
SHOWN = 8  # columns of a row in a message
POINTS = {  # what to watch in the output folder
    "product begun": "visit=*/.detector=*.tmp",
    "product": "visit=*/detector=*.h5",
    "master": "visit=*/visit.h5",
    "database": "prompt.duckdb",
    "database grows": "prompt.duckdb.wal",  # with `GrowthTrigger`: during transactions, and just after
    "spool file begun": "spool/.*.tmp",
    "spool file": "spool/*.avro",
    "alert file": "alerts/visit=*.avro",
}
TIMES = ("time*processed*", "readout*", "sent*")  # columns and fields that no two runs have in common


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one run of a command ended."""

    killed: bool  # by us; else it came to its end first
    status: int  # of the process
    seconds: float
    log: Path  # what it printed


def after(seconds: float) -> Trigger:
    """Return the trigger that fires so long after the command was started."""
    start: list[float] = []

    def is_over() -> bool:
        start.extend([] if start else [time.monotonic()])
        return time.monotonic() - start[0] >= seconds

    return is_over


def random_delays(seed: int, count: int, longest_s: float) -> list[Trigger]:
    """Return ``count`` triggers at random times up to ``longest_s``; the same for the same seed."""
    return [after(seconds) for seconds in np.random.default_rng(seed).uniform(0.0, longest_s, count)]


@dataclass(slots=True)
class FileTrigger:
    """Fires when ``occurrence`` different files that match ``pattern`` have appeared below ``root`` since the start."""

    root: Path
    pattern: str
    occurrence: int = 1
    seen: set[tuple] = field(default_factory=set)
    old: set[tuple] | None = None

    def __call__(self) -> bool:
        """Look now; what was there at the first look does not count."""
        found = {self.identity(path) for path in self.root.glob(self.pattern)} - {None}
        if self.old is None:
            self.old = found
        self.seen |= found - self.old
        return len(self.seen) >= self.occurrence

    def identity(self, path: Path) -> tuple | None:
        """What makes a file a new one; None if it is gone already."""
        with suppress(FileNotFoundError):
            return path.name, path.stat().st_ino
        return None


class GrowthTrigger(FileTrigger):
    """Fires when a file has been seen with ``occurrence`` different sizes."""

    def identity(self, path: Path) -> tuple | None:
        """A file of another size counts as another file; an empty one does not count."""
        size = 0
        with suppress(FileNotFoundError):
            size = path.stat().st_size
        return (path.name, size) if size else None


def run_and_kill(command: Sequence[str], trigger: Trigger, *, log: Path, timeout_s: float = 600.0) -> Outcome:
    """Run ``command`` in a process group of its own, and kill all of it with SIGKILL as soon as ``trigger`` says so.

    Its output is appended to ``log``. Raises TimeoutError if it neither ends nor is killed in time; nothing of it is left
    running, however this ends.
    """
    begin = time.monotonic()
    trigger()
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            killed = _watch(process, trigger, begin + timeout_s)
        finally:
            _kill_group(process)
    return Outcome(killed=killed, status=process.returncode, seconds=time.monotonic() - begin, log=log)


def run_to_end(command: Sequence[str], *, log: Path, timeout_s: float = 600.0) -> Outcome:
    """Run ``command`` undisturbed."""
    return run_and_kill(command, lambda: False, log=log, timeout_s=timeout_s)


def kill_repeatedly(command: Sequence[str], triggers: Iterable[Trigger], *, log: Path, timeout_s: float = 600.0) -> list[Outcome]:
    """Run ``command`` once for each trigger, killed by it, and at last undisturbed; that one must end with status 0."""
    outcomes = [run_and_kill(command, trigger, log=log, timeout_s=timeout_s) for trigger in triggers]
    last = run_to_end(command, log=log, timeout_s=timeout_s)
    assert last.status == 0, f"the last run ended with status {last.status}:\n{log.read_text()}"
    return [*outcomes, last]


def _watch(process: subprocess.Popen, trigger: Trigger, until: float) -> bool:
    """Wait for the trigger or the end of the process; is it to be killed?"""
    while process.poll() is None:
        if trigger():
            return True
        if time.monotonic() > until:
            raise TimeoutError(f"{process.args} still runs")
        time.sleep(LOOK_S)
    return False


def _kill_group(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def compare_databases(first: Path, second: Path, ignored: Sequence[str] = TIMES) -> list[str]:
    """Return what differs between two DuckDB files, a line a table and side; nothing if all rows are equal.

    The order of rows does not count, nor do columns that match a pattern of ``ignored`` (case and underscores aside).
    """
    import duckdb

    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        for name, path in (("a", first), ("b", second)):  # copies: opening may change a file
            copy = Path(folder) / f"{name}.duckdb"
            for suffix in ("", ".wal"):
                if Path(f"{path}{suffix}").exists():
                    shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
            connection.execute(f"ATTACH '{copy}' AS {name}")
        tables = {name: _columns_of(connection, name, ignored) for name in "ab"}
        lines = [f"table {table} differs in its columns, or is in one only" for table in _unequal_keys(tables["a"], tables["b"])]
        for table in sorted(set(tables["a"]) & set(tables["b"])):
            lines += _unequal_rows(connection, table, tables["a"][table])
        connection.execute("DETACH a; DETACH b")
    return lines


def _columns_of(connection, database: str, ignored: Sequence[str]) -> dict[str, list[str]]:
    """The columns that count of each table, by its quoted name."""
    rows = connection.execute(
        "SELECT schema_name, table_name, column_name FROM duckdb_columns() WHERE database_name = ? AND NOT internal "
        "ORDER BY table_name, column_index", [database],
    ).fetchall()  # fmt: skip
    tables: dict[str, list[str]] = {}
    for schema, table, column in rows:
        columns = tables.setdefault(f'"{schema}"."{table}"', [])
        columns.extend([] if is_ignored(column, ignored) else [f'"{column}"'])
    return {table: columns for table, columns in tables.items() if columns}


def _unequal_rows(connection, table: str, columns: list[str]) -> Iterator[str]:
    """A line a side with rows that the other lacks; and one with the columns that differ, if both have as many."""
    names, rows = ", ".join(columns), []
    for left, right, which in (("a", "b", "first"), ("b", "a", "second")):
        query = f"SELECT {names} FROM {left}.{table} EXCEPT ALL SELECT {names} FROM {right}.{table} ORDER BY ALL"
        rows.append(connection.execute(query).fetchall())
        if rows[-1]:
            yield f"table {table}: {len(rows[-1])} rows only in the {which}, such as {rows[-1][0][:SHOWN]}"
    if len(rows[0]) == len(rows[1]):
        pairs = list(zip(*rows, strict=True))
        yield from (f"table {table}: differs in {name}, such as {_example(pairs, i)}" for i, name in enumerate(columns)
                    if any(not _is_equal(a[i], b[i]) for a, b in pairs))  # fmt: skip


def _example(pairs: list[tuple], column: int) -> str:
    return next(f"{a[column]!r}, {b[column]!r}" for a, b in pairs if not _is_equal(a[column], b[column]))


def _is_equal(a, b) -> bool:
    """NaN equals NaN."""
    return a == b or (a != a and b != b)


def compare_alerts(first: Path, second: Path, ignored: Sequence[str] = TIMES) -> list[str]:
    """Return what differs between the alerts of two folders; nothing if each is there once, equal in both.

    Fields that match a pattern of ``ignored`` do not count.
    """
    lines, packets = [], []
    for folder in (first, second):
        found = read_packets(folder)
        lines += [f"alert {number} is {len(copies)} times in {folder}" for number, copies in found.items() if len(copies) > 1]
        packets.append({number: copies[0] for number, copies in found.items()})
    a, b = packets
    lines += [f"alert {number} is missing in {second}" for number in sorted(set(a) - set(b))]
    lines += [f"alert {number} is missing in {first}" for number in sorted(set(b) - set(a))]
    for number in sorted(set(a) & set(b)):
        lines += [f"alert {number} differs in {name}" for name in differences(a[number], b[number], ignored)]
    return lines


def read_packets(folder: Path) -> dict[int, list[dict]]:
    """Return the packets of all ``visit=*.avro`` in ``folder``, by diaSourceId."""
    import fastavro

    packets: dict[int, list[dict]] = {}
    for path in sorted(folder.glob("visit=*.avro")):
        with path.open("rb") as file:
            for packet in fastavro.reader(file):
                packets.setdefault(packet["diaSourceId"], []).append(packet)
    return packets


def differences(a, b, ignored: Sequence[str] = (), name: str = "packet") -> list[str]:
    """Return the names of the leaves in which two values of lists, dicts and plain values differ; NaN equals NaN."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [key for key in sorted({*a, *b}) if not is_ignored(key, ignored)]
        return [line for key in keys for line in differences(a.get(key), b.get(key), ignored, f"{name}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = zip(a, b, strict=True)
        return [line for i, pair in enumerate(pairs) for line in differences(*pair, ignored, f"{name}[{i}]")]
    return [] if _is_equal(a, b) else [name]


def is_ignored(name: str, patterns: Iterable[str]) -> bool:
    """Does a column or field match one of the patterns, case and underscores aside?"""
    return any(fnmatch(name.lower().replace("_", ""), pattern) for pattern in patterns)


def _unequal_keys(a: dict, b: dict) -> list[str]:
    return sorted(key for key in {*a, *b} if a.get(key) != b.get(key))
