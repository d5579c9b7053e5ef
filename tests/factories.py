"""Values for tests: complete, valid, and different only where a test says so."""

from datetime import UTC, datetime, timedelta
from typing import Any

from controller.core.codes import MESSAGE, JobState, StatusCode
from controller.core.machine import created
from controller.core.model import Job, JobId, JobSpec, Principal, Progress, RapId, RapRequest, Verb
from controller.core.schedule import ActiveJob

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def later(seconds: float) -> datetime:
    """NOW plus some seconds."""
    return NOW + timedelta(seconds=seconds)


def spec(**changes: Any) -> JobSpec:
    """A job of one action without needs."""
    values: dict[str, Any] = {
        "id": JobId("aaaaaaaaaaaaaaaa"),
        "rap_id": RapId("r" * 16),
        "position": 0,
        "backend": "test",
        "workspace": "study",
        "action": "extract",
        "run_command": "python:v2 python analysis/extract.py --name 'a b'",
        "requires_db": False,
        "needs": (),
        "output_spec": {"highly_sensitive": {"rows": "output/*.csv"}},
        "repo_url": "https://github.com/opensafely/study",
        "commit": "c" * 40,
        "branch": "main",
        "traceparent": TRACEPARENT,
        "created_at": NOW,
    }
    return JobSpec(**values | changes)


def progress(code: StatusCode = StatusCode.CREATED, **changes: Any) -> Progress:
    """The progress of a job that reached `code` in the ordinary way."""
    running = code.state is not JobState.PENDING and code is not StatusCode.DEPENDENCY_FAILED
    values: dict[str, Any] = {
        "state": code.state,
        "code": code,
        "message": MESSAGE.get(code, MESSAGE[StatusCode.INITIATED]),
        "attempt": 1 if running else 0,
        "started_at": NOW if running else None,
        "completed_at": NOW if code.state.is_terminal else None,
        "updated_at": NOW,
        "code_changed_at": NOW,
    }
    return Progress(**values | changes)


def job(code: StatusCode = StatusCode.CREATED, **changes: Any) -> Job:
    """A job at `code`; other changes are its specification's."""
    return Job(spec=spec(**changes), progress=created(NOW) if code is StatusCode.CREATED else progress(code))


def active(name: str, **changes: Any) -> ActiveJob:
    """A fresh, startable job for a scheduling snapshot."""
    values: dict[str, Any] = {
        "id": JobId(name),
        "workspace": "study",
        "state": JobState.PENDING,
        "code": StatusCode.CREATED,
        "message": MESSAGE[StatusCode.CREATED],
        "requires_db": False,
        "weight": 1.0,
        "unmet": 0,
        "need_failed": False,
        "not_before": None,
    }
    return ActiveJob(**values | changes)


def principal(*backends: str, verbs: frozenset[Verb] = frozenset({Verb.READ, Verb.RUN})) -> Principal:
    """A portal with a token for `backends` (default: `test`)."""
    return Principal(name="portal", grants=dict.fromkeys(backends or ("test",), verbs))


def operator(*backends: str) -> Principal:
    """Somebody who manages `backends` (default: `test`)."""
    return principal(*backends, verbs=frozenset(Verb))


def rap_request(**changes: Any) -> RapRequest:
    """A request for everything in a study."""
    values: dict[str, Any] = {
        "rap_id": RapId("r" * 16),
        "dialect": "rap",
        "backend": "test",
        "workspace": "study",
        "repo_url": "https://github.com/opensafely/study",
        "branch": "main",
        "commit": "c" * 40,
        "database_name": "default",
        "requested_actions": ("run_all",),
        "codelists_ok": True,
        "force_run_dependencies": False,
        "created_by": "researcher",
        "project": "project",
        "orgs": ("opensafely",),
    }
    return RapRequest(**values | changes)
