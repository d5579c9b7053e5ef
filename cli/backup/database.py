"""One database, dumped and restored: what is in it, whether it is empty, what its schema is."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import IO, TYPE_CHECKING, Final, TypeVar

import asyncpg
from attrs import evolve, frozen

from cli.backup import programs
from cli.backup.archive import Manifest, Migration
from cli.backup.targets import Target
from cli.errors import Problem
from controller.store import schema

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
else:  # the class takes no parameters at run time
    Connection = asyncpg.Connection

T = TypeVar("T")

_NOT_OURS: Final = """
SELECT format('%s %I.%I', CASE WHEN kind = 'f' THEN 'function' ELSE 'relation' END, schema, name) FROM (
    SELECT nspname AS schema, relname AS name, 'r' AS kind
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    UNION ALL
    SELECT nspname, proname, 'f' FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
    WHERE NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')
) AS thing
WHERE schema NOT LIKE 'pg\\_%' AND schema <> 'information_schema'
ORDER BY schema <> 'public', name LIMIT 1
"""


@frozen(kw_only=True)
class Restored:
    """What was brought back."""

    raps: int
    jobs: int
    missing: Sequence[str]
    """Migrations that this program knows and the backup did not have."""


async def dump(target: Target, output: IO[bytes], *, with_blobs: bool) -> Manifest:
    """Write the database as it is at one moment, while it is being used; the manifest lacks the hashes.

    :raises Problem: it cannot be reached, is none of ours, or there is no `pg_dump` for it.
    """

    async def work(connection: Connection) -> Manifest:
        server = connection.get_server_version().major
        program = programs.find("pg_dump", server, f"the server of {target.name} is {server}")
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            if not await connection.fetchval("SELECT to_regclass('schema_migration') IS NOT NULL"):
                raise Problem(f"{target.name} has no tables of ours: nothing to back up")
            manifest = Manifest(
                version=_version(),
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                server=server,
                pg_dump=program.version,
                migrations=await _applied(connection),
                raps=await connection.fetchval("SELECT count(*) FROM rap"),
                jobs=await connection.fetchval("SELECT count(*) FROM job"),
                with_blobs=with_blobs,
            )
            # The connection holds the snapshot for as long as pg_dump reads it: blocking is what is wanted here.
            snapshot = await connection.fetchval("SELECT pg_export_snapshot()")
            programs.dump(program, target.dsn, snapshot, output)
        return manifest

    return await _connected(target, work)


async def check_restorable(target: Target, manifest: Manifest) -> None:
    """Whether the backup can go into this database, before anything is changed.

    :raises Problem: the database is not empty or too old, or the backup's schema is newer than this program.
    """
    known = {step.number: step for step in schema.migrations()}
    newer = [step.name for step in manifest.migrations if step.number not in known]
    if newer:
        names = ", ".join(newer)
        raise Problem(f"the backup has migrations that this program does not know ({names}): use a newer program")
    changed = [step.name for step in manifest.migrations if known[step.number].digest != step.digest]
    if changed:
        raise Problem(f"the backup's migrations are not those of this program: {', '.join(changed)}")

    async def work(connection: Connection) -> None:
        server = connection.get_server_version().major
        if server < manifest.server:
            raise Problem(
                f"{target.name} is PostgreSQL {server}; the backup is from {manifest.server}: use a newer one"
            )
        found = await connection.fetchval(_NOT_OURS)
        if found is not None:
            raise Problem(f"{target.name} is not empty (it has {found}): nothing was changed. Restore into a new one")

    await _connected(target, work)


async def restore(target: Target, manifest: Manifest, stream: IO[bytes]) -> Restored:
    """Bring everything back in one transaction, and see that it is there.

    :raises Problem: it failed; unless the sentence says otherwise, nothing was changed.
    """
    program = programs.find("pg_restore", manifest.pg_dump, f"the backup was made by pg_dump {manifest.pg_dump}")
    programs.restore(program, target.dsn, stream)

    async def work(connection: Connection) -> Restored:
        await connection.execute("ANALYZE")  # a dump has no statistics, and plans need them at once
        raps = await connection.fetchval("SELECT count(*) FROM rap")
        jobs = await connection.fetchval("SELECT count(*) FROM job")
        if (raps, jobs) != (manifest.raps, manifest.jobs):
            raise Problem(
                f"{target.name} was restored, but has {raps} RAPs and {jobs} jobs instead of {manifest.raps} and "
                f"{manifest.jobs}: do not use it"
            )
        there = {step.number for step in manifest.migrations}
        missing = [step.name for step in schema.migrations() if step.number not in there]
        return Restored(raps=raps, jobs=jobs, missing=missing)

    return await _connected(target, work)


def with_hashes(manifest: Manifest, sha256: dict[str, str]) -> Manifest:
    """The manifest, complete."""
    return evolve(manifest, sha256=sha256)


async def _connected(target: Target, work: Callable[[Connection], Awaitable[T]]) -> T:
    try:
        connection = await asyncpg.connect(target.dsn, timeout=30)
        try:
            return await work(connection)
        finally:
            await connection.close(timeout=10)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        # The text of a connection's failure names host and user, never the password.
        raise Problem(f"{target.name} cannot be used: {error}") from error


async def _applied(connection: Connection) -> tuple[Migration, ...]:
    rows = await connection.fetch("SELECT number, name, digest FROM schema_migration ORDER BY number")
    return tuple(Migration(number=row["number"], name=row["name"], digest=row["digest"]) for row in rows)


def _version() -> str:
    try:
        return version("rap-controller")
    except PackageNotFoundError:
        return "(not installed)"
