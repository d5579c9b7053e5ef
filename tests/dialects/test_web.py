"""What the dialects share: tokens, bodies, errors, and the middleware around every request."""

import asyncio
import contextlib
import json
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from controller.core.errors import DomainError, InvalidProject, NotFound, Rejected, Unavailable
from controller.core.model import Principal, RapId, Verb
from controller.core.observer import Observer
from controller.engine.results import StatusReport
from controller.web import body, errors, health, middleware
from controller.web.auth import Tokens
from controller.web.contract import Contract
from controller.web.errors import MalformedBody, SchemaMismatch
from controller.web.keys import CLOCK, OBSERVER
from tests.dialects.conftest import AGENT_TOKEN, PORTAL, PORTAL_TOKEN, Ask, make_root, make_tokens
from tests.dialects.values import RAP_ID, TRACEPARENT
from tests.fakes.clock import ManualClock
from tests.fakes.engine import ScriptedEngine

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


class TestTokens:
    def test_a_client_is_found_by_its_token(self) -> None:
        tokens = make_tokens()
        assert tokens.principal(PORTAL_TOKEN) == PORTAL
        assert tokens.principal(f"BEARER {PORTAL_TOKEN} ") == PORTAL

    @pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", PORTAL_TOKEN[:-1], PORTAL_TOKEN + "x"])
    def test_nothing_else_finds_it(self, header: str | None) -> None:
        assert make_tokens().principal(header) is None

    @given(st.text(alphabet=st.characters()))
    def test_no_header_is_a_crash(self, header: str) -> None:
        assert make_tokens().principal(header) is None

    def test_an_agents_token_opens_its_backend_only(self) -> None:
        tokens = make_tokens()
        assert tokens.backends == ("test", "other")
        assert tokens.agent_of("test", AGENT_TOKEN) == Principal(
            name="agent of test", grants={"test": frozenset({Verb.AGENT})}
        )
        assert tokens.agent_of("other", AGENT_TOKEN) is None
        assert tokens.agent_of("nowhere", AGENT_TOKEN) is None
        assert tokens.agent_of("test", PORTAL_TOKEN) is None

    def test_two_tokens_may_open_a_backend_and_one_token_two(self) -> None:
        tokens = Tokens({}, {"a": ["old", "new"], "b": ["new"]})
        found = [tokens.agent_of(backend, token) for backend in ("a", "b") for token in ("old", "new")]
        assert [principal and principal.backends for principal in found] == [("a",), ("a",), None, ("b",)]

    @pytest.mark.parametrize(("clients", "agents"), [({"": PORTAL}, {}), ({}, {"test": [""]})])
    def test_an_empty_token_is_refused(self, clients: Any, agents: Any) -> None:
        with pytest.raises(ValueError, match="must not be empty"):
            Tokens(clients, agents)

    def test_tokens_are_not_kept(self) -> None:
        assert PORTAL_TOKEN not in repr(vars(make_tokens()))


class TestBody:
    @given(JSON)
    def test_what_json_can_say_is_parsed(self, value: Any) -> None:
        assert body.parse(json.dumps(value).encode()) == value
        assert body.parse(json.dumps(value, ensure_ascii=False)) == value

    @given(st.binary())
    def test_no_bytes_are_a_crash(self, raw: bytes) -> None:
        with contextlib.suppress(MalformedBody):
            body.parse_unicode(raw)

    @pytest.mark.parametrize(("depth", "fine"), [(64, True), (65, False)])
    def test_the_bound_of_nesting(self, depth: int, fine: bool) -> None:
        raw = b"[" * depth + b"]" * depth
        if fine:
            assert body.parse(raw) is not None
        else:
            with pytest.raises(MalformedBody, match="deeper than 64"):
                body.parse(raw)

    def test_nan_and_duplicate_keys_are_no_fault_of_the_syntax(self) -> None:
        assert body.parse(b'{"a": NaN, "b": 1, "b": 2}')["b"] == 2


class TestAnswering:
    def test_a_list_that_could_miss_an_error_is_refused(self) -> None:
        with pytest.raises(ValueError, match="DomainError"):
            errors.answering({Rejected: lambda _: web.Response()})

    @pytest.mark.parametrize(
        ("error", "entry"),
        [(Rejected("x"), "Rejected"), (InvalidProject("x"), "Rejected"), (NotFound("x"), "DomainError")],
    )
    async def test_the_nearest_entry_answers(self, error: DomainError, entry: str) -> None:
        async def handler(_: web.Request) -> web.Response:
            raise error

        answers = {cls: _named(cls) for cls in (Rejected, DomainError)}
        app = web.Application(middlewares=[errors.answering(answers)])
        app.router.add_get("/", handler)
        async with TestClient(TestServer(app)) as client:
            assert await (await client.get("/")).text() == entry


def _named(cls: type[DomainError]) -> errors.Answer:
    return lambda _: web.Response(text=cls.__name__)


