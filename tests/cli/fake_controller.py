"""A small controller over real HTTP for the tests of the commands: it says what a test tells it to."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from click.testing import CliRunner, Result

from cli.main import rap

TOKEN = "client-token"
RAP = "abcdefgh23456777"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def job(action: str, state: str = "succeeded", **changes: Any) -> dict[str, Any]:
    """A job as the native API shows it."""
    started = None if state == "pending" else "2026-01-01T00:00:01.000000Z"
    completed = "2026-01-01T00:01:15.500000Z" if state in ("succeeded", "failed") else None
    code = {"pending": "created", "running": "executing", "succeeded": "succeeded", "failed": "nonzero_exit"}[state]
    return {
        "id": (action + "x" * 16)[:16],
        "rap_id": RAP,
        "action": action,
        "state": state,
        "code": code,
        "message": f"message of {action}",
        "attempt": 1 if started else 0,
        "cancelled": False,
        "created_at": "2026-01-01T00:00:00.000000Z",
        "started_at": started,
        "completed_at": completed,
        "metrics": {},
        "outputs": [],
        "history": [
            {
                "at": "2026-01-01T00:00:00.000000Z",
                "attempt": 0,
                "state": "pending",
                "code": "created",
                "message": "Created",
            }
        ],
        "trace_id": TRACE,
        **changes,
    }


def detail(*jobs: dict[str, Any], rap_id: str = RAP) -> dict[str, Any]:
    """A RAP as the native API shows it."""
    return {"rap": summary(rap_id), "jobs": list(jobs)}


def summary(rap_id: str = RAP, **changes: Any) -> dict[str, Any]:
    """One line of the list of RAPs."""
    return {
        "id": rap_id,
        "state": "running",
        "backend": "test",
        "workspace": "study",
        "project": "study",
        "created_by": "alice",
        "created_at": "2026-01-01T00:00:00.000000Z",
        "repo_url": "/srv/study",
        "branch": "main",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "requested_actions": ["run_all"],
        "counts": {"pending": 0, "running": 1, "succeeded": 1, "failed": 0},
        "trace_id": TRACE,
        **changes,
    }


def backend(slug: str, **changes: Any) -> dict[str, Any]:
    """A backend as `/api/backends` lists it."""
    return {
        "slug": slug,
        "last_seen": "2026-01-01T00:00:00.000000Z",
        "paused": False,
        "paused_since": None,
        "db_maintenance": False,
        "db_maintenance_since": None,
        "db_maintenance_type": None,
        **changes,
    }


class FakeController:
    """Answers each `METHOD /path` by a script: a list is used up one by one (the last stays), a callable is called.

    An answer is (status, body[, headers]); a body that is a string goes out as HTML.
    """

    def __init__(self) -> None:
        self.url = ""
        self.script: dict[str, Any] = {}
        self.requests: list[tuple[str, Any]] = []
        """What came in: `METHOD /path?query` and the parsed body."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        body = await request.read()
        self.requests.append((f"{request.method} {request.path_qs}", json.loads(body) if body else None))
        if request.path != "/readyz" and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"error": "unauthorized", "message": "Invalid token"}, status=401)
        answer = self.script.get(f"{request.method} {request.path}", (404, {"error": "not_found", "message": "No."}))
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if callable(answer):
            answer = answer(request)
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        status, content, *rest = answer
        headers = rest[0] if rest else {}
        if isinstance(content, str):
            html = {"Content-Type": "text/html; charset=utf-8"}
            return web.Response(status=status, text=content, headers=html | headers)
        return web.json_response(content, status=status, headers=headers)

    def paths(self) -> list[str]:
        """The requests without their bodies."""
        return [path for path, _ in self.requests]


@asynccontextmanager
async def serving() -> AsyncIterator[FakeController]:
    """A controller on a free port of the loopback interface."""
    controller = FakeController()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", controller.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    controller.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield controller
    finally:
        await runner.cleanup()


Invoke = Callable[..., Any]


async def invoke(controller: FakeController | None, *arguments: str, **environ: str | None) -> Result:
    """Run `rap ARGUMENTS` in a thread, with a controller's address and token in its environment."""
    variables: dict[str, str | None] = {"RAP_URL": None, "RAP_TOKEN": None, "RAP_BACKEND": None, "RAP_RETRY_FOR": "0"}
    if controller is not None:
        variables |= {"RAP_URL": controller.url, "RAP_TOKEN": TOKEN}
    return await asyncio.to_thread(CliRunner().invoke, rap, arguments, env=variables | environ, prog_name="rap")


def check_one_line(stderr: str, *parts: str) -> None:
    """A complaint is one line, and has these parts."""
    assert stderr.startswith("rap: ")
    assert stderr.count("\n") == 1
    assert "Traceback" not in stderr
    for part in parts:
        assert part in stderr
