"""The web application as portals and agents meet it: the real routes and middleware on a real port.

The engine behind is scripted. To run the same tests in front of another one, override the `engine` fixture.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import pytest
import structlog
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer

from controller.core.model import Principal, Verb
from controller.dialects.rap import routes as rap_routes
from controller.dialects.tasks import routes as tasks_routes
from controller.web import middleware
from controller.web.auth import Tokens
from controller.web.keys import CLOCK, ENGINE, TOKENS
from tests.dialects.values import NOW
from tests.fakes.clock import ManualClock
from tests.fakes.engine import ScriptedEngine

Ask = Callable[..., Awaitable[ClientResponse]]

PORTAL_TOKEN = "portal-token"
AGENT_TOKEN = "agent-token"
OTHER_AGENT_TOKEN = "other-agent-token"

PORTAL = Principal(name="portal", grants=dict.fromkeys(("test", "other"), frozenset({Verb.READ, Verb.RUN})))


def make_tokens() -> Tokens:
    return Tokens({PORTAL_TOKEN: PORTAL}, {"test": [AGENT_TOKEN], "other": [OTHER_AGENT_TOKEN]})


def make_root(engine: Any, clock: ManualClock) -> web.Application:
    """A root application with both dialects, as the controller composes it."""
    root = web.Application(client_max_size=2_621_440)
    root[ENGINE] = engine
    root[TOKENS] = make_tokens()
    root[CLOCK] = clock
    middleware.install(root)
    root.add_subapp("/controller/v1", rap_routes.make_app())
    tasks_routes.add_to(root)
    return root


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    """What was logged, instead of printing it: one entry per line."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as entries:
        yield entries


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def client(engine: Any, clock: ManualClock) -> AsyncIterator[TestClient[Any, Any]]:
    async with TestClient(TestServer(make_root(engine, clock))) as client:
        yield client


@pytest.fixture
def portal(client: TestClient[Any, Any]) -> Ask:
    """Ask the RAP API, with the portal's token: `await portal("POST", "rap/create/", json=body)`."""

    async def ask(method: str, path: str, token: str | None = PORTAL_TOKEN, **kwargs: Any) -> ClientResponse:
        return await client.request(
            method, f"/controller/v1/{path}", headers=with_token(token, kwargs), allow_redirects=False, **kwargs
        )

    return ask


@pytest.fixture
def agent(client: TestClient[Any, Any]) -> Ask:
    """Ask the Task API, with the agent's token: `await agent("GET", "/test/tasks/")`."""

    async def ask(method: str, path: str, token: str | None = AGENT_TOKEN, **kwargs: Any) -> ClientResponse:
        return await client.request(method, path, headers=with_token(token, kwargs), allow_redirects=False, **kwargs)

    return ask


def with_token(token: str | None, kwargs: dict[str, Any]) -> dict[str, str]:
    """The headers of a request, taken out of its keyword arguments, and the token."""
    headers: dict[str, str] = kwargs.pop("headers", {})
    return headers if token is None else {"Authorization": token, **headers}
