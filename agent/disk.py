"""What a running job writes to disk, and where that ends: at its own limit, or when the machine's disk runs out.

Independent of the executor: the agent looks at the volume and at the executor's notes (log included) every sample
interval. What it cannot see there: files that were deleted and are still open, and folders of another user that shut
the agent out. The first is why there is a reserve beside the limit; who needs more has a file system with quotas.

A run that has to end is condemned on disk first and ended after that, so an agent that is killed in between is
succeeded by one that knows why.
"""

import asyncio
import contextlib
import enum
import errno
import math
import os
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import structlog
from attrs import frozen

from agent.executors.base import Executor, ExecutorError, Exit, Run
from agent.outputs.workspaces import replacing
from agent.waits import in_thread
from common.clock import Clock

LIMIT_SETTING: Final = "RAP_JOB_DISK_LIMIT"
RESERVE_SETTING: Final = "RAP_DISK_RESERVE"
_START: Final = "disk-start"
_VERDICT: Final = "disk-verdict"
_BLOCK: Final = 512
"""Bytes of what `st_blocks` counts, whatever the file system's own blocks are."""
_REST: Final = 9
"""For every second that a look takes, so many without one: looking costs a tenth of a CPU at most."""
_WORTH: Final = 10
"""A job that wrote less than this part of the reserve is not the reason why the disk is full."""
_ANSWER_SECONDS: Final = 5.0
_TOO_LARGE: Final = 128 + signal.SIGXFSZ
_ENDLESS: Final = 1 << 62

_log = structlog.get_logger()


class Verdict(enum.StrEnum):
    """Why a run was ended for what it wrote."""

    LIMIT = "limit"
    """It wrote more than any job may."""
    RESERVE = "reserve"
    """The disk ran out, and it had written more than any other."""


@runtime_checkable
class Layered(Protocol):
    """An executor whose runs can write to a disk of the engine's, outside volume and state directory."""

    async def layer_bytes(self, run: Run) -> int:
        """Bytes that the run has written there; 0 if that cannot be told.

        :raises ExecutorError: the engine cannot be asked now.
        """
        ...


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


def note_start(volume: Path, notes: Path, stop: threading.Event) -> None:
    """Write down what a volume holds before its job has begun (blocking)."""
    size = measure(volume, stop=stop)
    with replacing(notes / _START) as file:
        file.write(str(size).encode())


def read_verdict(notes: Path) -> Verdict | None:
    """Why the run was condemned, if it was (blocking)."""
    try:
        return Verdict((notes / _VERDICT).read_text())
    except (FileNotFoundError, ValueError):
        return None


def is_condemned(notes: Path) -> bool:
    """Whether the run has been, or is to be, ended for what it wrote (blocking)."""
    return (notes / _VERDICT).exists()


class Disk:
    """The disk with the volumes, which all jobs of the agent share.

    :param folder: where the volumes lie.
    :param reserve: bytes that are to stay free; 0 for none.
    """

    def __init__(self, folder: Path, reserve: int) -> None:
        self._folder = folder
        self._reserve = reserve
        self._watches: set[Watch] = set()
        self._condemned: set[Path] = set()
        self._relieving = asyncio.Lock()
        self._room = True
        self._asking: asyncio.Task[int] | None = None

    async def has_room(self) -> bool:
        """Whether more than the reserve is free. What does not answer in time is as it was: a storage that hangs must
        not keep the agent from telling that it is alive."""
        if not self._reserve:
            return True
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(asyncio.to_thread(_free, self._folder))
        await asyncio.wait({self._asking}, timeout=_ANSWER_SECONDS)
        if self._asking.done() and self._asking.exception() is None:
            self._judge(self._asking.result())
        return self._room

    def _judge(self, free: int) -> None:
        had, self._room = self._room, free >= self._reserve
        if had and not self._room:
            _log.error(
                "the disk is nearly full: no new jobs are taken until there is room again",
                setting=RESERVE_SETTING,
                folder=str(self._folder),
                free_bytes=free,
                reserve_bytes=self._reserve,
            )
        elif self._room and not had:
            _log.info("there is room on the disk again", folder=str(self._folder), free_bytes=free)

    @contextlib.contextmanager
    def watched(self, watch: "Watch") -> Iterator[None]:
        """A run under way is among those that may have to make room."""
        self._watches.add(watch)
        try:
            yield
        finally:
            self._watches.discard(watch)

    async def relieve(self) -> None:
        """If the disk runs out, end the run that has written most.

        One at a time: nobody else is ended until the volume of the last one is gone, and none whose files could not
        be the reason.
        """
        async with self._relieving:
            if await self.has_room() or await asyncio.to_thread(self._is_making_room):
                return
            written = {watch: await watch.written() for watch in list(self._watches)}
            largest = max(written, key=lambda watch: written[watch], default=None)
            if largest is None or written[largest] * _WORTH < self._reserve:
                return
            self._condemned.add(largest.run.volume)
            await largest.condemn(Verdict.RESERVE)

    def _is_making_room(self) -> bool:
        self._condemned = {volume for volume in self._condemned if volume.exists()}
        return bool(self._condemned)


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


