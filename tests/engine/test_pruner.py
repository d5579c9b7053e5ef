"""The daily pruning of a controller: every backend, over failures, until it is cancelled."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from attrs import define, field
from structlog.testing import capture_logs

from common.environ import ConfigurationError
from controller.core.errors import Unavailable
from controller.loops import Pruner
from controller.settings import from_environ
from tests.fakes.clock import ManualClock

DAYS = timedelta(days=90)


@define
class PrunesOnly:
    """An engine that does nothing but note what is to be pruned; the first backend fails in turn."""

    failures: list[Exception] = field(factory=list)
    asked: list[tuple[str, timedelta]] = field(factory=list)

    async def prune_by_setting(self, backend: str, older_than: timedelta) -> None:
        self.asked.append((backend, older_than))
        if backend == "a" and self.failures:
            raise self.failures.pop()


async def test_every_backend_every_day_whatever_fails() -> None:
    clock, engine = ManualClock(), PrunesOnly([ValueError("a bug"), Unavailable("away")])
    pruner = Pruner(engine, ["a", "b"], clock=clock, older_than=DAYS)  # type: ignore[arg-type]  # stands in
    with capture_logs() as said:
        task = asyncio.create_task(pruner.run())
        for day in range(1, 4):
            await clock.asleep.wait()
            clock.asleep.clear()
            assert len(engine.asked) == 2 * (day - 1)
            clock.advance(3600 if day == 1 else 1.1 * 86_400)
        await clock.asleep.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert engine.asked == [("a", DAYS), ("b", DAYS)] * 3
    assert [line["event"] for line in said] == ["prune_unavailable", "prune_failed"]


def retention(raw: str) -> Any:
    return from_environ({"RAP_DATABASE_URL": "postgresql://db/rap", "RAP_RETENTION_DAYS": raw}).retention_days


@pytest.mark.parametrize(("raw", "days"), [("", 0), ("0", 0), ("1", 1), ("90.5", 90.5), ("36500", 36_500)])
def test_a_number_of_days(raw: str, days: float) -> None:
    assert retention(raw) == days


@pytest.mark.parametrize("raw", ["-1", "0.5", "90d", "36501", "nan", "inf"])
def test_what_is_no_number_of_days(raw: str) -> None:
    with pytest.raises(ConfigurationError, match=r"RAP_RETENTION_DAYS is .* neither 0 nor a number of days"):
        retention(raw)
