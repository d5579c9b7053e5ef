"""The agents' protocol over real HTTP: what reaches the engine, what comes back, and who is let in."""

import asyncio
import fnmatch
import gzip
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import orjson
import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from common import convert, protocol
from controller.core.errors import Conflict, NotFound, Rejected, Unavailable
from controller.dialects.agents import routes
from tests.dialects.serving import AGENT, serve
from tests.fakes.engine import ScriptedEngine

SCHEMAS = Path(__file__).parents[2] / "schemas" / "agents"
EXAMPLES = {path.stem: orjson.loads(path.read_bytes()) for path in (SCHEMAS / "examples").glob("*.json")}
WELCOME = protocol.Welcome(lease_seconds=60, poll_seconds=30, server_time="2026-01-01T00:00:00+00:00")
OFFER = protocol.TaskOffer(
    id="aaaaaaaaaaaaaaaa-001",
    type="runjob",
    attempt=1,
    job_id="aaaaaaaaaaaaaaaa",
    definition={"id": "aaaaaaaaaaaaaaaa", "args": ["python", "x.py"]},
    attributes={"user": "u"},
    traceparent=None,
    created_at=1767225600.5,
    time_limit=3600,
)
DECLARATION = {"version": "1", "executor": "fake", "slots": 2, "egress": {"logs": True}}
REPORT = {"task_id": "aaaaaaaaaaaaaaaa-001", "attempt": 1, "stage": "finalized", "complete": True}
CHUNK: dict[str, Any] = {"agent": "a1", "task_id": "aaaaaaaaaaaaaaaa-001", "attempt": 1, "offset": 0, "text": "hello"}
BODIES: list[tuple[str, str, dict[str, Any]]] = [
    ("PUT", "agents/a1", DECLARATION),
    ("POST", "claim", {"agent": "a1", "slots": 1}),
    ("POST", "reports", {"agent": "a1", "reports": [REPORT]}),
    ("POST", "logs", CHUNK),
    ("POST", "release", {"agent": "a1", "tasks": [{"task_id": "t-001", "attempt": 1}]}),
]
BY_PATH: dict[str, tuple[str, type[Any]]] = {
    "agents": ("declare_agent", protocol.Welcome),
    "claim": ("claim", protocol.ClaimResponse),
    "reports": ("report", protocol.ReportsResponse),
    "logs": ("append_log", protocol.LogAnswer),
    "release": ("release", protocol.ReleaseResponse),
}
ANSWERS: dict[str, Any] = {
    "declare_agent": WELCOME,
    "claim": protocol.ClaimResponse(tasks=(OFFER,), revoked=("bbbbbbbbbbbbbbbb-001",)),
    "report": protocol.ReportsResponse(
        answers=(protocol.ReportAnswer(task_id="aaaaaaaaaaaaaaaa-001", verdict=protocol.Verdict.APPLIED),)
    ),
    "append_log": protocol.LogAnswer(next_offset=5),
    "release": protocol.ReleaseResponse(released=1),
}


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(**ANSWERS)


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[Any]:
    async with serve(engine, "/agent/v1", routes.make_app()) as client:
        yield client


async def call(client: Any, method: str, path: str, body: Any, headers: Any = AGENT, backend: str = "test") -> Any:
    data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    return await client.request(method, f"/agent/v1/{backend}/{path}", data=data, headers=headers)


async def test_a_declaration_reaches_the_engine_and_is_welcomed(client: Any, engine: ScriptedEngine) -> None:
    response = await call(client, "PUT", "agents/a1", DECLARATION)
    assert response.status == 200
    assert await response.json() == {
        "lease_seconds": 60.0,
        "poll_seconds": 30.0,
        "server_time": "2026-01-01T00:00:00+00:00",
    }
    expected = protocol.Declaration(version="1", executor="fake", slots=2, egress=protocol.Egress(logs=True))
    assert engine.calls == [("declare_agent", ("test", "a1", expected), {})]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"outputs": "moderately_sensitive", "reviewed": True}, "status,+outputs:moderately_sensitive:reviewed"),
        ({"metrics": True, "logs": True, "outputs": True}, "open"),
        ({"metrics": False, "logs": True, "outputs": True}, "status,+logs,+outputs:all"),
        ({"metrics": True, "logs": False, "outputs": False}, "status,+metrics"),
        ({"outputs": False, "reviewed": True}, "status,+metrics"),
    ],
)
async def test_policies_are_understood_in_the_form_before_levels_too(
    client: Any, engine: ScriptedEngine, said: dict[str, Any], meant: str
) -> None:
    response = await call(client, "PUT", "agents/a1", DECLARATION | {"egress": said})
    assert response.status == 200
    ((_, (_, _, declared), _),) = engine.calls
    assert declared.egress.words == meant


