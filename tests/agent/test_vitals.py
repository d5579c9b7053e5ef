"""What an agent tells of itself: numbers of a few names, and none from a backend that is closed."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.redact import redact_vitals
from agent.settings import parse_egress
from agent.vitals import Vitals
from common.protocol import MOST_OF_AGENT_METRICS, OPEN, Egress
from tests.agent.stage import stand, write_output

TASK = "jobone-001"


@given(st.dictionaries(st.sampled_from([*MOST_OF_AGENT_METRICS, "patients"]), st.floats() | st.none()))
def test_only_known_names_within_their_bounds_leave(numbers: dict[str, float | None]) -> None:
    told = redact_vitals(numbers, OPEN)
    assert set(told) <= set(MOST_OF_AGENT_METRICS)
    assert all(math.isfinite(value) and 0 <= value <= MOST_OF_AGENT_METRICS[name] for name, value in told.items())
    assert redact_vitals(numbers, Egress(logs=True)) == {}


@pytest.mark.parametrize(("policy", "tells"), [("status", False), ("status,+logs", False), ("status,+metrics", True)])
def test_the_policy_decides(policy: str, tells: bool) -> None:
    told = Vitals(parse_egress(policy)).tell(busy=1, running=1, reports=0, free=0.5)
    assert bool(told) is tells


def test_the_lag_is_the_worst_since_it_was_told() -> None:
    vitals = Vitals(OPEN)
    for lag in (0.1, 3.0, 0.2):
        vitals.lagged(lag)
    assert vitals.tell(busy=0, running=0, reports=0, free=None) == {
        "slots_used": 0.0,
        "jobs_running": 0.0,
        "reports_queued": 0.0,
        "loop_lag_seconds": 3.0,
    }
    assert vitals.tell(busy=0, running=0, reports=0, free=None)["loop_lag_seconds"] == 0.0


async def test_a_claim_carries_the_numbers(tmp_path: Path) -> None:
    async with stand(tmp_path, disk_reserve=1) as stage:
        stage.executor.script = write_output
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await stage.controller.until(lambda: TASK in stage.controller.complete)
            await stage.controller.until(lambda: len(stage.controller.claims) > 1)
        told = [claim["metrics"] for claim in stage.controller.claims]
    assert told[0]["slots_used"] == 0
    assert max(each["slots_used"] for each in told) == 1
    assert 0 < told[0]["disk_free_ratio"] <= 1


async def test_a_closed_backend_claims_without_them(tmp_path: Path) -> None:
    async with stand(tmp_path, egress=Egress()) as stage:
        async with stage.agent():
            await stage.controller.until(lambda: bool(stage.controller.claims))
        assert [claim["metrics"] for claim in stage.controller.claims] == [{}]
