"""Series of metrics: what was used between two samples, in bounded space however long a job runs."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.errors import NotFound
from controller.core.model import JobId
from controller.engine import measuring
from controller.engine.measuring import Series
from controller.store import samples
from controller.store.samples import SampleRow
from tests.engine.conftest import Harness, Study
from tests.factories import NOW, operator, principal


async def series(harness: Harness, task: Any, attempt: int | None = None) -> Series:
    return await harness.engine.job_metrics(principal(), JobId(task.job_id), attempt=attempt)


async def start(harness: Harness, study: Study) -> Any:
    await harness.create(study.request("extract"))
    await harness.settle()
    (task,) = await harness.claim()
    await harness.report(task, "executing")
    return task


async def test_what_was_used_between_two_reports(harness: Harness, study: Study) -> None:
    task = await start(harness, study)
    assert (await series(harness, task)).points == ()
    for mean, memory in ((100.0, 10.0), (60.0, 30.0), (60.0, 20.0)):
        harness.clock.advance(10)
        await harness.report(task, "executing", metrics={"cpu_mean": mean, "mem_mb_mean": memory, "mem_mb_peak": 99.0})
    found = await series(harness, task)
    assert (found.attempt, found.complete) == (1, False)
    assert [(point.cpu, point.mem_mb) for point in found.points] == [(100.0, 10.0), (20.0, 50.0), (60.0, 0.0)]
    assert found.points[1].metrics == {"cpu_mean": 60.0, "mem_mb_mean": 30.0, "mem_mb_peak": 99.0}
    assert [point.at - NOW for point in found.points] == [timedelta(seconds=10 * n) for n in (1, 2, 3)]
    harness.clock.advance(10)
    await harness.finish(task, job_metrics={"cpu_mean": 45.0, "container_id": "no number"})
    ended = await series(harness, task)
    assert (ended.complete, len(ended.points)) == (True, 4)
    assert (ended.points[3].cpu, ended.points[3].mem_mb, ended.points[3].metrics) == (0.0, None, {"cpu_mean": 45.0})


async def test_each_attempt_has_its_own(harness: Harness, study: Study) -> None:
    task = await start(harness, study)
    harness.clock.advance(10)
    await harness.report(task, "executing", metrics={"cpu_mean": 1.0})
    await harness.engine.retry(operator(), JobId(task.job_id))
    await harness.settle()
    again = next(each for each in await harness.claim() if each.attempt == 2)
    harness.clock.advance(10)
    await harness.report(again, "executing", metrics={"cpu_mean": 2.0})
    assert [point.metrics["cpu_mean"] for point in (await series(harness, task)).points] == [2.0]
    first = await series(harness, task, attempt=1)
    assert ([point.metrics["cpu_mean"] for point in first.points], first.complete) == ([1.0], True)
    assert (await series(harness, task, attempt=7)).points == ()


async def test_a_job_that_runs_for_ever_takes_bounded_space(
    harness: Harness, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples.add, "__kwdefaults__", {"most": 10})
    task = await start(harness, study)
    total = 0.0
    for n in range(1, 60):
        harness.clock.advance(10)
        total += 10 * (n % 7)
        await harness.report(task, "executing", metrics={"cpu_mean": total / (10 * n), "cpu_peak": float(n)})
        found = (await series(harness, task)).points
        assert len(found) < 10
        assert found[-1].metrics["cpu_peak"] == n  # the newest is there as it came
    # However much was merged, what was used in the whole is the same.
    used, before = 0.0, NOW
    for point in found:
        assert point.cpu is not None
        used += point.cpu * (point.at - before).total_seconds()
        before = point.at
    assert used == pytest.approx(total, abs=1)


async def test_a_series_is_forgotten_with_the_history_of_its_job(harness: Harness, study: Study) -> None:
    task = await start(harness, study)
    harness.clock.advance(10)
    await harness.report(task, "executing", metrics={"cpu_mean": 1.0})
    await harness.finish(task)
    assert len((await series(harness, task)).points) == 1
    harness.clock.advance(timedelta(days=31).total_seconds())
    await harness.engine.prune_by_setting("test", timedelta(days=30))
    assert (await series(harness, task)).points == ()


async def test_hostile_metrics_stay_small(harness: Harness, study: Study) -> None:
    task = await start(harness, study)
    harness.clock.advance(10)
    await harness.report(task, "executing", metrics={f"m{n:04}": 1.0 for n in range(1000)})
    (point,) = (await series(harness, task)).points
    assert len(point.metrics) == samples.MOST_NAMES
    assert (point.cpu, point.mem_mb) == (None, None)


async def test_the_series_of_others_is_not_there(harness: Harness, study: Study) -> None:
    task = await start(harness, study)
    with pytest.raises(NotFound):
        await harness.engine.job_metrics(principal("other"), JobId(task.job_id), attempt=None)


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 6400)), max_size=30), st.booleans())
def test_the_parts_make_the_whole(used: list[tuple[int, float]], known: bool) -> None:
    """Means since the beginning, taken apart, give back what was used in each part."""
    rows, seconds, total = [], 0, 0.0
    for length, rate in used:
        seconds, total = seconds + length, total + length * rate
        rows.append(SampleRow(at=NOW + timedelta(seconds=seconds), metrics={"cpu_mean": total / seconds}))
    found = measuring.points(rows, NOW if known else None)
    if not known:
        assert all(point.cpu is None for point in found)
        return
    for point, (_, rate) in zip(found, used, strict=True):
        assert point.cpu == pytest.approx(rate, rel=1e-6, abs=0.01)
