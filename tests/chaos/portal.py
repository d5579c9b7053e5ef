"""A portal that behaves as job-server does, over the same bad network as everybody; and the operators' commands.

It repeats a create with the same id until it has an answer, polls the status of everything that is not finished, and
cancels. What it was promised (answers that it has really received) is what the checker holds the system to.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
from attrs import define, field, frozen

from tests.chaos.plan import Plan, Request

TERMINAL: Final = frozenset({"succeeded", "failed"})
_TIMEOUT: Final = aiohttp.ClientTimeout(total=20)


@frozen(kw_only=True)
class Accepted:
    """A create that was answered: so many jobs."""

    rap_id: str
    count: int


@frozen(kw_only=True)
class Acknowledged:
    """A cancel that was answered, and when (Unix seconds, the machine's clock)."""

    rap_id: str
    actions: tuple[str, ...]
    at: float


@define
class Portal:
    """One client, for all backends."""

    url: str
    client_token: str
    operator_token: str
    repositories: Mapping[str, tuple[Path, str]]
    """Study -> its repository and commit."""
    session: aiohttp.ClientSession
    rng: random.Random
    accepted: dict[str, Accepted] = field(factory=dict)
    acknowledged: list[Acknowledged] = field(factory=list)
    refused: list[str] = field(factory=list)
    """Answers that nothing in the plan explains."""
    contradictions: list[str] = field(factory=list)
    """What status said that it must not: an accepted RAP unknown, a finished job unfinished."""
    seen: dict[str, tuple[str, str]] = field(factory=dict)
    """Job -> its state and RAP, as last seen."""
    newest: dict[str, list[str]] = field(factory=dict)
    """Backend -> accepted RAPs, oldest first."""
    resubmitted: dict[str, str] = field(factory=dict)
    """RAP that an operator's retry has made -> the RAP of the job that was retried."""

    async def submit(self, plan: Plan, started: float) -> None:
        """Every request of the plan in its time, with its cancel."""
        async with asyncio.TaskGroup() as group:
            for request in plan.requests:
                await asyncio.sleep(max(0.0, started + request.at - time.monotonic()))
                group.create_task(self._ask(request))

    async def poll(self) -> None:
        """Ask for the status of everything that is not known to be finished, once."""
        open_raps = self._unfinished()
        if not open_raps:
            return
        status, body = await self._until_answered("/controller/v1/rap/status/", {"rap_ids": open_raps})
        if status != 200:
            self.refused.append(f"status: {status} {body}")
            return
        for rap_id in body["unrecognised_rap_ids"]:
            self.contradictions.append(f"RAP {rap_id} was accepted, and status does not know it")
        for job in body["jobs"]:
            self._compare(job)

    def is_finished(self) -> bool:
        """Whether every accepted RAP is known to be finished."""
        return not self._unfinished()

    async def cancel(self, rap_id: str, actions: tuple[str, ...]) -> None:
        """Cancel until there is an answer."""
        body = {"rap_id": rap_id, "actions": list(actions)}
        status, answer = await self._until_answered("/controller/v1/rap/cancel/", body)
        if status == 200:
            self.acknowledged.append(Acknowledged(rap_id=rap_id, actions=actions, at=time.time()))
        elif status != 404:  # what no job was made for cannot be cancelled
            self.refused.append(f"cancel of {rap_id}: {status} {answer}")

    async def cancel_newest(self, backend: str) -> None:
        """Cancel what is active in the backend's two newest RAPs."""
        for rap_id in self.newest.get(backend, [])[-2:]:
            status, body = await self._until_answered("/controller/v1/rap/status/", {"rap_ids": [rap_id]})
            if status == 200:
                active = tuple(job["action"] for job in body["jobs"] if job["status"] not in TERMINAL)
                if active:
                    await self.cancel(rap_id, active)

    async def operate(self, backend: str, what: str, body: object = None) -> None:
        """An operator's command, repeated until it has an answer."""
        await self._command(f"backends/{backend}/{what}", body)

    async def kill_one(self, backend: str) -> None:
        """End a job that runs, if one does."""
        job_id = self._find_running(backend)
        if job_id is not None and (answer := await self._command(f"jobs/{job_id}/kill")) is not None:
            job = answer["job"]
            ended = Acknowledged(rap_id=job["rap_id"], actions=(job["action"],), at=time.time())
            self.acknowledged.append(ended)

    async def retry_one(self, backend: str) -> None:
        """Have a job that runs tried again, if one does. One that has failed meanwhile is asked for by a new RAP; one
        that has succeeded is refused."""
        job_id = self._find_running(backend)
        answer = None if job_id is None else await self._command(f"jobs/{job_id}/retry", refusal=400)
        if answer is not None and answer["rap_id"] is not None:
            self.resubmitted[answer["rap_id"]] = answer["job"]["rap_id"]

    def _find_running(self, backend: str) -> str | None:
        wanted = set(self.newest.get(backend, []))
        running = sorted(job for job, (state, rap_id) in self.seen.items() if state == "running" and rap_id in wanted)
        return self.rng.choice(running) if running else None

    async def _command(self, path: str, body: object = None, *, refusal: int | None = None) -> Any:
        """The answer; None for a refusal that is no surprise, or one that is and is remembered."""
        status, answer = await self._until_answered(f"/api/{path}", body, token=f"Bearer {self.operator_token}")
        if status == 200:
            return answer
        if status != refusal:
            self.refused.append(f"{path}: {status} {answer}")
        return None

    async def _ask(self, request: Request) -> None:
        status, body = await self._until_answered("/controller/v1/rap/create/", self._body(request))
        if status not in (200, 201):
            self.refused.append(f"create of {request.rap_id}: {status} {body}")
            return
        if not body["count"]:
            return  # nothing to do: others are at it already
        self.accepted[request.rap_id] = Accepted(rap_id=request.rap_id, count=body["count"])
        self.newest.setdefault(request.backend, []).append(request.rap_id)
        if request.cancel is not None:
            await asyncio.sleep(request.cancel.after)
            await self.cancel(request.rap_id, request.cancel.actions)

    def _body(self, request: Request) -> dict[str, Any]:
        folder, commit = self.repositories[request.study]
        return {
            "backend": request.backend,
            "rap_id": request.rap_id,
            "workspace": request.workspace,
            "repo_url": str(folder),
            "branch": "main",
            "commit": commit,
            "database_name": "default",
            "requested_actions": list(request.actions),
            "codelists_ok": True,
            "force_run_dependencies": request.force,
            "created_by": "chaos",
            "project": "chaos",
            "orgs": [],
        }

    async def _until_answered(self, path: str, body: object, *, token: str | None = None) -> tuple[int, Any]:
        """Send until an answer of the controller's own comes; 5xx and whatever is not whole is none."""
        pause = 0.1
        while True:
            # Not JSON, or not all of it: nothing that counts.
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
                async with self.session.post(
                    self.url + path,
                    json=body,
                    headers={"Authorization": token or self.client_token},
                    timeout=_TIMEOUT,
                ) as response:
                    answer = await response.json()
                    if response.status < 500:
                        return response.status, answer
            await asyncio.sleep(pause * self.rng.uniform(0.5, 1.5))
            pause = min(2.0, 2 * pause)

    def _unfinished(self) -> list[str]:
        states: dict[str, list[str]] = {}
        for state, rap_id in self.seen.values():
            states.setdefault(rap_id, []).append(state)
        return [
            rap_id
            for rap_id, promised in self.accepted.items()
            if len(found := states.get(rap_id, [])) < promised.count or not TERMINAL.issuperset(found)
        ]

    def _compare(self, job: Mapping[str, Any]) -> None:
        """A finished job stays as it is."""
        before, _ = self.seen.get(job["identifier"], ("", ""))
        if before in TERMINAL and job["status"] != before:
            self.contradictions.append(f"job {job['identifier']} was seen {before}, then {job['status']}")
        self.seen[job["identifier"]] = (job["status"], job["rap_id"])
