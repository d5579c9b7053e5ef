"""An unmodified agent of the upstream Task API can be pointed at this controller."""

import asyncio

import aiohttp

from tests.e2e.conftest import AGENT_TOKEN, LiveController
from tests.engine.conftest import Study
from tests.fakes.upstream_agent import UpstreamAgent


async def poll_until_terminal(agent: UpstreamAgent, live: LiveController, rap_id: str) -> None:
    """Poll as upstream's loop does, bounded; scheduling between two polls is the controller's to do."""
    async with asyncio.timeout(30):
        while any(job["status"] in ("pending", "running") for job in (await live.jobs(rap_id)).values()):
            await agent.poll()


async def test_a_rap_runs_on_an_upstream_agent(live: LiveController, study: Study) -> None:
    status, body = await live.create(study, "report")
    assert (status, body["count"]) == (201, 4)
    async with aiohttp.ClientSession() as session:
        agent = UpstreamAgent(session, live.url, "test", AGENT_TOKEN)
        await poll_until_terminal(agent, live, body["rap_id"])
    jobs = await live.jobs(body["rap_id"])
    assert {job["status_code"] for job in jobs.values()} == {"succeeded"}
    assert {job["status_message"] for job in jobs.values()} == {"Completed successfully"}
    assert jobs["report"]["metrics"] == {"cpu_mean": 3}
    assert list(jobs) == ["extract", "analyse", "count", "report"]


async def test_a_cancel_reaches_an_upstream_agent(live: LiveController, study: Study) -> None:
    _, body = await live.create(study, "analyse")
    rap_id = body["rap_id"]
    async with aiohttp.ClientSession() as session:
        agent = UpstreamAgent(session, live.url, "test", AGENT_TOKEN)
        async with asyncio.timeout(30):
            while (await live.jobs(rap_id))["extract"]["status_code"] != "executing":
                await agent.poll()
        status, answer = await live.post("rap/cancel/", {"rap_id": rap_id, "actions": ["extract"]})
        assert (status, answer) == (200, {"result": "Success", "details": "1 actions cancelled", "count": 1})
        await poll_until_terminal(agent, live, rap_id)
        await agent.poll()
        assert await agent.poll() == 0
    jobs = await live.jobs(rap_id)
    assert (jobs["extract"]["status_code"], jobs["analyse"]["status_code"]) == (
        "cancelled_by_user",
        "dependency_failed",
    )
    assert agent.seen[-1].endswith("-001-cancel")
    # A late report on the void attempt is no error and changes nothing.
    assert jobs == await live.jobs(rap_id)


async def test_simultaneous_equal_creates_over_http(live: LiveController, study: Study) -> None:
    answers = await asyncio.gather(*(live.create(study, "report", rap_id="s" * 16) for _ in range(10)))
    assert sorted(status for status, _ in answers) == [200] * 9 + [201]
    assert {body["result"] for status, body in answers if status == 200} == {"No change"}
    assert {body["count"] for _, body in answers} == {4}
