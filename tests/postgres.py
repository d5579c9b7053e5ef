"""A PostgreSQL for the whole test run, and a fresh database for every test that asks for one.

The server is the embedded one of `rap up`, without fsync. The schema is migrated once, into a template; a
test's database is a copy of it, which takes some thirty milliseconds.
"""

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg

from cli.stack.postgres import Postgres, ensure_database
from controller.store.schema import migrate

TEMPLATE = "rap_template"

_numbers = itertools.count(1)


@contextmanager
def running() -> Iterator[Postgres]:
    """A server in a temporary folder, gone afterwards."""
    # Not pytest's folder: its path can be too long for a socket, and old runs' folders are kept there.
    base = Path(tempfile.mkdtemp(prefix="rap-test-"))
    server = Postgres(base / "postgres", base / "postgres.log", durable=False)
    try:
        server.prepare()
        server.spawn()
        server.wait_ready(60)
        yield server
    finally:
        server.stop()
        shutil.rmtree(base, ignore_errors=True)


def make_template(server: Postgres) -> None:
    """Migrate the database that every test's is copied from."""

    async def make() -> None:
        await migrate(await ensure_database(server, TEMPLATE))

    # In a thread of its own: the loop that runs the tests is none of this fixture's business.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, make()).result()


@asynccontextmanager
async def copied(admin_dsn: str, *, template: str = TEMPLATE) -> AsyncIterator[str]:
    """A copy of the template, dropped afterwards whoever is still connected; its DSN.

    :param admin_dsn: the server's `postgres` database.
    """
    name = f"test_{next(_numbers)}"
    admin = await asyncpg.connect(admin_dsn)
    try:
        await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
        try:
            yield admin_dsn.replace("/postgres?", f"/{name}?")
        finally:
            await admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await admin.close()
