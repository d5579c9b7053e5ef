"""The golden pairs of schemas/, replayed against a real controller: engine, database, git and all."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
import pytest
from aiohttp.test_utils import TestClient, TestServer
from attrs import evolve, frozen

from common.clock import SystemClock
from controller.app import Controller, controller
from controller.settings import from_environ
from controller.store import backends
from tests.dialects.examples import Example, load
from tests.engine.conftest import commit_project

REPO: Final = "https://github.com/opensafely/test-study"
COMMIT: Final = "07d5f283bb66f52a49933b016cf8dc144cfc7180"
TASK: Final = "zhgksvaob3u5opzv-001"
RAP: Final = "a1b2c3d4e5f6g7h8"

PROJECT: Final = {
    "version": "4",
    "actions": {
        "extract": {
            "run": "python:v2 python analysis/extract.py",
            "outputs": {"highly_sensitive": {"rows": "output/rows.csv"}},
        },
        "analyse": {
            "run": "python:v2 python analysis/analyse.py",
            "needs": ["extract"],
            "outputs": {"moderately_sensitive": {"table": "output/table.csv"}},
        },
    },
}
METRICS: Final = {"cpu_mean": 82.5, "cpu_peak": 99.9, "mem_mb_mean": 120, "mem_mb_peak": 210}


@frozen
class World:
    """A real controller and what the examples' fixed values are in it."""

    client: TestClient[Any, Any]
    made: Controller
    repo: str
    commit: str
    database: str
    admin_dsn: str

    def real(self, example: Example, task: str = TASK) -> Example:
        """The example with the values of this world in its request."""
        text = json.dumps(example.request).replace(REPO, self.repo).replace(COMMIT, self.commit).replace(TASK, task)
        return evolve(example, request=json.loads(text))

    async def post(self, path: str, body: Any) -> Any:
        headers = {"Authorization": "portal-token"}
        async with self.client.post(f"/controller/v1/{path}", json=body, headers=headers) as response:
            assert response.status in (200, 201), await response.text()
            return await response.json()

    async def create(self, rap_id: str = RAP, *actions: str) -> None:
        (example,) = [each for each in load("rap") if each.name == "create makes jobs"]
        body = self.real(example).request["body"]
        await self.post("rap/create/", body | {"rap_id": rap_id, "requested_actions": actions or ["analyse"]})

    async def until(self, *codes: str) -> None:
        """Return once the RAP's jobs have these codes; the scheduler works on its own."""
        async with asyncio.timeout(20):
            while codes != tuple(
                j["status_code"] for j in (await self.post("rap/status/", {"rap_ids": [RAP]}))["jobs"]
            ):
                pass

    async def task(self) -> str:
        """The id of the one active task."""
        async with self.client.get("/test/tasks/", headers={"Authorization": "agent-token"}) as response:
            ((task,)) = (await response.json())["tasks"]
            return str(task["id"])

    async def update(self, stage: str, results: dict[str, Any], *, complete: bool) -> None:
        said = {"task_id": await self.task(), "stage": stage, "results": results, "complete": complete}
        form, headers = {"payload": json.dumps(said | {"timestamp_ns": None})}, {"Authorization": "agent-token"}
        async with self.client.post("/test/task/update/", data=form, headers=headers) as response:
            assert response.status == 200

    async def finish(self) -> None:
        results = {"error": False, "exit_code": "0", "job_metrics": METRICS}
        await self.update("finalized", results, complete=True)


async def nothing(_: World) -> None:
    """A fresh controller."""


async def a_running_rap(world: World) -> None:
    await world.create()
    await world.until("initiated", "waiting_on_dependencies")
    await world.finish()
    await world.until("succeeded", "initiated")
    await world.update("executing", {}, complete=False)


async def a_waiting_rap(world: World) -> None:
    await world.create()
    await world.until("waiting_on_workers", "waiting_on_dependencies")


async def all_succeeded(world: World) -> None:
    await a_running_rap(world)
    await world.finish()
    await world.until("succeeded", "succeeded")


async def a_task(world: World) -> None:
    await world.create(RAP, "extract")
    await world.until("initiated")


async def paused_in_maintenance(world: World) -> None:
    context = world.made.engine._ctx
    async with context.db.transaction() as tx:
        for flag, value in [("paused", "true"), ("mode", "db-maintenance"), ("manual-db-maintenance", "on")]:
            await backends.set_flag.run(tx, backend="test", id=flag, value=value, now=context.clock.now())
        await backends.see.run(tx, backend="test", now=context.clock.now())


async def the_database_goes(world: World) -> None:
    admin = await asyncpg.connect(world.admin_dsn)
    try:
        await admin.execute(f'ALTER DATABASE "{world.database}" ALLOW_CONNECTIONS false')
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", world.database)
    finally:
        await admin.close()


WORLDS: Final[dict[str, Callable[[World], Awaitable[None]]]] = {
    "a fresh controller": nothing,
    "a RAP that is running": a_running_rap,
    "a RAP that waits": a_waiting_rap,
    "all has succeeded": all_succeeded,
    "a task to run": a_task,
    "a paused backend in maintenance": paused_in_maintenance,
    "the database is away": the_database_goes,
}
ELSEWHERE: Final = {
    "a bug": "there is none to be had on demand",
    "checks of the database": "their ids are random; the engine's tests hold ids and definitions to their form",
    "tasks with a job to run": "its ids and times are fixed; the engine's tests hold the definition to its keys",
}
EXAMPLES = [
    (dialect, example)
    for dialect in ("rap", "tasks")
    for example in load(dialect)
    if example.given not in ELSEWHERE and example.name not in ELSEWHERE
]


@pytest.mark.parametrize(
    ("given", "creates"), [(given, False) for given in WORLDS] + [("a fresh controller", True)], ids=str
)
async def test_the_examples_hold_for_a_real_controller(
    given: str, creates: bool, database_dsn: str, postgres_dsn: str, tmp_path: Path
) -> None:
    repo = tmp_path / "study"
    commit = commit_project(repo, PROJECT)
    settings = from_environ(
        {
            "RAP_DATABASE_URL": database_dsn,
            "BACKENDS": "test,other",
            "TEST_CLIENT_TOKENS": "portal-token",
            "TEST_JOB_SERVER_TOKEN": "agent-token",
            "OTHER_JOB_SERVER_TOKEN": "other-agent-token",
            "TEST_MAX_WORKERS": "0" if given == "a RAP that waits" else "2",
            "ALLOW_LOCAL_GIT_REPOS": "true",
            "WORKDIR": str(tmp_path / "controller"),
        }
    )
    examples = [
        example
        for _, example in EXAMPLES
        if example.given == given and creates == (example.name == "create of everything, with permissions")
    ]
    # What changes its world comes last.
    examples.sort(key=lambda example: (example.response["status"] == 201, "cancel two" in example.name))
    async with controller(settings, SystemClock(), os.environ) as made, TestClient(TestServer(made.app)) as client:
        database = urlsplit(database_dsn).path.removeprefix("/")
        world = World(client, made, str(repo), commit, database, postgres_dsn)
        await WORLDS[given](world)
        task = await world.task() if given == "a task to run" else TASK
        for example in examples:
            try:
                real = world.real(example, task)
                await real.check(await real.ask(client))
            except AssertionError as error:
                error.add_note(f"example: {example.name}")
                raise


def test_every_world_of_the_examples_is_a_real_one() -> None:
    assert {example.given for _, example in EXAMPLES} == set(WORLDS)
