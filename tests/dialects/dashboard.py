"""The dashboard over a scripted engine, and a browser that keeps its cookies and says where its forms come from."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer
from attrs import evolve

from common import tokens
from controller.core.codes import JobState, StatusCode
from controller.core.errors import NotFound
from controller.core.model import Job, JobId, Principal, RapId, Verb
from controller.core.resources import JobLimits
from controller.dialects.ui import routes
from controller.engine.measuring import Point, Series
from controller.engine.queues import QueueView
from controller.engine.results import (
    AgentView,
    BackendView,
    HistoryEntry,
    JobDetail,
    OutputView,
    Page,
    RapDetail,
    RapSummary,
    StatusReport,
)
from controller.engine.sessions import NewSession
from controller.engine.tails import LogTail
from controller.web import middleware
from controller.web.auth import Tokens
from controller.web.keys import CLOCK, ENGINE, TOKENS
from tests.dialects import operated
from tests.factories import NOW, TRACEPARENT, job, later
from tests.fakes.clock import ManualClock
from tests.fakes.engine import ScriptedEngine

USER_TOKEN, OPERATOR_TOKEN = "user-token", "operator-token"
USER = Principal(name="token alice", grants={"test": frozenset({Verb.READ, Verb.RUN})})
OPERATOR = Principal(name="operator of test", grants={"test": frozenset({Verb.READ, Verb.RUN, Verb.MANAGE})})
SECRET = "s" * 43
RAP_ID, JOB_ID = "r" * 16, "a" * 16

BACKEND = BackendView(
    slug="test",
    last_seen=NOW,
    paused=False,
    paused_since=None,
    db_maintenance=False,
    db_maintenance_since=None,
    db_maintenance_type=None,
)
AGENT = AgentView(
    id="node-1", backend="test", version="1", executor="fake", slots=2, last_seen=NOW, policy="status,+log"
)


POINTS = tuple(
    Point(at=later(10 * place), metrics={}, cpu=cpu, mem_mb=mem)
    for place, (cpu, mem) in enumerate([(None, 100.0), (120.0, 300.0), (80.0, None)], 1)
)


class Following:
    """Stands in for the engine's reader where only its place is asked for."""

    place = "test:4"


def summary(**changes: Any) -> RapSummary:
    values: dict[str, Any] = {
        "id": RapId(RAP_ID),
        "backend": "test",
        "workspace": "study",
        "created_by": "alice",
        "project": "project",
        "repo_url": "https://github.com/opensafely/study",
        "branch": "main",
        "commit": "c" * 40,
        "created_at": NOW,
        "requested_actions": ("run_all",),
        "traceparent": TRACEPARENT,
        "counts": {JobState.RUNNING: 1},
    }
    return RapSummary(**values | changes)


def detail(value: Job, **changes: Any) -> JobDetail:
    progress = value.progress
    values: dict[str, Any] = {
        "job": value,
        "outputs": (
            OutputView(
                path="output/a.csv", level="moderately_sensitive", size=5, sha256="0", excluded=False, message=""
            ),
        ),
        "history": (
            HistoryEntry(at=NOW, attempt=0, state=JobState.PENDING, code=StatusCode.CREATED, message="Created"),
            HistoryEntry(at=NOW, attempt=1, state=progress.state, code=progress.code, message=progress.message),
        ),
        "agent": "node-1",
        "exit_code": None,
        "limits": JobLimits(cpu_count=2, memory_limit="4G"),
    }
    return JobDetail(**values | changes)


def world(*jobs: Job, **more: Any) -> dict[str, Any]:
    """What an engine answers that knows these jobs of one RAP (default: one that runs)."""
    jobs = jobs or (job(StatusCode.EXECUTING, id=JobId(JOB_ID)),)
    known = {each.id: each for each in jobs}

    def one(_: object, job_id: JobId) -> Any:
        return detail(known[job_id]) if job_id in known else NotFound(f"No job {job_id}", job_id=job_id)

    def rap(_: object, rap_id: RapId) -> Any:
        if rap_id != RAP_ID:
            return NotFound(f"No RAP {rap_id}", rap_id=rap_id)
        return RapDetail(rap=summary(), jobs=tuple(detail(each) for each in jobs))

    def status(_: object, rap_ids: Any) -> StatusReport:
        found = [each for each in jobs if each.spec.rap_id in rap_ids]
        return StatusReport(jobs=tuple(found), unrecognised=() if found else tuple(rap_ids))

    return {
        **operated.ANSWERS,
        "session_token": lambda secret: tokens.digest(OPERATOR_TOKEN) if secret == SECRET else None,
        "begin_session": NewSession(secret=SECRET, expires_at=NOW + timedelta(hours=12)),
        "end_session": None,
        "follow": Following(),
        "backends": [BACKEND],
        "agents": [AGENT],
        "queue": [QueueView(backend="test", code=StatusCode.WAITING_ON_WORKERS, jobs=3, since=NOW)],
        "list_raps": Page(raps=(summary(),), next_cursor="NDI"),
        "rap_detail": rap,
        "job_detail": one,
        "status": status,
        "log_tail": LogTail(attempt=1, text="step 1\nstep 2\n", omitted=0, truncated=False),
        "job_metrics": Series(job_id=JobId(JOB_ID), attempt=1, complete=False, points=POINTS),
        "cancel": 1,
        **more,
    }


class Browser:
    """Keeps cookies, follows no redirect by itself, fills in what a form hides."""

    def __init__(self, client: TestClient[web.Request, web.Application]) -> None:
        self.client = client

    async def get(self, path: str, **headers: str) -> ClientResponse:
        return await self.client.get(path, headers=headers, allow_redirects=False)

    async def post(self, path: str, fields: Mapping[str, str], **headers: str) -> ClientResponse:
        return await self.client.post(path, data=fields, headers=headers, allow_redirects=False)

    async def form(self, path: str) -> dict[str, str]:
        """The hidden fields of the form in the main part of a page."""
        page = await (await self.get(path)).text()
        main = page[page.index("<main") :]
        return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', main))

    async def sign_in(self, token: str = OPERATOR_TOKEN, **fields: str) -> ClientResponse:
        hidden = await self.form("/ui/sign-in")
        return await self.post("/ui/sign-in", {**hidden, "token": token, **fields})


@asynccontextmanager
async def browsing(engine: ScriptedEngine, clock: ManualClock | None = None) -> AsyncIterator[Browser]:
    """A browser that nobody has signed in with."""
    app = web.Application()
    middleware.install(app)
    app[ENGINE] = engine  # type: ignore[misc]  # a stand-in for the facade
    app[TOKENS] = Tokens({USER_TOKEN: USER, OPERATOR_TOKEN: OPERATOR}, {"test": []})
    app[CLOCK] = clock or ManualClock(NOW)
    routes.add_to(app)
    async with TestClient(TestServer(app)) as client:
        yield Browser(client)


def at(code: StatusCode, **changes: Any) -> Job:
    """The job of `JOB_ID` at a code; changes are its progress's."""
    made = job(code, id=JobId(JOB_ID))
    return evolve(made, progress=evolve(made.progress, **changes))
