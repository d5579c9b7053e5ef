"""The Task API on the wire: every row of reference sections 2.1 to 2.3, over real HTTP."""

import io
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest

from controller.core.errors import NotFound, Rejected, Unavailable
from controller.core.model import TaskId, TaskType
from tests.dialects.conftest import AGENT_TOKEN, OTHER_AGENT_TOKEN, PORTAL_TOKEN, Ask
from tests.dialects.values import make_task
from tests.fakes.engine import ScriptedEngine

HTML = "text/html; charset=utf-8"
TASKS = "/test/tasks/"
UPDATE = "/test/task/update/"
ENDPOINTS = [("GET", TASKS), ("POST", UPDATE)]


def payload(**changes: Any) -> dict[str, str]:
    """The form of a right update, but for `changes`; a key changed to `...` is left out."""
    said = {
        "task_id": "zhgksvaob3u5opzv-001",
        "stage": "executing",
        "results": {},
        "complete": False,
        "timestamp_ns": 1795253250000000000,
    } | changes
    return {"payload": json.dumps({key: value for key, value in said.items() if value is not ...})}


class TestHealth:
    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
    async def test_any_method_is_answered_by_its_name(self, agent: Ask, method: str) -> None:
        response = await agent(method, "/", token=None)
        assert (response.status, await response.json()) == (200, {"method": method})

    async def test_head(self, agent: Ask) -> None:
        response = await agent("HEAD", "/", token=None)
        assert (response.status, await response.read()) == (200, b"")


class TestCommonRules:
    @pytest.mark.parametrize(("method", "path"), ENDPOINTS)
    @pytest.mark.parametrize("token", [None, "nonsense", AGENT_TOKEN])
    async def test_an_unknown_backend_is_404_before_the_token(
        self, agent: Ask, method: str, path: str, token: str | None
    ) -> None:
        response = await agent(method, path.replace("test", "nowhere"), token=token)
        assert response.status == 404
        assert await response.json() == {"error": "Not found", "details": "Backend 'nowhere' not found"}

    @pytest.mark.parametrize(("method", "path"), ENDPOINTS)
    @pytest.mark.parametrize(
        ("token", "details"),
        [
            (None, "No token provided"),
            ("", "No token provided"),
            ("nonsense", "Invalid token for backend 'test'"),
            (OTHER_AGENT_TOKEN, "Invalid token for backend 'test'"),
            (PORTAL_TOKEN, "Invalid token for backend 'test'"),
        ],
    )
    async def test_no_token_or_another_is_401(
        self, agent: Ask, engine: ScriptedEngine, method: str, path: str, token: str | None, details: str
    ) -> None:
        response = await agent(method, path, token=token, data=payload() if method == "POST" else None)
        assert response.status == 401
        assert await response.json() == {"error": "Unauthorized", "details": details}
        assert engine.calls == []

    @pytest.mark.parametrize("path", [TASKS, UPDATE])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    async def test_a_missing_slash_is_redirected(self, agent: Ask, method: str, path: str) -> None:
        response = await agent(method, path.rstrip("/"), token=None)
        assert (response.status, response.headers["Location"]) == (301, path)

    async def test_a_redirect_never_leads_to_another_host(self, agent: Ask) -> None:
        response = await agent("GET", "/%2Fexample.org/tasks", token=None)
        assert response.headers["Location"] == "/%2Fexample.org/tasks/"

    @pytest.mark.parametrize(("method", "path"), ENDPOINTS)
    @pytest.mark.parametrize(
        ("error", "status"), [(Unavailable("the database is away"), 503), (RuntimeError("secret"), 500)]
    )
    async def test_what_is_ours_may_be_sent_again(
        self, agent: Ask, engine: ScriptedEngine, method: str, path: str, error: Exception, status: int
    ) -> None:
        engine.script |= {"active_tasks": error, "update_task": error}
        response = await agent(method, path, data=payload() if method == "POST" else None)
        assert response.status == status
        assert response.headers["Retry-After"] == "5"
        assert str(error) not in await response.text()


