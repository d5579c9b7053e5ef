"""The RAP API on the wire: every row of reference sections 1.1 to 1.6, over real HTTP."""

import asyncio
import io
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from controller.core.codes import StatusCode
from controller.core.errors import (
    BackendNotAllowed,
    Conflict,
    InvalidProject,
    NotFound,
    Rejected,
    SourceError,
    Unavailable,
)
from controller.core.model import RapId
from controller.engine.results import BackendView, Created, NoChange, NothingToDo, StatusReport
from tests.dialects.conftest import PORTAL, PORTAL_TOKEN, Ask
from tests.dialects.values import NOW, RAP_ID, TRACEPARENT, create_body, make_job
from tests.fakes.clock import ManualClock
from tests.fakes.engine import ScriptedEngine

RAP = RapId(RAP_ID)
HTML = "text/html; charset=utf-8"

ENDPOINTS = [
    ("GET", "backend/status/"),
    ("POST", "rap/create/"),
    ("POST", "rap/cancel/"),
    ("POST", "rap/status/"),
]
POSTS = [path for method, path in ENDPOINTS if method == "POST"]


def validation_error(details: str) -> dict[str, str]:
    return {"error": "Validation error", "details": details}


class TestCommonRules:
    """Section 1.1."""

    @pytest.mark.parametrize(("method", "path"), [*ENDPOINTS, ("GET", "docs/")])
    @pytest.mark.parametrize("used", ["GET", "POST"])
    async def test_a_missing_slash_is_redirected_whatever_the_method(
        self, portal: Ask, used: str, method: str, path: str
    ) -> None:
        response = await portal(used, path.rstrip("/") + "?a=%20b", token=None)
        assert response.status == 301
        assert response.headers["Location"] == f"/controller/v1/{path}?a=%20b"
        assert await response.read() == b""

    @pytest.mark.parametrize("path", POSTS)
    @pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"])
    async def test_a_wrong_method_is_405_before_the_token(self, portal: Ask, method: str, path: str) -> None:
        response = await portal(method, path, token=None)
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert response.headers["Content-Type"] == HTML
        assert await response.read() == b""

    @pytest.mark.parametrize("method", ["HEAD", "POST", "OPTIONS", "PUT"])
    async def test_backend_status_has_get_only(self, portal: Ask, method: str) -> None:
        response = await portal(method, "backend/status/", token=None)
        assert response.status == 405
        assert response.headers["Allow"] == "GET"

    @pytest.mark.parametrize(("method", "path"), ENDPOINTS)
    @pytest.mark.parametrize(
        ("token", "details"),
        [
            (None, "No token provided"),
            ("", "No token provided"),
            ("nonsense", "Invalid token"),
            ("Bearer nonsense", "Invalid token"),
            (f"Basic {PORTAL_TOKEN}", "Invalid token"),
            ("agent-token", "Invalid token"),
            ("Bearer", "Invalid token"),
        ],
    )
    async def test_no_token_or_another_is_401_before_the_body(
        self, portal: Ask, method: str, path: str, token: str | None, details: str
    ) -> None:
        response = await portal(method, path, token=token, data=b"{")
        assert response.status == 401
        assert await response.json() == {"error": "Unauthorized", "details": details}

    async def test_a_token_that_is_no_text_is_401(self, client: TestClient[Any, Any]) -> None:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(b"GET /controller/v1/backend/status/ HTTP/1.0\r\nAuthorization: \xff\xfe\xe9\r\n\r\n")
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.0 401")
        assert b"Invalid token" in answer

    @pytest.mark.parametrize("token", [PORTAL_TOKEN, f"Bearer {PORTAL_TOKEN}", f"bearer  {PORTAL_TOKEN}"])
    async def test_a_token_may_be_bare_or_bearer(self, portal: Ask, engine: ScriptedEngine, token: str) -> None:
        engine.script["backends"] = []
        response = await portal("GET", "backend/status/", token=token)
        assert response.status == 200
        assert engine.last_call == ("backends", (PORTAL,), {})

    @pytest.mark.parametrize("path", POSTS)
    @pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b"\xff\xfe{}", b'"\xe9"', b"{} {}", b"9" * 5000])
    async def test_what_is_not_json_in_utf8_is_400(self, portal: Ask, path: str, body: bytes) -> None:
        response = await portal("POST", path, data=body)
        assert response.status == 400
        assert await response.json() == validation_error("could not parse JSON from request body")

    @pytest.mark.parametrize("path", POSTS)
    @pytest.mark.parametrize("depth", [70, 900, 100_000])
    @pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
    async def test_deep_nesting_is_400(self, portal: Ask, path: str, depth: int, opening: str, closing: str) -> None:
        response = await portal("POST", path, data=(opening * depth + "1" + closing * depth).encode())
        assert response.status == 400
        assert "nested deeper than 64 levels" in (await response.json())["details"]

    @pytest.mark.parametrize("path", POSTS)
    @pytest.mark.parametrize("text", ["\\ud800", "\\udfff\\ud800"])
    async def test_text_that_is_no_unicode_is_400(self, portal: Ask, path: str, text: str) -> None:
        for body in (f'{{"rap_id": "{text}"}}', f'{{"deep": [{{"{text}": 1}}]}}'):
            response = await portal("POST", path, data=body.encode())
            assert response.status == 400
            assert "unpaired surrogates" in (await response.json())["details"]

    @pytest.mark.parametrize("path", POSTS)
    @pytest.mark.parametrize("chunked", [False, True])
    async def test_a_body_over_the_limit_is_400(self, portal: Ask, path: str, chunked: bool) -> None:
        async def pieces() -> Any:
            for _ in range(41):
                yield b" " * 65_536

        body = pieces() if chunked else io.BytesIO(b" " * 2_621_441)
        response = await portal("POST", path, data=body)
        assert response.status == 400
        assert await response.json() == validation_error("request body is larger than 2621440 bytes")

    async def test_a_body_that_says_it_is_over_the_limit_is_not_waited_for(self, client: TestClient[Any, Any]) -> None:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(
            b"POST /controller/v1/rap/status/ HTTP/1.0\r\nAuthorization: portal-token\r\n"
            b"Content-Length: 2621441\r\n\r\n"
        )
        assert (await reader.readline()).startswith(b"HTTP/1.0 400")
        writer.close()

    async def test_a_body_of_the_limit_is_read(self, portal: Ask) -> None:
        response = await portal("POST", "rap/status/", data=io.BytesIO(b"{}".ljust(2_621_440)))
        assert response.status == 400
        assert "'rap_ids' is a required property" in await response.text()

    async def test_a_broken_content_encoding_is_400(self, portal: Ask) -> None:
        response = await portal("POST", "rap/status/", data=b"this is not gzip", headers={"Content-Encoding": "gzip"})
        assert response.status == 400

    async def test_the_next_request_works(self, portal: Ask, engine: ScriptedEngine) -> None:
        engine.script["backends"] = []
        await portal("POST", "rap/status/", data=io.BytesIO(b" " * 3_000_000))
        assert (await portal("GET", "backend/status/")).status == 200

    @pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "nonsense"])
    async def test_the_content_type_of_a_request_is_ignored(
        self, portal: Ask, engine: ScriptedEngine, content_type: str
    ) -> None:
        engine.script["status"] = StatusReport(jobs=(), unrecognised=())
        response = await portal("POST", "rap/status/", data=b'{"rap_ids": []}', headers={"Content-Type": content_type})
        assert response.status == 200

    @pytest.mark.parametrize("path", ["", "nonsense/", "rap/", "rap/create/more/", "spec.json/"])
    async def test_an_unknown_url_is_404_html(self, portal: Ask, path: str) -> None:
        response = await portal("GET", path)
        assert response.status == 404
        assert response.headers["Content-Type"] == HTML
        assert "Not Found" in await response.text()

    @pytest.mark.parametrize(("method", "path"), [*ENDPOINTS, ("GET", "docs/"), ("GET", "none/")])
    async def test_the_headers_of_every_answer(self, portal: Ask, method: str, path: str) -> None:
        headers = (await portal(method, path, token=None)).headers
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert "aiohttp" not in headers["Server"]

    async def test_json_has_no_charset(self, portal: Ask) -> None:
        response = await portal("GET", "backend/status/", token=None)
        assert response.headers["Content-Type"] == "application/json"

    @pytest.mark.parametrize("traceparent", ["", "nonsense", "00-0-0-00", "ff-" + "a" * 32 + "-" + "b" * 16 + "-01"])
    async def test_a_malformed_traceparent_is_no_traceparent(
        self, portal: Ask, engine: ScriptedEngine, traceparent: str
    ) -> None:
        engine.script["create_rap"] = Created(rap_id=RAP, count=1)
        response = await portal(
            "POST", "rap/create/", json=create_body(), headers={"traceparent": traceparent, "tracestate": "=,="}
        )
        assert response.status == 201
        assert engine.last_call[1][1].traceparent is None

    async def test_a_valid_traceparent_is_handed_on(self, portal: Ask, engine: ScriptedEngine) -> None:
        engine.script["create_rap"] = Created(rap_id=RAP, count=1)
        await portal("POST", "rap/create/", json=create_body(), headers={"TraceParent": TRACEPARENT})
        assert engine.last_call[1][1].traceparent == TRACEPARENT

    @pytest.mark.parametrize(("method", "path"), ENDPOINTS)
    @pytest.mark.parametrize(
        ("error", "status"),
        [(Unavailable("the database is away", retry_after=2.5), 503), (RuntimeError("secret"), 500)],
    )
    async def test_what_is_ours_has_no_details_and_says_when_to_retry(
        self, portal: Ask, engine: ScriptedEngine, method: str, path: str, error: Exception, status: int
    ) -> None:
        """Edge behaviour 9: a JSON `details` would make the portal fail the RAP at once."""
        engine.script |= dict.fromkeys(["backends", "create_rap", "cancel", "status"], error)
        body = create_body(actions=["action1"], rap_ids=[RAP_ID])
        response = await portal(method, path, json=None if method == "GET" else body)
        assert response.status == status
        assert response.headers["Content-Type"] == HTML
        assert response.headers["Retry-After"] == ("3" if status == 503 else "5")
        text = await response.text()
        assert "details" not in text
        assert str(error) not in text


