"""A controller over a real socket that does what a test says: delays, drops answers, refuses, talks nonsense."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import orjson
from aiohttp import web
from attrs import define

from common.protocol import TaskOffer


@define
class Fault:
    """What happens to the next request of a path instead of (or after) its handling."""

    path: str
    status: int = 503
    body: bytes = b"busy"
    headers: dict[str, str] = attrs.field(factory=dict)
    containing: bytes = b""
    """Only a request with this in its body."""
    drop_answer: bool = False
    """Handle the request, then close the connection without an answer."""


class FakeController:
    """Leases tasks and judges reports like the real one, as far as an agent can see."""

    def __init__(self) -> None:
        self.url = ""
        self.tasks: dict[str, TaskOffer] = {}
        self.complete: set[str] = set()
        self.revoke: set[str] = set()
        self.verdicts: dict[tuple[str, str], str] = {}
        """(task, stage) -> the verdict to give instead."""
        self.reports: list[dict[str, Any]] = []
        self.claims: list[dict[str, Any]] = []
        self.open_claims = 0
        self.declarations: list[dict[str, Any]] = []
        self.released: list[dict[str, Any]] = []
        self.logs: dict[str, str] = {}
        self.log_bound = 10**9
        self.faults: list[Fault] = []
        self.forgotten = False
        """Tell claims that their agent is not known, until it declares itself."""
        self.duplicate = False
        """Offer tasks that the agent holds as well."""
        self.generous = False
        """Offer all jobs there are, whatever number of slots an agent has."""
        self.traffic: list[bytes] = []
        """Everything that agents sent: request lines, headers, bodies."""
        self.changed = asyncio.Condition()

    async def notify(self) -> None:
        """Wake claims and tests."""
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds; the bound only makes a broken test end."""
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(condition)

    async def offer(self, *offers: TaskOffer) -> None:
        """Put tasks into the queue."""
        self.tasks |= {offer.id: offer for offer in offers}
        await self.notify()

    def stages(self, task_id: str) -> list[str]:
        """The stages reported about a task, in order, repeats of one after the other removed."""
        stages: list[str] = []
        for report in self.reports:
            if report["task_id"] == task_id and stages[-1:] != [report["stage"]]:
                stages.append(report["stage"])
        return stages

    def final(self, task_id: str) -> dict[str, Any]:
        """The final report of a task."""
        return next(r for r in self.reports if r["task_id"] == task_id and r["complete"])

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["FakeController"]:
        """Serve on a free port of the loopback interface."""
        app = web.Application(middlewares=[self._misbehave])
        app.router.add_put("/agent/v1/test/agents/{agent}", self._declare)
        app.router.add_post("/agent/v1/test/claim", self._claim)
        app.router.add_post("/agent/v1/test/reports", self._report)
        app.router.add_post("/agent/v1/test/logs", self._log)
        app.router.add_post("/agent/v1/test/release", self._release)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.read()
        headers = b"\n".join(b": ".join(pair) for pair in request.raw_headers)
        self.traffic.append(f"{request.method} {request.path_qs}\n".encode() + headers + b"\n\n" + body)
        faults = (f for f in self.faults if request.path.endswith(f.path) and f.containing in body)
        fault = next(faults, None)
        if fault is not None:
            self.faults.remove(fault)
            if not fault.drop_answer:
                await self.notify()
                return web.Response(status=fault.status, body=fault.body, headers=fault.headers)
        response: web.StreamResponse = await handler(request)
        if fault is not None and request.transport is not None:
            request.transport.close()
        await self.notify()
        return response

    async def _declare(self, request: web.Request) -> web.Response:
        self.declarations.append(await request.json())
        self.forgotten = False
        return web.json_response({"lease_seconds": 900, "poll_seconds": 300, "server_time": "2026-03-01T00:00:00Z"})

    def _due(self, claim: dict[str, Any]) -> dict[str, Any]:
        holding = set() if self.duplicate else {held["task_id"] for held in claim["holding"]}
        waiting = [t for t in self.tasks.values() if t.id not in holding | self.complete]
        runs = [t for t in waiting if t.type == "runjob"][: None if self.generous else claim["slots"]]
        others = [t for t in waiting if t.type != "runjob"]
        revoked = sorted(self.revoke & {held["task_id"] for held in claim["holding"]})
        tasks = [attrs.asdict(task) for task in (*runs, *others)]
        return {"tasks": tasks, "revoked": revoked, "undeclared": self.forgotten}

    async def _claim(self, request: web.Request) -> web.Response:
        claim = await request.json()
        self.claims.append(claim)
        self.open_claims += 1
        try:
            await self.notify()
            async with asyncio.timeout(claim["wait"]), self.changed:
                await self.changed.wait_for(lambda: any(self._due(claim).values()))
        except TimeoutError:
            pass
        finally:
            self.open_claims -= 1
        return web.json_response(body=orjson.dumps(self._due(claim)))

    def _judge(self, report: dict[str, Any]) -> str:
        task_id = report["task_id"]
        verdict = self.verdicts.get((task_id, report["stage"]))
        if verdict is None:
            verdict = "repeated" if task_id in self.complete else "applied"
        if report["complete"]:
            self.complete.add(task_id)
        return verdict

    async def _report(self, request: web.Request) -> web.Response:
        batch = (await request.json())["reports"]
        self.reports += batch
        answers = [{"task_id": r["task_id"], "verdict": self._judge(r), "detail": ""} for r in batch]
        return web.json_response({"answers": answers})

    async def _log(self, request: web.Request) -> web.Response:
        chunk = await request.json()
        text = self.logs.get(chunk["task_id"], "")
        if chunk["offset"] == len(text):
            text = self.logs[chunk["task_id"]] = (text + chunk["text"])[: self.log_bound]
        return web.json_response({"next_offset": len(text), "accepting": len(text) < self.log_bound})

    async def _release(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.released.append(body)
        return web.json_response({"released": len(body["tasks"])})
