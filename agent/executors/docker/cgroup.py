"""The kernel's own account of a container that has just begun, read beside the engine.

An engine looks at its containers once a second, and has nothing to tell about one that has ended. The kernel counts
from the first instruction, in files that stay until the engine has cleared up behind the run, a few milliseconds after
its end. So they are read from before the start until the engine's own numbers can be had, which gives even a run of ten
milliseconds its CPU and memory. Where the engine is on another machine, or hides its control groups from the agent,
there are no such files, and such a run has zeros.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import frozen

ROOT: Final = Path("/sys/fs/cgroup")
SECONDS: Final = 1.5
"""How long a running container is read: by then the engine has looked at it."""
_PAUSE: Final = 0.005
_PLACES: Final = (
    "docker/{0}",
    "system.slice/docker-{0}.scope",
    "machine.slice/libpod-{0}.scope/container",
    "machine.slice/libpod-{0}.scope",
    "libpod_parent/libpod-{0}",
)
"""Where Docker and Podman put a container, without systemd and with it."""


@frozen(kw_only=True)
class Reading:
    """What the kernel has counted so far."""

    at_ns: int
    """Unix nanoseconds."""
    cpu_ns: int
    memory: int
    """Most bytes that were seen in use, the cache of files left out; or the kernel's own peak, if none were seen."""

    def stats(self) -> Mapping[str, Any]:
        """The same as an engine's stats tell it."""
        return {
            "cpu_stats": {"cpu_usage": {"total_usage": self.cpu_ns}},
            "memory_stats": {"usage": self.memory},
        }


class Account:
    """Reads one container's files in a thread of its own.

    :param container: the engine's id of it.
    :param root: where control groups are mounted.
    """

    def __init__(self, container: str, *, root: Path = ROOT) -> None:
        self._places = list(_places(container, root))
        self._over = threading.Event()
        self._newest: Reading | None = None
        self._memory = 0
        self._task = asyncio.create_task(asyncio.to_thread(self._watch))

    @property
    def newest(self) -> Reading | None:
        """The last reading; None if there was none."""
        return self._newest

    async def close(self) -> None:
        """Read no more."""
        self._over.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(self._task, return_exceptions=True)

    def _watch(self) -> None:
        until: float | None = None
        while not self._over.wait(_PAUSE):
            if self._read():
                until = until or time.monotonic() + SECONDS
            elif until is not None:
                return
            if until is not None and time.monotonic() > until:
                return

    def _read(self) -> bool:
        """Take one reading; whether the container is there."""
        for cpu, memory in self._places:
            try:
                used = _cpu_ns(cpu)
            except (OSError, ValueError):
                continue
            with contextlib.suppress(OSError, ValueError):
                self._memory = max(self._memory, _in_use(memory))
            peak = self._memory
            if not peak:
                with contextlib.suppress(OSError, ValueError):
                    peak = _peak(memory)
            self._newest = Reading(at_ns=time.time_ns(), cpu_ns=used, memory=peak)
            return True
        return False


def _places(container: str, root: Path) -> Iterator[tuple[Path, Path]]:
    """The folders that may have the container's CPU and memory: of cgroups version 2, and version 1."""
    for place in _PLACES:
        inner = place.format(container)
        yield root / inner, root / inner
        yield root / "cpuacct" / inner, root / "memory" / inner


def _cpu_ns(folder: Path) -> int:
    try:
        return int((folder / "cpuacct.usage").read_text())
    except FileNotFoundError:
        return 1000 * _field(folder / "cpu.stat", "usage_usec")


def _in_use(folder: Path) -> int:
    """Bytes in use now, without what the kernel merely caches, as `docker stats` counts them."""
    try:
        used, cache = int((folder / "memory.usage_in_bytes").read_text()), "total_inactive_file"
    except FileNotFoundError:
        used, cache = int((folder / "memory.current").read_text()), "inactive_file"
    return max(0, used - _field(folder / "memory.stat", cache))


def _peak(folder: Path) -> int:
    try:
        return int((folder / "memory.max_usage_in_bytes").read_text())
    except FileNotFoundError:
        return int((folder / "memory.peak").read_text())


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    raise ValueError(f"{path} has no {name}")