class TestBackendStatus:
    """Section 1.2."""

    async def test_body_is_compact_and_exact(self, portal: Ask, engine: ScriptedEngine) -> None:
        since = datetime(2026, 11, 21, 5, 45, 57, 940009, UTC)
        engine.script["backends"] = [
            BackendView(
                slug="test",
                last_seen=since,
                paused=True,
                paused_since=since.replace(microsecond=0),
                db_maintenance=True,
                db_maintenance_since=since.replace(microsecond=40),
                db_maintenance_type="scheduled",
            ),
            BackendView(
                slug="other",
                last_seen=None,
                paused=False,
                paused_since=None,
                db_maintenance=False,
                db_maintenance_since=since,
                db_maintenance_type=None,
            ),
        ]
        response = await portal("GET", "backend/status/")
        assert response.status == 200
        assert await response.text() == (
            '{"backends":[{"slug":"test","last_seen":"2026-11-21T05:45:57.940009Z",'
            '"paused":{"status":"on","since":"2026-11-21T05:45:57Z"},'
            '"db_maintenance":{"status":"on","since":"2026-11-21T05:45:57.000040Z","type":"scheduled"}},'
            '{"slug":"other","last_seen":null,"paused":{"status":"off","since":null},'
            '"db_maintenance":{"status":"off","since":"2026-11-21T05:45:57.940009Z","type":null}}]}'
        )

    async def test_times_of_other_zones_are_shown_in_utc(self, portal: Ask, engine: ScriptedEngine) -> None:
        there = datetime(2026, 11, 21, 7, 0, 0, 1, timezone(timedelta(hours=2)))
        engine.script["backends"] = [
            BackendView(
                slug="test",
                last_seen=there,
                paused=False,
                paused_since=None,
                db_maintenance=False,
                db_maintenance_since=None,
                db_maintenance_type=None,
            )
        ]
        (backend,) = (await (await portal("GET", "backend/status/")).json())["backends"]
        assert backend["last_seen"] == "2026-11-21T05:00:00.000001Z"


