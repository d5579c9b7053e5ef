"""What the docker executor writes down about one run, in its `state_dir`: everything blocking, called in threads.

The engine is the truth about a container while it has one. Notes are kept of what it does not know (who ended the
run), what it forgets (samples) or what may be taken from it (the container itself, by an operator's `docker prune`).
"""

import contextlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
from attrs import evolve, frozen

from agent.executors.base import ExecutorError, Exit
from agent.executors.processes import boot_id
from common.convert import dumps, loads

TERMINATED: Final = "terminate"
TIMED_OUT: Final = "timeout"
OUTAGE: Final = "outage"
"""The engine was away while the run was under way."""

_MIB: Final = 1 << 20


@frozen(kw_only=True)
class Started:
    """That a container was started: the whole of `started.json`."""

    container: str
    boot_id: str
    at_ns: int


@frozen(kw_only=True)
class Usage:
    """What was seen of a run's use of CPU and memory: the whole of `usage.json`. Times are nanoseconds."""

    at_ns: int = 0
    elapsed_ns: int = 0
    """From the start to the newest sample."""
    cpu_ns: int = 0
    cpu_peak: float = 0.0
    """Percent of one CPU."""
    mem_peak: float = 0.0
    """MiB."""
    mem_area: float = 0.0
    """MiB times nanoseconds."""

    def metrics(self) -> dict[str, float]:
        """The four numbers of `Exit.metrics`."""
        mean = 100.0 * self.cpu_ns / self.elapsed_ns if self.elapsed_ns else 0.0
        return {
            "cpu_mean": mean,
            "cpu_peak": max(mean, self.cpu_peak),
            "mem_mb_mean": self.mem_area / self.elapsed_ns if self.elapsed_ns else 0.0,
            "mem_mb_peak": self.mem_peak,
        }


SHORTEST_NS: Final = 50_000_000
"""Two samples nearer to each other than this say nothing about the use of CPU between them."""


def add_sample(usage: Usage, stats: Mapping[str, Any], *, started_ns: int, now_ns: int) -> Usage:
    """`usage` with one answer of the engine's stats endpoint; unchanged if that is an empty one (run has ended)."""
    cpu = stats.get("cpu_stats") or {}
    memory = stats.get("memory_stats") or {}
    total = int((cpu.get("cpu_usage") or {}).get("total_usage") or 0)
    if not total or now_ns <= max(usage.at_ns, started_ns):
        return usage
    used, peak = _memory(memory)
    since = usage.at_ns or started_ns
    interval = now_ns - since
    rate = 100.0 * max(0, total - usage.cpu_ns) / interval
    return evolve(
        usage,
        at_ns=now_ns,
        elapsed_ns=now_ns - started_ns,
        cpu_ns=max(total, usage.cpu_ns),
        cpu_peak=max(usage.cpu_peak, rate) if interval >= SHORTEST_NS else usage.cpu_peak,
        mem_peak=max(usage.mem_peak, used, peak),
        mem_area=usage.mem_area + used * interval,
    )


def _memory(memory: Mapping[str, Any]) -> tuple[float, float]:
    """Memory in use now without what the kernel merely caches, as `docker stats` counts it; MiB."""
    stats = memory.get("stats") or {}
    usage = int(memory.get("usage") or 0)
    cache = int(stats.get("total_inactive_file", stats.get("inactive_file", 0)) or 0)
    used = max(0, usage - cache) / _MIB
    return used, used


@frozen
class Notes:
    """The state directory of one run."""

    directory: Path

    @property
    def log(self) -> Path:
        """What the run has printed, as far as it was read from the engine."""
        return self.directory / "log"

    def begin(self) -> None:
        """Make the directory."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def start(self, container: str, at_ns: int) -> None:
        """Note that the container was started."""
        self.begin()
        self._write("started.json", dumps(Started(container=container, boot_id=boot_id(), at_ns=at_ns)))

    def started(self) -> Started | None:
        """Which container was started."""
        body = self._read("started.json")
        return None if body is None else loads(body, Started)

    def mark(self, name: str) -> None:
        """Note that something happened; the first time counts."""
        self.begin()
        with contextlib.suppress(FileExistsError):
            (self.directory / name).open("x").close()

    def unmark(self, name: str) -> None:
        """What was noted did not come to pass."""
        (self.directory / name).unlink(missing_ok=True)

    def marked(self, name: str) -> bool:
        """Whether it happened."""
        return (self.directory / name).exists()

    def usage(self) -> Usage:
        """What was seen so far."""
        body = self._read("usage.json")
        return Usage() if body is None else loads(body, Usage)

    def keep_usage(self, usage: Usage) -> None:
        """Note what was seen; nothing, if the run was forgotten meanwhile, or the disk is full."""
        with contextlib.suppress(OSError):
            self._write("usage.json", dumps(usage))

    def exit(self) -> Exit | None:
        """How the run ended, once that was looked at."""
        body = self._read("exit.json")
        if body is None:
            return None
        try:
            return Exit(**orjson.loads(body))
        except (orjson.JSONDecodeError, TypeError) as error:
            raise ExecutorError(f"{self.directory / 'exit.json'} is damaged: {error}", fatal=False) from error

    def keep_exit(self, exit: Exit) -> Exit:
        """Note how the run ended; whoever notes it first is right for ever. Returns what stands there."""
        self.begin()
        mine = self.directory / f"exit.{os.getpid()}.{time.monotonic_ns()}"
        mine.write_bytes(dumps(exit))
        try:
            os.link(mine, self.directory / "exit.json")
        except FileExistsError:
            pass
        finally:
            mine.unlink()
        return self.exit() or exit

    def read_log(self, offset: int, limit: int) -> bytes:
        """Bytes of the output."""
        try:
            with self.log.open("rb") as log:
                return os.pread(log.fileno(), limit, offset)
        except FileNotFoundError:
            return b""

    def forget(self) -> None:
        """Remove the directory."""
        for _ in range(3):  # a thread of a follower that was just cancelled may be writing its last note
            shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.exists():
            raise ExecutorError(f"cannot remove {self.directory}", fatal=False)

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, name: str, body: bytes) -> None:
        part = self.directory / f"{name}.{os.getpid()}.{time.monotonic_ns()}"
        part.write_bytes(body)
        part.replace(self.directory / name)


class Spool:
    """A stream of bytes on its way to a file, at whatever part of the file is already there.

    The engine tells a log from its beginning each time. Bytes are written where they belong, so telling it twice, or
    to two agents at once, changes nothing.

    :param limit: bytes that are kept; None for all.
    """

    def __init__(self, path: Path, limit: int | None) -> None:
        self._path = path
        self._limit = limit
        self._position = 0
        self._there: int | None = None

    @property
    def full(self) -> bool:
        """Whether nothing more is kept."""
        return self._limit is not None and self._position >= self._limit

    def write(self, pieces: Sequence[bytes]) -> None:
        """Take the next bytes of the stream (blocking)."""
        data = b"".join(pieces)
        if self._limit is not None:
            data = data[: max(0, self._limit - self._position)]
        if self._there is None:
            self._there = self._path.stat().st_size if self._path.exists() else 0
        start, self._position = self._position, self._position + len(data)
        if self._position <= self._there or not data:
            return
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while data:
                written = os.pwrite(fd, data, start)
                data, start = data[written:], start + written
        finally:
            os.close(fd)
