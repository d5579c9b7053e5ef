"""What is taken at a scrape: the database is asked now and then, is not waited for, and is not everything."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from controller.core.codes import StatusCode
from controller.core.errors import Unavailable
from controller.engine.gauging import AgentsGauge, BackendGauge, CodeGauge, Gauges
from controller.store.db import PoolState
from controller.store.listen import Wakeups
from controller.telemetry import metrics_moments
from controller.telemetry.counts import TelemetryCounts
from controller.telemetry.metrics_collector import MomentCollector
from controller.telemetry.metrics_moments import FRESH_SECONDS, Moments, Sources
from tests.factories import NOW
from tests.fakes.clock import ManualClock

EMPTY = Gauges(at=NOW, backends=[])


def moments(gauge: Callable[[], Awaitable[Gauges]], clock: ManualClock, wakeups: Wakeups | None = None) -> Moments:
    sources = Sources(
        gauge=gauge,
        pool=lambda: PoolState(limit=10, size=4, idle=1, waiting=2),
        wakeups=wakeups or Wakeups(),
        tasks_channel="rap_tasks",
        listening=lambda: True,
        counts=TelemetryCounts(exported=5, dropped=1),
    )
    return Moments(sources, clock)


def samples(made: MomentCollector) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in made.collect()
        for sample in family.samples
    }


async def test_many_scrapes_ask_the_database_once_in_two_seconds() -> None:
    asked = []

    async def gauge() -> Gauges:
        asked.append(1)
        await asyncio.sleep(0)
        return EMPTY

    clock = ManualClock()
    taken = moments(gauge, clock)
    await asyncio.gather(*(taken.take() for _ in range(20)))
    assert len(asked) == 1
    clock.advance(FRESH_SECONDS - 0.1)
    await taken.take()
    assert len(asked) == 1
    clock.advance(0.2)
    await taken.take()
    assert len(asked) == 2


@pytest.mark.parametrize("error", [Unavailable("away"), RuntimeError("a bug")])
async def test_without_the_database_the_rest_is_there(error: Exception) -> None:
    async def gauge() -> Gauges:
        raise error

    collector = MomentCollector()
    collector.moment = await moments(gauge, ManualClock()).take()
    found = samples(collector)
    assert found["rap_database_up", ()] == 0
    assert found["rap_database_pool_connections", ("used",)] == 3
    assert found["rap_database_pool_waiting", ()] == 2
    assert found["rap_telemetry_spans_dropped_total", ()] == 1
    assert not [name for name, _ in found if name.startswith("rap_queue")]


async def test_a_database_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_moments, "PATIENCE", 0.01)
    never = asyncio.Event()

    async def gauge() -> Gauges:
        await never.wait()
        return EMPTY

    taken = await moments(gauge, ManualClock()).take()
    assert taken.gauges is None
    assert taken.listening


async def test_wakeups_and_long_polls_are_counted() -> None:
    async def gauge() -> Gauges:
        return EMPTY

    wakeups = Wakeups()
    with (
        wakeups.waiter("rap_tasks", "test"),
        wakeups.waiter("rap_tasks", "test"),
        wakeups.waiter("rap_schedule", "test"),
    ):
        wakeups.wake("rap_tasks", "test")
        wakeups.wake("rap_tasks", "other")
        wakeups.wake_all()
        collector = MomentCollector()
        collector.moment = await moments(gauge, ManualClock(), wakeups).take()
    found = samples(collector)
    assert found["rap_long_polls", ("test",)] == 2
    assert found["rap_notifications_received_total", ("rap_tasks",)] == 2
    assert found["rap_wakeups_total", ("rap_tasks",)] == 4
    assert found["rap_wakeups_total", ("rap_schedule",)] == 1


def agents(executor: str, **told: float) -> AgentsGauge:
    values = {"slots_used": None, "jobs_running": None, "reports_queued": None, "disk_free_ratio": None} | told
    return AgentsGauge(executor=executor, alive=1, silent=2, telling=1, slots=4, **{"loop_lag_seconds": None, **values})


async def test_a_backend_in_numbers() -> None:
    backend = BackendGauge(
        slug="test",
        seen_at=NOW - timedelta(seconds=7),
        paused=True,
        db_maintenance=False,
        queue={StatusCode.WAITING_ON_WORKERS: CodeGauge(jobs=3, since=NOW - timedelta(seconds=60))},
        unclaimed=2,
        unclaimed_since=NOW - timedelta(seconds=5),
        expired=1,
        agents=[
            agents("docker", slots_used=1, disk_free_ratio=0.5, loop_lag_seconds=0.1),
            agents("anything that an agent says", slots_used=2, disk_free_ratio=0.25, loop_lag_seconds=0.3),
            agents("something else"),
        ],
    )
    new = BackendGauge(
        slug="new", seen_at=None, paused=False, db_maintenance=False, queue={}, unclaimed=0, unclaimed_since=None,
        expired=0,
    )  # fmt: skip

    async def gauge() -> Gauges:
        return Gauges(at=NOW, backends=[backend, new])

    collector = MomentCollector()
    collector.moment = await moments(gauge, ManualClock()).take()
    found = samples(collector)
    assert found["rap_queue_jobs", ("test", "pending", "waiting_on_workers")] == 3
    assert found["rap_queue_jobs", ("test", "running", "executing")] == 0
    assert found["rap_queue_oldest_seconds", ("test", "pending", "waiting_on_workers")] == 60
    assert found["rap_tasks_unclaimed_oldest_seconds", ("test",)] == 5
    assert found["rap_backend_last_seen_seconds", ("test",)] == 7
    assert found["rap_backend_paused", ("test",)] == 1
    assert found["rap_agents", ("test", "docker")] == 1
    assert found["rap_agents", ("test", "other")] == 2, (
        "agents may declare any executor, and a label has no room for it"
    )
    assert found["rap_agents_silent", ("test", "other")] == 4
    assert found["rap_agent_slots", ("test",)] == 12
    assert found["rap_agent_slots_used", ("test",)] == 3
    assert found["rap_agent_disk_free_ratio", ("test",)] == 0.25
    assert found["rap_agent_event_loop_lag_seconds", ("test",)] == 0.3
    assert ("rap_agent_jobs_running", ("test",)) not in found
    assert ("rap_backend_last_seen_seconds", ("new",)) not in found
    assert found["rap_queue_jobs", ("new", "pending", "created")] == 0
