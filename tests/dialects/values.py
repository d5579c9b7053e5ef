"""What a scripted engine is asked for and answers with: jobs, tasks, bodies."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from controller.core.codes import MESSAGE, JobState, StatusCode
from controller.core.model import Job, JobId, JobSpec, Progress, RapId, Task, TaskId, TaskType

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
RAP_ID = "abcdefgh23456789"
TRACEPARENT = "00-ee668ef06f2f1564c028eea1d9be716d-5b3ca103cdd2a017-01"


def make_job(
    action: str = "action1",
    *,
    rap_id: str = RAP_ID,
    code: StatusCode = StatusCode.SUCCEEDED,
    metrics: Mapping[str, Any] | None = None,
    started_at: datetime | None = NOW - timedelta(minutes=2),
    updated_at: datetime = NOW - timedelta(minutes=1),
    needs: Sequence[str] = (),
) -> Job:
    """A job whose times fit its code."""
    terminal = code.state.is_terminal
    return Job(
        spec=JobSpec(
            id=JobId("zhgksvaob3u5opzv"),
            rap_id=RapId(rap_id),
            position=0,
            backend="test",
            workspace="test-study",
            action=action,
            run_command="python:v2 python analysis/myscript.py",
            requires_db=False,
            needs=tuple(needs),
            output_spec={"moderately_sensitive": {"table": "output/table.csv"}},
            repo_url="https://github.com/opensafely/test-study",
            commit="07d5f283bb66f52a49933b016cf8dc144cfc7180",
            branch="main",
            traceparent=TRACEPARENT,
            created_at=NOW - timedelta(minutes=3, microseconds=1),
        ),
        progress=Progress(
            state=code.state,
            code=code,
            message=MESSAGE.get(code, MESSAGE[StatusCode.INITIATED]),
            started_at=None if code.state is JobState.PENDING else started_at,
            completed_at=updated_at if terminal else None,
            updated_at=updated_at,
            code_changed_at=updated_at,
        ),
        metrics=metrics or {},
    )


def make_task(**changes: Any) -> Task:
    """A RUNJOB task with the definition that upstream's agents build a class from."""
    definition = {
        "id": "zhgksvaob3u5opzv",
        "rap_id": RAP_ID,
        "task_id": "zhgksvaob3u5opzv-001",
        "study": {
            "git_repo_url": "https://github.com/opensafely/test-study",
            "commit": "07d5f283bb66f52a49933b016cf8dc144cfc7180",
            "branch": "main",
        },
        "workspace": "test-study",
        "action": "action1",
        "created_at": 1795253246,
        "repo_url": "https://github.com/opensafely/test-study",
        "commit": "07d5f283bb66f52a49933b016cf8dc144cfc7180",
        "image": "ghcr.io/opensafely-core/python:v2",
        "image_sha": "sha256:" + "2d9d5b8e" * 8,
        "args": ["python", "analysis/myscript.py"],
        "env": {"OPENSAFELY_BACKEND": "test"},
        "inputs": [],
        "input_job_ids": [],
        "output_spec": {"output/table.csv": "moderately_sensitive"},
        "allow_database_access": False,
        "database_name": None,
        "level4_max_csv_rows": 5000,
        "level4_max_filesize": 16777216,
        "level4_file_types": [".csv", ".txt"],
        "user": "test_user",
        "cpu_count": 2.0,
        "memory_limit": "4G",
    }
    task = Task(
        id=TaskId("zhgksvaob3u5opzv-001"),
        backend="test",
        type=TaskType.RUNJOB,
        job_id=JobId("zhgksvaob3u5opzv"),
        attempt=1,
        definition=definition,
        attributes={"user": "test_user", "project": "test-project", "orgs": "opensafely"},
        traceparent=TRACEPARENT,
        created_at=datetime.fromtimestamp(1795253247.9, UTC),
    )
    return attrs.evolve(task, **changes)


def create_body(**changes: Any) -> dict[str, Any]:
    """A body for `rap/create/` that is right in everything but `changes`; a key changed to `...` is left out."""
    body = {
        "backend": "test",
        "rap_id": RAP_ID,
        "workspace": "test-study",
        "repo_url": "https://github.com/opensafely/test-study",
        "branch": "main",
        "commit": "07d5f283bb66f52a49933b016cf8dc144cfc7180",
        "database_name": "default",
        "requested_actions": ["action1"],
        "codelists_ok": True,
        "force_run_dependencies": False,
        "created_by": "test_user",
        "project": "test-project",
        "orgs": ["opensafely"],
    } | changes
    return {key: value for key, value in body.items() if value is not ...}
