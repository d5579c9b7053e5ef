"""Taking files out of tar archives that somebody else may have made.

As `tarfile`'s filter `data`, and stricter: Python has it since 3.11.4, and Debian 12 has 3.11.2.
"""

import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import Final

_CHUNK: Final = 1 << 20


class UnsafeMember(tarfile.TarError):
    """A member is neither a file nor a folder, or lies outside."""


def unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, name: str) -> None:
    """Make one member a file or folder below `folder`, which only this function has written to.

    :param name: below `folder`.
    :raises UnsafeMember: it would not be a plain file or folder in there.
    :raises OSError: it cannot be written, or is there already.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise UnsafeMember(f"{name!r} leads outside")
    target = folder / path
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    source = tar.extractfile(member) if member.isfile() else None
    if source is None:
        raise UnsafeMember(f"{name!r} is neither a file nor a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        shutil.copyfileobj(source, file, _CHUNK)
    target.chmod(member.mode & 0o755 | 0o600)
    os.utime(target, (member.mtime, member.mtime))
