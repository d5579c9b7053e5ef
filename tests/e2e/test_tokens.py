"""Tokens that operators make, over the wire: at every door of two controllers on one database."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web
from click.testing import CliRunner, Result

from cli.main import rap
from common import tokens
from common.clock import SystemClock
from controller.app import Controller, controller, make_runner
from controller.settings import from_environ

OPERATOR = "operator-of-both"
OF_TEST = "operator-of-test"
ENVIRONMENT = {
    "BACKENDS": "test,other",
    "TEST_OPERATOR_TOKENS": f"{OPERATOR},{OF_TEST}",
    "OTHER_OPERATOR_TOKENS": OPERATOR,
    "RAP_POLL_SECONDS": "20",
    # Whatever happens in a test must come of a wake-up, never of the safety net.
    "RAP_SAFETY_SECONDS": "3600",
}
DOORS = {
    "RAP API": ("GET", "controller/v1/backend/status/", None),
    "native API": ("GET", "api/backends", None),
    "Task API": ("GET", "test/tasks/", None),
    "agents": ("POST", "agent/v1/test/claim", {"agent": "a", "slots": 1}),
}
CLIENTS = ("RAP API", "native API")
AGENTS = ("Task API", "agents")
REFUSALS = {
    "RAP API": {"error": "Unauthorized", "details": "Invalid token"},
    "native API": {"error": "unauthorized", "message": "Invalid token"},
    "agents": {"error": "unauthorized", "message": "This token does not open this backend."},
}


class Served:
    """A controller in this process, on a socket of its own."""

    def __init__(self, url: str, session: aiohttp.ClientSession, made: Controller) -> None:
        self.url, self.session, self.made = url, session, made

    async def ask(self, method: str, path: str, token: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"}
        async with self.session.request(method, f"{self.url}/{path}", json=body, headers=headers) as response:
            text = await response.text()
            return response.status, json.loads(text) if response.content_type == "application/json" else text

    async def at(self, door: str, token: str) -> int:
        """The status that `token` gets at a door."""
        return (await self.ask(*DOORS[door][:2], token, DOORS[door][2]))[0]

    async def create(self, name: str, grants: dict[str, list[str]], *, by: str = OPERATOR, **more: Any) -> str:
        secret = tokens.make()
        body = {"name": name, "digest": tokens.digest(secret).hex(), "grants": grants, **more}
        status, answer = await self.ask("POST", "api/tokens", by, body)
        assert (status, answer["changed"], answer["token"]["name"]) == (200, True, name)
        return secret

    async def revoke(self, name: str) -> None:
        assert (await self.ask("POST", f"api/tokens/{name}/revoke", OPERATOR))[0] == 200


@asynccontextmanager
async def serving(dsn: str, workdir: Path) -> AsyncIterator[Served]:
    settings = from_environ({**ENVIRONMENT, "RAP_DATABASE_URL": dsn, "WORKDIR": str(workdir)})
    async with controller(settings, SystemClock(), os.environ) as made, aiohttp.ClientSession() as session:
        runner = make_runner(made.app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Served(f"http://127.0.0.1:{runner.addresses[0][1]}", session, made)
        await runner.cleanup()


@pytest.fixture(autouse=True)
def entries() -> Iterator[list[MutableMapping[str, Any]]]:
    """What the controllers log, instead of printing it into what a command prints in the same process."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as entries:
        yield entries


@pytest.fixture
async def two(database_dsn: str, tmp_path: Path) -> AsyncIterator[tuple[Served, Served]]:
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(serving(database_dsn, tmp_path / name)) for name in ("one", "two")
        ]
        yield first, second


async def until(served: Served, door: str, token: str, status: int) -> None:
    """Return as soon as the door answers so; its memory alone would make that take ten seconds."""
    async with asyncio.timeout(5):
        while await served.at(door, token) != status:
            pass


async def test_each_kind_opens_its_doors_and_no_other(two: tuple[Served, Served]) -> None:
    first, second = two
    client = await first.create("laptop", {"test": ["read", "run"]})
    agent = await first.create("node", {"test": ["agent"]})
    for token, opened in ((client, CLIENTS), (agent, AGENTS)):
        for door in DOORS:
            await until(second, door, token, 200 if door in opened else 401)
    assert await first.at("RAP API", f"{client}x") == 401


