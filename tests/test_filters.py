"""Filters: users get the alerts they ask for, and nothing they ask for can harm the others or reach outside."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from nightstream.errors import FileError, InputError
from nightstream.io.alerts import filters as module
from nightstream.io.alerts.filter_guard import MAX_CHARACTERS, guard
from nightstream.io.alerts.filter_sandbox import Sandbox, alert_name
from nightstream.io.alerts.filters import (
    Filter,
    FilterConfig,
    RefusedFilter,
    SiteFilter,
    load_filters,
    load_site_filters,
    run_filters,
)

VISIT = 2026112200001
QUICK = FilterConfig(first_seconds=0.05, seconds_per_filter=0.2, seconds_per_visit=0.5)


def visit_tables(count=1000, seed=1):
    """Alerts of one visit: ids 1001.., every second one of a known object, the first two of asteroids."""
    rng = np.random.default_rng(seed)
    ids = np.arange(1001, 1001 + count)
    sources = {
        "dia_source_id": ids, "visit": np.full(count, VISIT), "detector": np.zeros(count, np.int16),
        "dia_object_id": np.where(ids % 2, 0, ids + 10**6), "ra": rng.uniform(0, 1, count), "dec": rng.uniform(0, 1, count),
        "snr": rng.uniform(-100, 100, count).astype(np.float32), "reliability": rng.uniform(0, 1, count).astype(np.float32),
        "psf_flux": rng.normal(1000, 300, count).astype(np.float32), "band": np.full(count, "r"),
        "is_dipole": rng.uniform(size=count) < 0.1,
    }  # fmt: skip
    known = sources["dia_object_id"][sources["dia_object_id"] > 0][::-1]
    objects = {"dia_object_id": known, "n_dia_sources": np.arange(len(known), dtype=np.int32), "ra": np.full(len(known), 7.0)}
    moving = {"dia_source_id": ids[:2], "ss_object_id": np.array([11, 12]), "eph_rate": np.array([0.5, 2.0])}
    return {"dia_sources": sources, "dia_objects": objects, "ss_sources": moving}


def written(folder, **texts):
    """Filters of users in a new folder; two underscores in a name make a folder of files."""
    for name, text in texts.items():
        path = folder / (name.replace("__", "/") + ".sql")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return load_filters(folder)


def one_result(folder, text, tables=None, config=None):
    return run_filters(written(folder, anna=text), tables or visit_tables(), config)["anna"]


def test_a_filter_chooses_what_it_says(tmp_path):
    """The ids are those NumPy finds, in the order of the filter's ORDER BY."""
    tables = visit_tables()
    result = one_result(
        tmp_path, "SELECT diaSourceId FROM diaSource WHERE snr > 90 AND NOT isDipole ORDER BY psfFlux DESC", tables
    )
    rows = tables["dia_sources"]
    chosen = np.flatnonzero((rows["snr"] > 90) & ~rows["is_dipole"])
    chosen = chosen[np.argsort(-rows["psf_flux"][chosen])]
    assert result.error is None
    assert 3 < len(result.ids) <= 20
    assert result.ids.tolist() == rows["dia_source_id"][chosen][:20].tolist()


def test_a_user_gets_at_most_twenty_the_most_reliable_first(tmp_path):
    """Without ORDER BY the best 20 by reliability, then |S/N|, come."""
    tables = visit_tables()
    rows = tables["dia_sources"]
    rows["reliability"] = np.round(rows["reliability"], 1)
    rows["reliability"][:50] = np.nan
    result = one_result(tmp_path, "SELECT * FROM alert WHERE psfFlux > 0", tables)
    order = np.lexsort([-np.abs(rows["snr"]), -np.nan_to_num(rows["reliability"], nan=-1)])
    order = order[rows["psf_flux"][order] > 0]
    assert result.ids.tolist() == rows["dia_source_id"][order[:20]].tolist()


def test_the_view_joins_source_object_and_solar_system(tmp_path):
    """`alert` has the columns of all three; a name that two tables have gets a prefix; without a match they are NULL."""
    tables = visit_tables()
    text = "SELECT * FROM alert WHERE nDiaSources < 3 AND object_ra = 7 AND ra <= 1 ORDER BY nDiaSources"
    newest = tables["dia_objects"]["dia_object_id"][:3] - 10**6
    assert one_result(tmp_path / "a", text, tables).ids.tolist() == newest.tolist()
    assert one_result(tmp_path / "b", "SELECT * FROM alert WHERE ephRate > 1", tables).ids.tolist() == [1002]
    text = "SELECT * FROM alert WHERE nDiaSources IS NULL AND ephRate IS NOT NULL"
    assert one_result(tmp_path / "c", text, tables).ids.tolist() == [1001]
    assert (alert_name("ra", "diaObject"), alert_name("nDiaSources", "diaObject")) == ("object_ra", "nDiaSources")


