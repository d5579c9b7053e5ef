"""Agents that fall silent: whose jobs are taken over, when, and what becomes of the old holder's word."""

from common.protocol import Declaration, Verdict
from controller.core.retry import LONGEST_DELAY, MAX_FAULTS
from tests.engine.conftest import Harness, Study

SECOND = "agent-2"


async def start(harness: Harness, study: Study) -> tuple[str, object]:
    """A job that agent-1 holds; its RAP and its task."""
    created = await harness.create(study.request("extract"))
    await harness.settle()
    (task,) = await harness.claim()
    return created.rap_id, task


async def appear(harness: Harness) -> None:
    """Another agent is alive."""
    await harness.engine.declare_agent("test", SECOND, Declaration(version="1", executor="fake", slots=1))


async def test_a_silent_agents_job_goes_to_another_and_its_late_word_is_stale(harness: Harness, study: Study) -> None:
    rap_id, task = await start(harness, study)
    harness.clock.advance(harness.context.lease_seconds + 1)
    await appear(harness)
    assert await harness.engine.take_over("test") == 1
    assert await harness.codes(rap_id) == {"extract": "waiting_on_new_task"}
    harness.clock.advance(LONGEST_DELAY.total_seconds())
    await harness.settle()
    (again,) = await harness.claim(agent=SECOND)
    assert again.attempt == 2
    assert await harness.finish(task) is Verdict.STALE
    assert await harness.report(again, "finalized", agent=SECOND, complete=True, results=DONE) is Verdict.APPLIED
    assert await harness.codes(rap_id) == {"extract": "succeeded"}


DONE = {"error": False, "exit_code": "0"}


async def test_with_nobody_else_there_the_job_waits_for_its_agent(harness: Harness, study: Study) -> None:
    rap_id, task = await start(harness, study)
    await appear(harness)
    harness.clock.advance(harness.context.lease_seconds * 10)
    assert await harness.engine.take_over("test") == 0
    assert await harness.finish(task) is Verdict.APPLIED
    assert await harness.codes(rap_id) == {"extract": "succeeded"}


async def test_an_agent_that_renews_keeps_its_job(harness: Harness, study: Study) -> None:
    _, task = await start(harness, study)
    for _ in range(5):
        harness.clock.advance(harness.context.lease_seconds * 0.9)
        await harness.claim(holding=[task])
    await appear(harness)
    assert await harness.engine.take_over("test") == 0


async def test_a_job_that_outlives_no_agent_fails_with_the_cause(harness: Harness, study: Study) -> None:
    rap_id, _ = await start(harness, study)
    for _ in range(MAX_FAULTS):
        harness.clock.advance(harness.context.lease_seconds + 1)
        await appear(harness)
        assert await harness.engine.take_over("test") == 1
        harness.clock.advance(LONGEST_DELAY.total_seconds())
        await harness.settle()
        await harness.claim()
    job = (await harness.jobs(rap_id))["extract"]
    assert job.progress.code.value == "job_error"
    assert "fell silent" in job.progress.message
