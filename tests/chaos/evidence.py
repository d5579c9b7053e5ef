"""What a run leaves behind, read by nobody's code but our own: rows with our own SQL, files, and the record.

Everything is plain data, so that the checker can be shown evidence made by hand.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
from attrs import field, frozen

from tests.chaos import record
from tests.chaos.plan import Action
from tests.chaos.portal import Accepted, Acknowledged


@frozen(kw_only=True)
class JobRow:
    id: str
    seq: int
    rap_id: str
    backend: str
    workspace: str
    action: str
    state: str
    code: str
    attempt: int
    cancelled: bool
    completed_at: datetime | None


@frozen(kw_only=True)
class EventRow:
    job_id: str
    at: datetime
    attempt: int
    state: str
    code: str


@frozen(kw_only=True)
class TaskRow:
    id: str
    job_id: str
    type: str
    attempt: int
    created_at: datetime
    finished_at: datetime | None
    active: bool
    complete: bool
    exit_code: str | None


@frozen(kw_only=True)
class Evidence:
    """A whole run, as it is found afterwards."""

    jobs: Mapping[str, JobRow]
    events: Mapping[str, Sequence[EventRow]]
    """Job -> its history, oldest first."""
    tasks: Sequence[TaskRow]
    """RUNJOB and CANCELJOB tasks."""
    needs: Sequence[tuple[str, str]]
    """Job, and a job that it had to wait for."""
    lines: Sequence[record.Line]
    accepted: Sequence[Accepted]
    acknowledged: Sequence[Acknowledged]
    actions: Mapping[str, Action]
    """RAP and action, joined by a slash -> what was planned."""
    files: Mapping[tuple[str, str, str], bytes]
    """Backend, workspace, path -> an output in the high-privacy storage."""
    manifests: Mapping[tuple[str, str], Mapping[str, Any]]
    """Backend, workspace -> `outputs` of its manifest."""
    contradictions: Sequence[str] = field(factory=tuple)
    """What the portal has seen that must not be."""


_JOBS = """
SELECT id, seq, rap_id, backend, workspace, action, state, code, attempt, cancelled, completed_at FROM job ORDER BY seq
"""
_EVENTS = "SELECT job_id, at, attempt, state, code FROM job_event ORDER BY seq"
_TASKS = """
SELECT id, job_id, type, attempt, created_at, finished_at, active, complete, results ->> 'exit_code' AS exit_code
FROM task WHERE type IN ('runjob', 'canceljob') ORDER BY seq
"""
_OPEN = """
SELECT (SELECT count(*) FROM job WHERE state IN ('pending', 'running'))
     + (SELECT count(*) FROM task WHERE active AND type IN ('runjob', 'canceljob'))
"""
_NEEDS = "SELECT job_id, need_id FROM job_need"


async def read(
    dsn: str,
    *,
    record_file: Path,
    storages: Mapping[str, tuple[Path, Path]],
    actions: Mapping[str, Action],
    accepted: Sequence[Accepted],
    acknowledged: Sequence[Acknowledged],
    contradictions: Sequence[str],
) -> Evidence:
    """Everything that the run left, once nothing moves any more.

    :param storages: backend -> its high- and its medium-privacy storage.
    """
    connection = await asyncpg.connect(dsn)
    try:
        jobs = [JobRow(**row) for row in await connection.fetch(_JOBS)]
        events: dict[str, list[EventRow]] = {}
        for row in await connection.fetch(_EVENTS):
            events.setdefault(row["job_id"], []).append(EventRow(**row))
        tasks = [TaskRow(**row) for row in await connection.fetch(_TASKS)]
        needs = [(row["job_id"], row["need_id"]) for row in await connection.fetch(_NEEDS)]
    finally:
        await connection.close()
    return Evidence(
        jobs={job.id: job for job in jobs},
        events=events,
        tasks=tasks,
        needs=needs,
        lines=list(record.read(record_file)),
        accepted=accepted,
        acknowledged=acknowledged,
        actions=actions,
        files={key: body for backend, (high, _) in storages.items() for key, body in _files(backend, high)},
        manifests={
            key: found for backend, (_, medium) in storages.items() for key, found in _manifests(backend, medium)
        },
        contradictions=contradictions,
    )


async def count_open(dsn: str) -> int:
    """How many jobs and tasks are not over."""
    return await _count(dsn, _OPEN)


async def count_agents(dsn: str) -> int:
    """How many agents have declared themselves."""
    return await _count(dsn, "SELECT count(*) FROM agent")


async def _count(dsn: str, sql: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval(sql))
    finally:
        await connection.close()


def _files(backend: str, high: Path) -> list[tuple[tuple[str, str, str], bytes]]:
    found = []
    for workspace in _children(high / "workspaces"):
        for file in sorted((workspace / "out").rglob("*")):
            path = str(file.relative_to(workspace))
            found.append(((backend, workspace.name, path), file.read_bytes()))
    return found


def _manifests(backend: str, medium: Path) -> list[tuple[tuple[str, str], Mapping[str, Any]]]:
    found = []
    for workspace in _children(medium / "workspaces"):
        file = workspace / "metadata" / "manifest.json"
        if file.exists():
            found.append(((backend, workspace.name), json.loads(file.read_bytes())["outputs"]))
    return found


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
