"""A real PostgreSQL server for tests, on a unix socket in a folder of its own, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

OLDEST = 15


class PostgresServer:
    """A running server; ``new_database()`` returns the URL of an empty database."""

    def __init__(self, socket_dir: Path, programs: Path, user) -> None:
        self._socket_dir, self._programs, self._user = socket_dir, programs, user
        self._numbers = count()

    def start(self) -> None:
        options = f"-k {self._socket_dir} -c listen_addresses='' -c fsync=off -c shared_buffers=64MB -c max_connections=40"
        self._control("-w", "-l", self._socket_dir / "log", "-o", options, "start")

    def stop(self) -> None:
        """Cut all connections and stop."""
        self._control("-m", "fast", "stop")

    def _control(self, *arguments) -> None:
        run(self._user, self._programs / "pg_ctl", "-D", self._socket_dir / "data", *arguments)

    def url(self, name: str) -> str:
        return f"postgresql://nightstream@/{name}?host={self._socket_dir}"

    def new_database(self) -> str:
        import psycopg

        name = f"test{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """Start a server and stop it at the end; skip the test where PostgreSQL or psycopg is absent."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = find_programs()
    if programs is None:
        pytest.skip(f"PostgreSQL {OLDEST} or newer is not installed")
    folder = Path(tempfile.mkdtemp(prefix="nspg", dir="/tmp"))  # the path of a socket must be short
    user = unprivileged_user()
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    try:
        run(user, programs / "initdb", "-D", folder / "data", "-U", "nightstream", "--auth=trust", "--no-sync", "-E", "UTF8")
        server = PostgresServer(folder, programs, user)
        server.start()
        yield server
    finally:
        run(user, programs / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop", check=False)
        shutil.rmtree(folder, ignore_errors=True)


def find_programs() -> Path | None:
    """The folder of initdb and pg_ctl, of the newest version."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).parent] if on_path else []
    versions = [p for p in Path("/usr/lib/postgresql").glob("*/bin") if p.parent.name.isdigit() and int(p.parent.name) >= OLDEST]
    folders += sorted(versions, key=lambda p: -int(p.parent.name))
    return next((p for p in folders if (p / "initdb").exists() and (p / "pg_ctl").exists()), None)


def unprivileged_user():
    """Whom to run the server as, which refuses to run as root; None for the present user."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


def run(user, *command, check: bool = True) -> None:
    """Run a program of the server; its words are part of the error."""
    who = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with tempfile.TemporaryFile() as words:  # not a pipe: the server would keep it open
        done = subprocess.run(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=words, stderr=words, cwd="/", check=False, **who
        )
        words.seek(0)
        if check and done.returncode:
            raise RuntimeError(f"{command[0]} failed: {words.read().decode()}")
