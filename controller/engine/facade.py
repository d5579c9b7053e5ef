"""The one facade that every dialect calls.

Each method is one use case of the domain and lives in the module that its name suggests; this file is the list.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import attrs

from common.protocol import (
    ClaimRequest,
    ClaimResponse,
    Declaration,
    LogAnswer,
    LogChunk,
    ReleaseRequest,
    ReleaseResponse,
    ReportsRequest,
    ReportsResponse,
    Welcome,
)
from controller.core.model import JobId, Principal, RapId, RapRequest, Task
from controller.core.releases import Release
from controller.core.tokens import NewToken, TokenKind
from controller.core.weights import Weights
from controller.engine import (
    abandoning,
    cancelling,
    capacity,
    claiming,
    creating,
    diagnosing,
    following,
    gauging,
    killing,
    listing,
    measuring,
    operating,
    pruning,
    queues,
    reading,
    releasing,
    reporting,
    retrying,
    scheduling,
    sessions,
    tails,
    tokens,
    traces,
)
from controller.engine.abandoning import Forgotten
from controller.engine.capacity import CapacitySet, CapacityView
from controller.engine.context import Context
from controller.engine.diagnosing import Diagnosis
from controller.engine.following import Reader
from controller.engine.killing import JobKilled
from controller.engine.listing import JobPage
from controller.engine.measuring import Series
from controller.engine.operating import FlagsSet, FlagView, RebootPrepared, RebootStatus
from controller.engine.pruning import Pruned
from controller.engine.queues import QueueView
from controller.engine.releasing import ReleaseAsked
from controller.engine.results import (
    AgentView,
    BackendView,
    Created,
    JobDetail,
    LogPage,
    NoChange,
    NothingToDo,
    Page,
    RapDetail,
    StatusReport,
)
from controller.engine.retrying import JobRetried
from controller.engine.sessions import NewSession
from controller.engine.tails import LogTail
from controller.engine.tokens import TokenChange, TokenView
from controller.engine.traces import Due, RapTrace
from controller.store import schema


class Engine:
    """Plans, stores, schedules and reports RAPs; all of its state is in PostgreSQL."""

    def __init__(self, context: Context) -> None:
        self._ctx = context

    # For portals and users

    async def create_rap(self, principal: Principal, request: RapRequest) -> Created | NoChange | NothingToDo:
        """See `creating.create_rap`."""
        return await creating.create_rap(self._ctx, principal, request)

    async def cancel(self, principal: Principal, rap_id: RapId, actions: Sequence[str]) -> int:
        """See `cancelling.cancel`."""
        return await cancelling.cancel(self._ctx, principal, rap_id, actions)

    async def status(self, principal: Principal, rap_ids: Sequence[RapId]) -> StatusReport:
        """See `reading.status`."""
        return await reading.status(self._ctx, principal, rap_ids)

    async def active_others(self, principal: Principal, asked: Sequence[RapId]) -> Sequence[RapId]:
        """See `reading.active_others`."""
        return await reading.active_others(self._ctx, principal, asked)

    async def backends(self, principal: Principal) -> Sequence[BackendView]:
        """See `reading.backend_views`."""
        return await reading.backend_views(self._ctx, principal)

    async def list_raps(
        self,
        principal: Principal,
        *,
        backend: str | None,
        workspace: str | None,
        state: str | None,
        limit: int,
        cursor: str | None,
        created_by: str | None = None,
        search: str | None = None,
    ) -> Page:
        """See `listing.list_raps`."""
        return await listing.list_raps(
            self._ctx,
            principal,
            backend=backend,
            workspace=workspace,
            state=state,
            limit=limit,
            cursor=cursor,
            created_by=created_by,
            search=search,
        )

    async def rap_detail(self, principal: Principal, rap_id: RapId) -> RapDetail:
        """See `reading.rap_detail`."""
        return await reading.rap_detail(self._ctx, principal, rap_id)

    async def job_detail(self, principal: Principal, job_id: JobId) -> JobDetail:
        """See `reading.job_detail`."""
        return await reading.job_detail(self._ctx, principal, job_id)

    async def job_log(
        self, principal: Principal, job_id: JobId, *, attempt: int | None, offset: int, limit: int
    ) -> LogPage:
        """See `reading.job_log`."""
        return await reading.job_log(self._ctx, principal, job_id, attempt=attempt, offset=offset, limit=limit)

    async def log_tail(self, principal: Principal, job_id: JobId, *, attempt: int | None, characters: int) -> LogTail:
        """See `tails.log_tail`."""
        return await tails.log_tail(self._ctx, principal, job_id, attempt=attempt, characters=characters)

    async def queue(self, principal: Principal) -> Sequence[QueueView]:
        """See `queues.queue`."""
        return await queues.queue(self._ctx, principal)

    async def rap_trace(self, principal: Principal, rap_id: RapId) -> RapTrace:
        """See `traces.rap_trace`."""
        return await traces.rap_trace(self._ctx, principal, rap_id)

    async def agents(self, principal: Principal) -> Sequence[AgentView]:
        """See `reading.agent_views`."""
        return await reading.agent_views(self._ctx, principal)

    async def list_jobs(
        self,
        principal: Principal,
        *,
        backend: str | None,
        workspace: str | None,
        state: str | None,
        code: str | None,
        limit: int,
        cursor: str | None,
        created_by: str | None = None,
        search: str | None = None,
    ) -> JobPage:
        """See `listing.list_jobs`."""
        return await listing.list_jobs(
            self._ctx,
            principal,
            backend=backend,
            workspace=workspace,
            state=state,
            code=code,
            limit=limit,
            cursor=cursor,
            created_by=created_by,
            search=search,
        )

    async def job_metrics(self, principal: Principal, job_id: JobId, *, attempt: int | None) -> Series:
        """See `measuring.job_metrics`."""
        return await measuring.job_metrics(self._ctx, principal, job_id, attempt=attempt)

    async def follow(
        self, principal: Principal, *, backend: str | None, rap_id: RapId | None, since: str | None
    ) -> Reader:
        """See `following.follow`."""
        return await following.follow(self._ctx, principal, backend=backend, rap_id=rap_id, since=since)

    # For operators

    async def pause(self, principal: Principal, backend: str) -> FlagsSet:
        """See `operating.pause`."""
        return await operating.pause(self._ctx, principal, backend)

    async def unpause(self, principal: Principal, backend: str) -> FlagsSet:
        """See `operating.unpause`."""
        return await operating.unpause(self._ctx, principal, backend)

    async def start_maintenance(self, principal: Principal, backend: str, *, disable_checks: bool) -> FlagsSet:
        """See `operating.start_maintenance`."""
        return await operating.start_maintenance(self._ctx, principal, backend, disable_checks=disable_checks)

    async def end_maintenance(self, principal: Principal, backend: str) -> FlagsSet:
        """See `operating.end_maintenance`."""
        return await operating.end_maintenance(self._ctx, principal, backend)

    async def prepare_for_reboot(self, principal: Principal, backend: str) -> RebootPrepared:
        """See `operating.prepare_for_reboot`."""
        return await operating.prepare_for_reboot(self._ctx, principal, backend)

    async def reboot_status(self, principal: Principal, backend: str) -> RebootStatus:
        """See `operating.reboot_status`."""
        return await operating.reboot_status(self._ctx, principal, backend)

    async def set_flags(self, principal: Principal, backend: str, wanted: Mapping[str, str | None]) -> FlagsSet:
        """See `operating.set_flags`."""
        return await operating.set_flags(self._ctx, principal, backend, wanted)

    async def forget_agent(self, principal: Principal, backend: str, agent: str) -> Forgotten:
        """See `abandoning.forget_agent`."""
        return await abandoning.forget_agent(self._ctx, principal, backend, agent)

    async def flags(self, principal: Principal, wanted: Sequence[str] | None = None) -> Sequence[FlagView]:
        """See `operating.flags`."""
        return await operating.flags(self._ctx, principal, wanted)

    async def prune(
        self, principal: Principal, backend: str, *, older_than: timedelta, after: int, dry_run: bool
    ) -> Pruned:
        """See `pruning.prune`."""
        return await pruning.prune(self._ctx, principal, backend, older_than=older_than, after=after, dry_run=dry_run)

    async def diagnose(self, principal: Principal) -> Diagnosis:
        """See `diagnosing.diagnose`."""
        return await diagnosing.diagnose(self._ctx, principal)

    async def create_token(self, principal: Principal, new: NewToken) -> TokenChange:
        """See `tokens.create`."""
        return await tokens.create(self._ctx, principal, new)

    async def tokens(self, principal: Principal) -> Sequence[TokenView]:
        """See `tokens.visible`."""
        return await tokens.visible(self._ctx, principal)

    async def revoke_token(self, principal: Principal, name: str) -> TokenChange:
        """See `tokens.revoke`."""
        return await tokens.revoke(self._ctx, principal, name)

    async def kill(self, principal: Principal, job_id: JobId) -> JobKilled:
        """See `killing.kill`."""
        return await killing.kill(self._ctx, principal, job_id)

    async def retry(self, principal: Principal, job_id: JobId, *, attempt: int | None = None) -> JobRetried:
        """See `retrying.retry`."""
        return await retrying.retry(self._ctx, principal, job_id, attempt=attempt)

    async def release_outputs(self, principal: Principal, job_id: JobId, paths: Sequence[str] | None) -> ReleaseAsked:
        """See `releasing.release`."""
        return await releasing.release(self._ctx, principal, job_id, paths)

    async def releases(self, principal: Principal, job_id: JobId) -> Sequence[Release]:
        """See `releasing.releases`."""
        return await releasing.releases(self._ctx, principal, job_id)

    async def limits(self, principal: Principal, wanted: Sequence[str] | None = None) -> Sequence[CapacityView]:
        """See `capacity.view`."""
        return await capacity.view(self._ctx, principal, wanted)

    async def set_limits(self, principal: Principal, backend: str, changes: Mapping[str, float | None]) -> CapacitySet:
        """See `capacity.set_limits`."""
        return await capacity.set_limits(self._ctx, principal, backend, changes)

    # For agents

    async def declare_agent(self, backend: str, agent: str, declaration: Declaration) -> Welcome:
        """See `claiming.declare_agent`."""
        return await claiming.declare_agent(self._ctx, backend, agent, declaration)

    async def claim(
        self, backend: str, request: ClaimRequest, *, admit: Callable[[], Awaitable[object]] | None = None
    ) -> ClaimResponse:
        """See `claiming.claim`."""
        return await claiming.claim(self._ctx, backend, request, admit=admit)

    async def release(self, backend: str, request: ReleaseRequest) -> ReleaseResponse:
        """See `claiming.release`."""
        return await claiming.release(self._ctx, backend, request)

    async def active_tasks(self, backend: str) -> Sequence[Task]:
        """See `claiming.active_tasks`."""
        return await claiming.active_tasks(self._ctx, backend)

    async def report(self, backend: str, request: ReportsRequest) -> ReportsResponse:
        """See `reporting.report`."""
        return await reporting.report(self._ctx, backend, request)

    async def update_task(
        self,
        backend: str,
        *,
        task_id: str,
        stage: str,
        results: Mapping[str, Any],
        complete: bool,
        timestamp_ns: int | None,
    ) -> None:
        """See `reporting.update_task`."""
        await reporting.update_task(
            self._ctx,
            backend,
            task_id=task_id,
            stage=stage,
            results=results,
            complete=complete,
            timestamp_ns=timestamp_ns,
        )

    async def append_log(self, backend: str, chunk: LogChunk) -> LogAnswer:
        """See `reporting.append_log`."""
        return await reporting.append_log(self._ctx, backend, chunk)

    # For the controller's own loops

    async def schedule(self, backend: str) -> scheduling.Pass:
        """See `scheduling.schedule`."""
        return await scheduling.schedule(self._ctx, backend)

    async def take_over(self, backend: str) -> int:
        """See `abandoning.take_over`."""
        return await abandoning.take_over(self._ctx, backend)

    async def prune_by_setting(self, backend: str, older_than: timedelta) -> Pruned:
        """See `pruning.prune_by_setting`."""
        return await pruning.prune_by_setting(self._ctx, backend, older_than)

    async def gauge(self) -> gauging.Gauges:
        """See `gauging.gauge`."""
        return await gauging.gauge(self._ctx)

    async def claim_traces(self, most: int, *, lease: timedelta) -> Sequence[Due]:
        """See `traces.claim`."""
        return await traces.claim(self._ctx, most, lease=lease)

    async def settle_traces(
        self, *, done: Sequence[int] = (), failed: Sequence[int] = (), untried: Sequence[int] = ()
    ) -> None:
        """See `traces.settle`."""
        await traces.settle(self._ctx, done=done, failed=failed, untried=untried)

    async def keep_traces(self) -> int:
        """See `traces.keep`."""
        return await traces.keep(self._ctx)

    async def broadcast(self) -> bool:
        """Tell what is new to those who follow it (see `following.broadcast`); False once nobody does any more."""
        if self._ctx.broadcast.rest():
            return False
        await following.broadcast(self._ctx)
        return True

    async def followed(self) -> None:
        """Return as soon as somebody follows what happens."""
        await self._ctx.broadcast.wanted.wait()

    async def check(self) -> None:
        """Whether the database answers and has the schema that this program knows.

        :raises Unavailable: it does not answer.
        :raises SchemaError: it has another schema.
        """
        async with self._ctx.db.connection() as tx:
            await schema.check(tx)

    def set_weights(self, backend: str, weights: Weights) -> None:
        """From now on new jobs of `backend` weigh what `weights` says; jobs that exist keep their weight."""
        self._ctx.backends[backend] = attrs.evolve(self._ctx.backends[backend], weights=weights)

    async def recognise(self, digest: bytes, kind: TokenKind) -> Principal | None:
        """See `tokens.recognise`."""
        return await tokens.recognise(self._ctx, digest, kind)

    async def begin_session(self, token: bytes) -> NewSession:
        """See `sessions.begin`."""
        return await sessions.begin(self._ctx, token)

    async def session_token(self, secret: str) -> bytes | None:
        """See `sessions.token_of`."""
        return await sessions.token_of(self._ctx, secret)

    async def end_session(self, secret: str) -> None:
        """See `sessions.end`."""
        await sessions.end(self._ctx, secret)

    def forget_tokens(self) -> None:
        """Ask the database again about every token, those of open long-polls at once: some changed, or may have."""
        self._ctx.known_tokens.forget()
        self._ctx.wakeups.wake_all()
        self._ctx.broadcast.poke()

    def close(self) -> None:
        """Let every long-poll answer at once."""
        self._ctx.closing.set()
        self._ctx.wakeups.wake_all()
        self._ctx.broadcast.poke()
