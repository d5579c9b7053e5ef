"""Agents that declared themselves before policies had levels are understood after the migration."""

import json
from collections.abc import AsyncIterator

import asyncpg
import pytest

from controller.core.releases import words
from controller.store.schema import migrations
from tests import postgres

pytestmark = pytest.mark.may_block
"""Migrating reads its files as it goes: nobody else is there yet."""

BEFORE = {
    "open": ({"metrics": True, "logs": True, "outputs": True}, "open"),
    "usual": ({"metrics": True, "logs": False, "outputs": False}, "status,+metrics"),
    "named": ({"metrics": False, "logs": False, "outputs": True}, "status,+outputs:all"),
    "silent": ({"metrics": False}, "status"),
    "forgotten": ({}, "unknown"),
}


@pytest.fixture
async def connection(postgres_dsn: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    async with postgres.copied(postgres_dsn, template="template0") as dsn:
        connection = await asyncpg.connect(dsn)
        yield connection
        await connection.close()


async def test_stored_policies_get_levels(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    for step in migrations():
        if step.name == "0005_releases":
            await connection.execute("INSERT INTO backend VALUES ('b', now())")
            for name, (egress, _) in BEFORE.items():
                await connection.execute(
                    "INSERT INTO agent (backend, id, version, executor, slots, egress, last_seen_at)"
                    " VALUES ('b', $1, '1', 'fake', 1, $2, now())",
                    name,
                    json.dumps(egress),
                )
        await connection.execute(step.sql)
    rows = await connection.fetch("SELECT id, egress FROM agent")
    assert {row["id"]: words(json.loads(row["egress"])) for row in rows} == {
        name: after for name, (_, after) in BEFORE.items()
    }
