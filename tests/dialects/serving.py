"""One dialect over a scripted engine behind real HTTP, for the dialects of our own making (agents, native)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from common.clock import Clock
from controller.core.model import Principal, Verb
from controller.web import middleware
from controller.web.auth import Tokens
from controller.web.keys import CLOCK, ENGINE, TOKENS
from tests.fakes.clock import ManualClock
from tests.fakes.engine import ScriptedEngine

CLIENT = {"Authorization": "Bearer client-token"}
AGENT = {"Authorization": "Bearer agent-token"}
PRINCIPAL = Principal(name="portal", grants=dict.fromkeys(("test", "other"), frozenset({Verb.READ, Verb.RUN})))


@asynccontextmanager
async def serve(
    engine: ScriptedEngine, prefix: str, dialect: web.Application, clock: Clock | None = None
) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    """The dialect mounted as in the real application."""
    app = web.Application()
    middleware.install(app)
    app[ENGINE] = engine  # type: ignore[misc]  # a stand-in for the facade
    app[TOKENS] = Tokens({"client-token": PRINCIPAL}, {"test": ["agent-token"], "other": ["other-token"]})
    app[CLOCK] = clock or ManualClock()
    app.add_subapp(prefix, dialect)
    async with TestClient(TestServer(app)) as client:  # cancels handlers of clients that go away, as ours does
        yield client