class TestCreate:
    """Section 1.3."""

    @pytest.mark.parametrize(
        ("outcome", "status", "text"),
        [
            (
                Created(rap_id=RAP, count=2),
                201,
                '{"result": "Success", "details": "Jobs created for rap_id \'abcdefgh23456789\'", '
                '"rap_id": "abcdefgh23456789", "count": 2}',
            ),
            (
                NoChange(rap_id=RAP, count=3),
                200,
                '{"result": "No change", "details": "Jobs already created for rap_id \'abcdefgh23456789\'", '
                '"rap_id": "abcdefgh23456789", "count": 3}',
            ),
            (
                NothingToDo(rap_id=RAP, details="All actions have already completed successfully"),
                200,
                '{"result": "Nothing to do", "details": "All actions have already completed successfully", '
                '"rap_id": "abcdefgh23456789", "count": 0}',
            ),
        ],
    )
    async def test_outcomes(self, portal: Ask, engine: ScriptedEngine, outcome: Any, status: int, text: str) -> None:
        engine.script["create_rap"] = outcome
        response = await portal("POST", "rap/create/", json=create_body())
        assert (response.status, await response.text()) == (status, text)

    async def test_every_field_reaches_the_engine(self, portal: Ask, engine: ScriptedEngine) -> None:
        engine.script["create_rap"] = Created(rap_id=RAP, count=1)
        scope = {"dataset_permissions": ["ukrr"], "future_permissions": ["anything"]}
        await portal("POST", "rap/create/", json=create_body(analysis_scope=scope, unknown={"x": [1]}))
        _, (principal, asked), _ = engine.last_call
        assert principal == PORTAL
        assert asked.dialect == "rap"
        assert (asked.rap_id, asked.backend, asked.workspace) == (RAP_ID, "test", "test-study")
        assert asked.repo_url == "https://github.com/opensafely/test-study"
        assert (asked.branch, asked.commit) == ("main", "07d5f283bb66f52a49933b016cf8dc144cfc7180")
        assert (asked.requested_actions, asked.orgs) == (("action1",), ("opensafely",))
        assert (asked.codelists_ok, asked.force_run_dependencies) == (True, False)
        assert (asked.created_by, asked.project) == ("test_user", "test-project")
        assert {key: list(value) for key, value in asked.analysis_scope.items()} == scope

    @pytest.mark.parametrize("scope", [None, ..., {}])
    async def test_no_scope_may_be_null_absent_or_empty(self, portal: Ask, engine: ScriptedEngine, scope: Any) -> None:
        engine.script["create_rap"] = Created(rap_id=RAP, count=1)
        response = await portal("POST", "rap/create/", json=create_body(analysis_scope=scope))
        assert response.status == 201
        assert dict(engine.last_call[1][1].analysis_scope) == {}

    @pytest.mark.parametrize(
        ("scope", "permissions"),
        [
            (None, ["include_t1oo"]),
            ({"population_permissions": ["include_ndoo"]}, ["include_ndoo", "include_t1oo"]),
            ({"population_permissions": ["include_t1oo"]}, ["include_t1oo"]),
        ],
    )
    async def test_the_older_name_of_the_t1oo_database_is_a_permission(
        self, portal: Ask, engine: ScriptedEngine, scope: Any, permissions: list[str]
    ) -> None:
        engine.script["create_rap"] = Created(rap_id=RAP, count=1)
        body = create_body(database_name="include_t1oo", analysis_scope=scope)
        assert (await portal("POST", "rap/create/", json=body)).status == 201
        asked = engine.last_call[1][1]
        assert asked.database_name == "default"
        assert list(asked.analysis_scope["population_permissions"]) == permissions

    @pytest.mark.parametrize(
        "changes",
        [
            {"repo_url": "", "branch": "", "created_by": "", "project": "", "orgs": []},
            {"requested_actions": ["a", "a"]},
            {"workspace": "one allowed character is enough: x"},
            {"extra": None},
            {"extra\0": "\0"},
            {"created_by": "J\u00fcrgen \U0001f600\n"},
        ],
    )
    async def test_what_the_schema_lets_through(
        self, portal: Ask, engine: ScriptedEngine, changes: dict[str, Any]
    ) -> None:
        engine.script["create_rap"] = Created(rap_id=RAP, count=1)
        assert (await portal("POST", "rap/create/", json=create_body(**changes))).status == 201

    @pytest.mark.parametrize(
        ("changes", "fault"),
        [
            ({"rap_id": ...}, ": 'rap_id' is a required property"),
            ({"orgs": ...}, ": 'orgs' is a required property"),
            ({"backend": 1}, " at $.backend: 1 is not of type 'string'"),
            ({"rap_id": "SHOUTING"}, " at $.rap_id: 'SHOUTING' does not match '^[a-z0-9]{16}$'"),
            ({"rap_id": RAP_ID + "\n"}, f" at $.rap_id: '{RAP_ID}\\n' does not match '^[a-z0-9]{{16}}$'"),
            ({"workspace": ""}, " at $.workspace: '' does not match '[a-zA-Z0-9_-]+'"),
            ({"commit": "ABC"}, " at $.commit: 'ABC' does not match '^[0-9a-f]{40}$'"),
            ({"database_name": "x"}, " at $.database_name: 'x' is not one of ['default', 'include_t1oo']"),
            ({"requested_actions": []}, " at $.requested_actions: [] should be non-empty"),
            ({"requested_actions": "run_all"}, " at $.requested_actions: 'run_all' is not of type 'array'"),
            ({"requested_actions": [None]}, " at $.requested_actions[0]: None is not of type 'string'"),
            ({"codelists_ok": 1}, " at $.codelists_ok: 1 is not of type 'boolean'"),
            ({"force_run_dependencies": 0}, " at $.force_run_dependencies: 0 is not of type 'boolean'"),
            ({"branch": "a\0b"}, " at $.branch: 'a\\x00b' does not match '^[^\\\\u0000]*$'"),
            ({"requested_actions": ["\0"]}, " at $.requested_actions[0]: '\\x00' does not match '^[^\\\\u0000]*$'"),
            ({"analysis_scope": {"\0": []}}, " at $.analysis_scope: '\\x00' does not match '^[^\\\\u0000]*$'"),
            ({"analysis_scope": []}, " at $.analysis_scope: [] is not of type 'object', 'null'"),
            ({"analysis_scope": {"more": 1}}, " at $.analysis_scope.more: 1 is not of type 'array'"),
            (
                {"analysis_scope": {"component_access": ["all"]}},
                " at $.analysis_scope.component_access[0]: 'all' is not one of ['event_level_data']",
            ),
        ],
    )
    async def test_what_the_schema_refuses(self, portal: Ask, changes: dict[str, Any], fault: str) -> None:
        response = await portal("POST", "rap/create/", json=create_body(**changes))
        assert response.status == 400
        assert await response.json() == validation_error(f"Invalid request body received{fault}")

    @pytest.mark.parametrize("body", [[], "text", 1, None, True, 1.5])
    async def test_a_body_of_another_type(self, portal: Ask, body: Any) -> None:
        response = await portal("POST", "rap/create/", data=json.dumps(body).encode())
        assert response.status == 400
        assert await response.json() == validation_error(
            f"Invalid request body received: {body!r} is not of type 'object'"
        )

    async def test_a_fault_quotes_a_huge_value_in_part(self, portal: Ask) -> None:
        response = await portal("POST", "rap/create/", json=create_body(rap_id="A" * 1_000_000))
        details = (await response.json())["details"]
        assert response.status == 400
        assert len(details) < 3000
        assert details.endswith("does not match '^[a-z0-9]{16}$'")

    @pytest.mark.parametrize(
        ("error", "body"),
        [
            (
                BackendNotAllowed("not yours", backend="other"),
                {"error": "Error creating jobs", "details": "Unknown error"},
            ),
            (
                Conflict("any wording", rap_id=RAP_ID),
                {
                    "error": "Inconsistent request data",
                    "details": "Jobs already created for rap_id 'abcdefgh23456789' are inconsistent with request data",
                },
            ),
            (
                SourceError("Could not find branch 'main'"),
                {"error": "Error creating jobs", "details": "Could not find branch 'main'"},
            ),
            (
                InvalidProject("Invalid project: \nneeds form a cycle: a -> b -> a"),
                {"error": "Error creating jobs", "details": "Invalid project: \nneeds form a cycle: a -> b -> a"},
            ),
            (
                Rejected("Codelists are out of date (required by action extract)"),
                {
                    "error": "Error creating jobs",
                    "details": "Codelists are out of date (required by action extract)",
                },
            ),
        ],
        ids=lambda value: type(value).__name__,
    )
    async def test_refusals(self, portal: Ask, engine: ScriptedEngine, error: Exception, body: dict[str, str]) -> None:
        engine.script["create_rap"] = error
        response = await portal("POST", "rap/create/", json=create_body())
        assert (response.status, await response.json()) == (400, body)