async def test_refusals_are_those_of_any_unknown_token(two: tuple[Served, Served]) -> None:
    served, _ = two
    revoked = await served.create("revoked", {"test": ["read"]})
    await served.revoke("revoked")
    expired = await served.create("expired", {"test": ["agent"]}, lifetime_seconds=1)
    await until(served, "agents", expired, 401)
    for door, refusal in REFUSALS.items():
        for token in (revoked, expired, tokens.make(), "unknown"):
            status, answer = await served.ask(*DOORS[door][:2], token, DOORS[door][2])
            assert (status, answer) == (401, answer | refusal), (door, token)
    assert await served.at("Task API", expired) == 401
    # Reference section 2.1: an unknown backend first, then the token, then the method.
    assert (await served.ask("GET", "nowhere/tasks/", expired))[0] == 404
    assert (await served.ask("GET", "test/task/update/", expired))[0] == 401


async def test_a_token_opens_its_backends_only(two: tuple[Served, Served]) -> None:
    served, _ = two
    client = await served.create("laptop", {"test": ["read"]})
    agent = await served.create("node", {"test": ["agent"]})
    both = await served.create("nodes", {"test": ["agent"], "other": ["agent"]})
    _, answer = await served.ask("GET", "api/backends", client)
    assert [each["slug"] for each in answer["backends"]] == ["test"]
    assert (await served.ask("POST", "api/backends/test/pause", client))[0] == 403
    assert (await served.ask("POST", "api/backends/other/pause", client))[0] == 404
    for path, body in (("other/tasks/", None), ("agent/v1/other/claim", {"agent": "a", "slots": 1})):
        method = "GET" if body is None else "POST"
        assert (await served.ask(method, path, agent, body))[0] == 401
        assert (await served.ask(method, path, both, body))[0] == 200


async def test_rights_are_per_backend(two: tuple[Served, Served]) -> None:
    served, _ = two
    mixed = await served.create("mixed", {"test": ["read", "manage"], "other": ["read"]})
    assert (await served.ask("POST", "api/backends/test/pause", mixed))[0] == 200
    assert (await served.ask("POST", "api/backends/other/pause", mixed))[0] == 403
    assert (await served.ask("GET", "api/flags", mixed))[0] == 200
    assert (await served.ask("GET", "api/tokens", await served.create("reader", {"test": ["read"]})))[0] == 403


async def test_a_revoke_at_one_controller_shuts_out_at_the_other_at_once(two: tuple[Served, Served]) -> None:
    first, second = two
    for kind, grants, door in (("client", ["read"], "RAP API"), ("agent", ["agent"], "agents")):
        token = await first.create(kind, {"test": grants})
        await until(second, door, token, 200)
        await first.revoke(kind)
        assert await first.at(door, token) == 401
        await until(second, door, token, 401)


async def test_an_open_long_poll_ends_with_its_token(two: tuple[Served, Served]) -> None:
    first, second = two
    token = await first.create("node", {"test": ["agent"]})
    await until(second, "agents", token, 200)
    body = {"agent": "a", "slots": 1, "wait": 20}
    wakeups = second.made.engine._ctx.wakeups
    others = wakeups.waiting
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        poll = group.create_task(second.ask("POST", "agent/v1/test/claim", token, body))
        while wakeups.waiting == others:  # noqa: ASYNC110  a poll that goes to sleep sets no event of ours
            await asyncio.sleep(0)
        await first.revoke("node")
        status, _ = await poll
    assert status == 401