def test_tables_may_be_joined(tmp_path):
    """A join written by the user gives what the view gives; each alert comes once however often a join repeats it."""
    text = "SELECT s.diaSourceId FROM diaSource s JOIN diaObject o USING (diaObjectId) WHERE o.nDiaSources < 5 ORDER BY s.snr"
    result = one_result(tmp_path / "a", text)
    view = one_result(tmp_path / "b", "SELECT diaSourceId FROM alert WHERE nDiaSources < 5 ORDER BY snr")
    twice = one_result(tmp_path / "c", "SELECT a.* FROM alert a, ssSource WHERE a.nDiaSources < 5 ORDER BY a.snr")
    assert result.ids.tolist() == view.ids.tolist() == twice.ids.tolist()
    assert len(view.ids) == 5


def test_nulls_are_null(tmp_path):
    """NaN, 0 in integers that may be NULL, empty text and masked values are NULL; a masked array's 0 is a value."""
    tables = visit_tables(6)
    rows = tables["dia_sources"]
    rows["psf_flux"][0], rows["band"][1] = np.nan, ""
    rows["psf_ndata"] = np.ma.MaskedArray(np.zeros(6, np.int32), mask=[True] + [False] * 5)
    for column, nulls in {"psfFlux": [1001], "band": [1002], "psfNdata": [1001], "diaObjectId": [1001, 1003, 1005]}.items():
        result = one_result(tmp_path, f"SELECT * FROM diaSource WHERE {column} IS NULL ORDER BY diaSourceId", tables)
        assert result.ids.tolist() == nulls
    assert len(one_result(tmp_path, "SELECT * FROM diaSource WHERE apFlux IS NULL", tables).ids) == 6


def test_several_filters_of_a_user_share_the_twenty(tmp_path):
    """The best of each file come first, every alert once, and one file's error leaves the other's alerts."""
    low, high = "SELECT * FROM alert ORDER BY diaSourceId", "SELECT * FROM alert ORDER BY diaSourceId DESC"
    filters = written(tmp_path, anna__a=low, anna__b=high, anna__c="SELECT nonsense FROM alert")
    result = run_filters(filters, visit_tables())["anna"]
    assert result.ids.tolist()[:4] == [1001, 2000, 1002, 1999]
    assert len(result.ids) == 20
    assert "file anna/c.sql" in result.error
    few = run_filters(filters, visit_tables(3))["anna"]
    assert few.ids.tolist() == [1001, 1003, 1002]


def test_a_bad_filter_does_not_harm_the_others(tmp_path):
    """Beside endless, wrong, hungry and refused filters a good one gets what it gets alone."""
    good = "SELECT * FROM alert WHERE snr > 50"
    endless = "SELECT a.* FROM alert a, alert b, alert c, alert d WHERE sin(a.ra * b.ra * c.ra * d.ra) > 2"
    dropping, unused = "SELECT * FROM alert; DROP TABLE alert", "SELECT ln(-1) AS x, * FROM alert"
    wrong = "SELECT cast(band AS INT) AS n, * FROM alert ORDER BY n"
    filters = written(tmp_path, bad1=endless, bad2=dropping, bad3=unused, bad4=wrong, good=good, other=endless)
    results = run_filters(filters, visit_tables(), QUICK)
    alone = run_filters([one for one in filters if one.user == "good"], visit_tables())["good"]
    assert results["good"].ids.tolist() == alone.ids.tolist()
    assert results["good"].error is None
    assert [user for user, result in results.items() if result.error] == ["bad1", "bad2", "bad4", "other"]
    assert len(results["bad3"].ids) == 20  # what is not asked for is not computed


@pytest.mark.parametrize(
    "text",
    [
        "SELECT a.* FROM alert a, alert b, alert c, alert d WHERE sin(a.ra * b.ra * c.ra * d.ra) > 2",
        "SELECT a.* FROM alert a, alert b, alert c ORDER BY a.ra + b.ra * c.ra",
        "SELECT * FROM alert WHERE ra > (SELECT sum(a.ra * b.ra * c.ra) FROM alert a, alert b, alert c, alert d)",
    ],
)
def test_an_endless_query_is_stopped(tmp_path, text):
    """A product of tables that would take years ends with the user's name, the file and the time it had."""
    result = one_result(tmp_path, text, config=QUICK)
    assert len(result.ids) == 0
    assert result.error == "filter of anna, file anna.sql: took longer than 0.2 s and was stopped"


