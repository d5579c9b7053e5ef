"""The embedded PostgreSQL: what a killed start leaves behind, long paths, and a folder that cannot be used."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import asyncpg
import psutil
import pytest

from cli.stack.postgres import Postgres, PostgresError, ensure_database
from tests.cli.up_stack import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, as sockets need it."""
    base = Path(tempfile.mkdtemp(prefix="rap-pg-test-"))
    yield base
    shutil.rmtree(base)


def started(folder: Path) -> Postgres:
    server = Postgres(folder / "postgres", folder / "log")
    server.prepare()
    server.spawn()
    server.wait_ready()
    return server


async def test_what_was_committed_is_there_after_the_server_is_killed(folder: Path):
    server = started(folder)
    try:
        connection = await asyncpg.connect(await ensure_database(server, "rap"))
        assert await connection.fetchval("SHOW fsync") == "on"
        assert await connection.fetchval("SHOW synchronous_commit") == "on"
        await connection.execute("CREATE TABLE t (n integer); INSERT INTO t VALUES (1)")
        pid = int((folder / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)
        server.wait()
        connection.terminate()
        server.prepare()
        server.spawn()
        server.wait_ready()
        connection = await asyncpg.connect(await ensure_database(server, "rap"))
        assert await connection.fetchval("SELECT n FROM t") == 1
        await connection.close()
    finally:
        server.stop()


def test_a_server_that_still_runs_is_ended_first(folder: Path):
    """Its starter is killed, and stands in for a kernel that does not take children down: no signal on our death."""
    first = started(folder)
    first.stop()
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from cli.stack import children\n"
        "children.tie = lambda signum: None\n"
        "from cli.stack.postgres import Postgres\n"
        "server = Postgres(Path(sys.argv[1]) / 'postgres', Path(sys.argv[1]) / 'log')\n"
        "server.prepare(); server.spawn(); server.wait_ready()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
    )
    left = psutil.Process(int((folder / "postgres" / "postmaster.pid").read_text().splitlines()[0]))
    assert left.is_running()
    second = started(folder)
    try:
        assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
    finally:
        second.stop()


def test_a_stale_note_with_the_number_of_another_process_is_ignored(folder: Path):
    started(folder).stop()
    (folder / "postgres" / "postmaster.pid").write_text(
        f"{os.getpid()}\n{folder / 'postgres'}\n1700000000\n5432\n{folder / 'postgres'}\n\n 1 2\nready\n"
    )
    (folder / "postgres" / ".s.PGSQL.5432.lock").write_text(f"{os.getpid()}\n")
    server = started(folder)
    server.stop()


def test_a_half_made_database_is_made_again(folder: Path):
    (folder / "postgres.new" / "base").mkdir(parents=True)
    server = started(folder)
    server.stop()
    assert not (folder / "postgres.new").exists()


def test_a_path_too_long_for_a_socket(folder: Path):
    deep = folder / ("x" * 100)
    deep.mkdir()
    server = started(deep)
    try:
        dsn = asyncio.run(ensure_database(server, "rap"))
        socket_dir = Path(unquote(dsn.partition("?host=")[2]))
        assert "rap-pg-" in socket_dir.name
        assert socket_dir.is_dir()
    finally:
        server.stop()
    assert not socket_dir.exists()


def test_a_database_of_another_version_is_refused_by_name(folder: Path):
    (folder / "postgres").mkdir()
    (folder / "postgres" / "PG_VERSION").write_text("9\n")
    server = Postgres(folder / "postgres", folder / "log")
    server.prepare()
    with pytest.raises(PostgresError, match="made by PostgreSQL 9"):
        server.spawn()


def test_a_server_that_cannot_start_says_why(folder: Path):
    started(folder).stop()
    (folder / "postgres" / "postgresql.conf").write_text("nonsense = 1\n")
    server = Postgres(folder / "postgres", folder / "log")
    server.prepare()
    server.spawn()
    try:
        with pytest.raises(PostgresError, match=r"ended while it was starting: .*configuration file"):
            server.wait_ready()
    finally:
        server.stop()


def test_a_folder_that_cannot_be_made(folder: Path):
    (folder / "file").write_text("")
    with pytest.raises(PostgresError, match="cannot be set up"):
        Postgres(folder / "file" / "postgres", folder / "log").prepare()
