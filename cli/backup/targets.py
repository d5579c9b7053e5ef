"""Which database is meant: the one of RAP_DATABASE_URL, or the one that a `rap up` keeps in its folder."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

import asyncpg
from attrs import field, frozen

from cli import local
from cli.errors import Problem
from cli.stack import place as places
from cli.stack.place import Place
from cli.stack.postgres import USER, Postgres, PostgresError, ensure_database
from common.environ import ConfigurationError
from controller.settings import database_url

DATABASE: Final = "rap"
"""The database of a `rap up`."""
_SOCKET_LINE: Final = 4
"""Of `postmaster.pid`: the folder of the server's socket."""


@frozen(kw_only=True)
class Target:
    """A database, and how to speak of it."""

    dsn: str = field(repr=False)
    name: str
    """For sentences; without a password."""


def chosen(data: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of the `rap up` that is meant; None if RAP_DATABASE_URL is.

    A folder that is named wins, then RAP_DATABASE_URL, then the `rap up` that runs, then the usual folder.

    :raises Problem: nothing is named and nothing is there.
    """
    if data is not None:
        return data.absolute()
    if environ.get("RAP_DATABASE_URL"):
        return None
    running = local.find(environ)
    folder = Path(running.data_dir) if running is not None else places.default_folder(environ)
    if not _has_database(folder):
        raise Problem("which database? Set RAP_DATABASE_URL, or name the folder of a `rap up` with --data")
    return folder


@contextmanager
def existing(folder: Path | None) -> Iterator[Target]:
    """A database to read from; that of a folder is started for the time if nobody runs it.

    :raises Problem: there is none, or it cannot be reached.
    """
    if folder is None:
        yield _external()
        return
    if not _has_database(folder):
        raise Problem(f"{folder} holds no database of a `rap up`: check --data")
    running = _socket_of(folder)
    if running is not None:
        yield Target(dsn=_dsn(running), name=f"the running `rap up` on {folder}")
        return
    with _started(folder) as server:
        yield Target(dsn=server.dsn(DATABASE), name=f"the database in {folder}")


@contextmanager
def empty_one(folder: Path | None) -> Iterator[Target]:
    """A database to restore into: whether it is empty is for the caller to see. A folder's is made if missing.

    :raises Problem: a `rap up` runs on the folder, or it cannot be reached.
    """
    if folder is None:
        yield _external()
        return
    with _started(folder) as server:
        try:
            dsn = asyncio.run(ensure_database(server, DATABASE))
        except (asyncpg.PostgresError, OSError) as error:
            raise Problem(f"the database in {folder} cannot be used: {error}") from error
        yield Target(dsn=dsn, name=f"the database in {folder}")


def _external() -> Target:
    try:
        return Target(dsn=database_url(os.environ), name="the database of RAP_DATABASE_URL")
    except ConfigurationError as error:
        raise Problem(str(error)) from error


def _has_database(folder: Path) -> bool:
    return (folder / "postgres" / "PG_VERSION").exists()


def _socket_of(folder: Path) -> Path | None:
    """Where the server of a running `rap up` listens, by PostgreSQL's own note; None if nobody has the folder."""
    try:
        places.Lock(folder).release()
    except Problem:
        try:
            lines = (folder / "postgres" / "postmaster.pid").read_text().splitlines()
        except OSError as error:
            raise Problem(f"the `rap up` on {folder} is just starting or stopping: try again") from error
        if len(lines) <= _SOCKET_LINE or not lines[_SOCKET_LINE]:
            raise Problem(f"the `rap up` on {folder} is just starting or stopping: try again") from None
        return Path(lines[_SOCKET_LINE])
    return None


def _dsn(socket: Path) -> str:
    return f"postgresql://{USER}@/{DATABASE}?host={quote(str(socket), safe='')}"


@contextmanager
def _started(folder: Path) -> Iterator[Postgres]:
    """The folder's server, for as long as it is needed; nobody else can start it meanwhile."""
    lock = places.Lock(folder)
    try:
        place = Place(folder)
        place.logs.mkdir(exist_ok=True, mode=0o700)
        server = Postgres(place.postgres, place.logs / "postgres.log")
        try:
            server.prepare()
            server.spawn()
            server.wait_ready()
            yield server
        except PostgresError as error:
            raise Problem(str(error)) from error
        finally:
            server.stop()
    finally:
        lock.release()