@pytest.mark.parametrize("egress", [{"outputs": "everything"}, {"outputs": 1}, {"reviewed": "yes"}, {"metrics": 1}])
async def test_a_policy_that_is_none_is_refused(client: Any, egress: dict[str, Any]) -> None:
    response = await call(client, "PUT", "agents/a1", DECLARATION | {"egress": egress})
    assert response.status == 400
    assert f"egress.{next(iter(egress))}" in (await response.json())["message"]


@pytest.mark.parametrize("wait", [0, 20])
async def test_a_claim_gets_tasks_and_what_is_revoked(client: Any, engine: ScriptedEngine, wait: int) -> None:
    body = {"agent": "a1", "slots": 3, "wait": wait, "holding": [{"task_id": "x-001", "attempt": 2}]}
    response = await call(client, "POST", "claim", body)
    assert response.status == 200
    answer = await response.json()
    assert answer["revoked"] == ["bbbbbbbbbbbbbbbb-001"]
    assert answer["tasks"][0] == {
        "id": "aaaaaaaaaaaaaaaa-001",
        "type": "runjob",
        "attempt": 1,
        "job_id": "aaaaaaaaaaaaaaaa",
        "definition": {"id": "aaaaaaaaaaaaaaaa", "args": ["python", "x.py"]},
        "attributes": {"user": "u"},
        "traceparent": None,
        "created_at": 1767225600.5,
        "time_limit": 3600,
    }
    held = (protocol.Held(task_id="x-001", attempt=2),)
    assert engine.calls == [
        ("claim", ("test", protocol.ClaimRequest(agent="a1", slots=3, wait=wait, holding=held)), {"admit": ANY})
    ]


@pytest.mark.parametrize(
    ("metrics", "kept"),
    [
        ('{"slots_used": 2, "disk_free_ratio": 0.5}', {"slots_used": 2.0, "disk_free_ratio": 0.5}),
        ('{"disk_free_ratio": 1.5, "slots_used": 1}', {"slots_used": 1.0}),
        ('{"slots_used": -1, "jobs_running": 1e999, "reports_queued": true, "loop_lag_seconds": "1"}', {}),
        ('{"slots_used": null, "patient": 7}', {}),
        ('[["slots_used", 1]]', {}),
        ("7", {}),
        ("null", {}),
    ],
)
async def test_metrics_that_cannot_be_true_are_left_out_and_the_claim_is_answered(
    client: Any, engine: ScriptedEngine, metrics: str, kept: dict[str, float]
) -> None:
    response = await call(client, "POST", "claim", f'{{"agent": "a1", "slots": 1, "metrics": {metrics}}}'.encode())
    assert response.status == 200
    assert engine.last_call[1][1].metrics == kept


async def test_reports_are_answered_one_by_one(client: Any, engine: ScriptedEngine) -> None:
    report = REPORT | {"results": {"exit_code": "0", "deep": {"x": [1]}}, "timestamp_ns": 10**18, "new_key": 1}
    response = await call(client, "POST", "reports", {"agent": "a1", "reports": [report]})
    assert await response.json() == {
        "answers": [{"task_id": "aaaaaaaaaaaaaaaa-001", "verdict": "applied", "detail": ""}]
    }
    (_, (_, sent), _) = engine.calls[0]
    assert sent.reports[0].results == {"exit_code": "0", "deep": {"x": [1]}}
    assert sent.reports[0].timestamp_ns == 10**18


async def test_what_an_agent_cannot_help_is_mended(client: Any, engine: ScriptedEngine) -> None:
    body = (
        b'{"agent": "a1", "reports": [{"task_id": "t-001", "attempt": 1, "stage": "executing",'
        b' "metrics": {"cpu_mean": NaN, "cpu_peak": 5, "mem_mb_mean": null},'
        b' "results": {"status_message": "a\\u0000b\\ud800"}}]}'
    )
    response = await call(client, "POST", "reports", body)
    assert response.status == 200
    report = engine.calls[0][1][1].reports[0]
    assert report.metrics == {"cpu_peak": 5.0}
    assert report.results == {"status_message": "a\ufffdb\ufffd"}


async def test_logs_and_releases(client: Any, engine: ScriptedEngine) -> None:
    assert await (await call(client, "POST", "logs", CHUNK)).json() == {"next_offset": 5, "accepting": True}
    body = {"agent": "a1", "tasks": [{"task_id": "t-001", "attempt": 1}], "reason": "drain"}
    assert await (await call(client, "POST", "release", body)).json() == {"released": 1}
    assert engine.calls[0][1][1] == protocol.LogChunk(**CHUNK)
    assert engine.calls[1][1][1].reason == "drain"


