"""Child processes with an end: a time limit, an output limit, and no descendant that outlives them.

Each process is started and read in a thread of the caller's pool, not by asyncio's own subprocess support: a start
that is cancelled half-way hangs there for ever, and starting would block the event loop.
"""

import asyncio
import contextlib
import os
import selectors
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

from attrs import field, frozen

from common.clock import Clock

_CHUNK = 65_536
_STDERR_KEPT = 16_384
_LOOK_SECONDS = 1.0
"""How often a reader looks whether its process was killed; normally the end of the pipes tells it at once."""


class TimedOut(Exception):
    """The process was still running at its time limit, and was killed."""


class TooMuchOutput(Exception):
    """The process wrote more than it may, and was killed."""


@frozen(kw_only=True)
class Finished:
    """How a process ended."""

    code: int
    stdout: bytes = field(repr=False)
    stderr: str


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    clock: Clock,
    pool: Executor,
    seconds: float,
    max_output: int,
    stdin: bytes = b"",
    keep_open: Sequence[int] = (),
) -> Finished:
    """Run a program in a session of its own until it ends.

    :param pool: threads, one of which is taken until the end.
    :param seconds: time limit; the whole process group is killed at it, and also if the caller is cancelled.
    :param max_output: bytes of standard output; of standard error only the end is kept.
    :param stdin: at most what fits into a pipe.
    :param keep_open: file descriptors that the child inherits (a lock that must last as long as it does).
    :raises TimedOut, TooMuchOutput: it was killed.
    :raises FileNotFoundError: no such program.
    """
    child = _Child(argv, env, stdin, max_output, keep_open)
    work = asyncio.get_running_loop().run_in_executor(pool, child.run)
    limit = asyncio.create_task(clock.sleep(seconds))
    both: set[asyncio.Future[Any]] = {work, limit}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise TimedOut
        return work.result()
    finally:
        limit.cancel()
        child.kill()
        # With the group dead the pipes are at their end, so this does not last.
        await asyncio.wait(both)
        if not work.cancelled():
            work.exception()  # seen, even where a time limit or a cancel is what the caller hears of


class _Child:
    """One process; `run` belongs to a thread, `kill` may come from any."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        stdin: bytes,
        max_output: int,
        keep_open: Sequence[int],
    ) -> None:
        self._argv = list(argv)
        self._env = dict(env)
        self._stdin = stdin
        self._max_output = max_output
        # Copies: the caller may be gone, and its numbers mean something else, before the thread comes to them.
        self._inherited = [os.dup(fd) for fd in keep_open]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False

    def kill(self) -> None:
        """End the whole group, and do not let it start if it has not yet. Over already: do nothing."""
        with self._lock:
            self._killed = True
            self._kill_group()

    def run(self) -> Finished:
        """Start, read to the end, and reap."""
        process = self._start()
        with process:
            try:
                stdout, stderr = self._read(process)
                # Not reaped yet: until then nobody else can get the group's number, so killing by it is safe.
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            except BaseException:
                self.kill()
                raise
            finally:
                with self._lock:
                    self._process = None
                    code = process.wait()
        return Finished(code=code, stdout=stdout, stderr=stderr.decode(errors="replace"))

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            process = subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._env,
                start_new_session=True,
                pass_fds=self._inherited,
            )
        finally:
            for fd in self._inherited:
                os.close(fd)
        with self._lock:
            self._process = process
            if self._killed:
                self._kill_group()
        return process

    def _kill_group(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
        assert process.stdin is not None  # noqa: S101  all three are pipes, see above
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(self._stdin)
        stdout, stderr = bytearray(), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ, stdout)
            selector.register(process.stderr, selectors.EVENT_READ, stderr)
            while selector.get_map():
                ready = selector.select(_LOOK_SECONDS)
                for key, _ in ready:
                    part = os.read(key.fd, _CHUNK)
                    key.data.extend(part)
                    if not part:
                        selector.unregister(key.fileobj)
                if len(stdout) > self._max_output:
                    raise TooMuchOutput
                del stderr[:-_STDERR_KEPT]
                if self._killed and not ready:
                    break
        return bytes(stdout), bytes(stderr)
