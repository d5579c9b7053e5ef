"""Times, sizes and codes as people say them."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from controller.core.codes import JobState, StatusCode

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What is no text: control characters, and the marks that turn the direction of what follows."""

STATES: Final[Mapping[JobState, str]] = {
    JobState.PENDING: "Waiting",
    JobState.RUNNING: "Running",
    JobState.SUCCEEDED: "Succeeded",
    JobState.FAILED: "Failed",
}

CODES: Final[Mapping[StatusCode, str]] = {
    StatusCode.CREATED: "Just asked for",
    StatusCode.INITIATED: "Handed to the backend",
    StatusCode.WAITING_PAUSED: "Backend is paused",
    StatusCode.WAITING_DB_MAINTENANCE: "Database maintenance",
    StatusCode.WAITING_ON_DEPENDENCIES: "Waiting for other actions",
    StatusCode.WAITING_ON_WORKERS: "Waiting for a free worker",
    StatusCode.WAITING_ON_DB_WORKERS: "Waiting for a free database worker",
    StatusCode.WAITING_ON_REBOOT: "Waiting for a reboot",
    StatusCode.WAITING_ON_NEW_TASK: "Waiting to be tried again",
    StatusCode.PREPARING: "Preparing",
    StatusCode.PREPARED: "Prepared",
    StatusCode.EXECUTING: "Executing",
    StatusCode.EXECUTED: "Executed",
    StatusCode.FINALIZING: "Collecting outputs",
    StatusCode.FINALIZED: "Outputs collected",
    StatusCode.SUCCEEDED: "Succeeded",
    StatusCode.DEPENDENCY_FAILED: "A needed action failed",
    StatusCode.NONZERO_EXIT: "Ended with an error",
    StatusCode.CANCELLED_BY_USER: "Cancelled",
    StatusCode.UNMATCHED_PATTERNS: "Expected outputs are missing",
    StatusCode.INTERNAL_ERROR: "Error of the platform",
    StatusCode.KILLED_BY_ADMIN: "Killed by an operator",
    StatusCode.STALE_CODELISTS: "Codelists are out of date",
    StatusCode.JOB_ERROR: "Fatal error",
}


def plain(text: str) -> str:
    """`text` with its control characters spelt out, so that none turns or hides what stands beside it."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def duration(seconds: float) -> str:
    """Seconds in as few characters as a person needs; what clocks make negative is none."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def ago(at: datetime, now: datetime) -> str:
    """How long before `now` something happened, coarsely: the page may be looked at for a while."""
    seconds = max(0, round((now - at).total_seconds()))
    if seconds < 5:
        return "just now"
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def when(at: datetime) -> str:
    """A moment in UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(at: datetime) -> str:
    """A moment for programs."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: `1 job`, `2 jobs`; `plural` where an s is not enough."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def size(number: float) -> str:
    """Bytes in units of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def quantity(number: float) -> str:
    """A sum of weights, or a limit of them, without needless digits."""
    return f"{number:g}"


def names(found: list[str], most: int = 3) -> str:
    """`a`, `a and b`, `a, b and 4 more`."""
    if len(found) > most:
        found = [*found[: most - 1], f"{len(found) - most + 1} more"]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}"
