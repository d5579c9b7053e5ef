"""What a controller goes through: lost connections, a database that is away, its own end, and requests of any size."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from aiohttp import web

from common.clock import SystemClock
from controller.app import controller
from controller.settings import from_environ
from tests.e2e.conftest import AGENT_TOKEN, CLIENT_TOKEN, LiveController
from tests.engine.conftest import Study, commit_project

AGENT = {"Authorization": f"Bearer {AGENT_TOKEN}"}


@asynccontextmanager
async def admin(dsn: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def end_connections(dsn: str, condition: str = "true") -> int:
    """End the database's connections that `condition` says; how many."""
    async with admin(dsn) as connection:
        rows = await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = current_database() AND pid <> pg_backend_pid() AND {condition}"
        )
        return len(rows)


async def claim(live: LiveController, agent: str = "a", **more: Any) -> list[dict[str, Any]]:
    body = {"agent": agent, "slots": 1, "wait": 20} | more
    async with live.portal.post(f"{live.url}/agent/v1/test/claim", json=body, headers=AGENT) as response:
        assert response.status == 200, await response.text()
        return list((await response.json())["tasks"])


async def test_losing_the_listener_loses_no_wake_up(live: LiveController, study: Study, database_dsn: str) -> None:
    """The safety timer is off here, and an empty answer at the end of a poll would fail this test."""
    for _ in range(3):
        waiting = asyncio.create_task(claim(live))
        creating = asyncio.create_task(live.create(study, "extract"))
        async with asyncio.timeout(10):
            while not await end_connections(database_dsn, "query ILIKE 'LISTEN%'"):
                pass  # it is just being made: at the start, or again
        status, _ = await creating
        assert status == 201
        (task,) = await waiting
        said = {"task_id": task["id"], "attempt": 1, "stage": "finalized", "complete": True}
        report = {"agent": "a", "reports": [said | {"results": {"error": False, "exit_code": "0"}}]}
        async with live.portal.post(f"{live.url}/agent/v1/test/reports", json=report, headers=AGENT) as response:
            assert response.status == 200


async def test_losing_every_connection_is_503_for_a_moment_and_nothing_is_half_done(
    live: LiveController, study: Study, database_dsn: str
) -> None:
    statuses = set()
    ids = [f"{number:016d}" for number in range(40)]

    async def create(rap_id: str) -> None:
        body: dict[str, Any] = {
            "backend": "test",
            "rap_id": rap_id,
            "workspace": f"w{rap_id}",
            "repo_url": str(study.path),
        }
        body |= {"branch": "main", "commit": study.commit, "database_name": "default", "created_by": "a"}
        body |= {"requested_actions": ["report"], "codelists_ok": True, "force_run_dependencies": False}
        body |= {"project": "p", "orgs": []}
        for _ in range(100):
            async with live.portal.post(f"{live.url}/controller/v1/rap/create/", json=body) as response:
                statuses.add(response.status)
                if response.status in (200, 201):
                    return
                assert response.status == 503, await response.text()
                assert int(response.headers["Retry-After"]) >= 1
                assert response.content_type == "text/html"
        raise AssertionError("the controller did not recover")

    async def disturb() -> None:
        for _ in range(15):
            await end_connections(database_dsn)

    await asyncio.gather(disturb(), *(create(rap_id) for rap_id in ids))
    assert statuses <= {200, 201, 503}
    for rap_id in ids:
        assert list(await live.jobs(rap_id)) == ["extract", "analyse", "count", "report"]
    async with live.portal.get(f"{live.url}/readyz") as response:
        assert response.status == 200
    assert len(await claim(live, slots=5)) > 0


async def test_stopping_answers_open_polls_and_keeps_what_was_stored(
    database_dsn: str, study: Study, tmp_path: Path
) -> None:
    settings = from_environ(
        {
            "RAP_DATABASE_URL": database_dsn,
            "BACKENDS": "test",
            "TEST_CLIENT_TOKENS": CLIENT_TOKEN,
            "TEST_JOB_SERVER_TOKEN": AGENT_TOKEN,
            "WORKDIR": str(tmp_path),
        }
    )
    async with controller(settings, SystemClock(), os.environ) as made, aiohttp.ClientSession() as session:
        runner = web.AppRunner(made.app, access_log=None, shutdown_timeout=15)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        live = LiveController(f"http://{host}:{port}", session)
        polls = [asyncio.create_task(claim(live, agent=f"a{number}")) for number in range(20)]
        while made.engine._ctx.wakeups.waiting < 21:  # the polls and the scheduler
            async with session.get(f"{live.url}/healthz") as response:
                assert response.status == 200
        async with asyncio.timeout(10):  # half of what the polls asked for
            await runner.cleanup()
            assert await asyncio.gather(*polls) == [[]] * 20


