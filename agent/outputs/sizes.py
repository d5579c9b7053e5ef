"""How much of a disk a tree takes up that a job fills, while it does: deep, wide, shut, and changing all the time."""

import errno
import math
import os
import stat
import threading
from pathlib import Path
from typing import Final

from attrs import frozen

_BLOCK: Final = 512
"""Bytes of what `st_blocks` counts, whatever the file system's own blocks are."""
_ENDLESS: Final = 1 << 62


@frozen(kw_only=True)
class _Folder:
    """A folder still to be looked into, and which one it was when its name was read."""

    path: str
    inode: int


def measure(folder: Path, most: float = math.inf, stop: threading.Event | None = None) -> int:
    """Bytes of disk that a tree takes up, by allocated blocks (blocking). Links are not followed.

    A file with n names counts as 1/n for each. A tree so deep that no path leads to its end has no end to us: no study
    has one, and it must not be a place to hide.

    :param most: once there are more bytes than these the rest is not looked at.
    :param stop: ends the walk early, with what it has found so far.
    """
    try:
        status = os.lstat(folder)
    except FileNotFoundError:
        return 0
    total, device = status.st_blocks * _BLOCK, status.st_dev
    pending = [_Folder(path=str(folder), inode=status.st_ino)]
    while pending and total <= most and not (stop and stop.is_set()):
        here = pending.pop()
        try:
            fd = _enter(here, device)
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return _ENDLESS
            continue  # of another user, who shuts us out
        if fd is None:
            continue
        try:
            total += _add_up(fd, here, pending, most - total)
        finally:
            os.close(fd)
    return total


def _enter(folder: _Folder, device: int) -> int | None:
    """A descriptor of the folder; None if another has its name now, as when a link was put in its way."""
    fd = os.open(folder.path, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != (device, folder.inode):
            return None
        own = f"/proc/self/fd/{fd}"
        try:
            return os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            # A job shuts its folder, and the agent is of the same user: that is no place to hide.
            os.chmod(own, stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
            return os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def _add_up(fd: int, here: _Folder, pending: list[_Folder], most: float) -> int:
    """Bytes of what lies in one folder; folders in it are added to `pending`."""
    total = 0
    with os.scandir(fd) as entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(status.st_mode):
                total += status.st_blocks * _BLOCK
                pending.append(_Folder(path=f"{here.path}/{entry.name}", inode=status.st_ino))
            else:
                total += status.st_blocks * _BLOCK // max(1, status.st_nlink)
            if total > most:
                break
    return total
