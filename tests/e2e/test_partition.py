"""A cut between agent and controller: two network namespaces, and the link between them taken down.

Needs root, as CI has it: an ordinary user cannot join two namespaces by a link.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from common.ids import random_id
from tests.e2e.conftest import LiveController
from tests.e2e.processes import (
    Process,
    address,
    agent_process,
    controller_process,
    eventually,
    job,
    let_go,
    portal,
    running,
)
from tests.engine.conftest import Study, commit_project

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

WAITING = """
import pathlib, sys, time
while not pathlib.Path("go").exists():
    time.sleep(0.02)
pathlib.Path("output").mkdir(exist_ok=True)
pathlib.Path("output/done.txt").write_text("done")
"""
"""A job that ends when a file appears beside it."""


@frozen
class Backend:
    """A namespace that stands for the backend, and its link to ours."""

    namespace: str
    link: str
    """The backend's end."""
    host: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace)

    def cut(self) -> None:
        ip("-n", self.namespace, "link", "set", self.link, "down")

    def heal(self) -> None:
        ip("-n", self.namespace, "link", "set", self.link, "up")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def backend() -> Iterator[Backend]:
    """A backend behind a link that can be cut; the controller is at `host` on our side of it."""
    number = os.getpid() % 60_000
    mark = random_id()[:8]  # a link goes a moment after its namespace, so no name comes again
    name, near, far = f"rap-{mark}", f"rapn{mark}", f"rapf{mark}"
    network = f"10.{200 + number % 50}.{number // 50 % 250}"
    ip("netns", "add", name)
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        ip("addr", "add", f"{network}.1/24", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", name, "addr", "add", f"{network}.2/24", "dev", far)
        ip("-n", name, "link", "set", far, "up")
        yield Backend(name, far, f"{network}.1")
    finally:
        ip("netns", "del", name)


@pytest.fixture
def waiting(tmp_path: Path) -> Study:
    path = tmp_path / "waiting"
    outputs = {"highly_sensitive": {"done": "output/done.txt"}}
    actions = {"work": {"run": "python:v2 python work.py", "outputs": outputs}}
    path.mkdir()
    (path / "work.py").write_text(WAITING)
    return Study(path, commit_project(path, {"version": "4", "actions": actions}))


def go(folder: Path, job_id: str, attempt: int) -> None:
    (folder / "high" / "volumes" / f"{job_id}-{attempt:03}" / "go").touch()


def sandboxed(name: str, url: str, folder: Path, *, prefix: tuple[str, ...] = ()) -> Process:
    return agent_process(name, url, folder, prefix=prefix, RAP_EXECUTOR="sandbox", RAP_POLL_SECONDS="1")


async def start_job(live: LiveController, study: Study, agent: str) -> tuple[str, str]:
    """The RAP and the job, which this agent runs."""
    status, created = await live.create(study)
    assert status == 201, created
    (job_id,) = [each["identifier"] for each in (await live.jobs(created["rap_id"])).values()]

    async def executing() -> bool:
        found = await job(live, job_id)
        assert found["state"] in ("pending", "running"), found
        return (found["agent"], found["code"]) == (agent, "executing")

    await eventually(executing)
    return created["rap_id"], job_id


async def ended_as(live: LiveController, job_id: str, state: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        found = await job(live, job_id)
        return found if found["state"] == state else None

    return await eventually(look)


async def test_a_job_ends_during_a_cut_and_is_told_afterwards(
    database_dsn: str, tmp_path: Path, backend: Backend, waiting: Study
) -> None:
    """The only agent of its backend keeps its job, however long the cut is."""
    controller = controller_process(database_dsn, tmp_path / "c", f"{backend.host}:0", RAP_SAFETY_SECONDS="0.2")
    async with running(controller), portal(await address(controller)) as live:
        agent = sandboxed("inside", live.url, tmp_path / "b", prefix=backend.prefix)
        async with running(agent):
            _, job_id = await start_job(live, waiting, "inside")
            backend.cut()
            go(tmp_path / "b", job_id, 1)
            await agent.wait_for("the controller did not answer as it should")

            async def finished() -> bool:
                return any((tmp_path / "b" / "high" / "logs").glob(f"*/os-job-{job_id}/metadata.json"))

            await eventually(finished)
            assert (await job(live, job_id))["state"] == "running"
            backend.heal()
            found = await ended_as(live, job_id, "succeeded")
            assert found["attempt"] == 1
            assert (tmp_path / "b" / "high" / "workspaces" / "study" / "output" / "done.txt").read_text() == "done"


async def test_a_cut_longer_than_a_lease_gives_the_job_away_and_fences_the_old_holder(
    database_dsn: str, tmp_path: Path, backend: Backend, waiting: Study
) -> None:
    controller = controller_process(database_dsn, tmp_path / "c", f"{backend.host}:0", RAP_SAFETY_SECONDS="0.2")
    async with running(controller), portal(await address(controller)) as live:
        cut_off = sandboxed("inside", live.url, tmp_path / "b1", prefix=backend.prefix)
        other = sandboxed("outside", live.url, tmp_path / "b2")
        async with running(cut_off):
            _, job_id = await start_job(live, waiting, "inside")
            async with running(other):
                await other.wait_for("declared to the controller")
                backend.cut()

                async def taken_over() -> bool:
                    found = await job(live, job_id)
                    return (found["agent"], found["code"], found["attempt"]) == ("outside", "executing", 2)

                await eventually(taken_over)
                assert "fell silent" in json.dumps((await job(live, job_id))["history"])
                go(tmp_path / "b1", job_id, 1)  # the old holder ends its attempt, and tells it as soon as it can
                backend.heal()
                await eventually(lambda: let_go(tmp_path / "b1" / "inside"))
                assert (await job(live, job_id))["state"] == "running"
                go(tmp_path / "b2", job_id, 2)
                found = await ended_as(live, job_id, "succeeded")
                assert (found["agent"], found["attempt"]) == ("outside", 2)
