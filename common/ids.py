"""Identifiers: how each is made and what it looks like."""

import base64
import hashlib
import secrets
from datetime import date


def random_id() -> str:
    """A fresh 16-character id (a-z, 2-7), as the portal makes for RAPs (reference section 4.6)."""
    return base64.b32encode(secrets.token_bytes(10)).decode().lower()


def job_id(rap_id: str, action: str) -> str:
    """The job's id: the same for the same RAP and action, always (reference section 4.6)."""
    digest = hashlib.sha1(f"{rap_id}\n{action}".encode(), usedforsecurity=False).digest()
    return base64.b32encode(digest[:10]).decode().lower()


def retry_rap_id(job: str) -> str:
    """The id of the RAP by which a failed job is tried again: always the same for the same job."""
    digest = hashlib.sha1(f"retry\n{job}".encode(), usedforsecurity=False).digest()
    return base64.b32encode(digest[:10]).decode().lower()


def task_id(job: str, attempt: int) -> str:
    """The id of a job's RUNJOB task: `<job id>-NNN`, counted from 001 (reference section 2.3)."""
    return f"{job}-{attempt:03}"


def cancel_task_id(run_task: str) -> str:
    """The id of the CANCELJOB task for a RUNJOB task."""
    return f"{run_task}-cancel"


def release_task_id(job: str, attempt: int) -> str:
    """The id of a task that lets outputs of a finished job out: `<job id>-release-NNN`, counted from 001."""
    return f"{job}-release-{attempt:03}"


def check_task_id(kind: str, day: date) -> str:
    """The id of a task that belongs to no job: `<type>-<YYYY-MM-DD>-<20 hex>` (reference section 2.3)."""
    return f"{kind}-{day.isoformat()}-{secrets.token_hex(10)}"
