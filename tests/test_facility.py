"""What a facility does: the commands on a PostgreSQL server, and several processes that write to it at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kill_harness import TIMES, compare_alerts, is_ignored
from small_survey import CAMERA
from typer.testing import CliRunner

from nightstream.cli import app
from nightstream.io.database.prompt_database import PromptDatabase, open_database
from nightstream.io.database.tables import TABLES, StoredTable, quoted, selected

OWN_PLACE = ("offset", "length")  # where deflated packets with other times lie in their file


def succeed(*arguments) -> str:
    """Run a command that must succeed; return what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def run_survey(survey, output: Path, *more) -> None:
    """``nightstream run`` of both visits of the small survey."""
    stores = ("--calibrations", survey.calibrations, "--templates", survey.templates, "--ephemerides", survey.ephemerides)
    succeed("run", survey.science, "-c", CAMERA, "-o", output, *stores, "--executor", "local", *more)


def rows_of(database: PromptDatabase, table: StoredTable) -> dict[str, np.ndarray]:
    """All rows of a table by their key, NULLs as the values that stand for them, but for columns that no two runs share."""
    columns = [column for column in table.columns() if not is_ignored(column.apdb, (*TIMES, *OWN_PLACE))]
    sql = f"SELECT {', '.join(map(selected, columns))} FROM {table.name} ORDER BY {quoted(table.key)}"
    with database._store.transaction() as session:
        values = session.fetch(sql, [column.dtype for column in columns])
    return dict(zip((column.apdb for column in columns), values, strict=True))


@pytest.fixture(scope="module")
def nights(small_survey, postgres_server, tmp_path_factory):
    """The same run with the embedded database and with a server's: (folder, database) of each, folders of the same name."""
    made = []
    for url in (None, postgres_server.new_database()):
        output = tmp_path_factory.mktemp("facility") / "night"
        run_survey(small_survey, output, *(("--database", url) if url else ()))
        made.append((output, url or str(output / "prompt.duckdb")))
    return made


def test_a_run_stores_the_same_rows_in_either_database(nights):
    """Every column of every row of every table is the same but for times; and so are the alerts that went out."""
    (embedded, path), (facility, url) = nights
    with open_database(path, read_only=True) as one, open_database(url, read_only=True) as other:
        for table in TABLES:
            a, b = rows_of(one, table), rows_of(other, table)
            for name in a:
                np.testing.assert_array_equal(a[name], b[name], err_msg=f"{table.name} {name}")
        counts = other.row_counts()
    assert all(counts[name] > 0 for name in ("DiaSource", "DiaObject", "DiaForcedSource", "SSSource", "Alert"))
    assert compare_alerts(embedded / "alerts", facility / "alerts") == []


def test_alerts_are_found_in_a_servers_database(nights, tmp_path):
    """By source and by object, with stamps, picture and VOEvent."""
    output, url = nights[1]
    with open_database(url, read_only=True) as database:
        found = rows_of(database, TABLES[0])
    row = np.flatnonzero(found["diaObjectId"])[0]
    source, dia_object = int(found["diaSourceId"][row]), int(found["diaObjectId"][row])
    where = ("--database", url, "--spool", output / "spool")
    assert f"alert {source}" in succeed("alert", source, *where, "-o", tmp_path, "--voevent")
    assert {path.suffix for path in tmp_path.iterdir()} >= {".fits", ".png", ".xml"}
    assert "of the object" in succeed("alert", dia_object, "--object", *where)


def test_precovery_works_on_a_servers_database(nights):
    """Both databases get the same forced sources, once."""
    counts = []
    for output, database in nights:
        assert "new objects precovered" in succeed("precover", "--database", database, "--products", output)
        assert "0 of 0 new" in succeed("precover", "--database", database, "--products", output)
        with open_database(database, read_only=True) as opened:
            counts.append(opened.row_counts())
    assert counts[0] == counts[1] and counts[0]["Precovery"] > 0
