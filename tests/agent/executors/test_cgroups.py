"""Where an agent looks for control groups, and what a supervisor reads of one: on trees of plain files.

What the kernel makes of them is in test_sandbox_groups.py.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.executors.base import Limits, Unusable
from agent.executors.processes import start_ticks
from agent.executors.sandbox import cgroups, run_group
from agent.executors.sandbox.cgroups import Cgroups

V1 = """\
30 25 0:26 / {top} rw shared:9 - tmpfs tmpfs rw,mode=755
31 30 0:27 / {top}/cpu,cpuacct rw,relatime shared:10 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 /box {top}/memory rw,relatime shared:11 - cgroup cgroup rw,memory
33 30 0:29 / {top}/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
"""
V2 = "42 25 0:26 / {top} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"


class TestFind:
    """Where groups are looked for, in trees of plain files."""

    @pytest.fixture(autouse=True)
    def tried(self, monkeypatch: pytest.MonkeyPatch) -> list[Cgroups]:
        tried: list[Cgroups] = []
        monkeypatch.setattr(cgroups, "_try", tried.append)
        return tried

    def machine(self, root: Path, mounts: str, memberships: str) -> Path:
        (root / "proc").mkdir()
        (root / "proc" / "mountinfo").write_text(mounts.format(top=root / "cgroup"))
        (root / "proc" / "cgroup").write_text(memberships)
        return root / "proc"

    def group(self, place: Path, *, offers: str = "cpu memory pids", passes: str = "", members: str = "") -> Path:
        place.mkdir(parents=True)
        (place / "cgroup.type").write_text("domain\n")
        (place / "cgroup.controllers").write_text(offers + "\n")
        (place / "cgroup.subtree_control").write_text(passes)
        (place / "cgroup.procs").write_text(members)
        return place

    def test_v1(self, tmp_path: Path, tried: list[Cgroups]) -> None:
        proc = self.machine(tmp_path, V1, "4:cpu,cpuacct:/\n3:memory:/box/agent\n0::/\n")
        (tmp_path / "cgroup/memory/agent").mkdir(parents=True)
        (tmp_path / "cgroup/cpu,cpuacct").mkdir()
        found = cgroups.find("auto", proc)
        assert found.version == 1
        assert {name: str(path.relative_to(tmp_path)) for name, path in found.parents.items()} == {
            "memory": "cgroup/memory/agent",
            "cpu": "cgroup/cpu,cpuacct",
            "cpuacct": "cgroup/cpu,cpuacct",
        }
        assert str(found) == "cgroups v1 (memory, cpu)"
        assert tried == [found]

    def test_v1_out_of_sight(self, tmp_path: Path) -> None:
        proc = self.machine(tmp_path, V1, "3:memory:/elsewhere\n")
        with pytest.raises(Unusable, match="the control group /elsewhere is not to be seen"):
            cgroups.find("auto", proc)

    def test_v2_moves_the_agent_into_a_leaf(self, tmp_path: Path) -> None:
        proc = self.machine(tmp_path, V2, "0::/system.slice/rap.service\n")
        own = self.group(tmp_path / "cgroup/system.slice/rap.service", members=f"{os.getpid()}\n")
        self.group(own / "agent")
        found = cgroups.find("auto", proc)
        assert found == Cgroups(version=2, parents=dict.fromkeys(("memory", "pids", "cpu"), own), own=own / "agent")
        assert (own / "agent/cgroup.procs").read_text() == str(os.getpid())
        assert (own / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
        found.hurry()

    def test_v2_in_a_leaf_already(self, tmp_path: Path) -> None:
        proc = self.machine(tmp_path, V2, "0::/rap.service/agent\n")
        top = self.group(tmp_path / "cgroup/rap.service", offers="memory pids", passes="memory pids")
        self.group(top / "agent", members=f"1\n2\n{os.getpid()}\n")
        found = cgroups.find("auto", proc)
        assert dict(found.parents) == {"memory": top, "pids": top}
        assert str(found) == "cgroups v2 (memory, pids)"

    def test_v2_with_others_in_the_group(self, tmp_path: Path) -> None:
        proc = self.machine(tmp_path, V2, "0::/session.scope\n")
        self.group(tmp_path / "cgroup/session.scope", members=f"1\n{os.getpid()}\n")
        with pytest.raises(Unusable, match=r"processes beside the agent.*Delegate=yes"):
            cgroups.find("auto", proc)

    def test_v2_without_memory(self, tmp_path: Path) -> None:
        proc = self.machine(tmp_path, V2, "0::/x\n")
        self.group(tmp_path / "cgroup/x", offers="pids")
        with pytest.raises(Unusable, match=r"memory controller is not there for .*it has: pids"):
            cgroups.find("auto", proc)

    def test_v2_chosen(self, tmp_path: Path) -> None:
        proc = self.machine(tmp_path, V2, "0::/x\n")
        self.group(tmp_path / "cgroup/x", members="1 2 3")
        chosen = self.group(tmp_path / "cgroup/rap.slice", passes="cpu memory pids")
        found = cgroups.find("/rap.slice", proc)
        assert set(found.parents.values()) == {chosen}

    def test_nothing_is_mounted(self, tmp_path: Path) -> None:
        with pytest.raises(Unusable, match="no cgroup file system"):
            cgroups.find("auto", self.machine(tmp_path, "", "0::/\n"))

    def test_limits_of_v2(self, tmp_path: Path) -> None:
        found = Cgroups(version=2, parents=dict.fromkeys(("memory", "cpu"), tmp_path))
        plan = found.plan(Limits(cpu_count=0.25, memory_bytes=1000), processes=7)
        assert {file: value for _, file, value, _ in plan["limits"]} == {
            "memory.max": "1000",
            "memory.swap.max": "0",
            "memory.oom.group": "1",
            "cpu.max": "25000 100000",
        }

    @pytest.mark.parametrize(("raw", "value"), [("AUTO", "auto"), (" off ", "off"), ("/rap/jobs", "/rap/jobs")])
    def test_setting(self, raw: str, value: str) -> None:
        assert cgroups.parse(raw) == value

    @pytest.mark.parametrize("raw", ["on", "rap", "/../rap"])
    def test_no_setting(self, raw: str) -> None:
        with pytest.raises(ValueError, match="is neither auto nor off nor the name of a control group"):
            cgroups.parse(raw)


def test_a_trial_that_does_not_end_is_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a group that somebody has frozen."""

    def hang(*_: Any, timeout: float, **__: Any) -> None:
        raise subprocess.TimeoutExpired("sh", timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    (tmp_path / "memory").mkdir()
    found = Cgroups(version=1, parents={"pids": tmp_path / "memory"})
    monkeypatch.setattr(Cgroups, "plan", lambda *_, **__: {"limits": []})
    with pytest.raises(Unusable, match="within 30 s"):
        cgroups._try(found)
    assert list((tmp_path / "memory").iterdir()) == []


class TestRunGroup:
    """What a supervisor reads, from plain files."""

    @pytest.fixture
    def group(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run_group.RunGroup:
        monkeypatch.chdir(tmp_path)
        plan = Cgroups(version=2, parents={"memory": tmp_path}).plan(Limits(cpu_count=1, memory_bytes=1), 1)
        return run_group.RunGroup(plan)

    def test_v2(self, group: run_group.RunGroup) -> None:
        [place] = map(Path, group.directories)
        assert (group.usage(), group.ooms(), group.memory_peak()) == (None, 0, 0)
        place.mkdir()
        (place / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
        (place / "memory.stat").write_text("anon 700\nfile 5000\nkernel 9\nshmem 300\n")
        (place / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
        (place / "memory.peak").write_text("4096\n")
        assert group.usage() == (1.5, 1000)
        assert group.ooms() == 2
        assert group.memory_peak() == 4096

    def test_a_group_that_was_never_made_is_removed_without_complaint(self, group: run_group.RunGroup) -> None:
        group.remove()  # the disk was full before there was a note: that is to be told, and nothing else

    def test_names(self) -> None:
        me = run_group.name_for(os.getpid(), start_ticks(os.getpid()))
        assert run_group.is_ours(me)
        assert run_group.is_needed(me)
        assert not run_group.is_needed(run_group.name_for(os.getpid(), 1))
        assert not any(run_group.is_ours(name) for name in ("rap", "rap.slice", "rap.1", "rap.x.y", "docker"))
