"""Reading what a supervisor wrote down about its run: the only memory that the sandbox executor has.

Everything here is blocking and quick (a few small files in one directory), and is called in a thread.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
from attrs import frozen

from agent.executors.base import ExecutorError, Exit, Phase, Status
from agent.executors.processes import boot_id, start_ticks
from agent.executors.sandbox import run_group

METRICS = ("cpu_mean", "cpu_peak", "mem_mb_mean", "mem_mb_peak")
KILLED = 128 + signal.SIGKILL


@frozen(kw_only=True)
class Started:
    """Who supervises a run (the file `started`)."""

    supervisor: int
    supervisor_start: int
    job: int
    job_start: int
    boot_id: str
    at_ns: int

    def supervisor_lives(self) -> bool:
        """Whether the supervisor still runs: same boot, same number, same start."""
        return self.boot_id == boot_id() and start_ticks(self.supervisor) == self.supervisor_start != 0

    def open_supervisor(self) -> int | None:
        """A pidfd of the supervisor, readable once it has ended; None if it has ended already."""
        try:
            fd = os.pidfd_open(self.supervisor)
        except ProcessLookupError:
            return None
        # Looked at after opening, so the number cannot have passed to another process in between.
        if self.supervisor_lives():
            return fd
        os.close(fd)
        return None


@frozen
class Notes:
    """The state directory of one run."""

    directory: Path

    def started(self) -> Started | None:
        """Who supervises; None if the run never began."""
        values = self._load("started")
        return None if values is None else Started(**values)

    def status(self) -> Status:
        """The phase by the rules: exit.json, else a living supervisor, else lost, else absent."""
        # The supervisor before its last word: whoever was dead at the first look has nothing to add after it.
        started = self.started()
        alive = started is not None and started.supervisor_lives()
        ended = self.exit()
        if ended is None and started is not None:
            if alive:
                return Status(phase=Phase.RUNNING, started_at_ns=started.at_ns)
            ended = self._lose(started)
        if ended is None:
            return Status(phase=Phase.ABSENT)  # forgotten in between
        return Status(phase=Phase.EXITED, started_at_ns=ended.started_at_ns, exit=ended)

    def exit(self) -> Exit | None:
        """How the run ended, if its supervisor said so."""
        values = self._load("exit.json")
        if values is None:
            return None
        metadata: dict[str, object] = {
            key: values[key] for key in ("cpu_seconds", "max_rss_bytes", "log_truncated") if values.get(key)
        }
        lost = values.get("lost")
        if values.get("engine_failed"):
            lost = f"the sandbox could not be made: {self.log(0, 2000).decode(errors='replace').strip()}"
        return Exit(
            code=values["code"],
            started_at_ns=values["started_at_ns"],
            finished_at_ns=values["finished_at_ns"],
            oom_killed=values["oom_killed"],
            timed_out=values["timed_out"],
            terminated=values["terminated"],
            lost=lost,
            metrics={name: values[name] for name in METRICS if name in values},
            metadata=metadata,
        )

    def metrics(self) -> dict[str, float]:
        """The latest sample; empty before the first."""
        values = self._load("exit.json") or self._load("metrics.json") or {}
        return {name: values[name] for name in METRICS if name in values}

    def log(self, offset: int, limit: int) -> bytes:
        """Bytes of the combined output."""
        try:
            with (self.directory / "log").open("rb") as log:
                return os.pread(log.fileno(), limit, offset)
        except FileNotFoundError:
            return b""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock that a launcher holds until `started` is written; nothing to hold if there is no run."""
        try:
            fd = os.open(self.directory / "lock", os.O_RDWR)
        except FileNotFoundError:
            yield
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def forget(self) -> None:
        """Remove the directory. A launcher that is still on its way finds no lock, and starts nothing."""
        with self.locked():
            with contextlib.suppress(FileNotFoundError):
                (self.directory / "lock").unlink()
            _end_groups(self.directory)
            shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.exists():
            raise ExecutorError(f"cannot remove {self.directory}", fatal=False)

    def _lose(self, started: Started) -> Exit | None:
        """Write the exit that the supervisor could not write: it was killed, or the machine restarted."""
        reason = "the machine restarted"
        if started.boot_id == boot_id():
            _end_leftovers(self.directory, started)
            fault = self._text("fault")
            reason = f"the supervisor failed: {fault}" if fault else "the supervisor was killed"
        values: dict[str, object] = {
            "code": KILLED,
            "started_at_ns": started.at_ns,
            "finished_at_ns": max(time.time_ns(), started.at_ns),
            "oom_killed": False,
            "timed_out": False,
            "terminated": (self.directory / "terminate").exists(),
            "lost": reason,
            **self.metrics(),
        }
        mine = self.directory / f"exit.{os.getpid()}.{time.monotonic_ns()}"
        with contextlib.suppress(FileNotFoundError):  # forgotten in between
            mine.write_bytes(orjson.dumps(values))
            with contextlib.suppress(FileExistsError):
                os.link(mine, self.directory / "exit.json")  # never over what another has written
            mine.unlink()
        return self.exit()

    def values(self, name: str) -> dict[str, Any] | None:
        """The object in one of the files; None if that is not there."""
        return self._load(name)

    def _load(self, name: str) -> dict[str, Any] | None:
        try:
            loaded = orjson.loads((self.directory / name).read_bytes())
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError as error:
            raise ExecutorError(f"{self.directory / name} is damaged: {error}", fatal=False) from error
        if not isinstance(loaded, dict):
            raise ExecutorError(f"{self.directory / name} is damaged: not an object", fatal=False)
        return loaded

    def _text(self, name: str) -> str:
        try:
            return (self.directory / name).read_text(errors="replace")
        except FileNotFoundError:
            return ""


def _end_leftovers(directory: Path, started: Started) -> None:
    """End what a killed supervisor of a bare run left behind; a sandbox has ended with its supervisor.

    All of its control group, if it has one; the job's session, and whoever left that but still has the run's home.
    Orphans have no better mark.
    """
    _end_groups(directory)
    home = str(home_of(directory))
    while found := [pid for pid in psutil.pids() if _belongs(pid, started, home)]:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _end_groups(directory: Path) -> None:
    """Kill and remove the control groups that a supervisor did not live to remove."""
    with contextlib.suppress(FileNotFoundError):
        groups = (directory / run_group.NOTE).read_text().splitlines()
        run_group.end([group for group in groups if not run_group.is_needed(Path(group).name)])


def _belongs(pid: int, started: Started, home: str) -> bool:
    if start_ticks(pid) < started.job_start:
        return False  # older than the job, or ended
    try:
        return os.getsid(pid) == started.job or psutil.Process(pid).environ().get("HOME") == home
    except (ProcessLookupError, PermissionError, psutil.Error):
        return False


def home_of(state_dir: Path) -> Path:
    """The home directory of a bare run."""
    return state_dir.absolute() / "home"