class TestCancel:
    """Section 1.4."""

    @pytest.mark.parametrize("count", [1, 2])
    async def test_success_is_always_plural(self, portal: Ask, engine: ScriptedEngine, count: int) -> None:
        engine.script["cancel"] = count
        response = await portal("POST", "rap/cancel/", json={"rap_id": RAP_ID, "actions": ["a"] * count, "x": 1})
        assert response.status == 200
        assert await response.text() == (
            f'{{"result": "Success", "details": "{count} actions cancelled", "count": {count}}}'
        )
        assert engine.last_call == ("cancel", (PORTAL, RAP_ID, ("a",) * count), {})

    async def test_an_unknown_rap(self, portal: Ask, engine: ScriptedEngine) -> None:
        engine.script["cancel"] = NotFound("no", rap_id=RAP_ID)
        response = await portal("POST", "rap/cancel/", json={"rap_id": RAP_ID, "actions": ["a"]})
        assert response.status == 404
        assert await response.json() == {
            "error": "jobs not found",
            "details": f"No jobs found for rap_id {RAP_ID}",
            "rap_id": RAP_ID,
        }

    async def test_unknown_actions(self, portal: Ask, engine: ScriptedEngine) -> None:
        engine.script["cancel"] = NotFound("no", rap_id=RAP_ID, not_found=["b", "a"])
        response = await portal("POST", "rap/cancel/", json={"rap_id": RAP_ID, "actions": ["b", "a"]})
        assert response.status == 404
        assert await response.json() == {
            "error": "jobs not found",
            "details": "Jobs matching requested cancelled actions could not be found: a,b",
            "rap_id": RAP_ID,
            "not_found": ["a", "b"],
        }

    @pytest.mark.parametrize(
        ("body", "fault"),
        [
            ({"actions": ["a"]}, ": 'rap_id' is a required property"),
            ({"rap_id": RAP_ID, "actions": []}, " at $.actions: [] should be non-empty"),
            ({"rap_id": RAP_ID, "actions": [1]}, " at $.actions[0]: 1 is not of type 'string'"),
        ],
    )
    async def test_what_the_schema_refuses(self, portal: Ask, body: dict[str, Any], fault: str) -> None:
        response = await portal("POST", "rap/cancel/", json=body)
        assert response.status == 400
        assert await response.json() == validation_error(f"Invalid request body received{fault}")


