"""`released.json` beside a job's metadata: which of its outputs a person has released, when, and who.

It is what makes a release last: an output that stands here may leave for as long as its file has the SHA-256 that
stands with it, which whoever sends the file checks again. Written under the lock of the job's folder, because agents
may share the storage. All of this blocks: for a thread.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from agent.core.errors import UnsafePath
from agent.outputs import level4
from agent.outputs.copies import hash_file
from agent.outputs.workspaces import Places, locked, read_json, resolve_inside, write_json

NAME: Final = "released.json"


def is_as_recorded(places: Places, workspace: str, output: Mapping[str, Any], stop: threading.Event) -> bool:
    """Whether an output's file is there and is the one that the job left, by its SHA-256.

    A moderately sensitive one is looked for where people have looked at it, in the medium-privacy area; a minimally
    sensitive one is only in the high-privacy area.

    :param output: an entry of `outputs_detail` in the job's metadata.
    :raises Stopped: `stop` was set.
    """
    moderate = output["level"] == level4.LEVEL
    folder = places.medium_workspace(workspace) if moderate else places.high_workspace(workspace)
    try:
        recorded: str = output["sha256"]
        return hash_file(resolve_inside(folder, output["path"]), stop) == recorded
    except (FileNotFoundError, NotADirectoryError, UnsafePath):
        return False


@contextmanager
def updating(folder: Path, stop: threading.Event) -> Iterator[dict[str, dict[str, Any]]]:
    """What was released of a job so far, path -> record; what the block adds is on disk once it has ended well.

    :param folder: the job's log folder, which must be there.
    :raises ValueError: the file is not what we write. Nothing is released then: it would be forgotten who was first.
    :raises Stopped: `stop` was set while another agent had the folder.
    """
    with locked(folder, stop):
        records = read(folder)
        before = dict(records)
        yield records
        if records != before:
            write_json(folder / NAME, {"released": records})


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """What was released of a job: path -> `{workspace, level, size, sha256, by, at, task_id}`; none if nothing was.

    :raises ValueError: the file is not what we write.
    """
    found = read_json(folder / NAME)
    if found is None:
        return {}
    records = found.get("released") if isinstance(found, dict) else None
    if not isinstance(records, dict) or not all(isinstance(record, dict) for record in records.values()):
        raise ValueError(f"{folder / NAME} is not a record of releases")
    return records
