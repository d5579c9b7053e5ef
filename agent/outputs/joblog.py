"""The job's log file: what the job printed, then a summary (reference section 5.4)."""

from collections.abc import Iterator, Mapping
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


_WIDEST: Final = 120
"""Longer names stand out of their column: a single one would make each of a hundred thousand lines that long."""


def _show(name: str) -> str:
    """A file's name on one line, whatever it is: nobody writes lines into the summary by naming a file so."""
    return name if name.isprintable() else name.encode("unicode_escape").decode()


def _table(rows: Mapping[str, str]) -> Iterator[str]:
    width = min(_WIDEST, max(len(_show(name)) for name in rows))
    for name, value in rows.items():
        yield f"  {_show(name):<{width}}  - {value}"


def summarise(metadata: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the summary that follows the job's own output, from its `metadata.json`."""
    yield from ("", _SUMMARY)
    for key in _KEYS:
        if metadata.get(key):
            yield f"{key}: {metadata[key]}"
    yield from ("", "outputs:")
    outputs = metadata.get("outputs") or {}
    yield from _table(outputs) if outputs else ("  (no outputs)",)
    excluded = metadata.get("level4_excluded_files") or {}
    if excluded:
        yield from ("", "Invalid moderately_sensitive outputs:")
        yield from _table(excluded)
