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
import math
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import structlog

from agent.executors.base import Executor, ExecutorError, Exit, Layered, Run
from agent.outputs.sizes import measure
from agent.outputs.workspaces import Stopped, replacing
from agent.waits import in_thread
from common.clock import Clock

RESERVE_SETTING: Final = "RAP_DISK_RESERVE"
_START: Final = "disk-start"
_VERDICT: Final = "disk-verdict"
_SPARE: Final = "disk-verdict.spare"
"""Becomes the verdict: room that was had in time, since the disk is likely to be full when there is one."""
_WORD: Final = 16
"""Bytes of it, which any verdict fits in."""
_REST: Final = 9
"""For every second that a look takes, so many without one: looking costs a tenth of a CPU at most."""
_WORTH: Final = 10
"""A job that wrote less than this part of the reserve is not the reason why the disk is full."""
_LEAST_FILES: Final = 1000
"""On file systems that have room for so many files and no more, as ext4. Others say that they have none at all."""
_ANSWER_SECONDS: Final = 5.0
_TOO_LARGE: Final = 128 + signal.SIGXFSZ

_log = structlog.get_logger()


class Verdict(enum.StrEnum):
    """Why a run was ended for what it wrote."""

    LIMIT = "limit"
    """It wrote more than any job may."""
    RESERVE = "reserve"
    """The disk ran out, and it had written more than any other."""


def note_start(volume: Path, notes: Path, stop: threading.Event) -> None:
    """Write down what a volume holds before its job has begun (blocking).

    :raises Stopped: `stop` was set, so that not everything was seen.
    """
    size = measure(volume, stop=stop)
    if stop.is_set():
        raise Stopped
    with replacing(notes / _SPARE) as file:
        file.write(b" " * _WORD)
    with replacing(notes / _START) as file:
        file.write(str(size).encode())


def _note_verdict(notes: Path, verdict: Verdict) -> None:
    """Write down why a run has to end, unless there is a reason already (blocking)."""
    if is_condemned(notes):
        return
    word = verdict.value.ljust(_WORD).encode()
    try:
        with (notes / _SPARE).open("r+b") as file:
            file.write(word)
            file.flush()
            os.fsync(file.fileno())
        (notes / _SPARE).replace(notes / _VERDICT)
    except FileNotFoundError:  # prepared by an agent that kept none
        with replacing(notes / _VERDICT) as file:
            file.write(word)


def read_verdict(notes: Path) -> Verdict | None:
    """Why the run was condemned, if it was (blocking)."""
    try:
        return Verdict((notes / _VERDICT).read_text().strip())
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
        self.free_ratio: float | None = None
        """Share of the disk that was free at the last look; None: nobody looks (there is no reserve)."""
        self._asking: asyncio.Task[int] | None = None

    async def has_room(self) -> bool:
        """Whether more than the reserve is free. What does not answer in time is as it was: a storage that hangs must
        not keep the agent from telling that it is alive."""
        if not self._reserve:
            return True
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(asyncio.to_thread(self._ask))
        await asyncio.wait({self._asking}, timeout=_ANSWER_SECONDS)
        if self._asking.done() and self._asking.exception() is None:
            self._judge(self._asking.result())
        return self._room

    def _ask(self) -> int:
        free, size = _free(self._folder), _size(self._folder)
        self.free_ratio = min(1.0, free / size) if size else None
        return free

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
            if await self.has_room() or await self._is_making_room():
                return
            written = {watch: await watch.written() for watch in list(self._watches)}
            largest = max(written, key=lambda watch: written[watch], default=None)
            if largest is None or written[largest] * _WORTH < self._reserve:
                return
            self._condemned.add(largest.run.volume)
            await largest.condemn(Verdict.RESERVE)

    def give_up(self, volume: Path) -> None:
        """Expect no room of a volume that could not be removed: somebody else may have to go."""
        self._condemned.discard(volume)

    async def _is_making_room(self) -> bool:
        """Whether somebody is on the way out: ended here, for its own limit, or condemned by an earlier agent."""

        def look(watches: Iterable[Watch], known: set[Path]) -> tuple[set[Path], set[Path]]:
            condemned = {watch.run.volume for watch in watches if watch.is_condemned()}
            return condemned, {volume for volume in known | condemned if volume.exists()}

        condemned, there = await asyncio.to_thread(look, list(self._watches), set(self._condemned))
        self._condemned = (self._condemned | condemned) & there
        return bool(self._condemned)


def _size(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_blocks * status.f_frsize


def _free(folder: Path) -> int:
    """Bytes of room; none if there is no room for the names of files, which empty ones take up as well."""
    status = os.statvfs(folder)
    if status.f_files and status.f_favail < _LEAST_FILES:
        return 0
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
        if await asyncio.to_thread(self.is_condemned):
            await self._executor.terminate(self.run)
        elif self._limit is not None and await self.written(self._limit) > self._limit:
            await self.condemn(Verdict.LIMIT)
        else:
            await self._disk.relieve()

    async def condemn(self, verdict: Verdict) -> None:
        """Note why, then end the run: in any case, since a disk on which nothing can be noted is the very reason."""
        _log.warning("job is ended for what it has written", task_id=self.run.task_id, verdict=verdict.value)
        try:
            await asyncio.to_thread(_note_verdict, self._notes, verdict)
        except OSError as error:
            _log.error("why the job is ended cannot be noted", task_id=self.run.task_id, reason=str(error))
        await self._executor.terminate(self.run)

    def is_condemned(self) -> bool:
        """Whether the run has been, or is to be, ended for what it wrote (blocking)."""
        return is_condemned(self._notes)

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