async def test_without_a_database_tokens_of_the_settings_are_told_from_others(
    two: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, _ = two
    await served.made.engine._ctx.db.close()
    status, answer = await served.ask("GET", "api/tokens", OPERATOR)
    assert (status, answer["error"]) == (503, "unavailable"), "let in, but there is nothing to read"
    assert (await served.ask("POST", "api/backends/test/maintenance", OPERATOR, {}))[0] == 400, "let in"
    for door in DOORS:
        assert await served.at(door, tokens.make()) == 503
        assert await served.at(door, "unknown") == 401, "it cannot be one of ours"


@pytest.mark.parametrize(
    ("change", "status", "key"),
    [
        ({"name": ""}, 400, "schema_mismatch"),
        ({"name": "a b"}, 400, "schema_mismatch"),
        ({"name": "laptop\n"}, 400, "schema_mismatch"),
        ({"name": "a" * 65}, 400, "schema_mismatch"),
        ({"name": None}, 400, "schema_mismatch"),
        ({"digest": "00"}, 400, "schema_mismatch"),
        ({"digest": "G" * 64}, 400, "schema_mismatch"),
        ({"grants": {}}, 400, "schema_mismatch"),
        ({"grants": {"test": []}}, 400, "schema_mismatch"),
        ({"grants": {"test": ["own"]}}, 400, "schema_mismatch"),
        ({"grants": {"test": ["read", "read"]}}, 400, "schema_mismatch"),
        ({"grants": ["test"]}, 400, "schema_mismatch"),
        ({"lifetime_seconds": 0}, 400, "schema_mismatch"),
        ({"lifetime_seconds": 1.5}, 400, "schema_mismatch"),
        ({"lifetime_seconds": 10**12}, 400, "schema_mismatch"),
        ({"secret": "x"}, 400, "schema_mismatch"),
        ({"grants": {"test": ["read", "agent"]}}, 400, "rejected"),
        ({"grants": {"other": ["read"]}}, 404, "not_found"),
        ({"grants": {"te\0st": ["read"]}}, 404, "not_found"),
        ({"name": "a" * 5000}, 413, "body_too_large"),
    ],
)
async def test_what_makes_no_sense_makes_no_token(
    two: tuple[Served, Served], change: dict[str, Any], status: int, key: str
) -> None:
    served, _ = two
    body = {"name": "laptop", "digest": "0" * 64, "grants": {"test": ["read"]}} | change
    answered, answer = await served.ask("POST", "api/tokens", OF_TEST, body)
    assert (answered, answer["error"]) == (status, key)
    assert (await served.ask("GET", "api/tokens", OPERATOR))[1] == {"tokens": []}


@pytest.mark.parametrize("name", ["none", "..", "a%2Fb", "%00", "a" * 65])
async def test_what_is_not_there_is_not_revoked(two: tuple[Served, Served], name: str) -> None:
    assert (await two[0].ask("POST", f"api/tokens/{name}/revoke", OPERATOR))[0] == 404


async def test_no_log_has_a_token(
    two: tuple[Served, Served], entries: list[MutableMapping[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Not even before secrets are masked, which is another test's subject."""
    served, _ = two
    secret = await served.create("laptop", {"test": ["read"]})
    assert await served.at("RAP API", secret) == 200
    await served.ask("GET", f"api/{secret}?token={secret}", secret)
    await served.ask("POST", f"api/tokens/{secret}/revoke", secret)
    await served.ask("POST", "api/tokens", OPERATOR, {"name": secret})
    await served.revoke("laptop")
    assert await served.at("RAP API", secret) == 401
    written = repr(entries) + caplog.text
    assert "token laptop" in written, "who asked is told"
    assert {"token_created", "token_revoked", "token_refused"} <= {entry["event"] for entry in entries}
    assert secret not in written
    assert tokens.digest(secret).hex() not in written


async def test_from_the_command_line(two: tuple[Served, Served], tmp_path: Path) -> None:
    first, second = two

    async def run(served: Served, *arguments: str) -> Result:
        environ = {"RAP_URL": served.url, "RAP_TOKEN": OPERATOR, "XDG_STATE_HOME": str(tmp_path)}
        return await asyncio.to_thread(CliRunner().invoke, rap, ["token", *arguments], env=environ)

    created = await run(first, "create", "laptop", "--backend", "test", "--expires", "1d")
    assert created.exit_code == 0, created.stderr
    token = created.stdout.strip()
    await until(second, "RAP API", token, 200)
    taken = await run(second, "create", "laptop", "--backend", "test")
    assert (taken.exit_code, taken.stdout) == (2, "")
    assert "The name 'laptop' is taken" in taken.stderr
    listed = await run(second, "list")
    assert "laptop" in listed.stdout
    assert token not in listed.stdout
    assert (await run(second, "revoke", "laptop", "-y")).exit_code == 0
    assert await second.at("RAP API", token) == 401
    await until(first, "RAP API", token, 401)
