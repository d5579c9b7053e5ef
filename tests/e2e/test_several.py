"""Several controllers on one database, several agents on one backend: real processes, stopped and killed."""

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from common.ids import random_id
from tests.e2e.conftest import AGENT_TOKEN, CLIENT_TOKEN, LiveController
from tests.e2e.processes import (
    OPERATOR_TOKEN,
    address,
    agent_process,
    controller_process,
    ended,
    eventually,
    job,
    let_go,
    portal,
    running,
)
from tests.engine.conftest import Study, commit_project

AGENT = {"Authorization": f"Bearer {AGENT_TOKEN}"}
OPERATOR = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
NO_SAFETY_NET = {"RAP_SAFETY_SECONDS": "3600"}
"""Whatever happens must come of a wake-up."""


@pytest.fixture
def hanging(tmp_path: Path) -> Study:
    """A study whose one job runs until it is stopped."""
    outputs = {"highly_sensitive": {"rows": "output/rows.csv"}}
    actions = {"work": {"run": "python:v2 hang", "outputs": outputs}}
    return Study(tmp_path / "hanging", commit_project(tmp_path / "hanging", {"version": "4", "actions": actions}))


@pytest.fixture
def writing(tmp_path: Path) -> Study:
    """A chain of three and two beside it; each writes its output."""
    actions: dict[str, Any] = {}
    for name, needs in {"a": [], "b": ["a"], "c": ["b"], "d": ["a"], "e": []}.items():
        outputs = {"highly_sensitive": {"rows": f"output/{name}.txt"}}
        actions[name] = {"run": f"python:v2 write:output/{name}.txt={name}", "needs": needs, "outputs": outputs}
    return Study(tmp_path / "writing", commit_project(tmp_path / "writing", {"version": "4", "actions": actions}))


