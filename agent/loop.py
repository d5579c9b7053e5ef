"""The agent's loop: one long-poll is always open, every task has an asyncio task of its own.

What the agent holds is on disk (`work_dir/tasks/<task>/offer.json`), so a restarted agent goes on even while the
controller is away, and lists the tasks in its first claim: what is no longer its own comes back as revoked.
"""

import asyncio
import contextlib
import enum
import math
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from typing import Any, Final

import attrs
import structlog

from agent.check import Check, error_results
from agent.client import ANSWER_SECONDS, Rejected
from agent.core import checks
from agent.core.checks import Program, parse_check
from agent.core.definition import JobDefinition, check_id, parse_definition, time_limit
from agent.core.errors import BadDefinition, JobError, Unsupported
from agent.core.lifecycle import Intent
from agent.core.messages import CANCELLED
from agent.core.redact import redact_error, redact_results
from agent.core.releases import parse_release, unable_results
from agent.faults import blame, describe
from agent.job import RETURNED, Job, forget
from agent.outputs import metadata
from agent.outputs.metadata import Ending
from agent.outputs.workspaces import read_json, write_json
from agent.release import Release
from agent.tools import Tools
from agent.vitals import Vitals
from agent.waits import Interrupted, bounded, pause, unless
from common.convert import Malformed, structure
from common.protocol import (
    RELEASE,
    ClaimRequest,
    ClaimResponse,
    Declaration,
    Held,
    ReleaseDefinition,
    ReleaseRequest,
    Report,
    Stage,
    TaskOffer,
    Unable,
    Verdict,
    Welcome,
)

_log = structlog.get_logger()

Definition = JobDefinition | Program | ReleaseDefinition
RUN, CANCEL = "runjob", "canceljob"
_CANCEL_SUFFIX: Final = "-cancel"
FLUSH_SECONDS: Final = 5.0
"""How long a stopping agent waits for its last reports to be acknowledged; they are on disk anyway."""
HAND_BACK_SECONDS: Final = 20.0
"""How long a stopping agent waits for its jobs to end."""
RELEASES: Final = 4
"""Releases that are carried out at once: each has a thread all the while, and jobs need threads, too."""
_REJECTED_SECONDS: Final = 60.0
_BUSY_ANSWERS: Final = 5
"""Answers in a row that bring nothing, before the loop slows down."""


class StopMode(enum.StrEnum):
    """What a stopping agent does with its jobs."""

    LEAVE = "leave"
    HAND_BACK = "hand_back"


