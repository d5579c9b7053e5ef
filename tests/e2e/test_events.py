"""Events over the wire: two controllers on one database, a rolling restart, a token that is revoked, many readers."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from attrs import define

from common import tokens
from common.clock import SystemClock
from common.ids import random_id
from controller.app import controller, make_runner
from controller.settings import from_environ
from tests.engine.conftest import Study

OPERATOR, AGENT = "operator-of-test", "agent-of-test"
LONG = 30.0
READERS = 200


@define
class Served:
    """A controller in this process, on a socket of its own."""

    url: str
    session: aiohttp.ClientSession
    stop: AsyncExitStack

    async def post(self, path: str, body: Any = None, token: str = OPERATOR) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        async with self.session.post(f"{self.url}/{path}", json=body, headers=headers) as response:
            assert response.status in (200, 201), await response.text()
            return await response.json()

    async def create(self, study: Study) -> str:
        """A RAP of one job."""
        rap_id = random_id()
        body = {
            "backend": "test",
            "rap_id": rap_id,
            "workspace": "study",
            "repo_url": str(study.path),
            "branch": "main",
            "commit": study.commit,
            "database_name": "default",
            "requested_actions": ["extract"],
            "codelists_ok": True,
            "force_run_dependencies": True,
            "created_by": "researcher",
            "project": "project",
            "orgs": [],
        }
        await self.post("controller/v1/rap/create/", body)
        return rap_id

    async def run_one(self) -> None:
        """Play an agent that does one job."""
        claim = {"agent": "node-1", "slots": 1, "wait": LONG, "holding": []}
        (task,) = (await self.post("agent/v1/test/claim", claim, AGENT))["tasks"]
        results = {"error": False, "exit_code": "0"}
        reports = [
            {"task_id": task["id"], "attempt": 1, "stage": "executing"},
            {"task_id": task["id"], "attempt": 1, "stage": "finalized", "complete": True, "results": results},
        ]
        await self.post("agent/v1/test/reports", {"agent": "node-1", "reports": reports}, AGENT)

    @asynccontextmanager
    async def events(self, token: str = OPERATOR, place: str | None = None) -> AsyncIterator["Stream"]:
        headers = {"Authorization": f"Bearer {token}"} | ({"Last-Event-ID": place} if place else {})
        async with self.session.get(f"{self.url}/api/events", headers=headers) as response:
            assert response.status == 200, await response.text()
            stream = Stream(response)
            await stream.until("ready")
            yield stream


class Stream:
    """An open stream, block by block."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._content = response.content
        self.place = ""
        self.told: list[tuple[str, str]] = []
        """What came: (place, kind or code)."""

    async def until(self, *wanted: str) -> None:
        """Read until the last of the events has come of which `wanted` names the kinds or codes, in their order."""
        left = list(wanted)
        async with asyncio.timeout(LONG):
            while left:
                if await self._block() == left[0]:
                    left.pop(0)

    async def to_the_end(self) -> None:
        async with asyncio.timeout(LONG):
            while await self._block() is not None:
                pass

    async def _block(self) -> str | None:
        try:
            block = (await self._content.readuntil(b"\n\n")).decode()
        except asyncio.IncompleteReadError:
            return None
        if not block:
            return None
        fields = dict(line.split(": ", 1) for line in block.strip().split("\n"))
        self.place = fields.get("id", self.place)
        kind = fields.get("event", "")
        if kind in ("rap", "job", "flags", "agent"):
            content = json.loads(fields["data"])["content"]
            kind = content.get("code", kind)
            self.told.append((self.place, kind))
        return kind


@asynccontextmanager
async def serving(database_dsn: str, workdir: Path) -> AsyncIterator[Served]:
    settings = from_environ(
        {
            "RAP_DATABASE_URL": database_dsn,
            "BACKENDS": "test,other",
            "TEST_OPERATOR_TOKENS": OPERATOR,
            "OTHER_OPERATOR_TOKENS": OPERATOR,
            "TEST_JOB_SERVER_TOKEN": AGENT,
            "ALLOW_LOCAL_GIT_REPOS": "true",
            "WORKDIR": str(workdir),
            # Whatever happens in a test must come of a wake-up, never of the safety net.
            "RAP_SAFETY_SECONDS": "3600",
        }
    )
    async with AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        running = await stack.enter_async_context(AsyncExitStack())
        made = await running.enter_async_context(controller(settings, SystemClock(), os.environ))
        runner = make_runner(made.app)
        await runner.setup()
        running.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Served(f"http://127.0.0.1:{runner.addresses[0][1]}", session, running)


@pytest.fixture
async def first(database_dsn: str, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(database_dsn, tmp_path / "first") as served:
        yield served


@pytest.fixture
async def second(database_dsn: str, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(database_dsn, tmp_path / "second") as served:
        yield served


async def test_a_rolling_restart_loses_nothing_and_repeats_nothing(first: Served, second: Served, study: Study) -> None:
    async with second.events() as witness, first.events() as stream:
        await second.create(study)
        await second.run_one()
        await stream.until("rap", "initiated", "executing", "succeeded")
        async with asyncio.timeout(5):  # it does not wait for its readers
            await asyncio.gather(first.stop.aclose(), stream.to_the_end())
        await second.create(study)
        async with second.events(place=stream.place) as again:
            await second.run_one()
            await again.until("rap", "initiated", "executing", "succeeded")
        await witness.until(*["rap", "initiated", "executing", "succeeded"] * 2)
    assert stream.told + again.told == witness.told
    assert len({place for place, _ in witness.told}) == len(witness.told) == 8


async def test_a_revoked_token_ends_its_streams_everywhere(first: Served, second: Served) -> None:
    token = tokens.make()
    body = {"name": "laptop", "digest": tokens.digest(token).hex(), "grants": {"test": ["read"]}}
    await first.post("api/tokens", body)
    async with first.events(token) as one, second.events(token) as other, second.events() as unharmed:
        await second.post("api/tokens/laptop/revoke")
        await asyncio.gather(one.to_the_end(), other.to_the_end())
        await first.post("api/backends/test/pause")
        await unharmed.until("flags")
    assert one.told == other.told == []


async def test_many_readers_hear_everything(first: Served, study: Study) -> None:
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(first.events()) for _ in range(READERS)]
        await first.create(study)
        await first.run_one()
        await asyncio.gather(*(stream.until("rap", "initiated", "executing", "succeeded") for stream in streams))
        assert {tuple(stream.told) for stream in streams} == {tuple(streams[0].told)}