async def post(live: LiveController, path: str, body: Any, headers: dict[str, str]) -> Any:
    async with live.portal.post(f"{live.url}/{path}", json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def claim(live: LiveController, wait: float = 20, **more: Any) -> list[dict[str, Any]]:
    answer = await post(live, "agent/v1/test/claim", {"agent": "a", "slots": 1, "wait": wait} | more, AGENT)
    return list(answer["tasks"])


def final(task: Mapping[str, Any]) -> dict[str, Any]:
    said = {"task_id": task["id"], "attempt": 1, "stage": "finalized", "complete": True}
    return said | {"results": {"error": False, "exit_code": "0"}}


async def test_either_port_is_the_same_controller(database_dsn: str, tmp_path: Path, study: Study) -> None:
    """What is asked of one wakes whoever waits at the other."""
    one = controller_process(database_dsn, tmp_path / "one", **NO_SAFETY_NET)
    two = controller_process(database_dsn, tmp_path / "two", **NO_SAFETY_NET)
    async with running(one, two), portal(await address(one)) as at_one, portal(await address(two)) as at_two:
        for here, there in ((at_one, at_two), (at_two, at_one)):
            workspace = f"w{id(here)}"
            waiting = asyncio.create_task(claim(there))
            status, created = await here.create(study, "analyse", workspace=workspace)
            assert status == 201
            (task,) = await waiting
            report = {"agent": "a", "reports": [final(task)]}
            waiting = asyncio.create_task(claim(here, holding=[{"task_id": task["id"], "attempt": 1}]))
            assert (await post(there, "agent/v1/test/reports", report, AGENT))["answers"][0]["verdict"] == "applied"
            (following,) = await waiting
            for live in (here, there):
                jobs = await live.jobs(created["rap_id"])
                assert {action: each["status_code"] for action, each in jobs.items()} == {
                    "extract": "succeeded",
                    "analyse": "initiated",
                }
            assert (await post(there, "api/backends/test/pause", None, OPERATOR))["changed"] == ["paused"]
            assert (await post(here, "api/backends/test/unpause", None, OPERATOR))["changed"] == ["paused"]
            again = await there.create(study, "analyse", rap_id=created["rap_id"], workspace=workspace)
            assert again == (200, {**again[1], "count": 2, "rap_id": created["rap_id"]})
            cancelled = {"rap_id": created["rap_id"], "actions": ["analyse"]}
            assert (await there.post("rap/cancel/", cancelled))[0] == 200
            (stop,) = await claim(here, holding=[{"task_id": following["id"], "attempt": 1}])
            assert (stop["type"], stop["job_id"]) == ("canceljob", following["job_id"])
            await post(there, "agent/v1/test/reports", {"agent": "a", "reports": [final(stop)]}, AGENT)


@asynccontextmanager
async def balancer(ports: list[int]) -> AsyncIterator[str]:
    """A load balancer: each connection goes to the next controller that accepts it."""
    turn = 0
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turn
        turn += 1
        for port in (ports[turn % len(ports)], ports[(turn + 1) % len(ports)]):
            try:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                continue
            for source, target in ((reader, far_writer), (far_reader, writer)):
                pumps.add(task := asyncio.create_task(pump(source, target)))
                task.add_done_callback(pumps.discard)
            return
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        for task in list(pumps):
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def patiently(live: LiveController, study: Study, rap_id: str, outcomes: list[Any]) -> None:
    """Create a RAP as job-server does: the same id again and again until there is an answer."""
    while True:
        try:
            status, _ = await live.create(study, "run_all", rap_id=rap_id, workspace=f"w{rap_id}")
        except (aiohttp.ClientError, OSError) as error:
            outcomes.append(type(error).__name__)
            continue
        outcomes.append(status)
        if status in (200, 201):
            return


async def test_a_rolling_restart_under_load_fails_nobody(database_dsn: str, tmp_path: Path, writing: Study) -> None:
    first = [controller_process(database_dsn, tmp_path / name) for name in ("one", "two")]
    async with running(*first):
        ports = [int((await address(each)).rpartition(":")[2]) for each in first]
        controllers = [
            controller_process(database_dsn, tmp_path / name, f"127.0.0.1:{port}")
            for name, port in zip(("one", "two"), ports, strict=True)
        ]
        async with balancer(ports) as where, portal(where) as live, ended(*controllers):
            agents = [agent_process(name, f"http://{where}", tmp_path / "backend") for name in ("a", "b")]
            async with running(*agents):
                outcomes: list[Any] = []
                ids = [random_id() for _ in range(30)]
                creating = asyncio.gather(*(patiently(live, writing, each, outcomes) for each in ids[:15]))
                for old, new in zip(first, controllers, strict=True):
                    assert await old.end() == 0
                    await new.start()
                    await new.wait_for("controller_ready")
                await creating
                creating = asyncio.gather(*(patiently(live, writing, each, outcomes) for each in ids[15:]))
                for each in controllers:
                    assert await each.end() == 0
                    await each.start()
                    await each.wait_for("controller_ready")
                await creating
                await check_all_ran_once(live, ids)
    assert {outcome for outcome in outcomes if isinstance(outcome, int)} <= {200, 201, 500, 503}, outcomes


async def check_all_ran_once(live: LiveController, ids: list[str]) -> None:
    """Every job of these RAPs has succeeded, at its first attempt."""

    async def done() -> bool:
        try:
            status, body = await live.post("rap/status/", {"rap_ids": ids})
        except (aiohttp.ClientError, OSError):
            return False
        assert status == 200
        states = [each["status"] for each in body["jobs"]]
        assert "failed" not in states
        return states == ["succeeded"] * 5 * len(ids)

    await eventually(done)
    _, body = await live.post("rap/status/", {"rap_ids": ids})
    for each in body["jobs"]:
        assert (await job(live, each["identifier"]))["attempt"] == 1


async def held_by(live: LiveController, job_id: str, agent: str, attempt: int) -> bool:
    found = await job(live, job_id)
    return (found["agent"], found["attempt"], found["code"]) == (agent, attempt, "executing")


async def test_the_jobs_of_a_killed_agent_go_to_another_and_it_lets_go_when_it_is_back(
    database_dsn: str, tmp_path: Path, hanging: Study
) -> None:
    controller = controller_process(database_dsn, tmp_path / "controller", RAP_SAFETY_SECONDS="0.2")
    async with running(controller), portal(await address(controller)) as live:
        dying = agent_process("a", live.url, tmp_path / "backend")
        other = agent_process("b", live.url, tmp_path / "backend")
        async with running(dying):
            _, created = await live.create(hanging)
            (job_id,) = [each["identifier"] for each in (await live.jobs(created["rap_id"])).values()]
            await eventually(lambda: held_by(live, job_id, "a", 1))
            await dying.end(signal.SIGKILL)
            async with running(other):
                await eventually(lambda: held_by(live, job_id, "b", 2))
                await dying.start()
                await dying.wait_for("declared to the controller")
                await eventually(lambda: let_go(tmp_path / "backend" / "a"))
                assert await held_by(live, job_id, "b", 2)
                await live.post("rap/cancel/", {"rap_id": created["rap_id"], "actions": ["work"]})

                async def safe() -> bool:
                    async with live.portal.get(f"{live.url}/api/backends/test/reboot-status", headers=OPERATOR) as said:
                        return (await said.json())["cancelling"] == 0

                await eventually(safe)
                found = await job(live, job_id)
                assert (found["code"], found["attempt"]) == ("cancelled_by_user", 2)
                assert [entry["code"] for entry in found["history"]].count("cancelled_by_user") == 1


async def test_an_agent_that_is_told_to_end_hands_its_jobs_back(
    database_dsn: str, tmp_path: Path, hanging: Study
) -> None:
    controller = controller_process(database_dsn, tmp_path / "controller", **NO_SAFETY_NET)
    async with running(controller), portal(await address(controller)) as live:
        leaving = agent_process("a", live.url, tmp_path / "backend", RAP_AGENT_EXIT="hand_back")
        other = agent_process("b", live.url, tmp_path / "backend")
        async with running(leaving):
            _, created = await live.create(hanging)
            (job_id,) = [each["identifier"] for each in (await live.jobs(created["rap_id"])).values()]
            await eventually(lambda: held_by(live, job_id, "a", 1))
            async with running(other):
                assert await leaving.end() == 0
                await eventually(lambda: held_by(live, job_id, "b", 2))
                assert CLIENT_TOKEN not in "".join(leaving.said)
                history = [entry["message"] for entry in (await job(live, job_id))["history"]]
                assert "Job was handed back by its agent and will restart" in history
