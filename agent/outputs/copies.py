"""Copies files with bounded memory: outputs into a workspace, durable and each in one move; inputs into a volume.

Contents go through buffers of one MiB; `stop` is looked at between two of them. Where the file system can share the
blocks of two files (Btrfs, XFS), nothing is written at all.

How a batch survives a crash at any moment: each new file is written completely under a name in `staging`, is forced to
disk, and only then takes its target's place, in one rename; last of all the folders are forced to disk. So a target is
always the whole old file or the whole new one, and when the block has ended, it is the new one, whatever happens to
the machine. What a crash leaves is in `staging`, which the next batch there begins by emptying. Forcing a thousand
files one after the other would wait a thousand times for the disk: their writing is begun when they are closed, and
several threads wait for them together. (`syncfs` would wait for what everybody else is writing to that disk, too.)
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

from attrs import frozen

from agent.core.errors import OutputClash, UnsafePath
from agent.outputs.trees import make_folders, remove_tree, walk
from agent.outputs.workspaces import Stopped, sync_folder

CHUNK: Final = 1024 * 1024
"""Bytes of a buffer; a batch has two."""
BATCH_FILES: Final = 1000
BATCH_BYTES: Final = 256 * 1024 * 1024
"""What may lie in the staging folder before it is moved on: a batch needs that much more room than the files."""
_THREADS: Final = 4
"""Of one batch, beside the one that it is used in."""
_FICLONE: Final = 0x40049409
"""The ioctl that makes a file share another's blocks; `fcntl` has no name for it."""
_NO_CLONE: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM})
_CLASHES: Final = frozenset({errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})
_NO_RANGE: Final = _NO_CLONE | {errno.EBADF, errno.ETXTBSY}


@frozen(kw_only=True)
class Copied:
    """What was written."""

    size: int
    """Bytes."""
    sha256: str
    changed_at: float
    """The copy's mtime, Unix seconds."""


