"""Makes a job's volume: code, then inputs, then the timestamp that tells the job's own files from them."""

import os
import threading
import time
from pathlib import Path
from uuid import uuid4

from agent.checkout import Checkouts
from agent.core.definition import JobDefinition, check_relative
from agent.core.errors import ArchivedWorkspace, MissingInput
from agent.executors.base import Run
from agent.outputs import attempts, metadata
from agent.outputs.workspaces import TIMESTAMP, Places, copy, enter_without_links, remove_tree, replacing
from agent.waits import in_thread


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
            volume.mkdir(parents=True)

    await in_thread(empty)
    await checkouts.check_out(definition.repo_url, definition.commit, volume)

    def complete(stop: threading.Event) -> None:
        _copy_inputs(places, definition, volume, stop)
        _stamp(volume)
        with replacing(notes / "prepared"):
            pass

    await in_thread(complete)


def _copy_inputs(places: Places, definition: JobDefinition, volume: Path, stop: threading.Event) -> None:
    """Copy every output of every needed job, as that job's metadata list them (reference section 5.2).

    A job without metadata (it never finished here) gives nothing, silently; a listed file that is gone is fatal.
    """
    workspace = places.high_workspace(definition.workspace)
    for job_id in definition.input_job_ids:
        folder = places.find_log_dir(job_id)
        recorded = metadata.read(folder) if folder else None
        for path in (recorded or {}).get("outputs") or {}:
            check_relative(path, "input")
            source = workspace / path
            if not source.is_file():
                raise MissingInput(
                    f"Input file {path} of job {job_id} is missing from workspace {definition.workspace}"
                )
            copy(source, enter_without_links(volume, path), stop)


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
