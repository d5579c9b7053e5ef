"""A real controller: its whole application on a real socket, its loops running, on a real database."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from attrs import define

from common.clock import SystemClock
from common.ids import random_id
from controller.app import controller, make_runner
from controller.settings import from_environ
from tests.agent.executors.docker_host import Host
from tests.e2e import machines
from tests.e2e.machines import Machine
from tests.engine.conftest import PROJECT, Study, commit_project

CLIENT_TOKEN = "client-token-of-test"
OTHER_TOKEN = "client-token-of-other"
AGENT_TOKEN = "agent-token-of-test"
OPERATOR_TOKEN = "operator-token-of-test"


@define
class LiveController:
    """Where it listens, and a portal's session with it."""

    url: str
    portal: aiohttp.ClientSession

    async def create(self, study: Study, *actions: str, **changes: Any) -> tuple[int, dict[str, Any]]:
        """`rap/create/`, as a portal posts it; status and body."""
        body = {
            "backend": "test",
            "rap_id": random_id(),
            "workspace": "study",
            "repo_url": str(study.path),
            "branch": "main",
            "commit": study.commit,
            "database_name": "default",
            "requested_actions": list(actions) or ["run_all"],
            "codelists_ok": True,
            "force_run_dependencies": False,
            "created_by": "researcher",
            "project": "project",
            "orgs": ["opensafely"],
        }
        return await self.post("rap/create/", body | changes)

    async def post(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        """A POST to the RAP API."""
        async with self.portal.post(f"{self.url}/controller/v1/{path}", json=body) as response:
            return response.status, await response.json()

    async def jobs(self, rap_id: str) -> dict[str, dict[str, Any]]:
        """The RAP's job objects, by action."""
        _, body = await self.post("rap/status/", {"rap_ids": [rap_id]})
        return {job["action"]: job for job in body["jobs"]}


@pytest.fixture
async def live(database_dsn: str, tmp_path: Path) -> AsyncIterator[LiveController]:
    settings = from_environ(
        {
            "RAP_DATABASE_URL": database_dsn,
            "BACKENDS": "test,other",
            "TEST_CLIENT_TOKENS": CLIENT_TOKEN,
            "TEST_OPERATOR_TOKENS": OPERATOR_TOKEN,
            "OTHER_CLIENT_TOKENS": OTHER_TOKEN,
            "TEST_JOB_SERVER_TOKEN": AGENT_TOKEN,
            "ALLOW_LOCAL_GIT_REPOS": "true",
            "WORKDIR": str(tmp_path / "controller"),
            # Whatever happens in a test must come of a wake-up, never of the safety net.
            "RAP_SAFETY_SECONDS": "3600",
        }
    )
    async with controller(settings, SystemClock(), os.environ) as made:
        runner = make_runner(made.app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession(headers={"Authorization": CLIENT_TOKEN}) as portal:
            yield LiveController(f"http://{host}:{port}", portal)
        await runner.cleanup()


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The diamond of the engine's tests."""
    path = tmp_path_factory.mktemp("e2e") / "study"
    return Study(path, commit_project(path, PROJECT))


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[Host]:
    """An engine with the images of the platform and a network for the database."""
    with machines.docker_images() as host:
        yield host


@pytest.fixture(params=["sandbox", "docker"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    """Each executor that jobs of a whole backend run on."""
    if request.param == "sandbox":
        return machines.sandbox()
    return machines.docker(request.getfixturevalue("docker_engine"), tmp_path)
