"""The prompt database on a PostgreSQL server: rights, isolation, folders, and connections that break."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from prompt_tables import MJD, whole_visit

from nightstream.errors import DatabaseError, DisconnectedError
from nightstream.io.database.prompt_database import open_database

EVER = -np.inf


def test_roles_need_no_more_than_their_work(postgres_server):
    """A role that may only read can use the archive; one that may also write rows publishes; neither owns anything."""
    import psycopg

    url = postgres_server.new_database()
    open_database(url).close()
    rights = {"reads": "SELECT", "writes": "SELECT, INSERT, UPDATE, DELETE"}
    with psycopg.connect(url, autocommit=True) as owner:
        for role, right in rights.items():
            owner.execute(f"CREATE ROLE {role} LOGIN")
            owner.execute(f"GRANT {right} ON ALL TABLES IN SCHEMA public TO {role}")
    with open_database(url.replace("nightstream@", "writes@")) as database:
        assert database.write(whole_visit(7)) == {1, 2}
        database.mark_sent(database.unsent_alerts("visit=7.avro")["dia_source_id"], MJD)
        assert database.unsent_files() == []
    with open_database(url.replace("nightstream@", "reads@")) as database:
        assert len(database.history([1001], EVER)[0]["ra"]) == len(database.find_alert(7_001_001)["visit"]) == 1
        with pytest.raises(DatabaseError, match="permission denied"):
            database.write(whole_visit(8))
    with psycopg.connect(url, autocommit=True) as owner:
        for role in rights:
            owner.execute(f"DROP OWNED BY {role}")
            owner.execute(f"DROP ROLE {role}")


def test_a_writer_sees_what_the_last_one_left_whatever_the_servers_default(postgres_server):
    """A server that isolates by snapshot: who waited for another writer still finds what that one stored."""
    import psycopg

    url = postgres_server.new_database()
    with psycopg.connect(url, autocommit=True) as owner:
        name = owner.info.dbname
        owner.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    with open_database(url) as database:
        with database.alone():
            other = threading.Thread(target=database.write, args=(whole_visit(7),))
            other.start()
            other.join(0.2)
            assert database.write(whole_visit(7)) == {1, 2}
        other.join()
        assert database.revision() == 1 and database.row_counts()["DiaSource"] == 6


def test_alerts_in_another_folder_are_others_to_send(postgres_server, tmp_path):
    """Of two processes on a server's database each sees the files of its own spool folder; without one, all are seen."""
    url = postgres_server.new_database()
    for visit, name in ((7, "a"), (8, "b")):
        with open_database(url, spool_dir=tmp_path / name) as database:
            database.write(whole_visit(visit))
            assert [file.visit for file in database.unsent_files()] == [visit]
    with open_database(url) as database:
        assert [file.visit for file in database.unsent_files()] == [7, 8]
        database.write(whole_visit(9))
        found = database.spool_dirs(["visit=8.avro", "visit=9.avro"])
        assert found == {"visit=8.avro": str(tmp_path / "b"), "visit=9.avro": ""}


def test_an_unreachable_server_is_told(tmp_path):
    """Without a server the error names the database, and shows no password."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with pytest.raises(DatabaseError, match="postgresql://me@/lost") as caught:
        open_database(f"postgresql://me:secret@/lost?host={tmp_path}")
    assert "secret" not in str(caught.value)


def test_a_cut_connection_is_made_anew(postgres_server):
    """When the server cuts a connection, what was under way is an error that leaves nothing, and the next write works."""
    import psycopg

    url = postgres_server.new_database()
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with open_database(url) as database, psycopg.connect(url, autocommit=True) as other:
        with pytest.raises(DisconnectedError, match="terminating connection"), database._store.transaction(write=True) as session:
            session.execute('INSERT INTO "Revision" VALUES (1, 1)')
            other.execute(cut)
            session.execute("SELECT 1")
        assert database.revision() == 0
        other.execute(cut)
        assert database.write(whole_visit(7)) == {1, 2}


def test_a_restarted_server_is_waited_for(postgres_server):
    """A database that is open works again when its server is back, without being opened again."""
    with open_database(postgres_server.new_database()) as database:
        database.write(whole_visit(7))
        stopped = threading.Event()

        def restart() -> None:
            postgres_server.stop()
            stopped.set()
            postgres_server.start()

        restarting = threading.Thread(target=restart)
        restarting.start()
        stopped.wait()
        assert database.write(whole_visit(8)) == {1, 2} and database.row_counts()["DiaSource"] == 12
        restarting.join()
