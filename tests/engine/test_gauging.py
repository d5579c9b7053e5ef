"""How things stand, counted in a real database."""

from collections.abc import Sequence
from datetime import timedelta

from attrs import define, evolve, field

from common.protocol import ClaimRequest, Declaration
from controller.core.codes import StatusCode
from controller.core.machine import Move
from controller.core.model import Flag, Task, TaskType
from controller.core.observer import Observer
from controller.engine.facade import Engine
from controller.engine.gauging import AgentsGauge, BackendGauge
from tests.engine.conftest import Harness, Study, limited
from tests.factories import principal


async def gauged(harness: Harness, slug: str = "test") -> BackendGauge:
    return next(each for each in (await harness.engine.gauge()).backends if each.slug == slug)


def by_executor(found: BackendGauge) -> dict[str, AgentsGauge]:
    return {each.executor: each for each in found.agents}


async def test_the_queue_by_code_and_since_when(harness: Harness, study: Study) -> None:
    harness = limited(harness, 1)
    await harness.create(study.request())
    await harness.settle()
    began = harness.clock.now()
    harness.clock.advance(30)
    found = await gauged(harness)
    assert {code: gauge.jobs for code, gauge in found.queue.items()} == {
        StatusCode.INITIATED: 2,
        StatusCode.WAITING_ON_DEPENDENCIES: 3,
    }
    assert found.queue[StatusCode.INITIATED].since == began
    assert (found.unclaimed, found.unclaimed_since) == (2, began)
    assert (await gauged(harness, "other")).queue == {}


async def test_a_claim_takes_a_task_out_of_the_unclaimed_and_its_lease_may_end(harness: Harness, study: Study) -> None:
    await harness.create(study.request("extract"))
    await harness.settle()
    await harness.claim()
    found = await gauged(harness)
    assert (found.unclaimed, found.expired) == (0, 0)
    harness.clock.advance(harness.context.lease_seconds + 1)
    assert (await gauged(harness)).expired == 1


async def test_agents_alive_silent_and_forgotten(harness: Harness, study: Study) -> None:
    await harness.create(study.request("extract"))
    await harness.settle()
    await harness.claim()
    await harness.engine.declare_agent("test", "idle", Declaration(version="1", executor="docker", slots=3))
    assert {name: (each.alive, each.silent) for name, each in by_executor(await gauged(harness)).items()} == {
        "fake": (1, 0),
        "docker": (1, 0),
    }
    harness.clock.advance(3600)
    assert {name: (each.alive, each.silent) for name, each in by_executor(await gauged(harness)).items()} == {
        "fake": (0, 1),
        "docker": (0, 1),
    }
    harness.clock.advance(timedelta(days=8).total_seconds())
    left = by_executor(await gauged(harness))
    assert set(left) == {"fake"}, "it holds a job, so it is missed for ever"


async def test_what_agents_tell_goes_with_their_last_claim(harness: Harness) -> None:
    told = {"slots_used": 2.0, "jobs_running": 1.0, "disk_free_ratio": 0.5, "loop_lag_seconds": 0.1}
    await harness.engine.claim("test", ClaimRequest(agent=harness.agent, slots=1, metrics=told))
    await harness.engine.claim("test", ClaimRequest(agent="new", slots=4, metrics={"slots_used": 3.0}))
    await harness.engine.declare_agent("test", "new", Declaration(version="1", executor="fake", slots=4))
    found = by_executor(await gauged(harness))["fake"]
    assert (found.telling, found.slots, found.slots_used, found.jobs_running) == (2, 14, 5.0, 1.0)
    assert (found.disk_free_ratio, found.loop_lag_seconds, found.reports_queued) == (0.5, 0.1, None)
    await harness.engine.claim("test", ClaimRequest(agent=harness.agent, slots=1))
    found = by_executor(await gauged(harness))["fake"]
    assert (found.telling, found.slots_used) == (1, 3.0), "who tells nothing any more is not believed for ever"
    harness.clock.advance(harness.context.lease_seconds + 1)
    assert by_executor(await gauged(harness))["fake"].slots_used is None


async def test_switches_and_the_last_sign_of_life(harness: Harness) -> None:
    await harness.set_flag(Flag.PAUSED, "true")
    found = await gauged(harness)
    assert (found.paused, found.db_maintenance, found.seen_at) == (True, False, harness.clock.now())
    assert (await gauged(harness, "other")).seen_at is None


@define
class Seen(Observer):
    """Keeps what it is told."""

    tasks: list[tuple[Task, float]] = field(factory=list)
    moves: list[Move] = field(factory=list)
    jobs: int = 0

    def created(self, *, backend: str, jobs: int) -> None:
        self.jobs += jobs

    def dispatched(self, task: Task, *, seconds: float) -> None:
        self.tasks.append((task, seconds))

    def moved(self, moves: Sequence[Move]) -> None:
        self.moves += moves


async def test_an_observer_is_told_of_each_task_and_move_once(harness: Harness, study: Study) -> None:
    seen = Seen()
    context = evolve(harness.context, observer=seen)
    harness = Harness(Engine(context), context, harness.clock)
    request = study.request("extract")
    await harness.create(request)
    await harness.engine.create_rap(principal("test"), request)
    await harness.settle()
    harness.clock.advance(4)
    (task,) = await harness.claim()
    (repeated,) = await harness.claim(holding=())
    assert repeated.id == task.id, "offered again, as if the answer had been lost"
    await harness.finish(task)
    await harness.finish(task)
    assert seen.jobs == 1
    assert [(each.type, seconds) for each, seconds in seen.tasks] == [(TaskType.RUNJOB, 4.0)]
    codes = [each.after.code for move in seen.moves for each in move.transitions if each.recorded]
    assert codes == [StatusCode.INITIATED, StatusCode.SUCCEEDED]
