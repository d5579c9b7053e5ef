"""How a run's end is told: the agent's status messages and hints (reference section 5.2), in fixed wording.

`SAFE` matches every message that names nothing of the job; `agent.core.redact` lets only those out of a closed
backend.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from agent.executors.base import Exit

COMPLETED: Final = "Completed successfully"
CANCELLED: Final = "Job cancelled by system"
ERRORED: Final = "Job errored"
KILLED: Final = "Job killed by OpenSAFELY admin or memory limits"
OUT_OF_MEMORY: Final = "Job ran out of memory"
TIMED_OUT: Final = "Job ran longer than its time limit"
OVER_DISK: Final = "Job used more disk space than its limit"

KILLS: Final = re.compile(
    rf"{CANCELLED}|{KILLED}|{ERRORED}"
    rf"|{OUT_OF_MEMORY}( \(limit was [0-9]+\.[0-9]{{2}}GB\))?"
    rf"|{TIMED_OUT}( \(limit was [0-9]+ s\))?"
    rf"|{OVER_DISK}( \(limit was [0-9]+\.[0-9]{{2}}GB\))?"
)
"""Messages that explain a bad end without naming anything."""
SAFE: Final = re.compile(rf"{COMPLETED}|{KILLS.pattern}")

_HINT_FILES: Final = 20


def describe_exit(
    exit: Exit,
    *,
    unmatched_patterns: Sequence[str],
    memory_bytes: int,
    seconds: float | None,
    disk_bytes: int | None = None,
) -> str | None:
    """The status message of a run that was not cancelled; None if its exit code says it all.

    :param disk_bytes: the limit on what it writes, if the run ended because of it.
    """
    if exit.timed_out:
        return TIMED_OUT + (f" (limit was {seconds:.0f} s)" if seconds is not None else "")
    if disk_bytes is not None:
        return f"{OVER_DISK} (limit was {disk_bytes / 1024**3:.2f}GB)"
    if exit.code == 0:
        if unmatched_patterns:
            listed = "\n".join(f" - {pattern}" for pattern in unmatched_patterns)
            return f"No outputs found matching patterns:\n{listed}"
        return COMPLETED
    if exit.code == 137:
        if exit.oom_killed:
            return f"{OUT_OF_MEMORY} (limit was {memory_bytes / 1024**3:.2f}GB)"
        return KILLED
    return None


def suggest(unmatched_patterns: Sequence[str], unmatched_outputs: Sequence[str]) -> str | None:
    """A hint for somebody whose patterns matched nothing: the files that the job did write."""
    if not unmatched_patterns:
        return None
    if not unmatched_outputs:
        return "The job wrote no other files."
    listed = "\n".join(f" - {name}" for name in unmatched_outputs[:_HINT_FILES])
    more = len(unmatched_outputs) - _HINT_FILES
    return f"Did you mean to match one of these files instead?\n{listed}" + (f"\n and {more} more" if more > 0 else "")


LABELS: Final[Mapping[str, str]] = {
    "action_version": "org.opencontainers.image.version",
    "action_revision": "org.opencontainers.image.revision",
    "action_created": "org.opencontainers.image.created",
    "base_revision": "org.opensafely.base.vcs-ref",
    "base_created": "org.opencontainers.base.build-date",
}
"""Key of `metadata.json` -> the image label that it is taken from."""