class TestStatus:
    """Section 1.5."""

    async def test_a_job_has_exactly_these_keys_and_formats(self, portal: Ask, engine: ScriptedEngine) -> None:
        engine.script["status"] = StatusReport(
            jobs=(make_job(metrics={"cpu_mean": 82.5}),), unrecognised=(RapId("x" * 16),)
        )
        response = await portal("POST", "rap/status/", json={"rap_ids": [RAP_ID, "x" * 16]})
        assert response.status == 200
        assert await response.text() == (
            '{"jobs": [{"identifier": "zhgksvaob3u5opzv", "rap_id": "abcdefgh23456789", "backend": "test", '
            '"action": "action1", "run_command": "python:v2 python analysis/myscript.py", '
            '"status": "succeeded", "status_code": "succeeded", "status_message": "Completed successfully", '
            '"created_at": "2026-11-21T09:26:59Z", "updated_at": "2026-11-21T09:29:00Z", '
            '"started_at": "2026-11-21T09:28:00Z", "completed_at": "2026-11-21T09:29:00Z", '
            '"trace_context": {"traceparent": "00-ee668ef06f2f1564c028eea1d9be716d-5b3ca103cdd2a017-01"}, '
            '"metrics": {"cpu_mean": 82.5}, "requires_db": false}], "unrecognised_rap_ids": ["xxxxxxxxxxxxxxxx"]}'
        )

    async def test_a_pending_job(self, portal: Ask, engine: ScriptedEngine) -> None:
        engine.script["status"] = StatusReport(jobs=(make_job(code=StatusCode.CREATED),), unrecognised=())
        (job,) = (await (await portal("POST", "rap/status/", json={"rap_ids": [RAP_ID]})).json())["jobs"]
        assert (job["status"], job["status_code"], job["metrics"]) == ("pending", "created", {})
        assert job["started_at"] is None
        assert job["completed_at"] is None

    async def test_the_engines_order_of_jobs_is_kept(self, portal: Ask, engine: ScriptedEngine) -> None:
        names = ["z", "a", "m"]
        engine.script["status"] = StatusReport(jobs=tuple(map(make_job, names)), unrecognised=())
        body = await (await portal("POST", "rap/status/", json={"rap_ids": [RAP_ID]})).json()
        assert [job["action"] for job in body["jobs"]] == names

    async def test_ids_are_asked_for_once_and_unrecognised_once(self, portal: Ask, engine: ScriptedEngine) -> None:
        unknown = RapId("u" * 16)
        engine.script["status"] = StatusReport(jobs=(), unrecognised=(unknown, unknown))
        body = await (await portal("POST", "rap/status/", json={"rap_ids": [unknown, RAP_ID, unknown]})).json()
        assert body == {"jobs": [], "unrecognised_rap_ids": [unknown]}
        assert engine.last_call == ("status", (PORTAL, [unknown, RAP_ID]), {})

    @pytest.mark.parametrize(
        ("code", "elapsed", "shown"),
        [
            (StatusCode.EXECUTING, 59, "2026-11-21T09:29:00Z"),
            (StatusCode.EXECUTING, 60, "2026-11-21T09:30:00Z"),
            (StatusCode.EXECUTING, 3 * 60 + 59, "2026-11-21T09:32:00Z"),
            (StatusCode.WAITING_ON_WORKERS, 3600, "2026-11-21T10:29:00Z"),
            (StatusCode.EXECUTING, -3600, "2026-11-21T09:29:00Z"),
            (StatusCode.SUCCEEDED, 3600, "2026-11-21T09:29:00Z"),
        ],
    )
    async def test_updated_at_of_an_active_job_moves_every_minute(
        self, portal: Ask, engine: ScriptedEngine, clock: ManualClock, code: StatusCode, elapsed: int, shown: str
    ) -> None:
        updated_at = NOW - timedelta(minutes=1)
        engine.script["status"] = StatusReport(jobs=(make_job(code=code, updated_at=updated_at),), unrecognised=())
        clock.advance((updated_at - clock.now()).total_seconds() + elapsed)
        (job,) = (await (await portal("POST", "rap/status/", json={"rap_ids": [RAP_ID]})).json())["jobs"]
        assert job["updated_at"] == shown

    async def test_forty_thousand_ids(self, portal: Ask, engine: ScriptedEngine) -> None:
        ids = [f"{number:016}" for number in range(40_000)]
        engine.script["status"] = lambda _, asked: StatusReport(jobs=(), unrecognised=tuple(asked))
        response = await portal("POST", "rap/status/", json={"rap_ids": ids})
        assert response.status == 200
        assert (await response.json())["unrecognised_rap_ids"] == ids

    @pytest.mark.parametrize(
        ("body", "fault"),
        [
            ({}, ": 'rap_ids' is a required property"),
            ({"rap_ids": None}, " at $.rap_ids: None is not of type 'array'"),
            ({"rap_ids": ["x"]}, " at $.rap_ids[0]: 'x' does not match '^[a-z0-9]{16}$'"),
            ({"rap_ids": [7]}, " at $.rap_ids[0]: 7 is not of type 'string'"),
        ],
    )
    async def test_what_the_schema_refuses(self, portal: Ask, body: dict[str, Any], fault: str) -> None:
        response = await portal("POST", "rap/status/", json=body)
        assert response.status == 400
        assert await response.json() == validation_error(f"Invalid request body received{fault}")

    async def test_a_body_of_nothing_but_faults(self, portal: Ask) -> None:
        response = await portal("POST", "rap/status/", json={"rap_ids": ["x"] * 100_000})
        assert response.status == 400


