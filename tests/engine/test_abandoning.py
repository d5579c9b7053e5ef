"""Agents that fall silent: whose jobs are taken over, when, and what becomes of the old holder's word."""

import pytest

from common.protocol import ClaimRequest, Declaration, OnLoss, TaskOffer, Verdict
from controller.core.errors import Conflict, Forbidden, NotFound
from controller.core.retry import DEFAULT
from tests.engine.conftest import Harness, Study
from tests.factories import operator, principal

SECOND = "agent-2"


async def start(harness: Harness, study: Study) -> tuple[str, TaskOffer]:
    """A job that agent-1 holds; its RAP and its task."""
    created = await harness.create(study.request("extract"))
    await harness.settle()
    (task,) = await harness.claim()
    return created.rap_id, task


async def appear(harness: Harness, agent: str = SECOND, on_loss: OnLoss = OnLoss.RETRY) -> None:
    """An agent is alive."""
    declaration = Declaration(version="1", executor="fake", slots=1, on_loss=on_loss)
    await harness.engine.declare_agent("test", agent, declaration)


async def test_a_silent_agents_job_goes_to_another_and_its_late_word_is_stale(harness: Harness, study: Study) -> None:
    rap_id, task = await start(harness, study)
    harness.clock.advance(harness.context.lease_seconds + 1)
    await appear(harness)
    assert await harness.engine.take_over("test") == 1
    assert await harness.codes(rap_id) == {"extract": "waiting_on_new_task"}
    harness.clock.advance(DEFAULT.longest.total_seconds())
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
    for _ in range(DEFAULT.limit):
        harness.clock.advance(harness.context.lease_seconds + 1)
        await appear(harness)
        assert await harness.engine.take_over("test") == 1
        harness.clock.advance(DEFAULT.longest.total_seconds())
        await harness.settle()
        await harness.claim()
    job = (await harness.jobs(rap_id))["extract"]
    assert job.progress.code.value == "job_error"
    assert "fell silent" in job.progress.message


async def test_a_job_that_must_not_run_twice_fails_when_its_agent_is_lost(harness: Harness, study: Study) -> None:
    await appear(harness, harness.agent, OnLoss.FAIL)
    rap_id, task = await start(harness, study)
    harness.clock.advance(harness.context.lease_seconds + 1)
    await appear(harness)
    assert await harness.engine.take_over("test") == 1
    job = (await harness.jobs(rap_id))["extract"]
    assert job.progress.code.value == "job_error"
    assert "agent-1 fell silent. It is not run again" in job.progress.message
    assert await harness.finish(task) is Verdict.STALE
    assert not await harness.claim(agent=SECOND)


async def test_a_forgotten_agents_work_moves_on_without_another_agent(harness: Harness, study: Study) -> None:
    rap_id, task = await start(harness, study)
    harness.clock.advance(harness.context.lease_seconds)
    done = await harness.engine.forget_agent(operator("test"), "test", harness.agent)
    assert (done.jobs, done.stops) == ((task.job_id,), 0)
    assert await harness.codes(rap_id) == {"extract": "waiting_on_new_task"}
    assert await harness.finish(task) is Verdict.STALE
    assert await harness.engine.agents(principal("test")) == []


async def test_a_reboot_is_safe_once_the_agent_that_cannot_confirm_is_forgotten(harness: Harness, study: Study) -> None:
    await start(harness, study)
    prepared = await harness.engine.prepare_for_reboot(operator("test"), "test")
    assert (prepared.status.safe, prepared.status.unconfirmed) == (False, (harness.agent,))
    harness.clock.advance(harness.context.lease_seconds)
    done = await harness.engine.forget_agent(operator("test"), "test", harness.agent)
    assert (done.jobs, done.stops) == ((), 1)
    assert (await harness.engine.reboot_status(operator("test"), "test")).safe


async def test_an_agent_that_lives_is_not_forgotten(harness: Harness, study: Study) -> None:
    rap_id, task = await start(harness, study)
    harness.clock.advance(harness.context.lease_seconds - 1)
    with pytest.raises(Conflict, match="was seen 59 s ago"):
        await harness.engine.forget_agent(operator("test"), "test", harness.agent)
    assert await harness.finish(task) is Verdict.APPLIED
    assert await harness.codes(rap_id) == {"extract": "succeeded"}


async def test_only_operators_forget_and_only_known_agents(harness: Harness) -> None:
    with pytest.raises(Forbidden):
        await harness.engine.forget_agent(principal("test"), "test", harness.agent)
    with pytest.raises(NotFound):
        await harness.engine.forget_agent(operator("test"), "other", harness.agent)
    with pytest.raises(NotFound, match="no agent 'nobody'"):
        await harness.engine.forget_agent(operator("test"), "test", "nobody")


async def test_a_clock_that_was_set_back_does_not_keep_a_gone_agent(harness: Harness, study: Study) -> None:
    _, task = await start(harness, study)
    harness.clock.advance(-86_400)
    done = await harness.engine.forget_agent(operator("test"), "test", harness.agent)
    assert done.jobs == (task.job_id,)


async def test_a_forgotten_agent_that_lives_after_all_can_be_forgotten_again(harness: Harness, study: Study) -> None:
    """What it declared is lost, until it is asked to do so again; what it holds must not be."""
    harness.clock.advance(harness.context.lease_seconds)
    await harness.engine.forget_agent(operator("test"), "test", harness.agent)
    await start(harness, study)
    (back,) = await harness.engine.agents(principal("test"))
    assert (back.id, back.version, back.load, back.on_loss) == (harness.agent, "unknown", 1, "fail")
    claim = ClaimRequest(agent=harness.agent, slots=0)
    assert (await harness.engine.claim("test", claim)).undeclared
    await appear(harness, harness.agent)
    assert not (await harness.engine.claim("test", claim)).undeclared
    await harness.engine.prepare_for_reboot(operator("test"), "test")
    harness.clock.advance(harness.context.lease_seconds)
    assert (await harness.engine.forget_agent(operator("test"), "test", harness.agent)).stops == 1
    assert (await harness.engine.reboot_status(operator("test"), "test")).safe
