"""Control groups of runs: the kernel keeps the limits, and nothing of a group is left behind."""

import asyncio
import os
import resource
import shutil
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
from structlog.testing import capture_logs

from agent.executors.base import ExecutorError, Limits, Phase, Run, Unusable
from agent.executors.sandbox import cgroups, run_group
from agent.executors.sandbox.cgroups import Cgroups
from agent.executors.sandbox.executor import SandboxExecutor
from agent.executors.sandbox.notes import Notes
from tests.agent.executors.executor_contract import MIB, Maker, ended, output, pipe_from, pipe_to
from tests.agent.executors.process_contract import DAEMON, READY_THEN_GO
from tests.agent.executors.test_executors_sandbox import IMAGES, Bare, SandboxContract, Sandboxed

pytestmark = pytest.mark.slow  # real processes

NEVER = 1000.0
"""Seconds between two looks of a supervisor that shall not look: what happens is the kernel's doing."""


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cgroups]:
    """What every executor of the test finds: a part of this process's own groups, where nothing may be left."""
    try:
        found = cgroups.find(cgroups.AUTO)
    except Unusable as reason:
        pytest.skip(f"this machine lets us have no control groups: {reason}")
    name = f"test-{uuid.uuid4().hex}"
    own = attrs.evolve(found, parents={controller: parent / name for controller, parent in found.parents.items()})
    for place in set(own.parents.values()):
        place.mkdir()
        if own.version == 2:
            (place / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in own.parents))
    monkeypatch.setattr(cgroups, "find", lambda _: own)
    yield own
    for place in set(own.parents.values()):
        place.rmdir()


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path, "python:v2", [])


@asynccontextmanager
async def checked(executor: SandboxExecutor, maker: Maker) -> AsyncIterator[SandboxExecutor]:
    """The executor, ready; in the end nothing of any run is left."""
    await executor.check()
    try:
        yield executor
    finally:
        for run in maker.made:
            await executor.cleanup(run)


@pytest.fixture
async def executor(maker: Maker, groups: Cgroups) -> AsyncIterator[SandboxExecutor]:
    async with checked(SandboxExecutor(IMAGES, sample_seconds=NEVER), maker) as executor:
        assert str(groups) in executor.describe()
        yield executor


def left_in(groups: Cgroups) -> list[str]:
    return [entry.name for parent in groups.parents.values() for entry in parent.iterdir() if entry.is_dir()]


def directories(run: Run) -> list[Path]:
    return [Path(line) for line in (run.state_dir / run_group.NOTE).read_text().splitlines()]


def setting(run: Run, *names: str) -> str:
    """What one of the files in a run's groups says, whichever version has it."""
    [found] = [place / name for place in directories(run) for name in names if (place / name).exists()]
    return found.read_text().strip()


async def test_limits_are_the_kernels(executor: SandboxExecutor, maker: Maker) -> None:
    run = maker("python", "-c", READY_THEN_GO, memory=256 * MIB, cpu_count=1.5)
    async with pipe_from(run.volume / "ready") as ready, pipe_to(run.volume / "go") as go:
        await executor.execute(run)
        assert await ready()
        places = directories(run)
        assert setting(run, "memory.max", "memory.limit_in_bytes") == str(256 * MIB)
        assert setting(run, "pids.max") == "1024"
        assert setting(run, "cpu.max", "cpu.cfs_quota_us").split()[0] == "150000"
        started = await asyncio.to_thread(Notes(run.state_dir).started)
        assert started is not None
        inside = {int(pid) for place in places for pid in (place / "cgroup.procs").read_text().split()}
        assert started.job in inside
        assert started.supervisor not in inside
        go()
        await ended(executor, run)
    assert not any(place.exists() for place in places)
    assert not (run.state_dir / run_group.NOTE).exists()


async def test_no_other_limit_on_memory(executor: SandboxExecutor, maker: Maker) -> None:
    run = maker("python", "-c", "import mmap, resource; mmap.mmap(-1, 1 << 33); "
                "print(resource.getrlimit(resource.RLIMIT_DATA))", memory=256 * MIB)  # fmt: skip
    await executor.execute(run)
    assert (await ended(executor, run)).code == 0
    assert await output(executor, run) == f"{(resource.RLIM_INFINITY,) * 2}\n"