def test_slow_filters_share_the_time_of_a_visit(tmp_path):
    """When the visit's time for slow filters is spent, the rest of them are told so."""
    endless = "SELECT a.* FROM alert a, alert b, alert c, alert d WHERE sin(a.ra * b.ra * c.ra * d.ra) > 2"
    config = FilterConfig(first_seconds=0.02, seconds_per_filter=0.2, seconds_per_visit=0.15)
    results = run_filters(written(tmp_path, anna=endless, bert=endless), visit_tables(), config)
    assert "took longer than 0.15 s and was stopped; slow filters had used the 0.15 s" in results["anna"].error
    assert "took longer than 0.02 s and was stopped; slow filters had used the 0.15 s" in results["bert"].error


def test_a_hungry_query_is_stopped(tmp_path):
    """A query that wants more memory than a filter may have ends with a message that says so."""
    numbered = "SELECT a.diaSourceId, row_number() OVER (ORDER BY a.ra * b.ra * c.dec) AS n FROM alert a, alert b, alert c"
    text = f"SELECT * FROM ({numbered}) WHERE n % 2 = 0"
    config = FilterConfig(memory_mib=64, first_seconds=20, seconds_per_filter=20)
    result = one_result(tmp_path, text, visit_tables(3000), config)
    assert result.error == "filter of anna, file anna.sql: needs more memory than 64 MiB and was stopped"


REFUSED = {
    "SELECT * FROM alert; DROP TABLE alert": "only one statement",
    "DROP TABLE alert": "only a SELECT is allowed, got DROP",
    "COPY alert TO '/tmp/x.csv'": "got COPY",
    "ATTACH '/tmp/x.duckdb'": "got ATTACH",
    "INSTALL httpfs": "got INSTALL",
    "LOAD httpfs": "got LOAD",
    "PRAGMA database_list": "got PRAGMA",
    "SET memory_limit = '1TB'": "got SET",
    "EXPLAIN SELECT * FROM alert": "got EXPLAIN",
    "SELECT * FROM alert UNION ALL SELECT * FROM alert": "UNION is not allowed",
    "WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT 1 FROM t) SELECT * FROM t": "got WITH",
    "SELECT * FROM (WITH t AS (SELECT * FROM alert) SELECT * FROM t)": "WITH is not allowed",
    "SELECT * FROM read_csv('/etc/passwd')": "there is no table",
    "SELECT * FROM '/etc/passwd'": "there is no table",
    "SELECT * FROM alert, '/etc/*'": "there is no table",
    "SELECT * FROM glob('/etc/*')": "there is no table",
    "SELECT * FROM range(1000000000000)": "there is no table",
    "SELECT * FROM generate_series(1, 1000000000000)": "there is no table",
    "SELECT * FROM (VALUES (1)) AS t(x)": "VALUES is not allowed",
    "SELECT unnest([1, 2]) FROM alert": "is not allowed",
    "SELECT * FROM query('SELECT 1')": "there is no table",
    "SELECT * FROM information_schema.tables": "there is no table",
    "SELECT * FROM duckdb_settings()": "there is no table",
    "SELECT * FROM bert.alert": "there is no table",
    "SELECT * FROM sqlite_master": "there is no table",
    "SELECT getenv('HOME') FROM alert": "the function getenv() is not allowed",
    "SELECT current_setting('threads') FROM alert": "the function current_setting() is not allowed",
    "SELECT read_text('/etc/passwd') FROM alert": "the function read_text() is not allowed",
    "SELECT repeat('x', 4000000000) FROM alert": "the function repeat() is not allowed",
    "SELECT lpad('x', 4000000000, 'x') FROM alert": "is not allowed",
    "SELECT list(ra) FROM alert": "is not allowed",
    "SELECT string_agg(band) FROM alert": "is not allowed",
    "SELECT band || band FROM alert": "|| is not allowed",
    "SELECT random() FROM alert": "is not allowed",
    "SELECT now() FROM alert": "the function now() is not allowed",
    "SELECT CAST(ra AS STRUCT(a INT)) FROM alert": "is not allowed",
    "SELECT * FROM diaSource NATURAL JOIN diaObject": "NATURAL JOIN is not allowed",
    "SELECT * INTO t FROM alert": "INTO is not allowed",
    "SELECT * FROM alert FOR UPDATE": "is not allowed",
    "SELECT * FROM alert TABLESAMPLE 10%": "is not allowed",
    "SELECT $secret FROM alert": "is not allowed",
    "SELECT 1": "reads no table",
    "SELECT * FROM " + ", ".join(["alert"] * 7): "may name 6 tables, got 7",
    "SELECT " + "a.*, " * 1000 + "a.ra FROM alert a": "may have 6 stars (*), got 1000",
    "SELECT * FROM alert WHERE (": "not understood as SQL",
    "SELECT * FROM alert WHERE 'open": "not understood as SQL",
    "SELECT " + "(" * 4000 + "1": "nested",
    "SELECT " + "NOT " * 2000 + "true FROM alert": "too deeply nested",
    "SELECT * FROM alert WHERE " + " OR ".join(["ra > 1"] * 300): "too deeply nested",
    "SELECT * FROM alert -- " + "x" * MAX_CHARACTERS: "characters",
    " \n-- nothing": "the filter is empty",
    "": "the filter is empty",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=[text[:40] for text in REFUSED])