class TestTasks:
    @pytest.mark.parametrize("token", [AGENT_TOKEN, f"Bearer {AGENT_TOKEN}"])
    async def test_a_task_has_exactly_these_keys(self, agent: Ask, engine: ScriptedEngine, token: str) -> None:
        task = make_task()
        engine.script["active_tasks"] = [task]
        response = await agent("GET", TASKS, token=token)
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/json"
        assert await response.json() == {
            "tasks": [
                {
                    "id": "zhgksvaob3u5opzv-001",
                    "backend": "test",
                    "type": "runjob",
                    "definition": task.definition,
                    "attributes": {"user": "test_user", "project": "test-project", "orgs": "opensafely"},
                    "created_at": 1795253247,
                }
            ]
        }

    async def test_the_engines_order_is_kept(self, agent: Ask, engine: ScriptedEngine) -> None:
        check = make_task(
            id=TaskId("dbstatus-2026-11-21-0123456789abcdef0123"),
            type=TaskType.DBSTATUS,
            job_id=None,
            definition={"database_name": "default", "image": "i", "image_sha": None},
            attributes={},
            created_at=datetime(2026, 11, 21, tzinfo=UTC),
        )
        engine.script["active_tasks"] = [check, make_task()]
        tasks = (await (await agent("GET", TASKS)).json())["tasks"]
        assert [task["type"] for task in tasks] == ["dbstatus", "runjob"]
        assert tasks[0]["attributes"] == {}

    async def test_nothing_to_do(self, agent: Ask, engine: ScriptedEngine) -> None:
        engine.script["active_tasks"] = []
        assert await (await agent("GET", TASKS)).text() == '{"tasks": []}'

    async def test_head_counts_as_seen(self, agent: Ask, engine: ScriptedEngine) -> None:
        engine.script["active_tasks"] = [make_task()]
        response = await agent("HEAD", TASKS)
        assert (response.status, await response.read()) == (200, b"")
        assert engine.calls == [("active_tasks", ("test",), {})]

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    @pytest.mark.parametrize("token", [None, AGENT_TOKEN])
    async def test_writing_is_403_html(self, agent: Ask, method: str, token: str | None) -> None:
        response = await agent(method, TASKS, token=token)
        assert response.status == 403
        assert response.headers["Content-Type"] == HTML

    async def test_a_backend_is_seen_by_its_own_token_only(self, agent: Ask, engine: ScriptedEngine) -> None:
        engine.script["active_tasks"] = []
        assert (await agent("GET", "/other/tasks/", token=OTHER_AGENT_TOKEN)).status == 200
        assert engine.last_call == ("active_tasks", ("other",), {})