async def test_no_token_and_no_url_is_ever_logged(database_dsn: str, tmp_path: Path) -> None:
    """Of the real process, with everything that it says from its start to its end."""
    planted = "planted-token-of-nobody"
    environ = {
        "PATH": os.environ["PATH"],
        "RAP_DATABASE_URL": database_dsn,
        "RAP_LISTEN": "127.0.0.1:0",
        "BACKENDS": "test",
        "TEST_CLIENT_TOKENS": CLIENT_TOKEN,
        "TEST_JOB_SERVER_TOKEN": AGENT_TOKEN,
        "LOGLEVEL": "debug",
        "WORKDIR": str(tmp_path),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controller", env=environ, cwd=Path(__file__).parents[2], stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    said = ""
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            while "controller_ready" not in said:
                said = (await process.stderr.readline()).decode()
                assert said, "it ended"
            (address,) = json.loads(said)["listen"]
            for token in (planted, f"Bearer {planted}", f"{planted}\u00e9", CLIENT_TOKEN, AGENT_TOKEN):
                for method, path in [
                    ("POST", "controller/v1/rap/create/"),
                    ("GET", f"controller/v1/backend/status/?token={planted}"),
                    ("GET", f"{planted}/tasks/"),
                    ("GET", f"api/raps/{planted}"),
                    ("GET", f"no/such/{planted}"),
                    ("POST", "agent/v1/test/claim"),
                    ("PUT", f"agent/v1/test/agents/{planted}"),
                    ("POST", "test/task/update/"),
                ]:
                    headers = {"Authorization": token}
                    async with session.request(method, f"http://{address}/{path}", headers=headers, data="{") as answer:
                        assert answer.status < 500
    finally:
        process.terminate()
        _, rest = await process.communicate()
    assert process.returncode == 0
    said += rest.decode()
    assert '"event":"request"' in said
    for secret in (planted, CLIENT_TOKEN, AGENT_TOKEN):
        assert secret not in said


async def test_forty_thousand_ids_are_one_status_request(live: LiveController, study: Study) -> None:
    _, body = await live.create(study, "report")
    ids = [f"{number:016d}" for number in range(40_000)]
    status, answer = await live.post("rap/status/", {"rap_ids": [*ids, body["rap_id"], *ids[:5]]})
    assert status == 200
    assert len(answer["jobs"]) == 4
    assert sorted(answer["unrecognised_rap_ids"]) == ids


@pytest.mark.parametrize("shape", ["chain", "star"])
async def test_a_thousand_actions_are_planned_stored_started_and_cancelled(
    live: LiveController, tmp_path: Path, shape: str
) -> None:
    actions: dict[str, Any] = {}
    for number in range(1000):
        needs = [] if number == 0 else [f"a{number - 1}" if shape == "chain" else "a0"]
        outputs = {"highly_sensitive": {"x": f"out/{number}.csv"}}
        actions[f"a{number}"] = {"run": f"python:v2 a.py {number}", "needs": needs, "outputs": outputs}
    path = tmp_path / "large"
    study = Study(path, commit_project(path, {"version": "4", "actions": actions}))
    status, body = await live.create(study)
    assert (status, body["count"]) == (201, 1000)
    (task,) = await claim(live)
    said = {"task_id": task["id"], "attempt": 1, "stage": "finalized", "complete": True}
    report = {"agent": "a", "reports": [said | {"results": {"error": False, "exit_code": "1"}}]}
    async with live.portal.post(f"{live.url}/agent/v1/test/reports", json=report, headers=AGENT) as response:
        assert response.status == 200
    async with asyncio.timeout(30):
        while {job["status"] for job in (await live.jobs(body["rap_id"])).values()} != {"failed"}:
            pass
    status, answer = await live.post("rap/cancel/", {"rap_id": body["rap_id"], "actions": list(actions)})
    assert (status, answer["count"]) == (200, 1000)