@pytest.mark.parametrize(("method", "path", "body"), BODIES)
@pytest.mark.parametrize(
    ("backend", "headers"),
    [
        ("test", {}),
        ("test", {"Authorization": "Bearer wrong"}),
        ("test", {"Authorization": "Bearer other-token"}),
        ("test", {"Authorization": "Bearer client-token"}),
        ("test", {"Authorization": ""}),
        ("nowhere", AGENT),
    ],
)
async def test_nobody_else_is_let_in(
    client: Any, engine: ScriptedEngine, method: str, path: str, body: Any, backend: str, headers: Any
) -> None:
    response = await call(client, method, path, body, headers, backend)
    assert response.status == 401
    assert (await response.json())["error"] == "unauthorized"
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert engine.calls == []


async def test_an_unknown_backend_looks_like_a_wrong_token(client: Any) -> None:
    known = await call(client, "POST", "claim", {}, {"Authorization": "wrong"}, "test")
    unknown = await call(client, "POST", "claim", {}, {"Authorization": "wrong"}, "nowhere")
    assert (known.status, await known.read()) == (unknown.status, await unknown.read())


@pytest.mark.parametrize(("method", "path", "body"), BODIES)
async def test_a_bare_token_is_enough(client: Any, method: str, path: str, body: Any) -> None:
    assert (await call(client, method, path, body, {"Authorization": "agent-token"})).status == 200


@pytest.mark.parametrize(("method", "path", "body"), BODIES)
@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 5000, b"{}"])
async def test_nonsense_is_refused(
    client: Any, engine: ScriptedEngine, method: str, path: str, body: Any, raw: bytes
) -> None:
    response = await call(client, method, path, raw)
    assert response.status == 400
    answer = await response.json()
    assert answer["error"] == "malformed_body"
    assert answer["message"]
    assert engine.calls == []


async def test_every_fault_of_a_body_is_named(client: Any) -> None:
    reports = [
        {"task_id": "a b", "attempt": -1, "stage": "x" * 101},
        REPORT | {"timestamp_ns": 2**70},
    ]
    answer = await (await call(client, "POST", "reports", {"agent": "-bad", "reports": reports})).json()
    places = " ".join(answer["faults"])
    for place in (
        "$.agent",
        "$.reports[0].task_id",
        "$.reports[0].attempt",
        "$.reports[0].stage",
        "$.reports[1].timestamp_ns",
    ):
        assert place in places
    shape = await (await call(client, "PUT", "agents/a1", {"version": 1, "slots": "2"})).json()
    assert len(shape["faults"]) == 3
    assert "$.slots" in shape["message"]


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("claim", {"agent": "a1", "slots": -1}, "$.slots"),
        ("claim", {"agent": "a1", "slots": True}, "$.slots"),
        ("claim", {"agent": "a1", "slots": 1, "wait": -0.5}, "$.wait"),
        ("claim", b'{"agent": "a1", "slots": 1, "wait": 1e999}', "$.wait"),
        ("claim", {"agent": "a1", "slots": 1, "holding": [{"task_id": "t"}]}, "$.holding[0]"),
        ("reports", {"agent": "a1", "reports": [REPORT] * 1001}, "$.reports"),
        ("logs", CHUNK | {"offset": -1}, "$.offset"),
        ("logs", CHUNK | {"attempt": 2**40}, "attempt"),
        ("release", {"agent": "a1", "tasks": [], "reason": "x" * 2001}, "$.reason"),
    ],
)
async def test_values_out_of_bounds_are_named(client: Any, path: str, body: Any, place: str) -> None:
    response = await call(client, "POST", path, body)
    assert response.status == 400
    assert place in (await response.json())["message"]


async def test_another_protocol_version_is_refused(client: Any) -> None:
    response = await call(client, "PUT", "agents/a1", DECLARATION | {"protocol": 2})
    assert response.status == 400
    assert "$.protocol must be 1" in (await response.json())["message"]


@pytest.mark.parametrize(("method", "path", "body"), BODIES)
async def test_a_body_over_the_bound_is_413(
    client: Any, engine: ScriptedEngine, method: str, path: str, body: Any
) -> None:
    response = await call(client, method, path, b" " * (routes.LARGE + 1))
    assert response.status == 413
    assert (await response.json())["error"] == "body_too_large"
    squeezed = gzip.compress(b" " * (routes.LARGE + 1))
    response = await call(client, method, path, squeezed, AGENT | {"Content-Encoding": "gzip"})
    assert response.status == 413
    assert engine.calls == []


