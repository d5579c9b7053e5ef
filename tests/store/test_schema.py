"""Migrations, and the refusal to work on any other schema."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from controller.store import schema
from controller.store.schema import SchemaError, migrate, migrations
from tests import postgres

pytestmark = pytest.mark.may_block
"""Migrating reads its files as it goes: nobody else is there yet."""


@pytest.fixture
async def empty_dsn(postgres_dsn: str) -> AsyncIterator[str]:
    async with postgres.copied(postgres_dsn, template="template0") as dsn:
        yield dsn


async def execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def check(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await schema.check(connection)
    finally:
        await connection.close()


async def test_migrating_twice_applies_every_step_once(empty_dsn: str) -> None:
    assert await migrate(empty_dsn) == tuple(step.name for step in migrations())
    assert await migrate(empty_dsn) == ()
    await check(empty_dsn)


async def test_simultaneous_migrations_take_turns(empty_dsn: str) -> None:
    applied = await asyncio.gather(*(migrate(empty_dsn) for _ in range(4)))
    assert sorted(applied, key=len) == [(), (), (), tuple(step.name for step in migrations())]


async def test_a_step_that_fails_leaves_nothing_of_itself(empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (*_, last) = migrations()
    broken = schema.Migration(last.number + 1, "9999_broken", "CREATE TABLE half (); SELECT 1 / 0;")
    monkeypatch.setattr(schema, "migrations", lambda: (*migrations(), broken))
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(empty_dsn)
    monkeypatch.undo()
    await check(empty_dsn)
    with pytest.raises(asyncpg.UndefinedTableError):
        await execute(empty_dsn, "SELECT FROM half")


CHANGES: dict[str, tuple[str, str]] = {
    "nothing was ever migrated": ("DROP TABLE schema_migration", "Run `rap migrate` first"),
    "a step is missing": ("DELETE FROM schema_migration WHERE number = 1", "lacks migrations (0001_"),
    "a newer program was here": (
        "INSERT INTO schema_migration VALUES (9999, '9999_future', 'x')",
        "newer version of this program (9999_future)",
    ),
    "a step was edited": ("UPDATE schema_migration SET digest = 'x' WHERE number = 1", "edited after they had been"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_any_other_schema_is_refused(database_dsn: str, change: str) -> None:
    sql, words = CHANGES[change]
    await execute(database_dsn, sql)
    with pytest.raises(SchemaError) as refusal:
        await check(database_dsn)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


async def test_a_controller_refuses_to_start_with_one_line(empty_dsn: str, tmp_path: Path) -> None:
    host = empty_dsn.partition("host=")[2]
    dsns = [
        empty_dsn,
        f"postgresql://postgres@/no_such_database?host={host}",
        f"postgresql://nobody_known@/postgres?host={host}",
        "postgresql://postgres@/postgres?host=/nowhere/at/all",
        "postgresql://postgres@127.0.0.1:99999/postgres",
        "postgresql://postgres@127.0.0.1:1/postgres",
        "postgresql://postgres@[oops/postgres",
    ]
    ends = await asyncio.gather(*(start(dsn, tmp_path) for dsn in dsns))
    for dsn, (code, lines) in zip(dsns, ends, strict=True):
        assert code == 2, (dsn, lines)
        assert len(lines) == 1, (dsn, lines)
        assert lines[0].startswith(("rap controller: ", "RAP_DATABASE_URL")), (dsn, lines)
    assert "Run `rap migrate` first" in ends[0][1][0]


async def start(dsn: str, workdir: Path) -> tuple[int | None, list[str]]:
    """The exit code and the words of a controller that cannot start."""
    names = {"RAP_DATABASE_URL": dsn, "BACKENDS": "test", "RAP_LISTEN": "127.0.0.1:0", "WORKDIR": str(workdir)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "controller",
        env={"PATH": os.environ["PATH"]} | names,
        cwd=Path(__file__).parents[2],
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    return process.returncode, said.decode().splitlines()
