"""The engine's values in the native API's words, and its queries as typed values. Pure."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from common import tracing
from controller.core.codes import JobState
from controller.core.errors import NotFound, Rejected
from controller.dialects.native import wire
from controller.engine import results
from controller.web import body

_DIGITS: Final = re.compile(r"[0-9]{1,16}")
_ID: Final = re.compile(r"[a-z0-9]{16}")
_AGENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What an agent may call itself (schemas/agents/openapi.yaml)."""
_LONGEST: Final = 512
"""Characters of a text parameter."""


def timestamp(at: datetime) -> str:
    """ISO 8601 in UTC, always with six digits of the second: equal lengths sort as times do."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def maybe(at: datetime | None) -> str | None:
    """The same; None for None."""
    return None if at is None else timestamp(at)


def trace_id(traceparent: str) -> str | None:
    """The trace's id out of a W3C `traceparent`; None if it is not one."""
    return tracing.trace_id(traceparent) or None


def overall(counts: Mapping[JobState, int]) -> JobState:
    """The state of a RAP as a whole: running from its first start until nothing can change any more."""
    present = {state for state, count in counts.items() if count}
    if present <= {JobState.PENDING}:
        return JobState.PENDING
    if present & {JobState.PENDING, JobState.RUNNING}:
        return JobState.RUNNING
    return JobState.FAILED if JobState.FAILED in present else JobState.SUCCEEDED


def rap(summary: results.RapSummary) -> wire.Rap:
    """One RAP, with a count for every state."""
    return wire.Rap(
        id=summary.id,
        state=overall(summary.counts).value,
        backend=summary.backend,
        workspace=summary.workspace,
        project=summary.project,
        created_by=summary.created_by,
        created_at=timestamp(summary.created_at),
        repo_url=summary.repo_url,
        branch=summary.branch,
        commit=summary.commit,
        requested_actions=tuple(summary.requested_actions),
        counts={state.value: summary.counts.get(state, 0) for state in JobState},
        trace_id=trace_id(summary.traceparent),
        traceparent=summary.traceparent,
    )


def page(value: results.Page) -> wire.RapPage:
    """A page of RAPs."""
    return wire.RapPage(raps=tuple(rap(each) for each in value.raps), next_cursor=value.next_cursor)


def _output(value: results.OutputView) -> wire.Output:
    return wire.Output(
        path=value.path,
        level=value.level,
        size=value.size,
        sha256=value.sha256,
        excluded=value.excluded,
        message=value.message,
    )


def _change(value: results.HistoryEntry) -> wire.Change:
    return wire.Change(
        at=timestamp(value.at),
        attempt=value.attempt,
        state=value.state.value,
        code=value.code.value,
        message=value.message,
    )


def job(detail: results.JobDetail) -> wire.Job:
    """A job with its outputs and history."""
    spec, progress = detail.job.spec, detail.job.progress
    return wire.Job(
        id=spec.id,
        rap_id=spec.rap_id,
        action=spec.action,
        kind=spec.kind.value,
        state=progress.state.value,
        code=progress.code.value,
        message=progress.message,
        attempt=progress.attempt,
        cancelled=progress.cancelled,
        created_at=timestamp(spec.created_at),
        started_at=maybe(progress.started_at),
        completed_at=maybe(progress.completed_at),
        updated_at=timestamp(progress.updated_at),
        code_changed_at=timestamp(progress.code_changed_at),
        backend=spec.backend,
        workspace=spec.workspace,
        run_command=spec.run_command,
        requires_db=spec.requires_db,
        needs=tuple(spec.needs),
        repo_url=spec.repo_url,
        branch=spec.branch,
        commit=spec.commit,
        agent=detail.agent,
        exit_code=detail.exit_code,
        metrics=dict(detail.job.metrics),
        outputs=tuple(_output(each) for each in detail.outputs),
        history=tuple(_change(each) for each in detail.history),
        trace_id=trace_id(spec.traceparent),
        traceparent=spec.traceparent,
    )


def rap_detail(value: results.RapDetail) -> wire.RapDetail:
    """A RAP and its jobs."""
    return wire.RapDetail(rap=rap(value.rap), jobs=tuple(job(each) for each in value.jobs))


def log(value: results.LogPage, offset: int) -> wire.Log:
    """A part of a log that was asked for from `offset`."""
    return wire.Log(
        job_id=value.job_id,
        attempt=value.attempt,
        offset=offset,
        text=value.text,
        next_offset=value.next_offset,
        complete=value.complete,
        truncated=value.truncated,
    )


def agents(values: Sequence[results.AgentView]) -> wire.Agents:
    """Every agent that the caller may see."""
    return wire.Agents(
        agents=tuple(
            wire.Agent(
                id=each.id,
                backend=each.backend,
                version=each.version,
                executor=each.executor,
                slots=each.slots,
                last_seen=maybe(each.last_seen),
                egress=dict(each.egress),
                on_loss=each.on_loss,
                load=each.load,
                silent=each.silent,
            )
            for each in values
        )
    )


def backends(values: Sequence[results.BackendView]) -> wire.Backends:
    """Every backend that the caller may see."""
    return wire.Backends(
        backends=tuple(
            wire.Backend(
                slug=each.slug,
                last_seen=maybe(each.last_seen),
                paused=each.paused,
                paused_since=maybe(each.paused_since),
                db_maintenance=each.db_maintenance,
                db_maintenance_since=maybe(each.db_maintenance_since),
                db_maintenance_type=each.db_maintenance_type,
                checks=tuple(
                    wire.Check(kind=check.kind.value, finished_at=timestamp(check.finished_at), answer=check.answer)
                    for check in each.checks
                ),
            )
            for each in values
        )
    )


