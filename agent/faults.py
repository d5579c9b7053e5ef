"""Turns whatever a step raised into an error whose fault is known, and that into what is recorded."""

import errno
import traceback
from typing import Any

from agent.core.errors import DiskFull, ExecutorFailed, JobError, MachineTrouble
from agent.executors.base import ExecutorError


def blame(error: Exception) -> JobError:
    """The error as one whose fault is known; anything unforeseen is the machine's, so worth another attempt."""
    if isinstance(error, JobError):
        return error
    if isinstance(error, ExecutorError):
        fault: JobError = ExecutorFailed(str(error), fatal=error.fatal)
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        fault = DiskFull(f"The backend's disk is full: {error}")
    else:
        fault = MachineTrouble(f"{type(error).__name__}: {error}")
    fault.__cause__ = error
    return fault


def describe(fault: JobError) -> dict[str, Any]:
    """`metadata.error`: everything there is to know, and the wording that may leave (`agent.core.redact`)."""
    return {
        "exception": type(fault).__name__,
        "message": str(fault),
        "public": fault.public,
        "traceback": "".join(traceback.format_exception(fault)),
        "fatal": fault.fatal,
    }
