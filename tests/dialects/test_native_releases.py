"""Releases in the native API: what is asked of the engine, and which bodies are refused."""

import io
from collections.abc import AsyncIterator
from typing import Any

import pytest

from controller.core.errors import Conflict, Forbidden, NotFound
from controller.dialects.native import releases, routes
from tests.dialects import operated
from tests.dialects.serving import CLIENT, PRINCIPAL, serve
from tests.fakes.engine import ScriptedEngine

JOB = "mzxw6ytboi2dgnbu"
PATH = f"/api/jobs/{JOB}/release"


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(**operated.ANSWERS)


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[Any]:
    async with serve(engine, "/api", routes.make_app()) as client:
        yield client


@pytest.mark.parametrize(
    ("body", "paths"),
    [(b"", None), (b"{}", None), (b'{"paths": null}', None), (b'{"paths": ["a b.csv", "\\u00e9"]}', ["a b.csv", "é"])],
)
async def test_a_release_reaches_the_engine(client: Any, engine: ScriptedEngine, body: bytes, paths: Any) -> None:
    engine.script["release_outputs"] = operated.ANSWERS["release_outputs"](None, JOB, ["a"])
    response = await client.post(PATH, headers=CLIENT, data=body)
    assert response.status == 200
    assert engine.last_call == ("release_outputs", (PRINCIPAL, JOB, paths), {})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[]", "object"),
        (b'{"paths": []}', "$.paths"),
        (b'{"paths": "a"}', "$.paths"),
        (b'{"paths": [""]}', "$.paths[0]"),
        (b'{"paths": ["a\\u0000"]}', "$.paths[0]"),
        (b'{"paths": ["' + b"x" * 2001 + b'"]}', "$.paths[0]"),
        (b'{"paths": [' + b",".join([b'"x"'] * 1001) + b"]}", "$.paths"),
        (b'{"path": "a"}', "path"),
        (b'{"paths": ["\\ud800"]}', "surrogates"),
    ],
)
async def test_a_body_that_says_something_else_releases_nothing(
    client: Any, engine: ScriptedEngine, body: bytes, words: str
) -> None:
    response = await client.post(PATH, headers=CLIENT, data=body)
    assert response.status == 400
    assert words in (await response.json())["message"]
    assert engine.calls == []


async def test_a_body_without_end_is_refused(client: Any, engine: ScriptedEngine) -> None:
    response = await client.post(PATH, headers=CLIENT, data=io.BytesIO(b" " * (releases.MAX_BODY + 1)))
    assert response.status == 413
    assert engine.calls == []


@pytest.mark.parametrize(
    ("error", "status"), [(NotFound("No job"), 404), (Forbidden("not here"), 403), (Conflict("not finished"), 409)]
)
async def test_refusals_are_told(client: Any, engine: ScriptedEngine, error: Exception, status: int) -> None:
    engine.script["release_outputs"] = error
    response = await client.post(PATH, headers=CLIENT)
    assert (response.status, (await response.json())["message"]) == (status, str(error))


@pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("POST", f"{PATH}s"), ("GET", "/api/jobs/x/releases")])
async def test_nothing_else_is_at_these_paths(client: Any, engine: ScriptedEngine, method: str, path: str) -> None:
    response = await client.request(method, path, headers=CLIENT)
    assert response.status in (404, 405)
    assert engine.calls == []
