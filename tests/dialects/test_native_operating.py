"""Operators' commands in the native API: who may, what is asked of the engine, and which bodies are refused."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from controller.core.errors import DomainError, Forbidden, NotFound, Unavailable
from controller.dialects.native import routes
from tests.dialects import operated
from tests.dialects.serving import AGENT, CLIENT, PRINCIPAL, serve
from tests.fakes.engine import ScriptedEngine

COMMANDS = {
    "pause": ("pause", None, {}),
    "unpause": ("unpause", None, {}),
    "maintenance": ("start_maintenance", {"on": True}, {"disable_checks": False}),
    "prepare-for-reboot": ("prepare_for_reboot", None, {}),
}


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(**operated.ANSWERS)


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[Any]:
    async with serve(engine, "/api", routes.make_app()) as client:
        yield client


async def post(client: Any, path: str, body: Any = None, headers: Any = CLIENT) -> Any:
    return await client.post(f"/api/backends/{path}", headers=headers, **({} if body is None else {"json": body}))


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_command_reaches_the_engine(client: Any, engine: ScriptedEngine, command: str) -> None:
    method, body, named = COMMANDS[command]
    assert (await post(client, f"test/{command}", body)).status == 200
    assert engine.calls == [(method, (PRINCIPAL, "test"), named)]


@pytest.mark.parametrize(
    ("body", "call"),
    [
        ({"on": True, "disable_checks": True}, ("start_maintenance", (PRINCIPAL, "test"), {"disable_checks": True})),
        ({"on": False}, ("end_maintenance", (PRINCIPAL, "test"), {})),
        ({"on": False, "disable_checks": False}, ("end_maintenance", (PRINCIPAL, "test"), {})),
    ],
)
async def test_maintenance_begins_and_ends(client: Any, engine: ScriptedEngine, body: Any, call: Any) -> None:
    assert (await post(client, "test/maintenance", body)).status == 200
    assert engine.calls == [call]


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b"", "malformed_body"),
        (b"on", "malformed_body"),
        (b"[]", "schema_mismatch"),
        (b"{}", "schema_mismatch"),
        (b'{"on": 1}', "schema_mismatch"),
        (b'{"on": "off"}', "schema_mismatch"),
        (b'{"on": true, "disable-checks": true}', "schema_mismatch"),
        (b'{"on": true, "disable_checks": null}', "schema_mismatch"),
        (b'{"on": false, "disable_checks": true}', "rejected"),
    ],
)
async def test_a_body_that_says_something_else_changes_nothing(
    client: Any, engine: ScriptedEngine, body: bytes, key: str
) -> None:
    response = await client.post("/api/backends/test/maintenance", headers=CLIENT, data=body)
    assert (response.status, (await response.json())["error"]) == (400, key)
    assert engine.calls == []


async def test_a_body_has_a_bound(client: Any, engine: ScriptedEngine) -> None:
    response = await client.post("/api/backends/test/maintenance", headers=CLIENT, data=b" " * 4097)
    assert (response.status, (await response.json())["error"]) == (413, "body_too_large")
    assert engine.calls == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "wrong"}, AGENT])
async def test_only_clients_are_let_in(client: Any, engine: ScriptedEngine, command: str, headers: Any) -> None:
    response = await post(client, f"test/{command}", COMMANDS[command][1], headers)
    assert response.status == 401
    assert engine.calls == []


@pytest.mark.parametrize("command", COMMANDS)
async def test_parameters_and_other_methods_are_refused(client: Any, engine: ScriptedEngine, command: str) -> None:
    assert (await post(client, f"test/{command}?disable_checks=1", COMMANDS[command][1])).status == 400
    assert (await client.get(f"/api/backends/test/{command}", headers=CLIENT)).status == 405
    assert engine.calls == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("error", "status"),
    [(Forbidden("not yours to manage"), 403), (NotFound("no such backend"), 404), (Unavailable("away"), 503)],
)
async def test_errors_of_the_engine(
    client: Any, engine: ScriptedEngine, command: str, error: DomainError, status: int
) -> None:
    method, body, _ = COMMANDS[command]
    engine.script[method] = error
    response = await post(client, f"test/{command}", body)
    answer = await response.json()
    assert (response.status, answer["error"], answer["message"]) == (status, error.key, error.message)


async def test_flags_of_all_backends_or_of_one(client: Any, engine: ScriptedEngine) -> None:
    engine.script["flags"] = []
    assert (await client.get("/api/flags", headers=CLIENT)).status == 200
    assert (await client.get("/api/flags?backend=other", headers=CLIENT)).status == 200
    assert engine.calls == [("flags", (PRINCIPAL, None), {}), ("flags", (PRINCIPAL, ["other"]), {})]
