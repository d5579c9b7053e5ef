"""`metadata.json` of a job: the agent's whole truth about an attempt, kept inside the backend (section 5.2).

Its existence with a task's id *is* the statement that the task is finished, so it is written last.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from agent.core.definition import JobDefinition
from agent.core.messages import LABELS
from agent.core.redact import redact_environment
from agent.executors.base import Exit
from agent.outputs.workspaces import read_json, write_json


@frozen(kw_only=True)
class Kept:
    """One output as it was stored."""

    path: str
    level: str
    size: int
    sha256: str
    excluded: bool = False
    message: str = ""


@frozen(kw_only=True)
class Ending:
    """How an attempt ended, apart from what the executor says."""

    status_message: str | None = None
    hint: str | None = None
    outputs: Sequence[Kept] = ()
    unmatched_patterns: Sequence[str] = ()
    unmatched_outputs: Sequence[str] = ()
    cancelled: bool = False
    error: Mapping[str, Any] | bool = False
    """`{exception, message, public, traceback, fatal}`, or False."""


def compose(definition: JobDefinition, task_id: str, ending: Ending, exit: Exit | None, now_ns: int) -> dict[str, Any]:
    """Every key of section 5.2; and `outputs_detail`, the outputs with their sizes and hashes, and `workspace`.

    :param now_ns: Unix nanoseconds, used where the executor gives no time of the end.
    """
    finished_ns = exit.finished_at_ns if exit else now_ns
    labels = exit.labels if exit else {}
    return {
        "outputs": {kept.path: kept.level for kept in ending.outputs},
        "outputs_detail": [
            {
                "path": kept.path,
                "level": kept.level,
                "size": kept.size,
                "sha256": kept.sha256,
                "excluded": kept.excluded,
                "message": kept.message,
            }
            for kept in ending.outputs
        ],
        "unmatched_patterns": list(ending.unmatched_patterns),
        "unmatched_outputs": list(ending.unmatched_outputs),
        "status_message": ending.status_message,
        "hint": ending.hint,
        "timestamp_ns": finished_ns,
        "job_definition_id": definition.id,
        "job_definition_rap_id": definition.rap_id,
        "workspace": definition.workspace,
        "task_id": task_id,
        "created_at": int(definition.created_at),
        "user": definition.user,
        "completed_at": finished_ns // 1_000_000_000,
        "docker_image_id": exit.image_id if exit else None,
        "expected_image_id": definition.image_sha,
        "exit_code": str(exit.code if exit else None),
        "oom_killed": exit.oom_killed if exit else False,
        "container_metadata": redact_environment(exit.metadata if exit else {}),
        "commit": definition.commit,
        "database_name": definition.database_name,
        **{key: labels.get(label, "unknown") for key, label in LABELS.items()},
        "level4_excluded_files": {kept.path: kept.message for kept in ending.outputs if kept.excluded},
        "cancelled": ending.cancelled,
        "error": ending.error,
        "job_metrics": dict(exit.metrics) if exit else {},
    }


def write(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Put `metadata` into the job's log folder."""
    write_json(folder / "metadata.json", metadata)


def read(folder: Path) -> dict[str, Any] | None:
    """The metadata in a job's log folder; None if there are none, or none that can be read.

    An unreadable file counts as absent: the attempt is finished again from the volume, or prepared again.
    """
    try:
        metadata = read_json(folder / "metadata.json")
    except ValueError:
        return None
    return metadata if isinstance(metadata, dict) and isinstance(metadata.get("task_id"), str) else None