def test_refused_with_the_reason(text):
    """Whatever reaches for files, settings, other data, rows or texts out of nothing is refused before it runs."""
    with pytest.raises(InputError) as refusal:
        guard(text)
    assert REFUSED[text] in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "select * from ALERT where SNR > 5;",
        "SELECT * EXCLUDE (ra) FROM alert WHERE band IN ('r', 'i') AND psfFlux BETWEEN 1 AND 1e6 -- a comment; with a semicolon",
        "SELECT diaSourceId, -2.5 * log10(psfFlux) AS mag FROM diaSource WHERE isfinite(psfFlux) AND psfFlux > 0 ORDER BY mag",
        "SELECT * FROM diaSource WHERE diaObjectId IN (SELECT diaObjectId FROM diaObject WHERE nDiaSources = 1)",
        "SELECT * FROM alert QUALIFY row_number() OVER (PARTITION BY detector ORDER BY snr DESC) <= 2",
        "SELECT max(diaSourceId) AS diaSourceId FROM alert GROUP BY detector HAVING count(*) > 3",
        "SELECT * FROM alert WHERE CASE WHEN isNegative THEN snr < -10 ELSE snr > 10 END LIMIT 3",
    ],
)
def test_plain_filters_pass_and_run(tmp_path, text):
    """What astronomers write runs."""
    result = one_result(tmp_path, text)
    assert result.error is None
    assert len(result.ids) > 0


def test_what_runs_is_what_was_checked():
    """The SQL is written anew: no comment, and quotes that hide nothing."""
    assert guard("SELECT ra /* ; DROP TABLE alert */ FROM alert -- x").sql == "SELECT ra FROM alert"
    assert guard("SELECT * FROM alert WHERE band = 'r'';DROP TABLE alert;--'").sql.endswith("band = 'r'';DROP TABLE alert;--'")


@pytest.mark.parametrize(
    "sql",
    ["SELECT * FROM read_csv('/etc/passwd')", "COPY alert TO '/tmp/x'", "SET threads = 8", "ATTACH '/tmp/x'", "INSTALL httpfs"],
)
def test_the_database_itself_is_locked(sql):
    """Behind the guard the database refuses, too: no files, no settings, no extensions."""
    import duckdb

    sandbox = Sandbox(visit_tables(3), 64)
    with pytest.raises(duckdb.Error, match="disabled|locked"):
        sandbox._database.execute(sql)
    sandbox.close()


def test_unknown_columns_are_refused_on_loading(tmp_path):
    """A misspelt column is found when the filter is loaded, not during the night."""
    (refused,) = written(tmp_path, anna="SELECT diaSourceId FROM alert WHERE psfFluxx > 1")
    assert isinstance(refused, RefusedFilter)
    assert refused.reason.startswith("filter of anna, file anna.sql: ")
    assert "psfFluxx" in refused.reason


def test_a_filter_must_give_the_ids(tmp_path):
    """Without diaSourceId nobody knows which alerts are meant; made-up ids and NULL give nothing."""
    (refused,) = written(tmp_path / "a", anna="SELECT ra FROM alert")
    assert "diaSourceId" in refused.reason
    assert one_result(tmp_path / "b", "SELECT 5 AS diaSourceId FROM alert ORDER BY 1").ids.tolist() == []
    left = one_result(tmp_path / "c", "SELECT p.diaSourceId FROM alert a LEFT JOIN ssSource p USING (diaSourceId)")
    assert sorted(left.ids.tolist()) == [1001, 1002]
    text = one_result(tmp_path / "e", "SELECT band AS diaSourceId FROM alert")
    assert len(text.ids) == 0 and "file anna.sql" in text.error


