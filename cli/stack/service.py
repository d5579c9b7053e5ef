"""One of our own processes as a child: started with its log, started again when it dies, ended in order."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cli.errors import Problem
from cli.stack.children import signal_group, spawn

MISCONFIGURED: Final = 2
"""Exit code of a process that will not start however often it is tried."""

_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 15.0
_STABLE: Final = 30.0
"""Seconds after which a process counts as having started well."""
_LOG_LIMIT: Final = 16 * 1024**2

_ROOT: Final = Path(__file__).parents[2]
"""Where `controller` and `agent` lie: the checkout, or the site-packages that we run from."""


class Service:
    """A process of ours, `python -m <name>`, for as long as the stack runs.

    :param name: the module to run; also its name for the user.
    :param env: its whole environment; secrets travel here and nowhere else.
    :param log: the file for what it says; kept below some 16 MiB, with one older piece beside it.
    :param say: shows the user a sentence.
    """

    def __init__(self, name: str, env: Mapping[str, str], log: Path, say: Callable[[str], None]) -> None:
        self.name = name
        self._env = {**env, "PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1"}
        self._log = log
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._mark = 0
        self.proven = False
        """Whether it has been seen to work; before that, its end is a fault of the set-up and not an accident."""

    @property
    def pid(self) -> int | None:
        """The process that runs now."""
        return None if self._process is None else self._process.pid

    async def watch(self) -> None:
        """Keep it running; never returns.

        :raises Problem: it cannot run here at all, and says why.
        """
        pause = _FIRST_PAUSE
        while True:
            started = time.monotonic()
            code = await self._ended(self._start())
            if code == MISCONFIGURED or not self.proven:
                raise Problem(f"the {self.name} cannot start: {self.last_words()}")
            if time.monotonic() - started > _STABLE:
                pause = _FIRST_PAUSE
            self._say(f"The {self.name} ended unexpectedly ({_told(code)}); starting it again (see {self._log})")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def stop(self, seconds: float) -> None:
        """Ask it to end, wait up to `seconds`, then end it. Whoever watches it must have stopped doing so."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(process.wait, seconds)
            except subprocess.TimeoutExpired:
                self._say(f"The {self.name} does not stop within {seconds:g} s; ending it (see {self._log})")
        signal_group(process, signal.SIGKILL)
        await asyncio.to_thread(process.wait)

    def last_words(self) -> str:
        """The last line that it said since it was started."""
        try:
            with self._log.open("rb") as stream:
                stream.seek(self._mark)
                lines = stream.read(64 * 1024).decode(errors="replace").splitlines()
        except OSError:
            lines = []
        told = [line.strip() for line in lines if line.strip()]
        if not told:
            return f"it said nothing (see {self._log})"
        if any(line.startswith("Traceback") for line in told):
            return f"{told[-1]} (see {self._log})"
        # Faults of a configuration are several lines, and all of them count; log lines are JSON.
        return "; ".join([line for line in told if not line.startswith("{")][-10:]) or _event(told[-1])

    def _start(self) -> subprocess.Popen[bytes]:
        bound_log(self._log, 0)
        with self._log.open("ab") as output:
            self._mark = output.tell()
            # -P: a folder of the user's that is called `agent` or `controller` is not to be run.
            self._process = spawn(
                [sys.executable, "-P", "-m", self.name], env=self._env, output=output, cwd=self._log.parent
            )
        return self._process

    async def _ended(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for its end, keeping its log small meanwhile."""
        ended = asyncio.ensure_future(asyncio.to_thread(process.wait))
        try:
            while not (await asyncio.wait({ended}, timeout=30))[0]:
                bound_log(self._log, _LOG_LIMIT)
            return ended.result()
        finally:
            # Cancelled: the thread ends with the process, which `stop` sees to.
            ended.add_done_callback(lambda done: done.cancelled() or done.exception())


def bound_log(log: Path, limit: int) -> None:
    """Move what is beyond `limit` bytes into `<log>.1`; for 0, whatever is beyond a quarter of the usual limit.

    Copied and cut rather than renamed: the process that writes it holds it open (for appending).
    """
    with contextlib.suppress(OSError):
        if log.stat().st_size > (limit or _LOG_LIMIT // 4):
            log.with_name(f"{log.name}.1").write_bytes(log.read_bytes()[-_LOG_LIMIT:])
            with log.open("r+b") as stream:
                stream.truncate(0)


def _event(line: str) -> str:
    """The gist of a line of a JSON log."""
    try:
        event = json.loads(line)
        words = str(event.get("exception") or event.get("error") or event["event"])
    except (ValueError, LookupError, AttributeError):
        words = line
    return words.strip().splitlines()[-1] if words.strip() else line


def _told(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
