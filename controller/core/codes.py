"""Status codes: what we tell users about a job, and the one state that each code belongs to.

State drives decisions; a code only explains it. `STATE_OF` is total, so a code can never contradict a state.
Wire values and messages: reference/opensafely.md section 3.2 (the missing space in WAITING_ON_NEW_TASK is
part of what clients show today).
"""

from enum import StrEnum
from typing import Final


class JobState(StrEnum):
    """The only thing that scheduling and dependants look at."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """True once nothing can change the state any more."""
        return self in (JobState.SUCCEEDED, JobState.FAILED)


class StatusCode(StrEnum):
    """Why a job is in its state, in the portal's vocabulary."""

    CREATED = "created"
    INITIATED = "initiated"
    WAITING_PAUSED = "paused"
    WAITING_DB_MAINTENANCE = "waiting_db_maintenance"
    WAITING_ON_DEPENDENCIES = "waiting_on_dependencies"
    WAITING_ON_WORKERS = "waiting_on_workers"
    WAITING_ON_DB_WORKERS = "waiting_on_db_workers"
    WAITING_ON_REBOOT = "waiting_on_reboot"
    WAITING_ON_NEW_TASK = "waiting_on_new_task"
    PREPARING = "preparing"
    PREPARED = "prepared"
    EXECUTING = "executing"
    EXECUTED = "executed"
    FINALIZING = "finalizing"
    FINALIZED = "finalized"
    SUCCEEDED = "succeeded"
    DEPENDENCY_FAILED = "dependency_failed"
    NONZERO_EXIT = "nonzero_exit"
    CANCELLED_BY_USER = "cancelled_by_user"
    UNMATCHED_PATTERNS = "unmatched_patterns"
    INTERNAL_ERROR = "internal_error"
    KILLED_BY_ADMIN = "killed_by_admin"
    STALE_CODELISTS = "stale_codelists"
    JOB_ERROR = "job_error"

    @property
    def state(self) -> JobState:
        """The state that this code explains."""
        return STATE_OF[self]


STATE_OF: Final[dict[StatusCode, JobState]] = {
    StatusCode.CREATED: JobState.PENDING,
    StatusCode.INITIATED: JobState.RUNNING,
    StatusCode.WAITING_PAUSED: JobState.PENDING,
    StatusCode.WAITING_DB_MAINTENANCE: JobState.PENDING,
    StatusCode.WAITING_ON_DEPENDENCIES: JobState.PENDING,
    StatusCode.WAITING_ON_WORKERS: JobState.PENDING,
    StatusCode.WAITING_ON_DB_WORKERS: JobState.PENDING,
    StatusCode.WAITING_ON_REBOOT: JobState.PENDING,
    StatusCode.WAITING_ON_NEW_TASK: JobState.PENDING,
    StatusCode.PREPARING: JobState.RUNNING,
    StatusCode.PREPARED: JobState.RUNNING,
    StatusCode.EXECUTING: JobState.RUNNING,
    StatusCode.EXECUTED: JobState.RUNNING,
    StatusCode.FINALIZING: JobState.RUNNING,
    StatusCode.FINALIZED: JobState.RUNNING,
    StatusCode.SUCCEEDED: JobState.SUCCEEDED,
    StatusCode.DEPENDENCY_FAILED: JobState.FAILED,
    StatusCode.NONZERO_EXIT: JobState.FAILED,
    StatusCode.CANCELLED_BY_USER: JobState.FAILED,
    StatusCode.UNMATCHED_PATTERNS: JobState.FAILED,
    StatusCode.INTERNAL_ERROR: JobState.FAILED,
    StatusCode.KILLED_BY_ADMIN: JobState.FAILED,
    StatusCode.STALE_CODELISTS: JobState.FAILED,
    StatusCode.JOB_ERROR: JobState.FAILED,
}

MESSAGE: Final[dict[StatusCode, str]] = {
    StatusCode.CREATED: "Created",
    StatusCode.INITIATED: "Job executing on the backend",
    StatusCode.WAITING_PAUSED: ("Backend is currently paused for maintenance, job will start once this is completed"),
    StatusCode.WAITING_DB_MAINTENANCE: "Waiting for database to finish maintenance",
    StatusCode.WAITING_ON_DEPENDENCIES: "Waiting on dependencies",
    StatusCode.WAITING_ON_WORKERS: "Waiting on available workers",
    StatusCode.WAITING_ON_DB_WORKERS: "Waiting on available database workers",
    StatusCode.WAITING_ON_REBOOT: "Job restarted - waiting for server to reboot",
    StatusCode.WAITING_ON_NEW_TASK: "This job returned an error that could be retriedwith a new task.",
    StatusCode.SUCCEEDED: "Completed successfully",
    StatusCode.DEPENDENCY_FAILED: "Not starting as dependency failed",
    StatusCode.NONZERO_EXIT: "Job exited with an error",
    StatusCode.CANCELLED_BY_USER: "Cancelled by user",
    StatusCode.UNMATCHED_PATTERNS: ("Outputs matching expected patterns were not found. See job log for details."),
    StatusCode.INTERNAL_ERROR: (
        "Internal error: this usually means a platform issue rather than a problem for users to fix.\n"
        "The team is automatically notified of these errors and will be investigating."
    ),
    StatusCode.KILLED_BY_ADMIN: "Killed by an administrator",
    StatusCode.STALE_CODELISTS: "Codelists are out of date",
    StatusCode.JOB_ERROR: "This job returned a fatal error.",
}
"""Codes of the agent's stages have no message: the text of INITIATED stays for the whole run (section 3.2)."""

STAGES: Final[frozenset[StatusCode]] = frozenset(
    {
        StatusCode.PREPARING,
        StatusCode.PREPARED,
        StatusCode.EXECUTING,
        StatusCode.EXECUTED,
        StatusCode.FINALIZING,
        StatusCode.FINALIZED,
    }
)
"""Codes that mirror an executor's stage."""

RESETS: Final[frozenset[StatusCode]] = frozenset(
    {StatusCode.WAITING_DB_MAINTENANCE, StatusCode.WAITING_ON_REBOOT, StatusCode.WAITING_ON_NEW_TASK}
)
"""Codes that take a running job back to pending and clear `started_at` (section 3.4)."""