class TestRecord:
    async def test_one_line_a_request(
        self, portal: Ask, engine: ScriptedEngine, clock: ManualClock, logs: list[MutableMapping[str, Any]]
    ) -> None:
        def slow(*_: Any) -> StatusReport:
            clock.advance(0.25)
            return StatusReport(jobs=(), unrecognised=(RapId(RAP_ID),))

        engine.script["status"] = slow
        response = await portal("POST", "rap/status/?secret=1", json={"rap_ids": [RAP_ID]})
        assert logs == [
            {
                "event": "request",
                "log_level": "info",
                "method": "POST",
                "route": "/controller/v1/rap/status/",
                "status": 200,
                "duration_ms": 250.0,
                "principal": "portal",
                "request_id": response.headers["X-Request-ID"],
            }
        ]

    @pytest.mark.parametrize(
        ("path", "route"),
        [("/test/tasks/?a=b", "/{backend}/tasks/"), ("/no/such/secret", "unmatched")],
    )
    async def test_paths_are_logged_as_templates(
        self, agent: Ask, engine: ScriptedEngine, logs: list[MutableMapping[str, Any]], path: str, route: str
    ) -> None:
        engine.script["active_tasks"] = []
        await agent("GET", path)
        assert [entry["route"] for entry in logs] == [route]
        assert AGENT_TOKEN not in repr(logs)

    async def test_a_line_tells_what_it_is_about(
        self, portal: Ask, engine: ScriptedEngine, logs: list[MutableMapping[str, Any]]
    ) -> None:
        engine.script["cancel"] = 1
        await portal("POST", "rap/cancel/", json={"rap_id": RAP_ID, "actions": ["a"]})
        assert [entry.get("rap_id") for entry in logs] == [RAP_ID]

    async def test_the_backend_of_a_path_is_told_if_there_is_one(
        self, agent: Ask, engine: ScriptedEngine, logs: list[MutableMapping[str, Any]]
    ) -> None:
        engine.script["active_tasks"] = []
        await agent("GET", "/test/tasks/")
        await agent("GET", "/no-such-backend/tasks/")
        assert [entry.get("backend") for entry in logs] == ["test", None]

    async def test_an_observer_is_told_the_template(self, engine: ScriptedEngine, clock: ManualClock) -> None:
        told: list[dict[str, Any]] = []

        class Seen(Observer):
            def answered(self, **said: Any) -> None:
                told.append(said)

        root = make_root(engine, clock)
        root[OBSERVER] = Seen()
        engine.script["active_tasks"] = []
        async with TestClient(TestServer(root)) as client:
            await client.get("/test/tasks/?secret=1", headers={"Authorization": AGENT_TOKEN})
            await client.get("/no/such/secret")
        assert told == [
            {"method": "GET", "route": "/{backend}/tasks/", "status": 200, "seconds": 0.0},
            {"method": "GET", "route": "unmatched", "status": 404, "seconds": 0.0},
        ]

    async def test_a_client_that_goes_away_has_its_line_too(
        self, engine: ScriptedEngine, clock: ManualClock, logs: list[MutableMapping[str, Any]]
    ) -> None:
        asked, gone = asyncio.Event(), asyncio.Event()

        async def never(*_: Any) -> None:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                gone.set()

        engine.script["active_tasks"] = never
        async with TestClient(TestServer(make_root(engine, clock), handler_cancellation=True)) as client:
            asking = asyncio.ensure_future(client.get("/test/tasks/", headers={"Authorization": AGENT_TOKEN}))
            await asked.wait()
            asking.cancel()
            await gone.wait()
        assert [(entry["route"], entry["status"]) for entry in logs] == [("/{backend}/tasks/", middleware.GONE)]

    async def test_a_bug_is_told_to_the_log_only(
        self, portal: Ask, engine: ScriptedEngine, logs: list[MutableMapping[str, Any]]
    ) -> None:
        engine.script["backends"] = RuntimeError("boom")
        response = await portal("GET", "backend/status/")
        assert response.status == 500
        assert "boom" not in await response.text()
        bug, line = logs
        assert (bug["event"], bug["log_level"]) == ("unexpected error", "error")
        assert line["status"] == 500
        assert bug["request_id"] == line["request_id"]

    async def test_nothing_is_carried_over_to_the_next_request_of_a_connection(
        self, portal: Ask, engine: ScriptedEngine, logs: list[MutableMapping[str, Any]]
    ) -> None:
        engine.script["backends"] = []
        await portal("GET", "backend/status/")
        await portal("GET", "backend/status/", token=None)
        first, second = logs
        assert "principal" not in second
        assert first["request_id"] != second["request_id"]

    async def test_a_client_that_goes_away_is_no_bug(
        self, engine: ScriptedEngine, clock: ManualClock, logs: list[MutableMapping[str, Any]]
    ) -> None:
        async def gone(_: web.Request) -> web.Response:
            raise ConnectionResetError

        root = make_root(engine, clock)
        root.router.add_get("/x/gone", gone)
        async with TestClient(TestServer(root)) as client:
            await client.get("/x/gone")
        assert [entry["log_level"] for entry in logs] == ["info", "info"]

    async def test_a_handlers_own_redirect_and_headers_are_kept(
        self, engine: ScriptedEngine, clock: ManualClock
    ) -> None:
        async def moved(_: web.Request) -> web.Response:
            raise web.HTTPFound("/elsewhere")

        async def framed(_: web.Request) -> web.Response:
            return web.Response(headers={"X-Frame-Options": "SAMEORIGIN"})

        root = make_root(engine, clock)
        root.add_routes([web.get("/x/moved", moved), web.get("/x/framed", framed)])
        async with TestClient(TestServer(root)) as client:
            response = await client.get("/x/moved", allow_redirects=False)
            assert (response.status, response.headers["Location"]) == (302, "/elsewhere")
            assert (await client.get("/x/framed")).headers["X-Frame-Options"] == "SAMEORIGIN"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The spans that were ended during the test."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


