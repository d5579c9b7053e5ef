"""Where everything lies on the agent's disks (reference section 5.2), and how a file gets there.

Files are replaced, never rewritten in place: whoever reads a workspace sees the old file or the new one. Names
that become part of a path are checked by `agent.core.definition` first.
"""

import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final
from uuid import uuid4

from attrs import frozen

from agent.core.definition import check_id, check_workspace
from agent.core.errors import OutputClash, UnsafePath
from agent.outputs.documents import decode, encode

TIMESTAMP: Final = ".opensafely-timestamp"
_LOCK_SECONDS: Final = 0.1
"""Between two tries at a lock."""
_TEMPORARY: Final = re.compile(r"\.[0-9a-f]{32}\.tmp")
_ARCHIVES: Final = (".tar.gz", ".tar.zstd", ".tar.xz")


class Stopped(Exception):
    """Work in a thread ended early because nobody wants its result any more."""


@frozen(kw_only=True)
class Places:
    """The agent's four folders and every path in them."""

    high: Path
    medium: Path
    archive: Path
    work: Path

    def volume(self, task_id: str) -> Path:
        """The attempt's own copy of its files: an older attempt may still run, at another agent of the backend."""
        return self.high / "volumes" / check_id(task_id, "task id")

    def high_workspace(self, workspace: str) -> Path:
        """Every output of the workspace."""
        return self.high / "workspaces" / check_workspace(workspace)

    def medium_workspace(self, workspace: str) -> Path:
        """The outputs that may be looked at for release."""
        return self.medium / "workspaces" / check_workspace(workspace)

    def log_dir(self, job_id: str, created_at: float) -> Path:
        """Log and metadata of the job, under the month in which it was created (UTC)."""
        month = datetime.fromtimestamp(created_at, UTC).strftime("%Y-%m")
        return self.high / "logs" / month / f"os-job-{check_id(job_id, 'id')}"

    def action_dir(self, workspace: str, action: str) -> Path:
        """What agents that share this storage have to agree on about an action of a workspace."""
        return self.high / "logs" / "actions" / check_workspace(workspace) / action

    def find_log_dir(self, job_id: str) -> Path | None:
        """The newest log folder of a job whose month is not known, if it has one with metadata."""
        name = f"os-job-{check_id(job_id, 'input_job_ids')}"
        # Months only: `logs/actions` has folders that are called as somebody calls a workspace and an action.
        found = sorted((self.high / "logs").glob(f"[0-9]*-[0-9]*/{name}/metadata.json"))
        return found[-1].parent if found else None

    def notes(self, task_id: str) -> Path:
        """What the agent must find again about a task after a restart."""
        return self.work / "tasks" / check_id(task_id, "task id")

    def archived(self, workspace: str) -> Path | None:
        """The archive that holds the workspace, if it was archived."""
        name = check_workspace(workspace)
        candidates = (self.archive / f"{name}{suffix}" for suffix in _ARCHIVES)
        return next((path for path in candidates if path.exists()), None)


@contextlib.contextmanager
def replacing(target: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A file that takes `target`'s place, in one move and on disk, if the block ends well; else leaves no trace.

    :raises OutputClash: a folder has the target's name, or a file has the name of one of its folders.
    """
    temporary = target.parent / f".{uuid4().hex}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise OutputClash(f"{target} cannot be stored: {error.strerror} ({error.filename})") from error
    finally:
        remove_file(temporary)


def sync_folder(folder: str | Path) -> None:
    """Bring a folder's names to disk: what was moved there stays there, whatever happens to the machine."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what `replacing` left in `folder` when its process was killed. Only for who alone may write there."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            left = [entry.path for entry in entries if _TEMPORARY.fullmatch(entry.name)]
        for path in left:
            remove_file(Path(path))


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """`value` as indented JSON, replacing `path` in one move. Written piece by piece: see `encode`."""
    with replacing(path, mode) as file:
        for piece in encode(value):
            file.write(piece)


def read_json(path: Path) -> Any:
    """What `write_json` wrote; None if there is no such file.

    :raises ValueError: the file is not JSON.
    """
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def locked(folder: Path, stop: threading.Event | None = None) -> Iterator[None]:
    """Exclusive use of a workspace's metadata, among threads and among agents that share the storage.

    :raises Stopped: `stop` was set while somebody else had it: an agent that is suspended may have it for hours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "wb") as lock:
        while not _try_lock(lock, wait=stop is None):
            if stop is not None and stop.wait(_LOCK_SECONDS):
                raise Stopped
        yield


def _try_lock(lock: BinaryIO, *, wait: bool) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def remove_file(path: Path) -> None:
    """Remove a file. Absent already, or behind what is no folder: do nothing."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()


def resolve_inside(volume: Path, relative: str) -> Path:
    """The real path of `relative`, symlinks followed, if that is still inside `volume`.

    :raises UnsafePath: it is not.
    """
    base = volume.resolve()
    try:
        real = (base / relative).resolve()
    except (OSError, RuntimeError) as error:
        raise UnsafePath(f"{relative} cannot be followed: {error}") from error
    if not real.is_relative_to(base):
        raise UnsafePath(f"{relative} is a link that leaves the job's files")
    return real


def enter_without_links(volume: Path, relative: str) -> Path:
    """The path of `relative` in `volume` for writing: no component above it may be a symlink.

    :raises UnsafePath: one is, as when the repository has a symlink where an input belongs.
    """
    parents = relative.split("/")[:-1]
    path = volume
    for part in parents:
        path = path / part
        if path.is_symlink():
            raise UnsafePath(f"{relative}: {part} is a link, so no input can be put there")
    return volume / relative
