"""Jobs and limits in the native API: what is asked of the engine, and which queries and bodies are refused."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from controller.core.errors import Forbidden, NotFound, Rejected, Unavailable
from controller.dialects.native import routes
from tests.dialects import operated
from tests.dialects.serving import AGENT, CLIENT, PRINCIPAL, serve
from tests.fakes.engine import ScriptedEngine

JOB = "mzxw6ytboi2dgnbu"
COMMANDS = {
    f"/api/jobs/{JOB}/kill": ("kill", None, (PRINCIPAL, JOB), {}),
    f"/api/jobs/{JOB}/retry": ("retry", {"attempt": 2}, (PRINCIPAL, JOB), {"attempt": 2}),
    "/api/backends/test/limits": ("set_limits", {"workers": 2}, (PRINCIPAL, "test", {"workers": 2.0}), {}),
}


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(**operated.ANSWERS)


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[Any]:
    async with serve(engine, "/api", routes.make_app()) as client:
        yield client


async def post(client: Any, path: str, body: Any = None, headers: Any = CLIENT) -> Any:
    return await client.post(path, headers=headers, **({} if body is None else {"json": body}))


@pytest.mark.parametrize("path", COMMANDS)
async def test_a_command_reaches_the_engine(client: Any, engine: ScriptedEngine, path: str) -> None:
    method, body, args, named = COMMANDS[path]
    assert (await post(client, path, body)).status == 200
    assert engine.calls == [(method, args, named)]


async def test_a_retry_may_know_no_attempt(client: Any, engine: ScriptedEngine) -> None:
    bodies: tuple[Any, ...] = (None, {})
    for body in bodies:
        assert (await post(client, f"/api/jobs/{JOB}/retry", body)).status == 200
        assert engine.last_call == ("retry", (PRINCIPAL, JOB), {"attempt": None})


async def test_null_gives_a_limit_back_to_the_settings(client: Any, engine: ScriptedEngine) -> None:
    assert (await post(client, "/api/backends/test/limits", {"db_workers": None, "workers": 0})).status == 200
    assert engine.last_call[1] == (PRINCIPAL, "test", {"db_workers": None, "workers": 0.0})


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("backends/test/limits", b"", "JSON"),
        ("backends/test/limits", b"{}", "non-empty"),
        ("backends/test/limits", b'{"workers": -1}', "$.workers"),
        ("backends/test/limits", b'{"workers": "many"}', "$.workers"),
        ("backends/test/limits", b'{"db_workers": true}', "$.db_workers"),
        ("backends/test/limits", b'{"db_workers": 1e999}', "$.db_workers"),
        ("backends/test/limits", b'{"jobs": 1}', "jobs"),
        (f"jobs/{JOB}/retry", b"[]", "object"),
        (f"jobs/{JOB}/retry", b'{"attempt": -1}', "$.attempt"),
        (f"jobs/{JOB}/retry", b'{"attempt": "1"}', "$.attempt"),
    ],
)
async def test_a_body_that_says_something_else_changes_nothing(
    client: Any, engine: ScriptedEngine, path: str, body: bytes, words: str
) -> None:
    response = await client.post(f"/api/{path}", headers=CLIENT, data=body)
    assert response.status == 400
    assert words in (await response.json())["message"]
    assert engine.calls == []


@pytest.mark.parametrize("path", COMMANDS)
async def test_only_clients_and_no_parameters(client: Any, engine: ScriptedEngine, path: str) -> None:
    body = COMMANDS[path][1]
    assert [(await post(client, path, body, headers)).status for headers in ({}, AGENT)] == [401, 401]
    assert (await post(client, f"{path}?x=1", body)).status == 400
    assert (await client.get(path, headers=CLIENT)).status == 405
    assert engine.calls == []


@pytest.mark.parametrize("path", COMMANDS)
@pytest.mark.parametrize(
    ("error", "status"),
    [(Forbidden("no"), 403), (NotFound("no"), 404), (Rejected("no", field="workers"), 400), (Unavailable("no"), 503)],
)
async def test_errors_of_the_engine(
    client: Any, engine: ScriptedEngine, path: str, error: Exception, status: int
) -> None:
    method, body, _, _ = COMMANDS[path]
    engine.script[method] = error
    assert (await post(client, path, body)).status == status


async def test_filters_reach_the_engine(client: Any, engine: ScriptedEngine) -> None:
    query = "limit=3&cursor=abc&backend=test&workspace=w%20x&state=failed&code=job_error&created_by=alice&search=%25"
    assert (await client.get(f"/api/jobs?{query}", headers=CLIENT)).status == 200
    filters = {"backend": "test", "workspace": "w x", "state": "failed", "code": "job_error"}
    filters |= {"created_by": "alice", "search": "%"}
    assert engine.calls == [("list_jobs", (PRINCIPAL,), {**filters, "limit": 3, "cursor": "abc"})]


async def test_every_fault_of_a_query_is_named(client: Any, engine: ScriptedEngine) -> None:
    response = await client.get("/api/jobs?limit=201&state=odd&colour=red", headers=CLIENT)
    faults = (await response.json())["faults"]
    assert [fault.split()[0] for fault in faults] == ["limit", "state", "colour"]
    assert (await client.get("/api/limits?x=1", headers=CLIENT)).status == 400
    assert (await client.post("/api/jobs/x/kill", headers=CLIENT)).status == 404
    assert engine.calls == []


@pytest.mark.parametrize("path", ["/api/jobs", "/api/limits"])
async def test_lists_are_for_clients(client: Any, engine: ScriptedEngine, path: str) -> None:
    assert [(await client.get(path, headers=headers)).status for headers in ({}, AGENT)] == [401, 401]
    assert engine.calls == []