def test_only_plain_files_are_read(tmp_path):
    """A link to somebody else's file, a pipe, and what is no text are refused without a word of what is in them."""
    (tmp_path / "secret").write_text("password")
    os.symlink(tmp_path / "secret", tmp_path / "link.sql")
    os.mkfifo(tmp_path / "pipe.sql")
    (tmp_path / "bytes.sql").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad name.sql").write_text("SELECT * FROM alert")
    (tmp_path / "site-x.sql").write_text("SELECT * FROM alert")
    reasons = {one.user: one.reason for one in load_filters(tmp_path)}
    assert set(reasons) == {"link", "pipe", "bytes", "bad name", "site-x"}
    assert "is a link" in reasons["link"] and "password" not in reasons["link"]
    assert "not a plain file" in reasons["pipe"]
    assert "not UTF-8" in reasons["bytes"]
    assert "a user's name" in reasons["bad name"] and "does not begin with site-" in reasons["site-x"]


def test_a_missing_folder_is_an_error(tmp_path):
    """The site asked for filters; a wrong path must not look like no filters."""
    with pytest.raises(FileError, match="no such folder"):
        load_filters(tmp_path / "missing")
    assert load_filters(tmp_path) == []


def test_no_alerts_give_nobody_any(tmp_path):
    """A visit without alerts is no error."""
    result = one_result(tmp_path, "SELECT * FROM alert", visit_tables(0))
    assert (len(result.ids), result.error) == (0, None)


def test_site_filters_are_trusted_functions():
    """A mask chooses, without the limit of 20; exceptions and wrong shapes are that filter's own error."""
    tables = visit_tables()

    def boom(tables):
        raise ValueError("boom")

    filters = [
        SiteFilter("site-bright", "x:bright", lambda tables: tables["dia_sources"]["snr"] > 50),
        SiteFilter("site-wrong", "x:wrong", lambda tables: np.array([1, 2])),
        SiteFilter("site-boom", "x:boom", boom),
    ]
    results = run_filters(filters, tables)
    chosen = tables["dia_sources"]["dia_source_id"][tables["dia_sources"]["snr"] > 50]
    assert sorted(results["site-bright"].ids.tolist()) == chosen.tolist()
    assert "filter of site-wrong, file x:wrong: must return one bool a source" in results["site-wrong"].error
    assert "ValueError('boom')" in results["site-boom"].error


def test_entry_points_become_site_filters(monkeypatch):
    """Installed functions are found by their group; one that cannot be imported is refused with the reason."""

    def fail():
        raise ImportError("no module")

    entries = [SimpleNamespace(name="good", value="a:b", load=lambda: len), SimpleNamespace(name="bad", value="a:c", load=fail)]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries if group == module.ENTRY_POINTS else [])
    refused, good = load_site_filters()
    assert good == SiteFilter("site-good", "a:b", len)
    assert (refused.user, "no module" in refused.reason) == ("site-bad", True)


def test_the_sandbox_survives_a_broken_database(monkeypatch):
    """An internal error of DuckDB, which takes a database with it, costs one filter."""
    import duckdb

    sandbox = Sandbox(visit_tables(5), 64)
    whole = sandbox._database

    class Broken:
        def cursor(self):
            return SimpleNamespace(execute=self.fail, interrupt=lambda: None, close=lambda: None)

        def fail(self, sql):
            raise duckdb.FatalException("FATAL Error: broken")

        def close(self):
            whole.close()

    sandbox._database = Broken()
    with pytest.raises(Exception, match="broke the database"):
        sandbox.choose(guard("SELECT * FROM alert"), 1.0)
    assert len(sandbox.choose(guard("SELECT * FROM alert"), 1.0)) == 5
    sandbox.close()


def test_filters_do_not_change_the_tables(tmp_path):
    """The pipeline's tables are the same afterwards."""
    tables, same = visit_tables(), visit_tables()
    one_result(tmp_path, "SELECT * FROM alert", tables)
    for name, table in tables.items():
        for column, values in table.items():
            np.testing.assert_array_equal(values, same[name][column])


def test_loaded_filters_know_user_and_file(tmp_path):
    """The folder's order does not depend on the file system."""
    filters = written(tmp_path, zoe="SELECT * FROM alert", anna__b="SELECT * FROM alert", anna__a="SELECT * FROM alert")
    assert [(one.user, one.path) for one in filters] == [("anna", "anna/a.sql"), ("anna", "anna/b.sql"), ("zoe", "zoe.sql")]
    assert all(isinstance(one, Filter) for one in filters)