async def test_large_reports_fit(client: Any) -> None:
    body = {"agent": "a1", "reports": [REPORT | {"results": {"x": "y" * (7 * 1024 * 1024)}}]}
    assert (await call(client, "POST", "reports", body)).status == 200


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Rejected("no", field="f"), 400),
        (NotFound("declare yourself first", agent="a1"), 404),
        (Conflict("the offset is taken"), 409),
        (Unavailable("the database is away", retry_after=2.4), 503),
    ],
)
async def test_errors_of_the_engine(client: Any, engine: ScriptedEngine, error: Any, status: int) -> None:
    for name, (method, path, body) in zip(ANSWERS, BODIES, strict=True):
        engine.script[name] = error
        response = await call(client, method, path, body)
        assert response.status == status
        assert await response.json() == {"error": error.key, "message": error.message, **error.fields}
        assert response.headers.get("Retry-After") == ("3" if status == 503 else None)


async def test_a_bug_says_nothing_about_itself(client: Any, engine: ScriptedEngine) -> None:
    engine.script["claim"] = RuntimeError("secret detail")
    response = await call(client, "POST", "claim", {"agent": "a1", "slots": 1, "wait": 5})
    assert response.status == 500
    assert "secret detail" not in await response.text()


async def test_unknown_paths_and_methods(client: Any) -> None:
    missing = await call(client, "POST", "nothing/here", {})
    assert (missing.status, (await missing.json())["error"]) == (404, "not_found")
    wrong = await client.get("/agent/v1/test/claim", headers=AGENT)
    assert (wrong.status, wrong.headers["Allow"]) == (405, "POST")


async def test_an_agent_that_goes_away_takes_its_claim_along(engine: ScriptedEngine) -> None:
    waiting, cancelled = asyncio.Event(), asyncio.Event()

    async def wait_for_tasks(*_: Any, **__: Any) -> None:
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    engine.script["claim"] = wait_for_tasks
    async with serve(engine, "/agent/v1", routes.make_app()) as client:
        claiming = asyncio.ensure_future(call(client, "POST", "claim", {"agent": "a1", "slots": 1, "wait": 30}))
        await waiting.wait()
        assert not cancelled.is_set()
        claiming.cancel()
        async with asyncio.timeout(10):
            await cancelled.wait()


def _contract() -> dict[str, Any]:
    document: dict[str, Any] = YAML(typ="safe", pure=True).load((SCHEMAS / "openapi.yaml").read_text())
    return document


def test_the_contract_names_every_route() -> None:
    served = {
        (route.method.lower(), route.resource.canonical.removeprefix("/{backend}"))
        for route in routes.make_app().router.routes()
        if route.resource is not None
    }
    described = {
        (method, path.removeprefix("/{backend}"))
        for path, item in _contract()["paths"].items()
        for method in item
        if method != "parameters"
    }
    assert served == described


@pytest.mark.parametrize("name", EXAMPLES)
async def test_examples_are_true(client: Any, engine: ScriptedEngine, name: str) -> None:
    """Each example is a request that is understood, and an answer that our classes write and the contract allows."""
    example = EXAMPLES[name]
    request, expected = example["request"], example["response"]
    place = request["path"].removeprefix("/agent/v1/test/")
    method, answer_class = BY_PATH[place.partition("/")[0]]
    match expected["status"]:
        case 200:
            engine.script[method] = convert.structure(expected["body"], answer_class)
        case 404:
            fields = {key: value for key, value in expected["body"].items() if key not in ("error", "message")}
            engine.script[method] = NotFound(expected["body"]["message"], **fields)
    response = await call(client, request["method"], place, request["body"])
    assert response.status == expected["status"]
    assert await response.json() == expected["body"]
    _check(request["path"], request["method"], example)


def _check(path: str, method: str, example: dict[str, Any]) -> None:
    """The bodies have the shapes of the contract (a refused request must break it)."""
    document = _contract()
    template = next(
        each for each in document["paths"] if fnmatch.fnmatch(path, "/agent/v1" + re.sub(r"{\w+}", "*", each))
    )
    operation = document["paths"][template][method.lower()]
    sent = operation["requestBody"]["content"]["application/json"]["schema"]
    answer = operation["responses"][str(example["response"]["status"])]
    if "$ref" in answer:
        answer = document["components"]["responses"][answer["$ref"].rsplit("/", 1)[1]]
    received = answer["content"]["application/json"]["schema"]
    components = {"components": document["components"]}
    valid = Draft202012Validator(sent | components).is_valid(example["request"]["body"])
    assert valid == (example["response"]["status"] != 400)
    Draft202012Validator(received | components).validate(example["response"]["body"])


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5
