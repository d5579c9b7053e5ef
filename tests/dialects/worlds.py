"""The states of the world that the examples in schemas/ are given in, as scripts of the scripted engine.

An engine of another kind is brought into the same states by its own functions of the same names.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import attrs

from controller.core.checks import definitions
from controller.core.codes import StatusCode
from controller.core.errors import BackendNotAllowed, Conflict, NotFound, Rejected, Unavailable
from controller.core.model import Job, RapId, RapRequest, Task, TaskId, TaskType
from controller.engine.results import BackendView, Created, NoChange, NothingToDo, StatusReport
from tests.dialects.values import NOW, make_job, make_task
from tests.fakes.engine import ScriptedEngine

RAP_ID = "a1b2c3d4e5f6g7h8"

FRESH = BackendView(
    slug="test",
    last_seen=None,
    paused=False,
    paused_since=None,
    db_maintenance=False,
    db_maintenance_since=None,
    db_maintenance_type=None,
)


def fresh(engine: ScriptedEngine, *, jobs: Sequence[Job] = (), tasks: Sequence[Task] = ()) -> None:
    """A controller with these jobs, all of one RAP, and these tasks."""
    actions = {job.spec.action for job in jobs}

    def create(_: object, request: RapRequest) -> Any:
        if request.backend != "test":
            return BackendNotAllowed("not yours", backend=request.backend)
        if "publish" in request.requested_actions:
            return Rejected("Action 'publish' not found in project.yaml")
        if not jobs:
            return Created(rap_id=request.rap_id, count=2)
        if request.rap_id != RAP_ID:
            return NothingToDo(rap_id=request.rap_id, details="All actions have already completed successfully")
        if request.commit != jobs[0].spec.commit:
            return Conflict("used before", rap_id=request.rap_id)
        return NoChange(rap_id=request.rap_id, count=len(jobs))

    def cancel(_: object, rap_id: RapId, asked: Sequence[str]) -> Any:
        if not jobs:
            return NotFound("no jobs", rap_id=rap_id)
        missing = sorted(set(asked) - actions)
        return NotFound("no such actions", rap_id=rap_id, not_found=missing) if missing else len(asked)

    def status(_: object, asked: Sequence[RapId]) -> StatusReport:
        known = {job.spec.rap_id for job in jobs}
        found = tuple(job for job in jobs if job.spec.rap_id in asked)
        return StatusReport(jobs=found, unrecognised=tuple(each for each in asked if each not in known))

    def update(backend: str, *, task_id: str, **_: object) -> Any:
        if task_id not in {task.id for task in tasks}:
            return NotFound(f"Task '{task_id}' not found on backend '{backend}'", task_id=task_id)
        return None

    engine.script |= {
        "create_rap": create,
        "cancel": cancel,
        "status": status,
        "backends": [FRESH],
        "active_tasks": tasks,
        "update_task": update,
    }


def running(engine: ScriptedEngine) -> None:
    metrics = {"cpu_mean": 82.5, "cpu_peak": 99.9, "mem_mb_mean": 120, "mem_mb_peak": 210}
    extract = _job("extract", StatusCode.SUCCEEDED, metrics)
    fresh(engine, jobs=[extract, _job("analyse", StatusCode.EXECUTING)])


def waiting(engine: ScriptedEngine) -> None:
    extract = _job("extract", StatusCode.WAITING_ON_WORKERS)
    fresh(engine, jobs=[extract, _job("analyse", StatusCode.WAITING_ON_DEPENDENCIES)])


def succeeded(engine: ScriptedEngine) -> None:
    fresh(engine, jobs=[_job(name, StatusCode.SUCCEEDED) for name in ("extract", "analyse")])


def task_to_run(engine: ScriptedEngine) -> None:
    task = make_task()
    fresh(engine, tasks=[attrs.evolve(task, definition={**task.definition, "rap_id": RAP_ID})])


def checks(engine: ScriptedEngine) -> None:
    made = definitions("ghcr.io/opensafely-core", status=True, expected_month="202304")
    made[TaskType.DBSTATUS]["image_sha"] = "sha256:" + "2d9d5b8e" * 8
    tasks = [
        make_task(
            id=TaskId(f"{kind}-2026-11-21-0123456789abcdef0123"),
            type=kind,
            job_id=None,
            definition=definition,
            attributes={},
        )
        for kind, definition in made.items()
    ]
    fresh(engine, tasks=tasks)


def maintenance(engine: ScriptedEngine) -> None:
    since = NOW - timedelta(microseconds=7)
    engine.script["backends"] = [
        attrs.evolve(
            FRESH,
            last_seen=since,
            paused=True,
            paused_since=NOW,
            db_maintenance=True,
            db_maintenance_since=since,
            db_maintenance_type="manual",
        )
    ]


def away(engine: ScriptedEngine) -> None:
    _always(engine, Unavailable("the database is away"))


def bug(engine: ScriptedEngine) -> None:
    _always(engine, RuntimeError("a bug"))


WORLDS: Mapping[str, Callable[[ScriptedEngine], None]] = {
    "a fresh controller": fresh,
    "a RAP that is running": running,
    "a RAP that waits": waiting,
    "all has succeeded": succeeded,
    "a task to run": task_to_run,
    "checks of the database": checks,
    "a paused backend in maintenance": maintenance,
    "the database is away": away,
    "a bug": bug,
}


def _always(engine: ScriptedEngine, error: Exception) -> None:
    methods = ["create_rap", "cancel", "status", "backends", "active_tasks", "update_task"]
    engine.script |= dict.fromkeys(methods, error)


def _job(action: str, code: StatusCode, metrics: Mapping[str, Any] | None = None) -> Job:
    job = make_job(action, rap_id=RAP_ID, code=code, metrics=metrics)
    return attrs.evolve(job, spec=attrs.evolve(job.spec, run_command=f"python:v2 python analysis/{action}.py"))