class TestUpdate:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({}, {}),
            ({"results": None}, {}),
            ({"results": ...}, {}),
            ({"extra": "ignored"}, {}),
            ({"timestamp_ns": None}, {"timestamp_ns": None}),
            ({"timestamp_ns": ""}, {"timestamp_ns": None}),
            ({"timestamp_ns": 0}, {"timestamp_ns": None}),
            ({"timestamp_ns": 1.0}, {"timestamp_ns": 1}),
            ({"timestamp_ns": float("nan")}, {"timestamp_ns": None}),
            ({"stage": "", "complete": True}, {"stage": "", "complete": True}),
            ({"results": {"exit_code": "0", "error": False}}, {"results": {"exit_code": "0", "error": False}}),
            (
                {"results": {"a\0": ["b\0c", float("nan"), float("inf"), "\ud800", 1.5, True]}},
                {"results": {"a\ufffd": ["b\ufffdc", None, None, "\ufffd", 1.5, True]}},
            ),
        ],
    )
    async def test_an_update_reaches_the_engine(
        self, agent: Ask, engine: ScriptedEngine, changes: dict[str, Any], said: dict[str, Any]
    ) -> None:
        engine.script["update_task"] = None
        response = await agent("POST", UPDATE, data=payload(**changes))
        assert (response.status, await response.text()) == (200, '{"response": "Update successful"}')
        right = {
            "task_id": "zhgksvaob3u5opzv-001",
            "stage": "executing",
            "results": {},
            "complete": False,
            "timestamp_ns": 1795253250000000000,
        }
        assert engine.last_call == ("update_task", ("test",), right | said)

    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
    async def test_another_method_is_405_after_the_token(self, agent: Ask, method: str) -> None:
        assert (await agent(method, UPDATE, token="nonsense")).status == 401
        response = await agent(method, UPDATE)
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert await response.read() == b""

    async def test_an_unknown_task_is_404(self, agent: Ask, engine: ScriptedEngine) -> None:
        details = "Task 'x' not found on backend 'test'"
        engine.script["update_task"] = NotFound(details, task_id="x")
        response = await agent("POST", UPDATE, data=payload(task_id="x"))
        assert response.status == 404
        assert await response.json() == {"error": "Error updating task", "details": details}

    async def test_an_update_that_makes_no_sense_is_400(self, agent: Ask, engine: ScriptedEngine) -> None:
        engine.script["update_task"] = Rejected("results lack 'exit_code'")
        response = await agent("POST", UPDATE, data=payload(complete=True))
        assert response.status == 400
        assert await response.json() == {"error": "Error updating task", "details": "results lack 'exit_code'"}

    @pytest.mark.parametrize(
        ("body", "details"),
        [
            (b"", "form field 'payload' is missing"),
            (b"nonsense", "form field 'payload' is missing"),
            (b"Payload=1", "form field 'payload' is missing"),
            (b'{"task_id": "x"}', "form field 'payload' is missing"),
            (b"\xff\xfe", "could not parse a form from request body"),
            (b"payload=%ff", "could not parse a form from request body"),
            (b"a=1&" * 101, "could not parse a form from request body"),
            (b"payload=", "could not parse JSON from request body"),
            (b"payload={", "could not parse JSON from request body"),
            (b"payload=" + b"[" * 100_000, "could not parse JSON from request body: nested deeper than 64 levels"),
            (b"payload=" + b"9" * 5000, "could not parse JSON from request body"),
            (b"payload=[]", "Invalid request body received: [] is not of type 'object'"),
            (b"payload=null", "Invalid request body received: None is not of type 'object'"),
        ],
    )
    async def test_a_body_that_is_no_update_is_400(self, agent: Ask, body: bytes, details: str) -> None:
        response = await agent("POST", UPDATE, data=io.BytesIO(body))
        assert response.status == 400
        assert await response.json() == {"error": "Error updating task", "details": details}

    @pytest.mark.parametrize("missing", ["task_id", "stage", "complete", "timestamp_ns"])
    async def test_a_missing_key_is_400(self, agent: Ask, missing: str) -> None:
        response = await agent("POST", UPDATE, data=payload(**{missing: ...}))
        assert response.status == 400
        assert (await response.json())["details"].endswith(f"'{missing}' is a required property")

    @pytest.mark.parametrize(
        "changes",
        [
            {"task_id": 1},
            {"task_id": None},
            {"stage": None},
            {"stage": ["executing"]},
            {"complete": "true"},
            {"complete": 1},
            {"results": []},
            {"results": "0"},
            {"timestamp_ns": "soon"},
            {"timestamp_ns": -1},
            {"timestamp_ns": 2**63},
            {"timestamp_ns": True},
            {"timestamp_ns": 1.5},
        ],
    )
    async def test_nonsense_is_400(self, agent: Ask, engine: ScriptedEngine, changes: dict[str, Any]) -> None:
        engine.script["update_task"] = None
        response = await agent("POST", UPDATE, data=payload(**changes))
        assert response.status == 400
        assert (await response.json())["error"] == "Error updating task"
        assert engine.calls == []

    async def test_an_update_over_the_limit_is_400(self, agent: Ask) -> None:
        body = urlencode({"payload": "x" * 2_700_000}).encode()
        response = await agent("POST", UPDATE, data=io.BytesIO(body))
        assert response.status == 400
        assert "larger than 2621440 bytes" in await response.text()

    async def test_a_multipart_form_is_400(self, agent: Ask) -> None:
        response = await agent(
            "POST", UPDATE, data=b"--x\r\n\r\n--x--", headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
        assert response.status == 400