async def test_memory_of_one_process(executor: SandboxExecutor, maker: Maker) -> None:
    run = maker("python", "-c", f"bytearray({600 * MIB}); print('had it')", memory=200 * MIB)
    await executor.execute(run)
    exit = await ended(executor, run)
    assert (exit.code, exit.oom_killed) == (137, True)
    assert 190 <= exit.metrics["mem_mb_peak"] < 230
    assert await output(executor, run) == ""


async def test_memory_of_many_processes(executor: SandboxExecutor, maker: Maker) -> None:
    code = f"""
import os, time
ready, go = os.pipe()
for _ in range(4):
    if os.fork() == 0:
        held = bytearray(os.urandom(1) * {60 * MIB})
        os.read(ready, 1)
os.wait()
"""
    run = maker("python", "-c", code, memory=150 * MIB)
    await executor.execute(run)
    exit = await ended(executor, run)
    assert (exit.code, exit.oom_killed) == (137, True)


async def test_files_in_memory_are_memory(executor: SandboxExecutor, maker: Maker) -> None:
    code = f"""
for path in ("/tmp/file", "/dev/shm/file"):
    with open(path, "wb") as file:
        for _ in range(80):
            file.write(b"x" * {MIB})
"""
    within = maker("python", "-c", code, memory=250 * MIB)
    beyond = maker("python", "-c", code, memory=120 * MIB)
    for run in (within, beyond):
        await executor.execute(run)
    assert (await ended(executor, within)).code == 0
    exit = await ended(executor, beyond)
    assert (exit.code, exit.oom_killed) == (137, True)


async def test_a_full_tmp_is_the_jobs_to_handle(executor: SandboxExecutor, maker: Maker) -> None:
    run = maker("python", "-c", f"open('/tmp/file', 'wb').truncate({300 * MIB}); import os; "
                f"os.posix_fallocate(os.open('/tmp/file', os.O_RDWR), 0, {300 * MIB})", memory=200 * MIB)  # fmt: skip
    await executor.execute(run)
    exit = await ended(executor, run)
    assert exit.code == 1
    assert "No space left on device" in await output(executor, run)


