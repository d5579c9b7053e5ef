"""Migrations: numbered SQL files, forward only, each applied in one transaction and recorded.

A controller starts only on exactly the schema that it knows: older is "run rap migrate", newer is "this program is
too old" (house-style section 3).
"""

import hashlib
from functools import cache
from pathlib import Path

import asyncpg
from attrs import frozen

from controller.store.queries import Tx

_FOLDER = Path(__file__).parent / "migrations"
_LOCK = 7_206_001
"""Advisory lock: two `rap migrate` at once take turns."""


class SchemaError(Exception):
    """The database's schema is not the one that this program works with; the text says what to do."""


@frozen
class Migration:
    """One step of the schema."""

    number: int
    name: str
    sql: str

    @property
    def digest(self) -> str:
        """Tells whether an applied migration was edited afterwards."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


@cache
def migrations() -> tuple[Migration, ...]:
    """All known steps, in order, numbered from 1 without a gap."""
    found = tuple(
        Migration(int(path.stem.partition("_")[0]), path.stem, path.read_text())
        for path in sorted(_FOLDER.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    )
    if [step.number for step in found] != list(range(1, len(found) + 1)):
        raise SchemaError(f"migrations are not numbered from 1 without a gap: {[step.name for step in found]}")
    return found


async def migrate(dsn: str) -> tuple[str, ...]:
    """Bring the database to the newest schema; the names of the steps applied (none if it was there already).

    :raises SchemaError: the database is newer than this program, or an applied step was changed.
    """
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migration "
            "(number integer PRIMARY KEY, name text NOT NULL, digest text NOT NULL, "
            "applied_at timestamptz NOT NULL DEFAULT now())"
        )
        missing = _missing(await _applied(connection))
        for step in missing:
            async with connection.transaction():
                await connection.execute(step.sql)
                await connection.execute(
                    "INSERT INTO schema_migration (number, name, digest) VALUES ($1, $2, $3)",
                    step.number,
                    step.name,
                    step.digest,
                )
        return tuple(step.name for step in missing)
    finally:
        await connection.close()


async def check(connection: Tx) -> None:
    """Whether the database has exactly the schema that this program knows.

    :raises SchemaError: with the sentence for the operator.
    """
    exists = await connection.fetchval("SELECT to_regclass('schema_migration') IS NOT NULL")
    missing = _missing(await _applied(connection) if exists else {})
    if missing:
        names = ", ".join(step.name for step in missing)
        raise SchemaError(f"The database lacks migrations ({names}). Run `rap migrate` first.")


async def _applied(connection: Tx) -> dict[int, tuple[str, str]]:
    rows = await connection.fetch("SELECT number, name, digest FROM schema_migration")
    return {row["number"]: (row["name"], row["digest"]) for row in rows}


def _missing(applied: dict[int, tuple[str, str]]) -> list[Migration]:
    known = {step.number: step for step in migrations()}
    newer = sorted(name for number, (name, _) in applied.items() if number not in known)
    if newer:
        raise SchemaError(
            f"The database was migrated by a newer version of this program ({', '.join(newer)}). "
            "Upgrade the controller."
        )
    changed = [known[number].name for number, (_, digest) in applied.items() if known[number].digest != digest]
    if changed:
        raise SchemaError(f"Migrations were edited after they had been applied: {', '.join(sorted(changed))}.")
    return [step for number, step in sorted(known.items()) if number not in applied]