class Watch:
    """One run, and what it writes.

    :param notes: the agent's notes on the task.
    :param interval: seconds between two looks, unless those take long.
    """

    def __init__(
        self, disk: Disk, executor: Executor, clock: Clock, run: Run, notes: Path, *, interval: float
    ) -> None:  # fmt: skip
        self.run = run
        self._disk = disk
        self._executor = executor
        self._clock = clock
        self._notes = notes
        self._interval = interval
        self._limit = run.limits.disk_bytes

    async def guard(self) -> None:
        """Look for ever, and end the run when it has to."""
        with self._disk.watched(self):
            while True:
                began = self._clock.monotonic()
                try:
                    await self._look()
                except Exception:
                    # Never the job's fault; and a condemned one that could not be ended is tried again.
                    _log.exception("the job's use of disk could not be looked at")
                await self._clock.sleep(max(self._interval, _REST * (self._clock.monotonic() - began)))

    async def _look(self) -> None:
        if await asyncio.to_thread(is_condemned, self._notes):
            await self._executor.terminate(self.run)
        elif self._limit is not None and await self.written(self._limit) > self._limit:
            await self.condemn(Verdict.LIMIT)
        else:
            await self._disk.relieve()

    async def condemn(self, verdict: Verdict) -> None:
        """Note why, then end the run."""

        def write() -> None:
            with replacing(self._notes / _VERDICT) as file:
                file.write(verdict.value.encode())

        _log.warning("job is ended for what it has written", task_id=self.run.task_id, verdict=verdict.value)
        await asyncio.to_thread(write)
        await self._executor.terminate(self.run)

    async def written(self, enough: float = math.inf) -> int:
        """Bytes beyond what the volume held at the start; somewhat more than `enough` if it is more than that."""
        inside = await in_thread(lambda stop: self._measure(enough, stop))
        if inside > enough or not isinstance(self._executor, Layered):
            return inside
        try:
            return inside + await self._executor.layer_bytes(self.run)
        except ExecutorError as error:
            _log.debug("the engine does not say what the job has written", reason=str(error))
            return inside

    def _measure(self, enough: float, stop: threading.Event) -> int:
        before = self._before(stop)
        noted = measure(self.run.state_dir, enough, stop)
        return max(0, measure(self.run.volume, enough - noted + before, stop) + noted - before)

    def _before(self, stop: threading.Event) -> int:
        try:
            return int((self._notes / _START).read_bytes())
        except (FileNotFoundError, ValueError):
            # Prepared by an agent that did not look: what is there now has to count as what was there.
            note_start(self.run.volume, self._notes, stop)
            return int((self._notes / _START).read_bytes())

    async def filled(self, exit: Exit) -> bool:
        """Whether the run ended badly because it could write no more: ended by us, or told so by the kernel."""
        if self._limit is None or exit.code == 0 or exit.timed_out or exit.oom_killed:
            return False
        if exit.terminated:
            return await asyncio.to_thread(read_verdict, self._notes) is Verdict.LIMIT
        return exit.code == _TOO_LARGE or await self.written(self._limit) >= self._limit
