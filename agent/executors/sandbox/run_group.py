"""The control group of one run: limits that the kernel keeps for all of its processes together, and their account.

Imported by the supervisor of every run, so nothing that is slow (see `agent.executors.processes`). What to make is
decided by the agent (`cgroups`): this module makes it, puts the job in, reads, and takes it away.

With cgroups v1 a run has a directory in the hierarchy of each controller, with v2 one for all. They have the same
name, `rap.<supervisor>.<its start>`, by which everybody can tell whether anybody still needs them.
"""

import os
import time

from agent.executors.processes import replace, slurp, start_ticks

TYPE_CHECKING = False  # as in `supervisor`
if TYPE_CHECKING:
    from typing import Any

NOTE = "cgroups"
"""The file in a run's state directory with its groups, one a line, from before they are made until they are gone."""
PREFIX = "rap."
PATIENCE_SECONDS = 5.0
"""How long the last processes of a group may take to leave it."""


class RunGroup:
    """The group of the run that this process supervises.

    :param plan: what `cgroups.Cgroups.plan` says.
    """

    def __init__(self, plan: "dict[str, Any]") -> None:
        me = os.getpid()
        name = name_for(me, start_ticks(me))
        self.version: int = plan["version"]
        self.limits: list[tuple[str, str, str, bool]] = plan["limits"]
        self.paths: dict[str, str] = {controller: f"{parent}/{name}" for controller, parent in plan["parents"].items()}
        self.directories: list[str] = list(dict.fromkeys(self.paths.values()))

    def make(self) -> None:
        """Make the group with its limits.

        :raises OSError: it cannot be made.
        """
        replace(NOTE, "\n".join(self.directories).encode())
        for directory in self.directories:
            os.mkdir(directory, 0o755)
        for controller, file, value, needed in self.limits:
            try:
                _write(f"{self.paths[controller]}/{file}", value)
            except OSError:
                # The kernel may lack it (no swap accounting), or another group above allows less.
                if needed:
                    raise

    def enter(self) -> None:
        """Put this process into the group, before it becomes the job.

        :raises OSError: it cannot go there.
        """
        # One thread that moves itself in a v1 hierarchy spares the kernel a wait of up to 20 ms; v2 has no such door.
        file = "tasks" if self.version == 1 else "cgroup.procs"
        for directory in self.directories:
            try:
                _write(f"{directory}/{file}", "0")
            except OSError as error:
                raise OSError(error.errno, f"cannot enter {directory}: {error.strerror}") from error

    def usage(self) -> "tuple[float, int] | None":
        """CPU seconds, and bytes of memory that cannot be had back: files in memory count, the file cache does not.

        None if this kernel does not say.
        """
        try:
            if self.version == 1:
                seconds = int(slurp(f"{self.paths['cpuacct']}/cpuacct.usage")) / 1e9
                names = (b"total_rss", b"total_shmem")
            else:
                seconds = _numbers(f"{self.paths['memory']}/cpu.stat")[b"usage_usec"] / 1e6
                names = (b"anon", b"shmem")
            numbers = _numbers(f"{self.paths['memory']}/memory.stat")
            return seconds, sum(numbers[name] for name in names)
        except (OSError, KeyError):
            return None

    def ooms(self) -> int:
        """How many processes the kernel has killed for want of memory."""
        file = "memory.oom_control" if self.version == 1 else "memory.events"
        try:
            return _numbers(f"{self.paths['memory']}/{file}").get(b"oom_kill", 0)
        except OSError:
            return 0

    def memory_peak(self) -> int:
        """The most memory that was ever charged, in bytes, file cache included; 0 if this kernel does not say."""
        file = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        try:
            return int(slurp(f"{self.paths['memory']}/{file}"))
        except OSError:
            return 0

    def kill(self) -> None:
        """Let nothing new begin, and end everything at once where the kernel can."""
        if "pids" in self.paths:
            _try(f"{self.paths['pids']}/pids.max", "0")
        if self.version == 2:
            _try(f"{self.paths['memory']}/cgroup.kill", "1")

    def remove(self) -> None:
        """Take the group away, and the note with it."""
        if end(self.directories) and os.path.exists(NOTE):  # it is not if the disk was full before the group was made
            os.unlink(NOTE)


def name_for(supervisor: int, start: int) -> str:
    """What the group of a supervisor's run is called."""
    return f"{PREFIX}{supervisor}.{start}"


def is_ours(name: str) -> bool:
    """Whether a group's name is one of `name_for`, with or without something behind it."""
    parts = name.split(".")
    return name.startswith(PREFIX) and len(parts) >= 3 and parts[1].isdigit() and parts[2].isdigit()


def is_needed(name: str) -> bool:
    """Whether whoever made the group of this name still lives."""
    parts = name.split(".")
    return start_ticks(int(parts[1])) == int(parts[2]) != 0


def end(directories: "list[str]") -> bool:
    """Kill what is left in groups, and remove them; False if that took too long. Gone already: fine."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    pending = list(directories)
    while True:
        pending = [directory for directory in pending if not _remove(directory)]
        if not pending or time.monotonic() > deadline:
            return not pending
        time.sleep(0.002)


def _remove(directory: str) -> bool:
    """One attempt; whether the directory is gone."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        # Not empty: of processes, or of groups that a job without isolation made in its own.
        for place, inner, _ in os.walk(directory, topdown=False):
            for pid in _members(place):
                try:
                    os.kill(pid, 9)
                except OSError:
                    continue
            for name in inner:
                try:
                    os.rmdir(f"{place}/{name}")
                except OSError:
                    continue
        return False
    return True


def _members(directory: str) -> "list[int]":
    try:
        # 0 is a process of another pid namespace; to kill(2) it would be ourselves.
        return [pid for pid in map(int, slurp(f"{directory}/cgroup.procs").split()) if pid > 0]
    except OSError:
        return []


def _numbers(path: str) -> "dict[bytes, int]":
    """A file of lines `name number`."""
    pairs = (line.split() for line in slurp(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _try(path: str, value: str) -> None:
    try:
        _write(path, value)
    except OSError:
        return
