"""Egress policies from end to end: a real controller, real agents, and what the database then holds of files."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from cli.commands import release as command
from cli.connection import Connection
from common import tokens
from tests.e2e.conftest import LiveController
from tests.e2e.processes import OPERATOR_TOKEN, agent_process, eventually, job, running
from tests.engine.conftest import Study, commit_project

OPERATOR = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
TABLE, SUMMARY, ROWS = "output/canary-table.csv", "output/canary-summary.txt", "output/canary-rows.csv"
SPARE = "output/canary-spare.txt"
REVIEWED = "status,+outputs:moderately_sensitive:reviewed"


@pytest.fixture
def writing(tmp_path: Path) -> Study:
    """One action with outputs of every level, and one file that no pattern matches."""
    files = (TABLE, SUMMARY, ROWS, SPARE)
    action = {
        "run": " ".join(["python:v2", "log:canary-log", *(f"write:{file}=canary" for file in files)]),
        "outputs": {
            # Patterns that say less than the names: the controller knows the former.
            "moderately_sensitive": {"table": "output/*e.csv"},
            "minimally_sensitive": {"summary": "output/*y.txt"},
            "highly_sensitive": {"rows": "output/*s.csv"},
        },
    }
    commit = commit_project(tmp_path / "writing", {"version": "4", "actions": {"work": action}})
    return Study(tmp_path / "writing", commit)


async def run_job(live: LiveController, study: Study) -> str:
    """The id of a job that has succeeded."""
    status, created = await live.create(study, "work")
    assert status == 201, created

    async def finished() -> str | None:
        found = (await live.jobs(created["rap_id"]))["work"]
        assert found["status"] != "failed", found
        return str(found["identifier"]) if found["status"] == "succeeded" else None

    return await eventually(finished)


async def reviewer(live: LiveController) -> str:
    """A token of somebody who may release outputs."""
    secret = tokens.make()
    body = {"name": "carol", "digest": tokens.digest(secret).hex(), "grants": {"test": ["read", "review"]}}
    async with live.portal.post(f"{live.url}/api/tokens", json=body, headers=OPERATOR) as response:
        assert response.status == 200, await response.text()
    return secret


async def ask(live: LiveController, job_id: str, token: str, *paths: str) -> tuple[int, dict[str, Any]]:
    body = {"paths": list(paths)} if paths else None
    headers = {"Authorization": f"Bearer {token}"}
    async with live.portal.post(f"{live.url}/api/jobs/{job_id}/release", json=body, headers=headers) as response:
        return response.status, await response.json()


async def released(live: LiveController, job_id: str, number: int) -> dict[str, Any]:
    """The release, once it was answered."""

    async def look() -> dict[str, Any] | None:
        async with live.portal.get(f"{live.url}/api/jobs/{job_id}/releases") as response:
            found = (await response.json())["releases"]
        return next((each for each in found if each["number"] == number and each["state"] != "waiting"), None)

    return await eventually(look)


async def policy(live: LiveController) -> list[str]:
    async with live.portal.get(f"{live.url}/api/agents") as response:
        return [agent["policy"] for agent in (await response.json())["agents"]]


async def everything_in(dsn: str) -> str:
    """All that agents could have written of, as text; not what the author of the study has asked for."""
    connection = await asyncpg.connect(dsn)
    try:
        rows: list[Any] = []
        for query in (
            "SELECT message, metrics FROM job",
            "SELECT message FROM job_event",
            "SELECT content FROM event WHERE kind IN ('job', 'agent')",
            "SELECT metrics FROM job_sample",
            "SELECT results FROM task",
            "SELECT * FROM output",
            "SELECT * FROM job_log",
            "SELECT * FROM agent",
        ):
            rows += [str(dict(row)) for row in await connection.fetch(query)]
        return "\n".join(rows)
    finally:
        await connection.close()


@asynccontextmanager
async def serving(live: LiveController, folder: Path, egress: str | None, name: str = "a1") -> AsyncIterator[None]:
    more = {} if egress is None else {"RAP_EGRESS": egress}
    async with running(agent_process(name, live.url, folder, **more)):
        yield


@pytest.mark.parametrize(
    ("egress", "words", "named", "log"),
    [
        (None, "status", set(), False),
        ("+logs", "status,+logs", set(), True),
        ("+outputs:minimally_sensitive", "status,+outputs:minimally_sensitive", {SUMMARY}, False),
        ("+outputs:moderately_sensitive", "status,+outputs:moderately_sensitive", {SUMMARY, TABLE}, False),
        (REVIEWED, REVIEWED, set(), False),
        ("open", "open", {SUMMARY, TABLE, ROWS}, True),
    ],
)
async def test_what_the_controller_then_knows(
    live: LiveController, database_dsn: str, tmp_path: Path, writing: Study,
    egress: str | None, words: str, named: set[str], log: bool,
) -> None:  # fmt: skip
    async with serving(live, tmp_path, egress):
        found = await job(live, await run_job(live, writing))
        assert await policy(live) == [words]
    assert {output["path"] for output in found["outputs"]} == named
    assert all(output["released_by"] is None for output in found["outputs"])
    known = await everything_in(database_dsn)
    assert {file for file in (TABLE, SUMMARY, ROWS) if file in known} == named
    assert ("canary-log" in known) is log
    assert ("canary" in known) is bool(named or log)
    assert (SPARE in known) is False


async def test_what_was_reviewed_leaves_and_only_that(
    live: LiveController, database_dsn: str, tmp_path: Path, writing: Study
) -> None:
    async with serving(live, tmp_path, REVIEWED):
        job_id = await run_job(live, writing)
    carol = await reviewer(live)
    assert (await ask(live, job_id, OPERATOR_TOKEN))[0] == 403, "who operates a backend reviews only if told so"
    status, asked = await ask(live, job_id, carol, TABLE, ROWS)
    assert (status, asked["changed"], asked["release"]["state"]) == (200, True, "waiting")
    assert (await ask(live, job_id, carol, ROWS, TABLE))[1]["changed"] is False
    # Nobody was there meanwhile: whoever comes back finds the task.
    async with serving(live, tmp_path, REVIEWED):
        done = await released(live, job_id, 1)
        assert (done["state"], done["message"]) == ("done", "1 output is released. 1 was refused.")
        (output,) = (await job(live, job_id))["outputs"]
        assert (output["path"], output["released_by"]) == (TABLE, "token carol")
        assert output["released_at"] is not None
        known = await everything_in(database_dsn)
        assert SUMMARY not in known
        connection = Connection(url=live.url, token=carol, backend=None, retry_for=10, json=True)
        everything = await command._release(connection, job_id, (), 60)
        assert [each["path"] for each in everything["released"]] == [SUMMARY, TABLE]
    known = await everything_in(database_dsn)
    assert SPARE not in known
    assert (await asyncio.to_thread((tmp_path / "medium/workspaces/study" / TABLE).read_text)) == "canary"


async def test_an_agent_with_other_storage_leaves_it_to_the_one_with_the_files(
    live: LiveController, database_dsn: str, tmp_path: Path, writing: Study
) -> None:
    async with serving(live, tmp_path / "one", REVIEWED, "one"):
        job_id = await run_job(live, writing)
    _, asked = await ask(live, job_id, await reviewer(live), TABLE)
    async with serving(live, tmp_path / "two", REVIEWED, "two"):

        async def asked_another() -> bool:
            connection = await asyncpg.connect(database_dsn)
            try:
                return await connection.fetchval("SELECT count(*) FROM task WHERE type = 'release'") == 2
            finally:
                await connection.close()

        await eventually(asked_another)
        async with serving(live, tmp_path / "one", REVIEWED, "one"):
            done = await released(live, job_id, asked["release"]["number"])
    assert (done["state"], done["agent"]) == ("done", "one")
    assert [each["path"] for each in done["released"]] == [TABLE]
