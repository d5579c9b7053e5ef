"""Whether this machine lets the agent limit its runs by control groups, and what a run's group is to be.

An agent may make groups where it is root, or where somebody gave it a part of the tree (`Delegate=yes` of systemd,
a container with a group of its own). Whether it may is found out by doing it. With cgroups v1 the runs' groups are
beside the agent's processes, in its own group; v2 wants processes in the leaves of the tree only, so there the agent
moves itself into a group `agent` first, if it is alone in its own.

What a group then does for a run is in `run_group`, which the run's supervisor uses.
"""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from agent.executors.base import Limits, Unusable
from agent.executors.processes import start_ticks
from agent.executors.sandbox import run_group

SETTING: Final = "RAP_SANDBOX_CGROUPS"
AUTO: Final = "auto"
"""Groups where they can be had."""
OFF: Final = "off"

LEAF: Final = "agent"
"""The group (v2) into which the agent moves itself; `DelegateSubgroup=agent` of systemd does it beforehand."""
CONTROLLERS: Final = ("memory", "pids", "cpu")
"""Without the first there are no groups at all."""
PERIOD_MICROSECONDS: Final = 100_000
LEAST_QUOTA_MICROSECONDS: Final = 1000
"""The kernel takes no less."""
TRIAL_SECONDS: Final = 30.0
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


@frozen(kw_only=True)
class Cgroups:
    """Where runs get their groups."""

    version: int
    parents: Mapping[str, Path]
    """The group of each controller in which the groups of runs are made. With v2 they are all the same."""
    own: Path | None = None
    """The agent's own group (v2 only)."""

    def __str__(self) -> str:
        controllers = ", ".join(name for name in CONTROLLERS if name in self.parents)
        return f"cgroups v{self.version} ({controllers})"

    def plan(self, limits: Limits, processes: int) -> dict[str, Any]:
        """What a supervisor has to make, in the types that `marshal` takes.

        :param processes: how many processes and threads there may be.
        """
        quota = max(LEAST_QUOTA_MICROSECONDS, round(limits.cpu_count * PERIOD_MICROSECONDS))
        memory = str(limits.memory_bytes)
        wanted = [
            ("memory", "memory.limit_in_bytes", memory, True),
            # Memory and swap together, so no swap; absent where the kernel does not count it.
            ("memory", "memory.memsw.limit_in_bytes", memory, False),
            ("pids", "pids.max", str(processes), True),
            ("cpu", "cpu.cfs_period_us", str(PERIOD_MICROSECONDS), False),
            ("cpu", "cpu.cfs_quota_us", str(quota), False),
        ]
        if self.version == 2:
            wanted = [
                ("memory", "memory.max", memory, True),
                ("memory", "memory.swap.max", "0", False),
                ("memory", "memory.oom.group", "1", False),
                ("pids", "pids.max", str(processes), True),
                ("cpu", "cpu.max", f"{quota} {PERIOD_MICROSECONDS}", False),
            ]
        return {
            "version": self.version,
            "parents": {controller: str(parent) for controller, parent in self.parents.items()},
            "limits": [each for each in wanted if each[0] in self.parents],
        }

    def hurry(self) -> None:
        """Let the kernel prepare for a process that changes its group, which else takes it up to 20 ms (blocking).

        Only v2 needs it; meanwhile the process that will do so can start. To go where one is changes nothing.
        """
        if self.own is not None:
            with contextlib.suppress(OSError):
                (self.own / "cgroup.procs").write_text(str(os.getpid()))

    def sweep(self) -> list[str]:
        """Remove the groups of runs whose supervisors are no more (blocking); their names."""
        swept = []
        for parent in sorted(set(self.parents.values())):
            for entry in parent.iterdir():
                if run_group.is_ours(entry.name) and not run_group.is_needed(entry.name):
                    run_group.end([str(entry)])
                    swept.append(entry.name)
        return sorted(set(swept))


@frozen
class _Hierarchy:
    """A mounted tree of groups."""

    version: int
    top: Path
    """Where it is mounted."""
    root: str
    """Which of its groups is to be seen there."""
    controllers: frozenset[str]

    def locate(self, group: str) -> Path:
        """The directory of a group as /proc/<pid>/cgroup names it.

        :raises Unusable: it is not to be seen.
        """
        inside = self.root.rstrip("/")
        if inside and (group == inside or group.startswith(inside + "/")):
            group = group[len(inside) :]
        found = self.top / group.strip("/")
        if ".." in group.split("/") or not found.is_dir():
            raise Unusable(f"the control group {group} is not to be seen below {self.top}")
        return found


def parse(raw: str) -> str:
    """The value of the setting.

    :raises ValueError: it is none.
    """
    value = raw.strip()
    if value.lower() in {AUTO, OFF}:
        return value.lower()
    if not value.startswith("/") or ".." in value.split("/"):
        raise ValueError(f"is neither {AUTO} nor {OFF} nor the name of a control group, such as /rap")
    return value