def _flag(value: results.FlagView) -> wire.Flag:
    return wire.Flag(backend=value.backend, id=value.id, value=value.value, changed_at=maybe(value.changed_at))


def flags(values: Sequence[results.FlagView]) -> wire.Flags:
    """The switches of backends."""
    return wire.Flags(flags=tuple(_flag(each) for each in values))


def new_flags(raw: bytes) -> dict[str, str | None]:
    """The body of `POST backends/{backend}/flags`. Which flags there are is the engine's to say.

    :raises MalformedBody: it is not what the contract says.
    """
    found = body.parse_unicode(raw)
    wire.NEW_FLAGS.check(found)
    return dict(found)


def flags_set(value: results.FlagsSet) -> wire.FlagsSet:
    """What a command did to a backend's switches."""
    return wire.FlagsSet(backend=value.backend, changed=value.changed, flags=tuple(_flag(each) for each in value.flags))


def reboot_status(value: results.RebootStatus) -> wire.RebootStatus:
    """Whether a reboot would cut something short."""
    return wire.RebootStatus(
        backend=value.backend,
        paused=value.paused,
        running=value.running,
        cancelling=value.cancelling,
        unconfirmed=value.unconfirmed,
        safe=value.safe,
    )


def reboot_prepared(value: results.RebootPrepared) -> wire.RebootPrepared:
    """What preparing for a reboot did."""
    return wire.RebootPrepared(changed=value.changed, jobs=value.jobs, status=reboot_status(value.status))


def maintenance(raw: bytes) -> wire.Maintenance:
    """The body of `POST backends/{backend}/maintenance`.

    :raises MalformedBody: it is not what the contract says; an unknown key is a fault, as a misspelt one would be.
    :raises Rejected: checks are to be disabled by the end of maintenance, which makes no sense.
    """
    found = body.parse_unicode(raw)
    wire.MAINTENANCE.check(found)
    asked = wire.Maintenance(on=found["on"], disable_checks=found.get("disable_checks", False))
    if asked.disable_checks and not asked.on:
        raise Rejected(
            "disable_checks goes with on: checks are only disabled during maintenance", field="disable_checks"
        )
    return asked


def identifier(kind: str, text: str) -> str:
    """`text`, if it can be the id of a RAP or job at all.

    :raises NotFound: it cannot, so there is none.
    """
    if not _ID.fullmatch(text):
        raise NotFound(f"There is no {kind} with this id.")
    return text


def agent_name(text: str) -> str:
    """`text`, if an agent can be called so at all.

    :raises NotFound: none can, so there is none.
    """
    if not _AGENT.fullmatch(text):
        raise NotFound("There is no agent with this name.")
    return text


class Parameters:
    """A query read parameter by parameter; `done` tells every fault at once."""

    def __init__(self, query: Mapping[str, str]) -> None:
        self._left = dict(query)
        self._faults: dict[str, str] = {}

    def number(self, name: str, *, least: int, most: int) -> int | None:
        """The integer called `name`; None if it is absent (or faulty)."""
        text = self._left.pop(name, None)
        if text is None:
            return None
        if _DIGITS.fullmatch(text) and least <= int(text) <= most:
            return int(text)
        self._faults[name] = f"must be an integer from {least} to {most}"
        return None

    def text(self, name: str, *, among: tuple[str, ...] = ()) -> str | None:
        """The text called `name`; None if it is absent (or faulty)."""
        text = self._left.pop(name, None)
        if text is None:
            return None
        if among and text not in among:
            self._faults[name] = f"must be {' or '.join(among)}"
        elif not text or len(text) > _LONGEST or "\0" in text:
            self._faults[name] = f"must have 1 to {_LONGEST} characters, none of them NUL"
        else:
            return text
        return None

    def done(self) -> None:
        """:raises Rejected: with every fault, by the parameter's name."""
        self._faults.update((name, "is not a parameter here") for name in self._left)
        if self._faults:
            faults = [f"{name[:_LONGEST]} {fault}" for name, fault in self._faults.items()]
            raise Rejected(f"Unusable query: {'; '.join(faults)}", faults=faults)


def rap_query(query: Mapping[str, str]) -> wire.RapQuery:
    """The query of `GET raps`.

    :raises Rejected: with every fault, by the parameter's name.
    """
    parameters = Parameters(query)
    found = wire.RapQuery(
        limit=parameters.number("limit", least=1, most=wire.MAX_PAGE) or wire.DEFAULT_PAGE,
        cursor=parameters.text("cursor"),
        backend=parameters.text("backend"),
        workspace=parameters.text("workspace"),
        state=parameters.text("state", among=("active", "finished")),
    )
    parameters.done()
    return found


def flags_query(query: Mapping[str, str]) -> list[str] | None:
    """The query of `GET flags`: the backend that it asks about, None for all.

    :raises Rejected: with every fault, by the parameter's name.
    """
    parameters = Parameters(query)
    backend = parameters.text("backend")
    parameters.done()
    return None if backend is None else [backend]


def log_query(query: Mapping[str, str]) -> wire.LogQuery:
    """The query of `GET jobs/{id}/log`.

    :raises Rejected: with every fault, by the parameter's name.
    """
    parameters = Parameters(query)
    found = wire.LogQuery(
        offset=parameters.number("offset", least=0, most=wire.MAX_OFFSET) or 0,
        limit=parameters.number("limit", least=1, most=wire.MAX_LOG) or wire.DEFAULT_LOG,
        attempt=parameters.number("attempt", least=1, most=2**31 - 1),
    )
    parameters.done()
    return found


def no_query(query: Mapping[str, str]) -> None:
    """For a path without parameters.

    :raises Rejected: there are some.
    """
    Parameters(query).done()
