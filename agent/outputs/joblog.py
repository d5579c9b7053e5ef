"""The job's log file: what the job printed, then a summary (reference section 5.4)."""

from collections.abc import Mapping
from typing import Any, Final

_SUMMARY: Final = "=============JOB SUMMARY============="
_KEYS: Final = (
    "job_definition_id",
    "job_definition_rap_id",
    "commit",
    "docker_image_id",
    "exit_code",
    "created_at",
    "completed_at",
    "database_name",
    "status_message",
    "hint",
)


def _table(rows: Mapping[str, str]) -> list[str]:
    width = max(len(name) for name in rows)
    return [f"  {name:<{width}}  - {value}" for name, value in rows.items()]


def summarise(metadata: Mapping[str, Any]) -> str:
    """The summary that follows the job's own output, from its `metadata.json`."""
    lines = ["", _SUMMARY]
    lines += [f"{key}: {metadata[key]}" for key in _KEYS if metadata.get(key)]
    lines += ["", "outputs:"]
    outputs = metadata.get("outputs") or {}
    lines += _table(outputs) if outputs else ["  (no outputs)"]
    excluded = metadata.get("level4_excluded_files") or {}
    if excluded:
        lines += ["", "Invalid moderately_sensitive outputs:", *_table(excluded)]
    return "\n".join(lines) + "\n"
