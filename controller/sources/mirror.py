"""A bare clone of one remote repository: objects that were fetched once, and the questions they answer.

Objects never change, so reading needs no lock. Fetching does: git's record of how deep the history goes is rewritten
by every shallow fetch. The lock is a lock file of the operating system that git's processes inherit, so it holds
between controllers that share a folder, lasts as long as any of those processes lives, and cannot be left behind.
"""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from controller.core.errors import Unavailable
from controller.sources import child
from controller.sources.git_command import GitCommand

SHALLOW_DEPTH: Final = 10
"""Commits of a branch that are fetched at first (reference section 4.2)."""

_EVERYTHING: Final = 2**31 - 1
"""git's own word for an unlimited depth; unlike `--unshallow` it is no error on a complete history."""

_LOCK_LOOK_SECONDS: Final = 0.05


class Mirror:
    """The clone at `path`, of what lies at `remote`."""

    def __init__(self, path: Path, remote: str, git: GitCommand) -> None:
        self._path = path
        self._remote = remote
        self._git = git
        self._lock = asyncio.Lock()
        self._fd = -1

    @property
    def arguments(self) -> tuple[str, ...]:
        """What makes a git command work on this clone."""
        return (f"--git-dir={self._path}",)

    async def has_commit(self, commit: str) -> bool:
        """Whether the commit was fetched before."""
        done = await self._git.run(*self.arguments, "cat-file", "-e", f"{commit}^{{commit}}")
        return done.code == 0

    async def is_ancestor(self, commit: str, head: str) -> bool:
        """Whether `head` is known here to contain `commit`. True is final; False may only mean: not fetched yet."""
        done = await self._git.run(*self.arguments, "merge-base", "--is-ancestor", commit, head)
        return done.code == 0

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Alone with the clone, made if it is missing, and freed of what killed processes left behind.

        :raises child.TimedOut: somebody else has held it for the whole time limit.
        :raises Unavailable: the folder cannot be written.
        """
        async with self._lock:
            try:
                self._fd = await self._acquire()
            except OSError as error:
                raise _unusable(error) from error
            try:
                await self._make()
                yield
            finally:
                os.close(self._fd)
                self._fd = -1

    async def fetch(self, commit: str, *, depth: int | None) -> child.Finished:
        """Fetch a commit with `depth` commits of its history, or all of it; call it while `locked`.

        Once a history was needed in full it stays full: later fetches only add to it.
        """
        complete = self._path / "rap-complete"
        limit: tuple[str, ...] = (f"--depth={depth or _EVERYTHING}",)
        if depth is not None and await asyncio.to_thread(complete.exists):
            limit = ()
        done = await self._run(
            *self.arguments,
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-recurse-submodules",
            "--no-write-fetch-head",
            *limit,
            "--",
            self._remote,
            f"+{commit}:refs/rap/{commit}",
        )
        if done.code == 0 and depth is None:
            await asyncio.to_thread(complete.touch)
        return done

    async def _make(self) -> None:
        try:
            if await asyncio.to_thread(self._tidy):
                return
            done = await self._run("init", "--bare", "--quiet", "--template=", str(self._path))
            if done.code:
                raise _unusable(done.stderr)
            await asyncio.to_thread((self._path / "rap-ready").touch)
        except OSError as error:
            raise _unusable(error) from error

    async def _run(self, *args: str) -> child.Finished:
        return await self._git.run(*args, protocol=protocol_of(self._remote), keep_open=(self._fd,))

    async def _acquire(self) -> int:
        waited = 0.0
        while (fd := await self._look_at_lock()) is None:
            if waited >= self._git.timeout:
                raise child.TimedOut
            await self._git.clock.sleep(_LOCK_LOOK_SECONDS)
            waited += _LOCK_LOOK_SECONDS
        return fd

    async def _look_at_lock(self) -> int | None:
        look = asyncio.get_running_loop().run_in_executor(None, self._try_lock)
        try:
            return await asyncio.shield(look)
        except asyncio.CancelledError:
            # The thread carries on, and nobody would ever give back the lock that it gets.
            look.add_done_callback(_give_back)
            raise

    def _try_lock(self) -> int | None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def _tidy(self) -> bool:
        """Remove what no living process can own any more; say whether the clone has been made."""
        leftovers = [
            *self._path.glob("*.lock"),
            *self._path.glob("refs/**/*.lock"),
            *self._path.glob("objects/info/*.lock"),
            *self._path.glob("objects/pack/tmp_*"),
        ]
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        return (self._path / "rap-ready").exists()


def _give_back(look: asyncio.Future[int | None]) -> None:
    if not look.cancelled() and look.exception() is None and (fd := look.result()) is not None:
        os.close(fd)


def _unusable(reason: object) -> Unavailable:
    return Unavailable(f"The folder for git repositories cannot be used: {reason}", retry_after=60)


def protocol_of(remote: str) -> str:
    """The transport that a remote of ours needs; none for anything that we never make."""
    if remote.startswith("/"):
        return "file"
    return "https" if remote.startswith("https://") else ""
