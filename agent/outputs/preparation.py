"""Makes a job's volume: code, then inputs, then the timestamp that tells the job's own files from them.

Nothing in a volume is forced to disk, by git or by us: a volume is only believed to be complete by the system that
made it. After the machine has gone down, what is there is made anew.
"""

import os
import threading
import time
from pathlib import Path
from typing import Final
from uuid import uuid4

from agent import disk
from agent.checkout import Checkouts
from agent.core.definition import JobDefinition
from agent.core.errors import ArchivedWorkspace, BadDefinition, MissingInput, UnsafePath
from agent.executors.base import Run
from agent.outputs import attempts, metadata
from agent.outputs.copies import bring
from agent.outputs.trees import remove_tree
from agent.outputs.workspaces import TIMESTAMP, Places, Stopped, enter_without_links, replacing
from agent.waits import in_thread

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


async def prepare(places: Places, checkouts: Checkouts, definition: JobDefinition, run: Run, notes: Path) -> None:
    """Make the volume anew, whatever is there, and note in `notes` that it is complete.

    :raises JobError: an archived workspace, a missing input, an unusable repository, a newer attempt.
    """
    volume = run.volume

    def empty(stop: threading.Event) -> None:
        archive = places.archived(definition.workspace)
        if archive is not None:
            raise ArchivedWorkspace(f"Workspace {definition.workspace} has been archived ({archive.name})")
        with attempts.newest(places.log_dir(definition.id, definition.created_at), run.task_id, stop):
            attempts.begin_job(places.action_dir(definition.workspace, definition.action), definition.id, stop)
            remove_tree(volume)
            make_volume(volume)

    await in_thread(empty)
    await checkouts.check_out(definition.repo_url, definition.commit, volume)

    def complete(stop: threading.Event) -> None:
        _copy_inputs(places, definition, volume, stop)
        _stamp(volume)
        disk.note_start(volume, notes, stop)
        with replacing(notes / "prepared") as note:
            note.write(_read_boot())

    await in_thread(complete)


def make_volume(volume: Path) -> None:
    """Make an empty volume (blocking).

    A storage area that hands its group on to new folders (set-group-id) stops doing so here: a sandbox refuses to set
    that bit, so a job could not copy a folder together with its mode.
    """
    volume.mkdir(parents=True)
    volume.chmod(volume.stat().st_mode & 0o777)


def is_prepared(volume: Path, notes: Path) -> bool:
    """Whether the volume is complete, and the machine has not been started anew since (blocking)."""
    try:
        return (notes / "prepared").read_bytes() == _read_boot() and os.path.lexists(volume / TIMESTAMP)
    except FileNotFoundError:
        return False


def _read_boot() -> bytes:
    """The kernel's name for this start of the machine."""
    return _BOOT.read_bytes()


def _copy_inputs(places: Places, definition: JobDefinition, volume: Path, stop: threading.Event) -> None:
    """Copy every output of every needed job, as that job's metadata list them (reference section 5.2).

    A job without metadata (it never finished here) gives nothing, silently; a listed file that is gone is fatal, and so
    is a job of another workspace.
    """
    workspace = places.high_workspace(definition.workspace)
    entered: set[str] = set()
    for job_id in definition.input_job_ids:
        folder = places.find_log_dir(job_id)
        recorded = metadata.read(folder) if folder else None
        if recorded is not None and recorded.get("workspace", definition.workspace) != definition.workspace:
            # Else how the job ends would tell which of another workspace's names there are in this one.
            raise BadDefinition(f"input_job_ids: {job_id} is no job of workspace {definition.workspace}")
        for path in (recorded or {}).get("outputs") or {}:
            if stop.is_set():
                raise Stopped
            if any(part in ("", ".", "..") for part in path.split("/")):
                raise UnsafePath(f"{path} of job {job_id} is not a path inside the workspace")
            parent = path.rpartition("/")[0]
            if parent not in entered:
                enter_without_links(volume, path)
                entered.add(parent)
            try:
                bring(workspace / path, volume / path, stop)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise MissingInput(
                    f"Input file {path} of job {job_id} is missing from workspace {definition.workspace}"
                ) from error


def _stamp(volume: Path) -> None:
    """Write the timestamp file; return once the file system's clock has moved past it.

    That clock ticks in milliseconds, so without the wait a quick job's files could be as old as the stamp.
    """
    stamp = volume / TIMESTAMP
    with replacing(stamp) as file:
        file.write(str(time.time_ns()).encode())
    since = stamp.stat().st_mtime_ns
    # Not a name that the repository could have given to a link, which a touch would follow.
    probe = volume / f"{TIMESTAMP}.{uuid4().hex}"
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        probe.touch()
        if probe.stat().st_mtime_ns > since:
            break
        time.sleep(0.001)
    os.unlink(probe)