async def test_processes_are_bounded(executor: SandboxExecutor, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.executors.sandbox.spec.PROCESSES", 40)
    code = """
import os, signal, threading
born, refused = [], 0
for _ in range(100):
    try:
        if (child := os.fork()) == 0:
            signal.pause()
        born.append(child)
    except BlockingIOError:
        refused += 1
try:
    threading.Thread(target=print).start()
except RuntimeError:
    print(30 < len(born) < 40, refused > 60)
"""
    run = maker("python", "-c", code)
    await executor.execute(run)
    assert (await ended(executor, run)).code == 0
    assert await output(executor, run) == "True True\n"


async def test_a_fork_bomb_is_contained(executor: SandboxExecutor, maker: Maker, groups: Cgroups) -> None:
    run = maker("python", "-c", DAEMON + "while True:\n    try: os.fork()\n    except OSError: pass")
    async with pipe_from(run.volume / "alive") as alive:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("agent.executors.sandbox.spec.PROCESSES", 60)
            await executor.execute(run)
        assert await alive() == b"x"
        places = directories(run)
        while len((places[0] / "cgroup.procs").read_text().split()) < 50:
            assert (await executor.status(run)).phase is Phase.RUNNING
        await executor.terminate(run)
        assert await alive() == b""
    assert (await ended(executor, run)).terminated
    assert not any(place.exists() for place in places)


async def test_samples_count_the_group(maker: Maker, groups: Cgroups) -> None:
    code = f"open('/tmp/file', 'wb').write(bytes({50 * MIB})); held = bytearray({50 * MIB}); {READY_THEN_GO}"
    run = maker("python", "-c", code, memory=400 * MIB)
    looking = checked(SandboxExecutor(IMAGES, sample_seconds=0.05), maker)
    async with looking as executor, pipe_from(run.volume / "ready") as ready, pipe_to(run.volume / "go") as go:
        await executor.execute(run)
        assert await ready()
        while (await executor.sample(run)).get("mem_mb_peak", 0) < 100:
            assert (await executor.status(run)).phase is Phase.RUNNING
        go()
        exit = await ended(executor, run)
    assert 100 <= exit.metrics["mem_mb_peak"] < 180
    assert exit.metrics["cpu_mean"] > 0


async def test_the_group_of_a_killed_supervisor_goes(executor: SandboxExecutor, maker: Maker, groups: Cgroups) -> None:
    run = maker("python", "-c", "import signal; signal.pause()")
    await executor.execute(run)
    places = directories(run)
    await kill_supervisor(run)
    assert all(place.exists() for place in places)
    exit = (await executor.status(run)).exit
    assert exit is not None
    assert exit.lost
    assert not any(place.exists() for place in places)


async def test_the_group_of_a_forgotten_run_goes_at_the_next_start(
    executor: SandboxExecutor, maker: Maker, groups: Cgroups
) -> None:
    gone, alive = (maker("python", "-c", "import signal; signal.pause()") for _ in range(2))
    for run in (gone, alive):
        await executor.execute(run)
    places = directories(gone)
    await kill_supervisor(gone)
    shutil.rmtree(gone.state_dir)
    with capture_logs() as logs:
        await SandboxExecutor(IMAGES).check()
    assert [line["group"] for line in logs if line["log_level"] == "warning"] == [places[0].name]
    assert not any(place.exists() for place in places)
    assert all(place.exists() for place in directories(alive))
    assert (await executor.status(alive)).phase is Phase.RUNNING


async def test_orphans_without_any_mark(maker: Maker, groups: Cgroups) -> None:
    bare = SandboxExecutor(IMAGES, allow_unisolated=True, bubblewrap_path=None, sample_seconds=NEVER)
    code = """
import os
alive = os.open("alive", os.O_WRONLY)
if os.fork() == 0:
    os.setsid()
    os.dup2(alive, 1)
    os.execve("/bin/sh", ["sh", "-c", "echo x; kill -STOP $$"], {})
os.wait()
"""
    run = maker("python", "-c", code)
    async with checked(bare, maker) as executor, pipe_from(run.volume / "alive") as alive:
        await executor.execute(run)
        assert await alive() == b"x\n"
        await kill_supervisor(run)
        assert (await executor.status(run)).phase is Phase.EXITED
        assert await alive() == b""


async def test_no_group_no_job(executor: SandboxExecutor, maker: Maker, groups: Cgroups, tmp_path: Path) -> None:
    nowhere = attrs.evolve(groups, parents=dict.fromkeys(groups.parents, tmp_path / "nowhere"))
    run = maker("python", "-c", "open('ran', 'w')")
    executor._groups = nowhere
    with pytest.raises(ExecutorError, match=r"cannot start a job: FileNotFoundError.*nowhere") as caught:
        await executor.execute(run)
    assert not caught.value.fatal
    assert (await executor.status(run)).phase is Phase.ABSENT
    executor._groups = groups
    await executor.execute(run)
    assert (await ended(executor, run)).code == 0


async def test_a_limit_that_cannot_be_set_leaves_no_group(
    executor: SandboxExecutor, maker: Maker, groups: Cgroups
) -> None:
    run = maker("python", "-c", "pass")
    odd = attrs.evolve(run, limits=Limits(cpu_count=1, memory_bytes=-5))
    with pytest.raises(ExecutorError, match="cannot start a job"):
        await executor.execute(odd)
    assert left_in(groups) == []


async def test_a_chosen_group(maker: Maker) -> None:
    parents: set[Path] = set()
    try:
        async with checked(SandboxExecutor(IMAGES, groups=f"/rap-test-{os.getpid()}"), maker) as executor:
            assert executor._groups is not None
            parents = set(executor._groups.parents.values())
            run = maker("python", "-c", READY_THEN_GO)
            async with pipe_from(run.volume / "ready") as ready, pipe_to(run.volume / "go") as go:
                await executor.execute(run)
                assert await ready()
                assert {place.parent for place in directories(run)} == parents
                go()
                await ended(executor, run)
    finally:
        for parent in parents:
            parent.rmdir()


async def test_groups_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(setting: str) -> Cgroups:
        raise Unusable("nobody may")

    monkeypatch.setattr(cgroups, "find", refuse)
    executor = SandboxExecutor(IMAGES)
    await executor.check()
    assert executor.describe().endswith("limits: rlimits (nobody may)")
    with pytest.raises(Unusable, match=r"nobody may \(RAP_SANDBOX_CGROUPS is /rap\)"):
        await SandboxExecutor(IMAGES, groups="/rap").check()
    off = SandboxExecutor(IMAGES, groups="off")
    await off.check()
    assert off.describe().endswith("limits: rlimits (RAP_SANDBOX_CGROUPS is off)")


async def test_largest_file(maker: Maker) -> None:
    for groups in (cgroups.AUTO, cgroups.OFF):
        async with checked(SandboxExecutor(IMAGES, groups=groups), maker) as executor:
            code = f"open('small', 'wb').write(bytes({MIB})); open('big', 'wb').write(bytes({3 * MIB}))"
            made = maker("python", "-c", code)
            run = attrs.evolve(made, limits=attrs.evolve(made.limits, disk_bytes=2 * MIB))
            await executor.execute(run)
            assert (await ended(executor, run)).code == 1
            assert "File too large" in await output(executor, run)
            assert (run.volume / "small").stat().st_size == MIB
            assert (run.volume / "big").stat().st_size <= 2 * MIB


class TestWithoutGroups:
    """What else keeps the limits, in a sandbox. (Without a sandbox, the whole contract runs without groups.)"""

    executor = SandboxContract.executor
    maker = SandboxContract.maker
    seen = SandboxContract.seen
    test_memory_limit = SandboxContract.test_memory_limit
    test_memory_within_the_limit = SandboxContract.test_memory_within_the_limit
    test_memory_limit_counts_the_whole_tree = SandboxContract.test_memory_limit_counts_the_whole_tree
    test_samples_of_a_running_job = SandboxContract.test_samples_of_a_running_job
    test_cpu_metrics = SandboxContract.test_cpu_metrics
    test_short_runs_have_metrics = SandboxContract.test_short_runs_have_metrics
    test_terminate_reaches_daemons = SandboxContract.test_terminate_reaches_daemons
    test_phases = SandboxContract.test_phases

    @pytest.fixture
    def subject(self) -> Sandboxed:
        class Ungrouped(Sandboxed):
            def make(self) -> SandboxExecutor:
                return SandboxExecutor(IMAGES, groups=cgroups.OFF, sample_seconds=0.05)

        return Ungrouped()


class TestBareWithGroups:
    """Groups without a sandbox."""

    executor = SandboxContract.executor
    maker = SandboxContract.maker
    started = SandboxContract.started
    test_memory_limit = SandboxContract.test_memory_limit
    test_killed_supervisor = SandboxContract.test_killed_supervisor
    test_daemons_end_with_their_job = SandboxContract.test_daemons_end_with_their_job

    @pytest.fixture
    def subject(self, groups: Cgroups) -> Bare:
        class Grouped(Bare):
            def make(self) -> SandboxExecutor:
                return SandboxExecutor(IMAGES, allow_unisolated=True, bubblewrap_path=None, sample_seconds=0.05)

        return Grouped()


async def kill_supervisor(run: Run) -> None:
    """Kill it, and return when it is gone."""
    started = await asyncio.to_thread(Notes(run.state_dir).started)
    assert started is not None
    fd = os.pidfd_open(started.supervisor)
    os.kill(started.supervisor, signal.SIGKILL)
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(fd, over.set)
    await over.wait()
    asyncio.get_running_loop().remove_reader(fd)
    os.close(fd)
