"""Who may write to the backend's storage: the newest attempt of a job, and the last job of an action, begun there.

Agents of a backend may share its storage. One that was cut off for longer than its lease comes back with an attempt
that another agent was given long ago; the controller will not listen to it, but the files are here. So the number of
the newest attempt is kept with the job's log and metadata, and whoever writes does so under its lock.
"""

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.core.errors import Superseded
from agent.outputs.workspaces import locked, replacing

_NUMBER: Final = re.compile(r"-([0-9]+)$")
_NEWEST: Final = "attempt"
_JOB: Final = "job"


@contextlib.contextmanager
def newest(folder: Path, task_id: str, stop: threading.Event | None = None) -> Iterator[None]:
    """Write for an attempt, alone, unless a newer one has begun. The first to enter begins its attempt (blocking).

    :param folder: the job's log folder.
    :param task_id: of the RUNJOB task, `<job id>-NNN`; an id of another form is never held back.
    :raises Superseded: a newer attempt has begun.
    :raises Stopped: `stop` was set while another agent was writing.
    """
    number = _number(task_id)
    with locked(folder, stop):
        begun = _read(folder)
        if number is not None and begun is not None and begun > number:
            raise Superseded(f"Attempt {number} was given up by the controller: attempt {begun} has begun")
        if number is not None and number != begun:
            with replacing(folder / _NEWEST) as file:
                file.write(str(number).encode())
        yield


def begin_job(folder: Path, job_id: str, stop: threading.Event) -> None:
    """From now on the outputs of an action in a workspace are this job's (blocking).

    A job that was killed or given up while its agent was out of reach has no newer attempt, but the action may have
    been asked for again. The last to begin counts, not the last created: no clock has a say.

    :param folder: the action's, see `Places.action_dir`.
    :raises Stopped: see `newest`.
    """
    with locked(folder, stop), replacing(folder / _JOB) as file:
        file.write(job_id.encode())


@contextlib.contextmanager
def last_job(folder: Path, job_id: str, stop: threading.Event) -> Iterator[None]:
    """Write to the workspace for a job, alone, unless another job of the same action has begun since (blocking).

    :raises Superseded: one has begun.
    :raises Stopped: see `newest`.
    """
    with locked(folder, stop):
        try:
            last = (folder / _JOB).read_bytes().decode(errors="replace")
        except FileNotFoundError:
            last = job_id  # it was begun by an agent that did not write this down
        if last != job_id:
            raise Superseded(f"Job {job_id} was given up by the controller: job {last} of the same action has begun")
        yield


def _number(task_id: str) -> int | None:
    found = _NUMBER.search(task_id)
    return int(found[1]) if found else None


def _read(folder: Path) -> int | None:
    """The newest attempt that has begun; None for none. A file that cannot be read counts as none."""
    try:
        return int((folder / _NEWEST).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
