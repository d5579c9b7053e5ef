"""A scripted engine behind real HTTP: what the tests of the agents' and the native dialect share."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from common.clock import SystemClock
from controller.core.model import Principal, Verb
from controller.web import middleware
from controller.web.auth import Tokens
from controller.web.keys import CLOCK, ENGINE, TOKENS

CLIENT = {"Authorization": "Bearer client-token"}
AGENT = {"Authorization": "Bearer agent-token"}
PRINCIPAL = Principal(name="portal", backends=("test", "other"), verbs=frozenset({Verb.READ, Verb.RUN}))


class ScriptedEngine:
    """Answers every method with what `answers` has for it (an exception is raised); `calls` says what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def method(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            answer = self.answers[name]
            if isinstance(answer, Exception):
                raise answer
            return await answer(*args, **kwargs) if asyncio.iscoroutinefunction(answer) else answer

        return method


class CrankedClock(SystemClock):
    """Sleeps end when the test says so."""

    def __init__(self) -> None:
        self.cranked = asyncio.Event()
        self.sleeping = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.sleeping.set()
        await self.cranked.wait()


@asynccontextmanager
async def serve(
    engine: ScriptedEngine, prefix: str, dialect: web.Application, clock: Any = None
) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    """The dialect mounted as in the real application."""
    app = web.Application()
    middleware.install(app)
    app[ENGINE] = engine  # type: ignore[misc]  # a stand-in for the facade
    app[TOKENS] = Tokens({"client-token": PRINCIPAL}, {"test": ["agent-token"], "other": ["other-token"]})
    app[CLOCK] = clock or SystemClock()
    app.add_subapp(prefix, dialect)
    async with TestClient(TestServer(app)) as client:
        yield client