def find(setting: str, proc: Path = Path("/proc/self")) -> Cgroups:
    """Find the groups, and try them with a real process (blocking).

    :param setting: `auto` for the agent's own group, or the name of another as /proc/<pid>/cgroup has it.
    :raises Unusable: why there can be none.
    """
    group = None if setting == AUTO else setting
    try:
        trees = _hierarchies((proc / "mountinfo").read_text())
        mine = _memberships((proc / "cgroup").read_text())
        found = _find_v1(trees, mine, group) or _find_v2(trees, mine, group)
        if found is None:
            raise Unusable("no cgroup file system with a memory controller is mounted")
        _try(found)
    except OSError as error:
        where = "" if error.filename is None else f": {error.filename}"
        raise Unusable(f"control groups cannot be made: {error.strerror or error}{where}") from error
    return found


def _find_v1(trees: Iterable[_Hierarchy], mine: Mapping[str, str], group: str | None) -> Cgroups | None:
    by_controller = {name: tree for tree in trees if tree.version == 1 for name in tree.controllers}
    if "memory" not in by_controller:
        return None
    parents = {}
    for controller in (*CONTROLLERS, "cpuacct"):
        if (tree := by_controller.get(controller)) is not None:
            parents[controller] = tree.locate(mine.get(controller, "/")) if group is None else _made(tree, group)
    return Cgroups(version=1, parents=parents)


def _find_v2(trees: Iterable[_Hierarchy], mine: Mapping[str, str], group: str | None) -> Cgroups | None:
    tree = next((tree for tree in trees if tree.version == 2), None)
    if tree is None:
        return None
    own = tree.locate(mine.get("", "/"))
    # After an agent that has moved itself, and with DelegateSubgroup, the part that is ours begins one above.
    beginning = own.parent if own.name == LEAF else own
    parent = beginning if group is None else _made(tree, group)
    offered = (parent / "cgroup.controllers").read_text().split()
    if "memory" not in offered:
        raise Unusable(f"the memory controller is not there for {parent} (it has: {' '.join(offered) or 'none'})")
    wanted = [name for name in CONTROLLERS if name in offered]
    missing = set(wanted) - set((parent / "cgroup.subtree_control").read_text().split())
    if missing:
        if _must_leave(parent, own):
            leaf = parent / LEAF
            leaf.mkdir(exist_ok=True)
            (leaf / "cgroup.procs").write_text(str(os.getpid()))
            own = leaf
        (parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(missing)))
    return Cgroups(version=2, parents=dict.fromkeys(wanted, parent), own=own)


def _must_leave(parent: Path, own: Path) -> bool:
    """Whether this process is in the group that shall hold others.

    :raises Unusable: others are, who are not ours to move.
    """
    if not (parent / "cgroup.type").exists():
        return False  # the root of the whole tree, for which there is no such rule
    others = set((parent / "cgroup.procs").read_text().split()) - {str(os.getpid())}
    if others:
        raise Unusable(f"{parent} has processes beside the agent: give the agent a group of its own (Delegate=yes)")
    return parent == own


def _made(tree: _Hierarchy, group: str) -> Path:
    """A group that an operator chose, made if it is not there."""
    place = tree.top / group.strip("/")
    place.mkdir(parents=True, exist_ok=True)
    return place


def _try(found: Cgroups) -> None:
    """Make a group with limits, and let a process go into it.

    :raises OSError: the first that failed.
    :raises Unusable: the process could not go.
    """
    plan = found.plan(Limits(cpu_count=1, memory_bytes=1 << 28), processes=64)
    me = os.getpid()
    name = f"{run_group.name_for(me, start_ticks(me))}.{time.monotonic_ns()}"
    paths = {controller: parent / name for controller, parent in found.parents.items()}
    places = sorted(set(paths.values()))
    try:
        for place in places:
            place.mkdir()
        for controller, file, value, needed in plan["limits"]:
            with contextlib.nullcontext() if needed else contextlib.suppress(OSError):
                (paths[controller] / file).write_text(value)
        file = "tasks" if found.version == 1 else "cgroup.procs"
        script = "".join(f'echo 0 >"${number}" || exit 1; ' for number in range(1, len(places) + 1))
        done = subprocess.run(
            ["/bin/sh", "-c", script, "sh", *(str(place / file) for place in places)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=TRIAL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise Unusable(f"a process does not come into a control group within {TRIAL_SECONDS:g} s") from None
    finally:
        run_group.end([str(place) for place in places])
    if done.returncode != 0:
        raise Unusable(f"a process cannot go into a control group: {done.stderr.decode(errors='replace').strip()}")


def _hierarchies(mountinfo: str) -> list[_Hierarchy]:
    """The mounted trees (the file is described in proc(5))."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind not in {"cgroup", "cgroup2"}:
            continue
        root, top = (_ESCAPED.sub(lambda code: chr(int(code[1], 8)), part) for part in before.split(" ")[3:5])
        controllers = frozenset(options.split(",") if kind == "cgroup" else ())
        found.append(_Hierarchy(1 if kind == "cgroup" else 2, Path(top), root, controllers))
    return found


def _memberships(cgroup: str) -> dict[str, str]:
    """The group of this process for each controller of v1; `` is the one of v2."""
    found = {}
    for line in cgroup.splitlines():
        _, controllers, group = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = group
    return found
