"""Walks, makes and removes folders that a job has filled: deep, wide, unreadable, or with names that are no text.

Nothing here recurses, opens more than two folders at once, or follows a link. One folder's names are held at a time.
"""

import errno
import heapq
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

_RUN: Final = 2048
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
_FULL: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.EACCES, errno.EPERM})


def order(names: Sequence[str]) -> Iterator[str]:
    """The names in order. One long sort would not let go of the interpreter, and the event loop would wait for it."""
    runs = [sorted(names[first : first + _RUN]) for first in range(0, len(names), _RUN)]
    return iter(runs[0]) if len(runs) == 1 else heapq.merge(*runs)


def walk(folder: str | Path, enter: Callable[[str], None] = lambda path: None) -> Iterator[str]:
    """Everything below `folder` that is no folder, as relative paths, in an order that is always the same.

    What lies deeper than the system's longest path cannot be opened by its path, so it is left out.

    :param enter: called with the path of each folder before it is read.
    """
    base = os.fspath(folder)
    waiting = [""]
    while waiting:
        here = waiting.pop()
        path = f"{base}/{here}" if here else base
        prefix = f"{here}/" if here else ""
        try:
            enter(path)
            files, folders = _list(path)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            continue
        for name in order(files):
            yield prefix + name
        waiting += reversed([prefix + name for name in order(folders)])


def _list(path: str | int) -> tuple[list[str], list[str]]:
    """The names in a folder: of what is no folder, and of folders."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            (folders if entry.is_dir(follow_symlinks=False) else files).append(entry.name)
    return files, folders


def make_folders(folder: str) -> list[str]:
    """Make a folder and those above it that are missing; the folders that have got a new entry.

    :raises OSError: FileExistsError or NotADirectoryError if a file has the name of one of them.
    """
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for path in reversed(missing):
        try:
            os.mkdir(path)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
    return [os.path.dirname(path) for path in missing]


def regain(folder: Path) -> None:
    """Let ourselves back into a tree whose files are ours but whose modes a job has chosen."""
    for path in walk(folder, lambda path: _allow(path, stat.S_IRWXU)):
        try:
            _allow(f"{folder}/{path}", stat.S_IRUSR)
        except OSError as error:
            if error.errno not in _GONE:
                raise


def _allow(path: str, rights: int) -> None:
    mode = os.lstat(path).st_mode
    if not stat.S_ISLNK(mode) and mode & rights != rights:
        os.chmod(path, stat.S_IMODE(mode) | rights)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all in it, also what a job has made unwritable. Absent already: do nothing.

    A folder that is not empty is moved up to the top before it is emptied in turn, so no path becomes long.
    """
    try:
        try:
            top = os.open(folder, _FOLDER)
        except PermissionError:
            _allow(os.fspath(folder), stat.S_IRWXU)
            top = os.open(folder, _FOLDER)
    except FileNotFoundError:
        return
    try:
        waiting = _empty(top, top)
        while waiting:
            name = waiting.pop()
            here = _enter(name, top)
            try:
                waiting += _empty(here, top)
            finally:
                os.close(here)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(folder)


def _enter(name: str, parent: int) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        os.chmod(name, stat.S_IRWXU, dir_fd=parent)
        return os.open(name, _FOLDER, dir_fd=parent)


def _empty(here: int, top: int) -> list[str]:
    """Remove what is in a folder; the names, in `top`, of folders that are not empty."""
    if os.fstat(here).st_mode & stat.S_IRWXU != stat.S_IRWXU:
        os.fchmod(here, stat.S_IRWXU)
    files, folders = _list(here)
    for name in files:
        os.unlink(name, dir_fd=here)
    left = []
    for name in folders:
        try:
            os.rmdir(name, dir_fd=here)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            left.append(name if here == top else _lift(name, here, top))
    return left


def _lift(name: str, here: int, top: int) -> str:
    """Move a folder to the top, under a name that nothing there has."""
    new = uuid4().hex
    try:
        os.rename(name, new, src_dir_fd=here, dst_dir_fd=top)
    except PermissionError:  # what a folder says of the one above it changes, too
        os.chmod(name, stat.S_IRWXU, dir_fd=here)
        os.rename(name, new, src_dir_fd=here, dst_dir_fd=top)
    return new
