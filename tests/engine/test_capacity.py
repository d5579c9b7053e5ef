"""Limits that operators change while jobs run, and the agents that they list."""

import asyncio
import math
from pathlib import Path

import pytest
import structlog

from controller.core.errors import Forbidden, NotFound, Rejected
from controller.core.model import Verb
from controller.engine.capacity import PoolView
from controller.engine.facade import Engine
from tests.engine.conftest import Harness, Study, limited, listening, make_context
from tests.factories import principal

OPERATOR = principal("test", verbs=frozenset({Verb.READ, Verb.RUN, Verb.MANAGE}))


async def pool(harness: Harness, name: str = "workers") -> PoolView:
    (found,) = await harness.engine.limits(OPERATOR)
    assert found.backend == "test"
    view: PoolView = getattr(found, name)
    return view


async def test_nothing_is_set_at_first(harness: Harness) -> None:
    nothing = PoolView(configured=10, override=None, limit=10, in_use=0, running=0, pending=0, too_heavy=0)
    assert (await pool(harness), await pool(harness, "db_workers")) == (nothing, nothing)


async def test_a_lower_limit_stops_nothing_and_a_higher_one_starts_what_waits(harness: Harness, study: Study) -> None:
    created = await harness.create(study.request("analyse", "query"))
    await harness.settle()
    (extract,) = [task for task in await harness.claim() if task.definition["action"] == "extract"]
    other = await harness.create(study.request("extract", workspace="second"))
    done = await harness.engine.set_limits(OPERATOR, "test", {"workers": 1})
    assert (done.changed, done.capacity.workers.limit, done.capacity.workers.in_use) == (("workers",), 1, 1)
    assert done.capacity.db_workers.override is None
    await harness.settle()
    assert await harness.codes(other.rap_id) == {"extract": "waiting_on_workers"}
    assert (await harness.codes(created.rap_id))["extract"] == "initiated"
    await harness.engine.set_limits(OPERATOR, "test", {"workers": 2})
    await harness.settle()
    assert await harness.codes(other.rap_id) == {"extract": "initiated"}
    assert (await harness.engine.set_limits(OPERATOR, "test", {"workers": None})).capacity.workers.limit == 10
    await harness.finish(extract)


async def test_a_pool_of_none_is_closed_and_the_other_stays_open(harness: Harness, study: Study) -> None:
    await harness.engine.set_limits(OPERATOR, "test", {"db_workers": 0})
    created = await harness.create(study.request("extract", "query"))
    await harness.settle()
    assert await harness.codes(created.rap_id) == {"extract": "initiated", "query": "waiting_on_db_workers"}
    closed = await pool(harness, "db_workers")
    assert (closed.pending, closed.too_heavy) == (1, 0)


async def test_it_holds_for_every_controller_and_wakes_their_schedulers(
    harness: Harness, study: Study, tmp_path: Path
) -> None:
    context = make_context(harness.context.db, harness.clock, tmp_path / "another")
    another = Engine(context)
    async with listening(harness):
        with harness.context.wakeups.waiter("rap_schedule", "test") as woken:
            woken.clear()
            await another.set_limits(OPERATOR, "test", {"workers": 0})
            async with asyncio.timeout(10):
                await woken.wait()
    created = await harness.create(study.request("extract"))
    await harness.settle()
    assert await harness.codes(created.rap_id) == {"extract": "waiting_on_workers"}
    await context.sources.close()


async def test_what_is_heavier_than_its_pool_now_is_counted_and_refused(harness: Harness, study: Study) -> None:
    heavy = limited(harness, 10, "[default]\n'.*' = 4\n")
    waiting = await heavy.create(study.request("extract", workspace="first"))
    done = await heavy.engine.set_limits(OPERATOR, "test", {"workers": 3})
    assert (done.capacity.workers.pending, done.capacity.workers.too_heavy) == (1, 1)
    with pytest.raises(Rejected, match="needs 4 workers, and the backend has 3 for now, as an operator") as caught:
        await heavy.create(study.request("extract", workspace="second"))
    assert caught.value.fields == {"action": "extract", "limit": "workers"}
    await heavy.settle()
    assert await heavy.codes(waiting.rap_id) == {"extract": "waiting_on_workers"}
    await heavy.engine.set_limits(OPERATOR, "test", {"workers": 4})
    await heavy.settle()
    assert (await pool(heavy)).in_use == 4


async def test_the_same_again_changes_nothing_and_says_so(harness: Harness) -> None:
    with structlog.testing.capture_logs() as logs:
        first = await harness.engine.set_limits(OPERATOR, "test", {"workers": 3, "db_workers": 1.5})
        again = await harness.engine.set_limits(OPERATOR, "test", {"workers": 3})
    assert (first.changed, again.changed) == (("workers", "db_workers"), ())
    assert again.capacity == first.capacity
    assert [(line["limit"], line["was"], line["value"]) for line in logs if line["event"] == "limit_changed"] == [
        ("workers", None, 3),
        ("db_workers", None, 1.5),
    ]


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, 10**9])
async def test_what_is_no_limit_is_refused_with_its_name(harness: Harness, value: float) -> None:
    with pytest.raises(Rejected, match="db_workers must be") as caught:
        await harness.engine.set_limits(OPERATOR, "test", {"workers": 1, "db_workers": value})
    assert caught.value.fields == {"field": "db_workers"}
    assert (await pool(harness)).override is None


async def test_only_operators(harness: Harness) -> None:
    with pytest.raises(Forbidden):
        await harness.engine.set_limits(principal("test"), "test", {"workers": 1})
    with pytest.raises(Forbidden):
        await harness.engine.limits(principal("test"))
    with pytest.raises(NotFound):
        await harness.engine.set_limits(OPERATOR, "other", {"workers": 1})
    with pytest.raises(NotFound):
        await harness.engine.limits(OPERATOR, ["other"])


async def test_agents_are_listed_with_their_load_and_whether_they_are_silent(harness: Harness, study: Study) -> None:
    await harness.create(study.request("extract", "query"))
    await harness.settle()
    await harness.claim(1)
    (agent,) = await harness.engine.agents(principal())
    assert (agent.id, agent.load, agent.silent, agent.on_loss) == ("agent-1", 1, False, "retry")
    harness.clock.advance(60)
    (agent,) = await harness.engine.agents(principal())
    assert not agent.silent
    harness.clock.advance(1)
    (agent,) = await harness.engine.agents(principal())
    assert (agent.load, agent.silent) == (1, True)