class Loop:
    """Claims tasks, gives each to a `Job`, and knows what this agent holds."""

    def __init__(self, tools: Tools, declaration: Declaration) -> None:
        self._tools = attrs.evolve(tools, on_idle=self._on_idle)
        self._declaration = declaration
        self._held: dict[str, Held] = {}
        self._jobs: dict[str, Job] = {}
        """By the id of the RUNJOB task."""
        self._checks: dict[str, Check] = {}
        """By the id of their task."""
        self._tasks: set[asyncio.Task[None]] = set()
        """Lives of jobs."""
        self._concluding: set[asyncio.Task[None]] = set()
        """Final reports of tasks without a job, on their way."""
        self._returned: list[TaskOffer] = []
        """Attempts that were ended to be given back, and of which the controller does not know yet."""
        self._stopping = False
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._releasing = asyncio.Semaphore(RELEASES)
        self._renew = asyncio.Event()
        self._slots_offered = 0
        self._has_room = True
        self._crowded = False
        """Whether the newest answer had more jobs in it than there were slots."""
        self._barren = 0
        self._welcome: Welcome | None = None
        self.vitals = Vitals(declaration.egress)

    async def run(self) -> None:
        """Take up what is on disk, then claim for ever."""
        await self._resume()
        while True:
            try:
                await self._declare()
                await self._give_back()
                while True:
                    await self._claim_once()
            except Rejected as error:
                _log.error("the controller rejects this agent's request", fault=str(error))
                await self._tools.clock.sleep(_REJECTED_SECONDS)

    async def stop(self, mode: StopMode) -> None:
        """Let go of all jobs, after `run` has been cancelled. Bounded in time.

        LEAVE: their processes run on, and the next agent on this machine finds them. HAND_BACK: they are ended
        and given back to the controller.
        """
        if mode is StopMode.HAND_BACK:
            await self._hand_back()
        await self._within(FLUSH_SECONDS, self._tools.reports.drain())
        told = [job.ended.wait() for job in self._jobs.values() if job.told]
        await self._within(FLUSH_SECONDS, _all(told))
        self._stopping = True
        for job in list(self._jobs.values()):
            job.request(Intent.LEAVE)
        for task in self._concluding:
            task.cancel()
        await self._await_tasks()

    async def _hand_back(self) -> None:
        jobs = [job for job in self._jobs.values() if job.intent is Intent.RUN]
        for job in jobs:
            job.request(Intent.HAND_BACK)
        for check in self._checks.values():
            check.revoke()  # the controller gives it to somebody else once nobody holds it
        await self._within(HAND_BACK_SECONDS, self._await_tasks())
        await self._within(FLUSH_SECONDS, _all([check.ended.wait() for check in self._checks.values()]))
        self._returned += [offer for job in jobs if job.handed_back for offer in job.offers]
        await self._within(FLUSH_SECONDS, self._give_back())

    async def _give_back(self) -> None:
        """Tell the controller which attempts were ended; only then are they forgotten here.

        :raises Rejected: see `Client.release`.
        """
        if not self._returned:
            return
        tasks = tuple(Held(task_id=offer.id, attempt=offer.attempt) for offer in self._returned)
        request = ReleaseRequest(agent=self._tools.settings.agent_id, tasks=tasks, reason="agent is stopping")
        await self._tools.client.release(request)
        returned, self._returned = self._returned, []
        for offer in returned:
            await asyncio.to_thread(forget, self._tools.places.notes(offer.id))

    async def _await_tasks(self) -> None:
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _within(self, seconds: float, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await bounded(self._tools.clock, seconds, work)
        except (TimeoutError, Rejected) as error:
            _log.warning("stopping without waiting longer", fault=str(error))

    def on_verdict(self, report: Report, verdict: Verdict) -> None:
        """A stage that the controller does not want to hear: the task is somebody else's now, or nobody's."""
        if report.complete or verdict not in (Verdict.STALE, Verdict.UNKNOWN):
            return
        job = self._find(report.task_id)
        if job is not None:
            _log.warning("task is no longer ours: stopping it", task_id=report.task_id, verdict=verdict.value)
            job.request(Intent.DROP)

    def _find(self, task_id: str) -> Job | None:
        return next((j for j in self._jobs.values() if any(offer.id == task_id for offer in j.offers)), None)

    def _on_idle(self) -> None:
        """A slot is free. An open claim that already offers one need not be disturbed: it answers when it can."""
        if self._slots_offered == 0 or self._crowded:
            self._renew.set()

    async def _declare(self) -> None:
        self._welcome = await self._tools.client.declare(self._declaration)
        _log.info("declared to the controller", server_time=self._welcome.server_time)

    def _busy(self) -> int:
        return sum(1 for job in self._jobs.values() if job.working and job.intent is not Intent.CANCEL)

    def _free_slots(self) -> int:
        """How many jobs may be taken up now; fewer than none are there where the setting was lowered meanwhile."""
        return max(0, self._tools.settings.slots - self._busy()) if self._has_room else 0

    def _compose(self) -> ClaimRequest:
        settings, welcome = self._tools.settings, self._welcome
        wait = settings.poll_seconds
        if welcome is not None:
            wait = max(0.0, min(wait, welcome.poll_seconds, welcome.lease_seconds / 3))
        dropped = {offer.id for job in self._jobs.values() if job.intent is Intent.DROP for offer in job.offers}
        return ClaimRequest(
            agent=settings.agent_id,
            slots=self._free_slots(),
            wait=wait,
            holding=tuple(held for task_id, held in self._held.items() if task_id not in dropped),
            metrics=self.vitals.tell(
                busy=self._busy(),
                running=sum(job.executing for job in self._jobs.values()),
                reports=self._tools.reports.queued,
                free=self._tools.disk.free_ratio,
            ),
        )

    def _patience(self) -> float:
        """Seconds for an answer: a second claim must still come before the leases end."""
        lease = math.inf if self._welcome is None else self._welcome.lease_seconds
        return min(ANSWER_SECONDS, max(1.0, lease / 4))

    async def _claim_once(self) -> None:
        """One claim. It is cut short when a slot becomes free; a task that crosses this is offered again, because
        the next claim does not list it as held."""
        self._has_room = await self._tools.disk.has_room()
        self._renew.clear()
        request = self._compose()
        self._slots_offered = request.slots
        since = self._tools.clock.monotonic()
        try:
            claim = self._tools.client.claim(request, patience=self._patience())
            response = await unless(self._renew, claim)
        except Interrupted:
            return
        finally:
            self._slots_offered = 1  # no claim is open: nothing to renew
        if response.undeclared:
            await self._declare()
        if await self._accept(response) or self._tools.clock.monotonic() - since >= 1:
            self._barren = 0
            return
        self._barren += 1
        if self._barren > _BUSY_ANSWERS:
            # The controller answers at once with nothing new: do not let that become a busy loop.
            delay = min(5.0, 0.05 * 2 ** min(self._barren - _BUSY_ANSWERS, 10))
            await pause(self._tools.clock, delay, self._renew)

    async def _accept(self, response: ClaimResponse) -> bool:
        """Take up new tasks and give up revoked ones; False if there was nothing of either.

        Cancels first: the task that a cancel is about may be among the revoked, and is the cancel's to end.
        Jobs beyond the free slots are left: not held, they are offered again.
        """
        news, left = False, 0
        for offer in sorted(response.tasks, key=lambda offer: offer.type != CANCEL):
            if offer.id in self._held:
                continue
            if offer.type == RUN and self._free_slots() == 0:
                left += 1
                continue
            news = True
            await self._take_up(offer)
        self._note_crowd(left)
        for task_id in response.revoked:
            if (check := self._checks.get(task_id)) is not None:
                news |= check.revoke()
                continue
            job = self._find(task_id)
            if job is None or job.intent in (Intent.DROP, Intent.LEAVE):
                continue
            if job.intent is Intent.CANCEL and task_id == job.task_id:
                continue
            _log.warning("task is revoked", task_id=task_id)
            news = True
            job.request(Intent.DROP)
        return news

    def _note_crowd(self, left: int) -> None:
        """Keep in mind whether jobs were left; said once, however often they are offered meanwhile."""
        if left and not self._crowded:
            slots = self._tools.settings.slots
            _log.warning("more jobs are offered than slots are free", left=left, slots=slots, setting="RAP_AGENT_SLOTS")
        self._crowded = left > 0
        if left and self._free_slots() > 0:  # one became free while others were taken up
            self._renew.set()

    async def _take_up(self, offer: TaskOffer) -> None:
        """Hold a task, on disk first, and start to work on it."""
        self._held[offer.id] = Held(task_id=offer.id, attempt=offer.attempt)
        _log.info("task taken", task_id=offer.id, type=offer.type, attempt=offer.attempt)
        try:
            check_id(offer.id, "task id")
            definition = _parse(offer)
            path = self._tools.places.notes(offer.id) / "offer.json"
            await asyncio.to_thread(write_json, path, attrs.asdict(offer), mode=0o600)
        except Exception as error:
            # Whatever it is, it is this task's end: a definition must not be able to end the agent.
            _log.error("task cannot be worked on", task_id=offer.id, exc_info=error)
            self._spawn(self._concluding, self._refuse(offer, blame(error)))
            return
        self._start(offer, definition)

    def _start(self, offer: TaskOffer, definition: Definition) -> None:
        if isinstance(definition, Program):
            check = self._checks[offer.id] = Check(self._tools, offer, definition)
            self._spawn(self._concluding, self._carry_out(check))
        elif isinstance(definition, ReleaseDefinition):
            self._spawn(self._concluding, self._let_out(Release(self._tools, offer, definition)))
        else:
            self._start_job(offer, definition)

    async def _let_out(self, release: Release) -> None:
        """What is released stays released, so a release is finished even if somebody else was asked meanwhile."""
        async with self._releasing:
            results = await release.carry_out()
        await self._conclude(release.offer, None, results)

    async def _carry_out(self, check: Check) -> None:
        try:
            results = await check.carry_out()
            if results is not None:
                await self._conclude(check.offer, None, results)
            else:
                _log.warning("check is revoked", task_id=check.offer.id)
                await check.forget()
                self._held.pop(check.offer.id, None)
                self._renew.set()  # claims that list it are answered at once, so the loop may have slowed down
        finally:
            self._checks.pop(check.offer.id, None)
            check.ended.set()

    def _start_job(self, offer: TaskOffer, definition: JobDefinition) -> None:
        if offer.type == RUN:
            job = Job(self._tools, offer.id, definition, run=offer)
            self._jobs[offer.id] = job
            self._spawn(self._tasks, self._live(job))
            return
        run_id = offer.id.removesuffix(_CANCEL_SUFFIX)
        running = self._jobs.get(run_id)
        if running is not None and running.intent is not Intent.DROP:
            running.cancel(offer)
        elif any(job.definition.id == definition.id and job.task_id != run_id for job in self._jobs.values()):
            # A newer attempt is at work here: the old one left nothing that is not the new one's now.
            self._spawn(
                self._concluding, self._conclude(offer, Stage.FINALIZED, self._cancelled_results(run_id, definition))
            )
        else:
            job = Job(self._tools, run_id, definition, cancel=offer)
            self._spawn(self._tasks, self._live(job, after=running))

    def _cancelled_results(self, run_id: str, definition: JobDefinition) -> dict[str, Any]:
        now_ns = int(self._tools.clock.now().timestamp() * 1e9)
        ending = Ending(status_message=CANCELLED, cancelled=True)
        recorded = metadata.compose(definition, run_id, ending, None, now_ns)
        return redact_results(recorded, self._tools.settings.egress)

    async def _refuse(self, offer: TaskOffer, fault: JobError) -> None:
        """Report that a task cannot even be started, in the shape that its type has (reference section 2.5)."""
        egress = self._tools.settings.egress
        if offer.type in (RUN, CANCEL):
            error = await asyncio.to_thread(describe, fault)
            results: dict[str, Any] = {"error": redact_error(error, egress), "exit_code": "None"}
            await self._conclude(offer, Stage.ERROR, results)
            return
        if offer.type == RELEASE:
            await self._conclude(offer, None, unable_results(Unable.FAILED))
            return
        await self._conclude(offer, None, error_results(fault, self._tools.settings))

    async def _conclude(self, offer: TaskOffer, stage: Stage | None, results: Mapping[str, Any]) -> None:
        """State a final report for a task without a job, until it is acknowledged."""
        report = Report(
            task_id=offer.id,
            attempt=offer.attempt,
            stage=stage.value if stage else "",
            complete=True,
            results=results,
        )
        await asyncio.wait([self._tools.reports.put(report)])
        try:
            await asyncio.to_thread(forget, self._tools.places.notes(offer.id))
        except (BadDefinition, OSError):
            _log.debug("no notes to remove", task_id=offer.id)
        self._held.pop(offer.id, None)

    async def _live(self, job: Job, after: Job | None = None) -> None:
        """A job's life, one attempt of a job at a time: they share the volume."""
        if after is not None:
            # The same attempt is just being dropped here; its cancel is told once that is over.
            while self._jobs.get(job.task_id) is after:
                await asyncio.wait(set(self._tasks) - {asyncio.current_task()}, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping:
                return
        self._jobs[job.task_id] = job
        with structlog.contextvars.bound_contextvars(
            job_id=job.definition.id, rap_id=job.definition.rap_id, task_id=job.task_id, trace_id=job.trace_id
        ):
            async with self._one_attempt(job.definition.id):
                await job.live()
        job.ended.set()
        if self._jobs.get(job.task_id) is job:
            del self._jobs[job.task_id]
        for offer in job.offers:
            self._held.pop(offer.id, None)
        self._on_idle()

    @contextlib.asynccontextmanager
    async def _one_attempt(self, job_id: str) -> AsyncIterator[None]:
        """Hold the job's lock; it is forgotten when nobody holds or awaits it."""
        lock, users = self._locks.get(job_id, (asyncio.Lock(), 0))
        self._locks[job_id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(job_id)
            if users > 1:
                self._locks[job_id] = (lock, users - 1)

    def _spawn(self, group: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        group.add(task)
        task.add_done_callback(group.discard)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            _log.critical("a job's task ended with a bug; the task is kept on disk", exc_info=error)

    async def _resume(self) -> None:
        """Take up every task on disk; runs before cancels, so that a cancel finds what it is about."""
        offers, self._returned = await asyncio.to_thread(self._read_offers)
        for offer in sorted(offers, key=lambda offer: offer.type == CANCEL):
            self._held[offer.id] = Held(task_id=offer.id, attempt=offer.attempt)
            try:
                definition = _parse(offer)
            except JobError as error:
                self._spawn(self._concluding, self._refuse(offer, error))
                continue
            _log.info("task found on disk: going on", task_id=offer.id)
            self._start(offer, definition)

    def _read_offers(self) -> tuple[list[TaskOffer], list[TaskOffer]]:
        """The tasks on disk; first those to go on with, then those that were ended to be given back."""
        offers: list[TaskOffer] = []
        returned: list[TaskOffer] = []
        for path in sorted((self._tools.places.work / "tasks").glob("*/offer.json")):
            try:
                offer = structure(read_json(path), TaskOffer)
                (returned if path.with_name(RETURNED).exists() else offers).append(offer)
            except (ValueError, Malformed):
                # The controller offers it again, if it is still ours.
                _log.exception("unreadable notes of a task are put aside", path=str(path))
                path.rename(path.with_name("offer.json.corrupt"))
        return offers, returned


def _parse(offer: TaskOffer) -> Definition:
    """What a task's definition says.

    :raises BadDefinition: it says nothing that makes sense.
    :raises Unsupported: this agent knows no tasks of that type.
    """
    if offer.type in (RUN, CANCEL):
        time_limit(offer.time_limit, None)
        return parse_definition(offer.definition)
    if offer.type in checks.TYPES:
        return parse_check(offer.type, offer.definition)
    if offer.type == RELEASE:
        return parse_release(offer.definition)
    raise Unsupported(f"this agent knows no tasks of type {offer.type}")


async def _all(waits: Iterable[Coroutine[Any, Any, Any]]) -> None:
    await asyncio.gather(*waits)