class TestSpans:
    async def test_a_request_is_a_span_in_the_callers_trace(
        self,
        portal: Ask,
        engine: ScriptedEngine,
        spans: InMemorySpanExporter,
        logs: list[MutableMapping[str, Any]],
    ) -> None:
        engine.script["status"] = StatusReport(jobs=(), unrecognised=(RapId(RAP_ID),))
        engine.script["active_others"] = [RapId("b" * 16), RapId("a" * 16)]
        await portal("POST", "rap/status/", json={"rap_ids": [RAP_ID]}, headers={"traceparent": TRACEPARENT})
        (span,) = spans.get_finished_spans()
        assert span.name == "POST /controller/v1/rap/status/"
        assert span.kind is trace.SpanKind.SERVER
        assert _parent(span) == TRACEPARENT[3:52]
        assert span.attributes == {
            "http.request.method": "POST",
            "http.route": "/controller/v1/rap/status/",
            "http.response.status_code": 200,
            "valid_rap_ids": "",
            "unrecognised_rap_ids": RAP_ID,
            "extra_rap_ids": f"{'a' * 16},{'b' * 16}",
            "find_matching_jobs.duration_ms": 0.0,
            "find_extra_rap_ids.duration_ms": 0.0,
        }
        assert logs[-1]["trace_id"] == TRACEPARENT[3:35]

    async def test_what_a_span_cannot_tell_fails_no_request(
        self, portal: Ask, engine: ScriptedEngine, spans: InMemorySpanExporter
    ) -> None:
        engine.script["status"] = StatusReport(jobs=(), unrecognised=())
        engine.script["active_others"] = Unavailable("away")
        assert (await portal("POST", "rap/status/", json={"rap_ids": []})).status == 200
        (span,) = spans.get_finished_spans()
        assert "extra_rap_ids" not in (span.attributes or {})

    async def test_without_a_caller_it_is_a_trace_of_its_own(self, portal: Ask, spans: InMemorySpanExporter) -> None:
        await portal("GET", "backend/status/", token=None)
        (span,) = spans.get_finished_spans()
        assert span.parent is None


def _parent(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}"


class TestHealth:
    @pytest.fixture
    async def app(self) -> web.Application:
        app = web.Application()
        app[CLOCK] = ManualClock()
        middleware.install(app)
        return app

    async def test_alive_and_ready(self, app: web.Application) -> None:
        async def works() -> None:
            pass

        async def fails() -> None:
            raise RuntimeError("no database")

        health.add_to(app, {"works": works, "fails": fails})
        async with TestClient(TestServer(app)) as client:
            alive = await client.get("/healthz")
            ready = await client.get("/readyz")
            assert (alive.status, await alive.json()) == (200, {"status": "ok"})
            assert (ready.status, await ready.json()) == (503, {"status": "unavailable", "failing": ["fails"]})

    async def test_ready_when_every_check_passes(self, app: web.Application) -> None:
        health.add_to(app, {})
        async with TestClient(TestServer(app)) as client:
            assert (await client.get("/readyz")).status == 200


class TestContract:
    @pytest.fixture
    def contract(self) -> Contract:
        word = {"type": "string", "pattern": "^a+$"}
        schema = {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#/components/schemas/word"}}}
        return Contract({"components": {"schemas": {"word": word, "thing": schema}}})

    def test_what_fits_passes(self, contract: Contract) -> None:
        contract.shape("thing").check({"a": "aaa", "more": 1})

    @pytest.mark.parametrize(
        ("value", "fault"),
        [
            ({}, "Invalid request body received: 'a' is a required property"),
            ({"a": "b"}, "Invalid request body received at $.a: 'b' does not match '^a+$'"),
            ({"a": "a\n"}, "Invalid request body received at $.a: 'a\\n' does not match '^a+$'"),
        ],
    )
    def test_what_does_not_says_where(self, contract: Contract, value: Any, fault: str) -> None:
        with pytest.raises(SchemaMismatch) as caught:
            contract.shape("thing").check(value)
        assert str(caught.value) == fault


def test_log_lines_of_a_request_carry_its_id(logs: list[MutableMapping[str, Any]]) -> None:
    """What the fixture `logs` promises: context variables are in the entries."""
    with structlog.contextvars.bound_contextvars(request_id="x"):
        structlog.get_logger().info("hello")
    assert logs == [{"event": "hello", "log_level": "info", "request_id": "x"}]
