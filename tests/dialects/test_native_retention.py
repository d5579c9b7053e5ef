"""Pruning and the diagnosis in the native API: what is asked of the engine, and which bodies are refused."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from controller.core.errors import Forbidden, NotFound, Rejected, Unavailable
from controller.dialects.native import routes
from tests.dialects import operated
from tests.dialects.serving import CLIENT, PRINCIPAL, serve
from tests.fakes.engine import ScriptedEngine

DAY = 86_400


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(**operated.ANSWERS)


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[Any]:
    async with serve(engine, "/api", routes.make_app()) as client:
        yield client


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"older_than_seconds": DAY}, {"older_than": timedelta(days=1), "after": 0, "dry_run": False}),
        (
            {"older_than_seconds": 90 * DAY, "dry_run": True, "after": 2**63 - 1},
            {"older_than": timedelta(days=90), "after": 2**63 - 1, "dry_run": True},
        ),
    ],
)
async def test_pruning_reaches_the_engine(client: Any, engine: ScriptedEngine, body: Any, named: Any) -> None:
    response = await client.post("/api/backends/test/prune", headers=CLIENT, json=body)
    assert (response.status, (await response.json())["next_after"]) == (200, 4711)
    assert engine.calls == [("prune", (PRINCIPAL, "test"), named)]


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"older_than_seconds": DAY - 1},
        {"older_than_seconds": "90d"},
        {"older_than_seconds": DAY + 0.5},
        {"older_than_seconds": True},
        {"older_than_seconds": 10**12},
        {"older_than_seconds": DAY, "after": -1},
        {"older_than_seconds": DAY, "after": 2**63},
        {"older_than_seconds": DAY, "dry-run": True},
        {"older_than_seconds": DAY, "dry_run": None},
    ],
)
async def test_a_body_that_says_something_else_forgets_nothing(client: Any, engine: ScriptedEngine, body: Any) -> None:
    response = await client.post("/api/backends/test/prune", headers=CLIENT, json=body)
    assert (response.status, (await response.json())["error"]) == (400, "schema_mismatch")
    assert engine.calls == []


@pytest.mark.parametrize(
    ("error", "status"),
    [(Forbidden("no"), 403), (NotFound("no"), 404), (Rejected("no"), 400), (Unavailable("away"), 503)],
)
async def test_errors_of_the_engine(client: Any, engine: ScriptedEngine, error: Exception, status: int) -> None:
    engine.script |= {"prune": error, "diagnose": error}
    pruned = await client.post("/api/backends/test/prune", headers=CLIENT, json={"older_than_seconds": DAY})
    diagnosed = await client.get("/api/diagnosis", headers=CLIENT)
    assert (pruned.status, diagnosed.status) == (status, status)


async def test_a_token_is_needed_and_parameters_are_refused(client: Any, engine: ScriptedEngine) -> None:
    assert (await client.get("/api/diagnosis")).status == 401
    assert (await client.post("/api/backends/test/prune", json={"older_than_seconds": DAY})).status == 401
    assert (await client.get("/api/diagnosis?backend=test", headers=CLIENT)).status == 400
    assert engine.calls == []