class TestPages:
    """Section 1.6."""

    async def test_the_specification(self, portal: Ask) -> None:
        response = await portal("GET", "spec.json", token=None)
        document = await response.json()
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/json"
        assert document["openapi"] == "3.1.0"
        assert (document["info"]["title"], document["info"]["version"]) == ("RAP API", "v1")
        assert document["servers"] == [{"url": "/controller/v1/"}]
        assert [tag["name"] for tag in document["tags"]] == ["backends", "rap_operations"]
        assert {
            "createRequestBody",
            "cancelRequestBody",
            "statusRequestBody",
            "job",
            "timestamp",
            "backendFlagStatus",
        } <= document["components"]["schemas"].keys()

    async def test_the_docs_need_nothing_from_elsewhere(self, portal: Ask) -> None:
        response = await portal("GET", "docs/", token=None)
        html = await response.text()
        assert response.status == 200
        assert response.headers["Content-Type"] == HTML
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "<script" not in html
        assert "src=" not in html
        assert "url(" not in html
        for path in ("backend/status/", "rap/create/", "rap/cancel/", "rap/status/"):
            assert f"/controller/v1/{path}</div>" in html
        assert "force_run_dependencies" in html
        assert "Jobs already created for rap_id" in html

    async def test_every_link_of_the_docs_leads_somewhere(self, portal: Ask) -> None:
        html = await (await portal("GET", "docs/", token=None)).text()
        targets = set(re.findall(r'href="#([^"]+)"', html))
        assert targets <= set(re.findall(r'id="([^"]+)"', html))
        assert len(targets) > 15

    @pytest.mark.parametrize("path", ["docs/", "spec.json"])
    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    async def test_writing_to_a_page_is_403_html(self, portal: Ask, path: str, method: str) -> None:
        response = await portal(method, path)
        assert response.status == 403
        assert response.headers["Content-Type"] == HTML
