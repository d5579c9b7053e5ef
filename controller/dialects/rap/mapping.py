"""Between the RAP API's words and ours: bodies to requests, answers of the engine to bodies."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, assert_never

from aiohttp import web

from controller.core.model import Job, RapId, RapRequest
from controller.dialects.rap.wire import CreateRap, send
from controller.engine.results import BackendView, Created, NoChange, NothingToDo, StatusReport

DIALECT = "rap"
T1OO = "include_t1oo"
MINUTE = timedelta(minutes=1)


def rap_request(wire: CreateRap, traceparent: str | None) -> RapRequest:
    """What the portal asks for, in the engine's words.

    `database_name: include_t1oo` is the older spelling of a permission on the default database.
    """
    scope = dict(wire.analysis_scope or {})
    if wire.database_name == T1OO:
        permissions = scope.get("population_permissions", ())
        scope["population_permissions"] = tuple(dict.fromkeys([*permissions, T1OO]))
    return RapRequest(
        rap_id=RapId(wire.rap_id),
        dialect=DIALECT,
        backend=wire.backend,
        workspace=wire.workspace,
        repo_url=wire.repo_url,
        branch=wire.branch,
        commit=wire.commit,
        database_name="default",
        requested_actions=wire.requested_actions,
        codelists_ok=wire.codelists_ok,
        force_run_dependencies=wire.force_run_dependencies,
        created_by=wire.created_by,
        project=wire.project,
        orgs=wire.orgs,
        analysis_scope=scope,
        traceparent=traceparent,
    )


def creation(outcome: Created | NoChange | NothingToDo) -> web.Response:
    """The answer to `rap/create/`: 201 only if this very request made jobs (reference section 1.3)."""
    match outcome:
        case Created(rap_id=rap_id, count=count):
            return _created("Success", f"Jobs created for rap_id '{rap_id}'", rap_id, count, status=201)
        case NoChange(rap_id=rap_id, count=count):
            return _created("No change", f"Jobs already created for rap_id '{rap_id}'", rap_id, count)
        case NothingToDo(rap_id=rap_id, details=details):
            return _created("Nothing to do", details, rap_id, 0)
        case _:
            assert_never(outcome)


def cancellation(count: int) -> web.Response:
    """The answer to `rap/cancel/`; upstream's wording is plural for every number."""
    return send({"result": "Success", "details": f"{count} actions cancelled", "count": count})


def status(report: StatusReport, now: datetime) -> web.Response:
    """The answer to `rap/status/`."""
    return send(
        {
            "jobs": [job(each, now) for each in report.jobs],
            "unrecognised_rap_ids": list(dict.fromkeys(report.unrecognised)),
        }
    )


def job(job: Job, now: datetime) -> dict[str, Any]:
    """A job as portals know it: exactly these keys, for they break on any other (reference section 1.8)."""
    spec, progress = job.spec, job.progress
    return {
        "identifier": spec.id,
        "rap_id": spec.rap_id,
        "backend": spec.backend,
        "action": spec.action,
        "run_command": spec.run_command,
        "status": progress.state,
        "status_code": progress.code,
        "status_message": progress.message,
        "created_at": to_second(spec.created_at),
        "updated_at": to_second(freshened(job, now)),
        "started_at": progress.started_at and to_second(progress.started_at),
        "completed_at": progress.completed_at and to_second(progress.completed_at),
        "trace_context": {"traceparent": spec.traceparent},
        # Agents report metrics of running jobs, too; this API shows them from the end on (edge behaviour 25).
        "metrics": dict(job.metrics) if job.progress.state.is_terminal else {},
        "requires_db": spec.requires_db,
    }


def freshened(job: Job, now: datetime) -> datetime:
    """`updated_at` as shown: of an active job it moves every minute, without a write to the database.

    Portals call an active job stale when it stands still (reference section 1.8).
    """
    updated_at = job.progress.updated_at
    if job.progress.state.is_terminal or now <= updated_at:
        return updated_at
    return updated_at + (now - updated_at) // MINUTE * MINUTE


def backends(views: Iterable[BackendView]) -> web.Response:
    """The answer to `backend/status/`."""
    return send({"backends": [_backend(view) for view in views]}, compact=True)


def to_second(moment: datetime) -> str:
    """A job's timestamp: whole seconds, `2026-11-21T05:45:10Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_microsecond(moment: datetime | None) -> str | None:
    """A flag's timestamp: six digits of a second, or none at all for a whole one."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _backend(view: BackendView) -> dict[str, Any]:
    return {
        "slug": view.slug,
        "last_seen": to_microsecond(view.last_seen),
        "paused": {"status": _switch(view.paused), "since": to_microsecond(view.paused_since)},
        "db_maintenance": {
            "status": _switch(view.db_maintenance),
            "since": to_microsecond(view.db_maintenance_since),
            "type": view.db_maintenance_type if view.db_maintenance else None,
        },
    }


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _created(result: str, details: str, rap_id: RapId, count: int, status: int = 200) -> web.Response:
    return send({"result": result, "details": details, "rap_id": rap_id, "count": count}, status=status)