@contextlib.contextmanager
def _opened(path: str | Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _source(path: str | Path) -> Iterator[int]:
    """A regular file to be read.

    :raises UnsafePath: it is something else.
    """
    # O_NONBLOCK: opening a named pipe must not hang. O_NOFOLLOW: the caller has resolved the path already.
    with _opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as reader:
        if not stat.S_ISREG(os.fstat(reader).st_mode):
            raise UnsafePath(f"{path} is not a regular file")
        yield reader


def _clone(reader: int, writer: int) -> bool:
    """Make the empty file `writer` share all of `reader`'s blocks; False if that cannot be done here."""
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
        return False
    return True


def _write(writer: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(writer, piece) :]


def _clash(target: str, error: OSError) -> OutputClash:
    """The error of a target that cannot have its name."""
    return OutputClash(f"{target} cannot be stored: {error.strerror} ({error.filename})")


class Batch:
    """Files that take their targets' places together (blocking; see above). Nothing of it is left if the block fails,
    except what was moved before.

    Whoever opens one has the only right to `staging` (see `agent.outputs.attempts`), which must be on the targets'
    file system.
    """

    def __init__(self, staging: Path, stop: threading.Event) -> None:
        """:param stop: set to give up; see `copy`."""
        self._staging = staging
        self._stop = stop
        self._moves: list[tuple[str | None, str]] = []
        """New file (None: remove) and target, in the order in which they are to happen."""
        self._bytes = 0
        self._count = 0
        self._awaited: set[str] = set()
        """The targets in `_moves`."""
        self._made: set[str] = set()
        self._changed: set[str] = set()
        """Folders that are not on disk yet, or that nobody knows to be: a killed process may have changed them."""
        self._buffers = (bytearray(CHUNK), bytearray(CHUNK))
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="copies")

    def __enter__(self) -> Self:
        try:
            remove_tree(self._staging)
            for folder in make_folders(str(self._staging))[1:]:
                sync_folder(folder)
        except (FileExistsError, NotADirectoryError) as error:
            raise _clash(str(self._staging), error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._threads.shutdown()
            remove_tree(self._staging)

    def copy(self, source: str | Path, target: str | Path) -> Copied:
        """Copy a regular file. A target that has the same contents already is left in its place, as of now.

        :raises UnsafePath: the source is not a regular file.
        :raises OutputClash: see `flush`.
        :raises Stopped: `stop` was set.
        """
        with _source(source) as reader:
            copied = None if str(target) in self._awaited else self._keep(reader, str(target))
            if copied is None:
                temporary = f"{self._staging}/{self._count}"
                with _opened(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL) as writer:
                    copied = self._fill(reader, writer)
                self._add(temporary, str(target), copied.size)
        return copied

    def write(self, target: str | Path, body: bytes) -> None:
        """Store a small file. The same errors as `copy`."""
        temporary = f"{self._staging}/{self._count}"
        with _opened(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL) as writer:
            _write(writer, memoryview(body))
        self._add(temporary, str(target), len(body))

    def remove(self, target: str | Path) -> None:
        """Remove a file, after what was asked for before. Absent then, or behind what is no folder: do nothing."""
        self._add(None, str(target), 0)

    def flush(self) -> None:
        """Bring all to its place and to disk.

        :raises OutputClash: a folder has a target's name, or a file has the name of one of its folders.
        :raises Stopped: `stop` was set; nothing was moved.
        """
        new = [temporary for temporary, _ in self._moves if temporary is not None]
        if len(new) > _THREADS:
            for done in [self._threads.submit(self._force, new[first::_THREADS]) for first in range(_THREADS)]:
                done.result()
        else:
            self._force(new)
        for temporary, target in self._moves:
            self._move(temporary, target)
        self._moves.clear()
        self._awaited.clear()
        self._bytes = 0
        list(self._threads.map(sync_folder, self._changed))
        self._changed.clear()

    def _add(self, temporary: str | None, target: str, size: int) -> None:
        self._moves.append((temporary, target))
        self._awaited.add(target)
        self._count += 1
        self._bytes += size
        if len(self._moves) >= BATCH_FILES or self._bytes >= BATCH_BYTES:
            self.flush()

    def _force(self, paths: Sequence[str]) -> None:
        for path in paths:
            if self._stop.is_set():
                raise Stopped
            _force(path)

    def _move(self, temporary: str | None, target: str) -> None:
        parent = os.path.dirname(target)
        try:
            if temporary is None:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    os.unlink(target)
                    self._note(parent)
                return
            if parent not in self._made:
                make_folders(parent)
                self._made.add(parent)
            os.replace(temporary, target)
        except OSError as error:
            if error.errno not in _CLASHES:
                raise
            raise _clash(target, error) from error
        self._note(parent)

    def _note(self, folder: str) -> None:
        """Remember to bring a folder to disk, with those above it, up to the one that has the staging folder too."""
        top = os.path.dirname(os.path.commonpath((folder, self._staging)))
        while folder not in self._changed:
            self._changed.add(folder)
            if folder == top:
                break
            folder = os.path.dirname(folder)

    def _keep(self, reader: int, target: str) -> Copied | None:
        """Compare with what is at the target. If it is the same, it only gets a new mtime; None if it is not."""
        size = os.fstat(reader).st_size
        try:
            if not stat.S_ISREG((status := os.lstat(target)).st_mode) or status.st_size != size:
                return None
            with _opened(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as old:
                digest = self._compare(reader, old, size)
                if digest is None:
                    return None
                os.utime(old)
                self._note(os.path.dirname(target))
                return Copied(size=size, sha256=digest, changed_at=os.fstat(old).st_mtime)
        except OSError:
            return None  # absent, or not to be read: replaced
        finally:
            os.lseek(reader, 0, os.SEEK_SET)

    def _compare(self, one: int, other: int, size: int) -> str | None:
        """The hash of both, or None as soon as they differ."""
        digest, total = hashlib.sha256(), 0
        mine, theirs = (memoryview(buffer) for buffer in self._buffers)
        while count := os.readv(one, [mine]):
            if self._stop.is_set():
                raise Stopped
            if os.preadv(other, [theirs[:count]], total) != count or mine[:count] != theirs[:count]:
                return None
            digest.update(mine[:count])
            total += count
        return digest.hexdigest() if total == size else None

    def _fill(self, reader: int, writer: int) -> Copied:
        """Copy all, hash what was copied, and begin to bring it to disk. Writing and hashing go on side by side."""
        cloned = _clone(reader, writer)
        digest, size = hashlib.sha256(), 0
        hashed: Future[None] | None = None
        for spare in itertools.cycle(self._buffers):
            buffer = memoryview(spare)
            if self._stop.is_set():
                raise Stopped
            count = os.readv(writer if cloned else reader, [buffer])
            if hashed is not None:
                hashed.result()
            if not count:
                break
            hashed = self._threads.submit(digest.update, buffer[:count]) if count == CHUNK else None
            if hashed is None:
                digest.update(buffer[:count])
            if not cloned:
                _write(writer, buffer[:count])
            size += count
        # On Linux this advice begins the writing of what is not on disk yet, and waits for nothing.
        os.posix_fadvise(writer, 0, 0, os.POSIX_FADV_DONTNEED)
        return Copied(size=size, sha256=digest.hexdigest(), changed_at=os.fstat(writer).st_mtime)


def hash_file(path: str | Path, stop: threading.Event) -> str:
    """SHA-256 of a regular file (blocking).

    :raises UnsafePath: it is something else.
    :raises Stopped: `stop` was set.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with _source(path) as reader:
        while count := os.readv(reader, [buffer]):
            if stop.is_set():
                raise Stopped
            digest.update(buffer[:count])
    return digest.hexdigest()


def force(folder: Path) -> None:
    """Bring a folder and all in it to disk (blocking)."""
    folders: list[str] = []
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="copies") as threads:
        paths = (f"{folder}/{path}" for path in walk(folder, folders.append))
        while some := list(itertools.islice(paths, BATCH_FILES)):
            list(threads.map(_force, some))
    for path in reversed(folders):
        sync_folder(path)


def _force(path: str) -> None:
    with _opened(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
        os.fsync(file)


def bring(source: str | Path, target: str | Path, stop: threading.Event) -> None:
    """Copy a regular file to where nobody reads yet, in place of a file that is there; it may not be on disk after.

    :raises UnsafePath: the source is not a regular file.
    :raises OutputClash: there is a folder at the target, or a file where one of its folders belongs.
    :raises Stopped: `stop` was set. Then, as after any other error, the target may be half a file.
    """
    with _source(source) as reader:
        writer = _create(str(target))
        try:
            if not _clone(reader, writer) and not _send(reader, writer, stop):
                _pass_on(reader, writer, stop)
        finally:
            os.close(writer)


def _send(reader: int, writer: int, stop: threading.Event) -> bool:
    """Let the kernel copy; False if it does not, between these files, or not to the end."""
    left = os.fstat(reader).st_size
    while left > 0:
        if stop.is_set():
            raise Stopped
        try:
            count = os.copy_file_range(reader, writer, min(left, CHUNK))
        except OSError as error:
            if error.errno not in _NO_RANGE:
                raise
            return False
        if not count:
            return False
        left -= count
    return True


def _pass_on(reader: int, writer: int, stop: threading.Event) -> None:
    """Copy, from where both files are, to the end."""
    buffer = memoryview(bytearray(CHUNK))
    while count := os.readv(reader, [buffer]):
        if stop.is_set():
            raise Stopped
        _write(writer, buffer[:count])


def _create(target: str) -> int:
    """A new file, open for writing, whatever was there; a link is replaced, not followed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            return os.open(target, flags, 0o644)
        except FileNotFoundError:
            make_folders(os.path.dirname(target))
        except FileExistsError:
            os.unlink(target)
        return os.open(target, flags, 0o644)
    except OSError as error:
        if error.errno not in _CLASHES:
            raise
        raise _clash(target, error) from error
