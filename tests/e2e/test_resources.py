"""What a job may use and what it uses, with real programs: its own limit ends it, and its metrics are seen live."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import AGENT_TOKEN, LiveController
from tests.e2e.processes import address, agent_process, controller_process, eventually, job, portal, running
from tests.engine.conftest import Study, commit_project
from tests.fakes.upstream_agent import AgentTask, UpstreamAgent

METRICS = {"cpu_mean", "cpu_peak", "mem_mb_mean", "mem_mb_peak"}
FOR_EVER = "import time; time.sleep(1000)"
UNTIL_TOLD = """
import os
held = b"x" * (64 << 20)
os.mkfifo("go")
open("go").read(1)
os.makedirs("output", exist_ok=True)
open("output/slow.txt", "w").write("done")
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """One action that never ends and may run a second; and one that ends when it is told to."""
    path = tmp_path / "study"
    (path / "analysis").mkdir(parents=True)
    (path / "analysis" / "hangs.py").write_text(FOR_EVER)
    (path / "analysis" / "slow.py").write_text(UNTIL_TOLD)
    actions = {"hangs": action("hangs", {"time": "1s"}), "slow": action("slow", {"cpus": 1, "memory": "1G"})}
    return Study(path, commit_project(path, {"version": "4", "actions": actions}))


def action(name: str, resources: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run": f"python:v2 python analysis/{name}.py",
        "outputs": {"moderately_sensitive": {"text": f"output/{name}.txt"}},
        "resources": resources,
    }


async def start(live: LiveController, study: Study, *actions: str) -> tuple[str, str]:
    """The ids of a new RAP and of its only job."""
    status, created = await live.create(study, *actions)
    assert status == 201, created
    (job_id,) = [each["identifier"] for each in (await live.jobs(created["rap_id"])).values()]
    return created["rap_id"], job_id


async def ended(live: LiveController, job_id: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        found = await job(live, job_id)
        return found if found["state"] in ("succeeded", "failed") else None

    return await eventually(look)


async def test_a_job_over_its_time_limit_fails_with_that_message(
    database_dsn: str, tmp_path: Path, study: Study
) -> None:
    controller = controller_process(database_dsn, tmp_path / "c", RAP_JOB_RESOURCES="true", TEST_JOB_TIME_LIMIT="2h")
    async with running(controller), portal(await address(controller)) as live:
        agent = agent_process("a", live.url, tmp_path / "b", RAP_EXECUTOR="sandbox", RAP_EGRESS="status")
        async with running(agent):
            rap_id, job_id = await start(live, study, "hangs")
            found = await ended(live, job_id)
        assert (found["state"], found["code"], found["attempt"]) == ("failed", "nonzero_exit", 1)
        assert found["limits"] == {"cpu_count": 2.0, "memory_limit": "4G", "time_limit": 1.0}
        assert found["metrics"] == {}
        told = (await live.jobs(rap_id))["hangs"]
        for message in (found["message"], found["history"][-1]["message"], told["status_message"]):
            assert message == "Job exited with an error: Job ran longer than its time limit (limit was 1 s)"


async def test_metrics_are_seen_while_a_job_runs_and_by_portals_at_its_end(
    database_dsn: str, tmp_path: Path, study: Study
) -> None:
    controller = controller_process(database_dsn, tmp_path / "c", RAP_JOB_RESOURCES="true")
    async with running(controller), portal(await address(controller)) as live:
        agent = agent_process(
            "a", live.url, tmp_path / "b", RAP_EXECUTOR="sandbox", RAP_EGRESS="+metrics", STATS_POLL_INTERVAL="0.1"
        )
        async with running(agent):
            rap_id, job_id = await start(live, study, "slow")

            async def sampled() -> dict[str, Any] | None:
                found = await job(live, job_id)
                assert found["state"] in ("pending", "running"), found
                return found if found["metrics"].get("mem_mb_peak", 0) > 64 else None

            found = await eventually(sampled)
            assert (found["code"], found["metrics"].keys()) == ("executing", METRICS)
            assert found["limits"] == {"cpu_count": 1.0, "memory_limit": "1G", "time_limit": None}
            # Portals get them at the end, as from upstream's controller.
            assert (await live.jobs(rap_id))["slow"]["metrics"] == {}
            pipe = tmp_path / "b" / "high" / "volumes" / f"{job_id}-001" / "go"
            await asyncio.to_thread(pipe.write_text, "!")
            found = await ended(live, job_id)
        assert found["state"] == "succeeded", found
        told = (await live.jobs(rap_id))["slow"]["metrics"]
        assert told == found["metrics"]
        assert told.keys() == METRICS
        assert 64 < told["mem_mb_peak"] < 1024


async def test_an_agent_of_upstreams_gets_its_keys_and_no_other(
    database_dsn: str, tmp_path: Path, study: Study
) -> None:
    controller = controller_process(database_dsn, tmp_path / "c", RAP_JOB_RESOURCES="true", TEST_JOB_TIME_LIMIT="1h")
    async with running(controller), portal(await address(controller)) as live, aiohttp.ClientSession() as session:
        agent = UpstreamAgent(session, live.url, "test", AGENT_TOKEN)
        _, job_id = await start(live, study, "slow")

        async def listed() -> list[AgentTask]:
            return await agent.tasks()

        (task,) = await eventually(listed)
        assert (task.definition["cpu_count"], task.definition["memory_limit"]) == (1.0, "1G")

        async def polled() -> bool:
            await agent.poll()
            return bool((await job(live, job_id))["state"] == "succeeded")

        assert await eventually(polled)
