"""What a job may write: how it is measured, and what becomes of a job that wrote too much.

Real jobs that fill a disk are in `tests.agent.executors.hostile_contract`.
"""

import asyncio
import contextlib
import errno
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from agent import disk, job
from agent.disk import Disk, Verdict, Watch, note_start, read_verdict
from agent.executors.base import ExecutorError, Exit, Limits, Run
from agent.outputs import sizes
from agent.outputs.sizes import measure
from agent.outputs.workspaces import Stopped
from tests.agent.hand_clock import HandClock
from tests.agent.scripted import ScriptedExecutor
from tests.agent.stage import Stage, stand
from tests.agent.test_loop import T1, until_forgotten

MIB = 1 << 20
LIMIT = 4 * MIB
MESSAGE = "Job used more disk space than its limit (limit was 0.00GB)"


def write(path: Path, size: int = MIB) -> Path:
    """A file that takes up some disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return path


def test_measuring_counts_blocks_and_nothing_twice(tmp_path: Path) -> None:
    volume, other = tmp_path / "volume", tmp_path / "other"
    write(other / "large", 8 * MIB)
    first = write(volume / "deep" / "er" / "file")
    os.link(first, volume / "again")
    with (volume / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    (volume / "out").symlink_to(other)
    (volume / "out_file").symlink_to(other / "large")
    os.mkfifo(volume / "pipe")
    (volume / "loop").symlink_to(volume)
    assert MIB <= measure(volume) < 1.2 * MIB
    assert measure(tmp_path / "nowhere") == 0


def test_measuring_ends_where_it_knows_enough(tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / str(number) / "file")
    assert 2 * MIB < measure(tmp_path, 2 * MIB) < 4 * MIB
    stop = threading.Event()
    stop.set()
    assert measure(tmp_path, stop=stop) < MIB


def test_shut_folders_are_no_place_to_hide(tmp_path: Path) -> None:
    hidden = tmp_path / "shut"
    write(hidden / "inner" / "file", 3 * MIB)
    (hidden / "inner").chmod(0)
    hidden.chmod(0)
    assert measure(tmp_path) > 3 * MIB


@pytest.mark.skipif(os.geteuid() != 0, reason="root enters every folder anyway: a child gives that up")
def test_shut_folders_of_an_ordinary_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    volume = tmp_path / "volume"
    write(volume / "shut" / "file", 3 * MIB)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        for path in (volume, volume / "shut", volume / "shut" / "file"):
            os.chown(path, 12345, 12345)
        (volume / "shut").chmod(0)
        home = os.open(volume, os.O_RDONLY)
        os.fchdir(home)  # the folders above are root's alone
        os.setresuid(12345, 12345, 12345)
        os.write(writer, str(measure(Path("."))).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as said:
        assert int(said.read() or 0) > 3 * MIB
    os.waitpid(child, 0)


def test_a_tree_without_end_is_no_place_to_hide(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("n" * 250, dir_fd=here)
        inner = os.open("n" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    assert measure(tmp_path, LIMIT) > LIMIT


def test_a_link_that_takes_a_folders_place_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, other = tmp_path / "volume", tmp_path / "other"
    write(other / "inner" / "large", 8 * MIB)
    write(volume / "folder" / "inner" / "file")
    original = sizes._add_up

    def swap(fd: int, here: Any, *rest: Any) -> int:
        found = original(fd, here, *rest)
        if here.path.endswith("folder"):
            os.rename(volume / "folder", volume / "moved")
            (volume / "folder").symlink_to(other)
        return found

    monkeypatch.setattr(sizes, "_add_up", swap)
    assert measure(volume) < 2 * MIB


class Spilling(ScriptedExecutor):
    """Its engine has a layer for what jobs write elsewhere."""

    layer: int | None = 0

    async def layer_bytes(self, run: Run) -> int:
        if self.layer is None:
            raise ExecutorError("engine away", fatal=False)
        return self.layer


def a_run(folder: Path, name: str = "one", limit: int | None = LIMIT) -> Run:
    volume = folder / "volumes" / name
    volume.mkdir(parents=True)
    return Run(
        task_id=name, job_id=name, workspace="w", action="a", image="i", image_sha=None, args=(), env={}, volume=volume,
        state_dir=folder / "state" / name, limits=Limits(cpu_count=1, memory_bytes=MIB, disk_bytes=limit),
    )  # fmt: skip


def a_watch(folder: Path, executor: ScriptedExecutor, run: Run, shared: Disk | None = None) -> Watch:
    notes = folder / "notes" / run.task_id
    shared = shared or Disk(folder, 0)
    return Watch(shared, executor, HandClock(), run, notes, interval=10)


async def test_what_was_there_at_the_start_is_not_counted_and_log_and_layer_are(tmp_path: Path) -> None:
    executor, run = Spilling(), a_run(tmp_path)
    watch = a_watch(tmp_path, executor, run)
    await asyncio.to_thread(write, run.volume / "input", 6 * MIB)
    await asyncio.to_thread(note_start, run.volume, tmp_path / "notes" / "one", threading.Event())
    assert await watch.written() == 0
    await asyncio.to_thread(write, run.volume / "output")
    await asyncio.to_thread(write, run.state_dir / "log")
    executor.layer = MIB
    assert 3 * MIB <= await watch.written() < 3.2 * MIB
    executor.layer = None
    assert 2 * MIB <= await watch.written() < 2.2 * MIB
    (run.volume / "input").unlink()
    assert await watch.written() == 0, "room that a job makes is its own"


async def test_a_look_at_the_start_that_is_broken_off_is_no_look(tmp_path: Path) -> None:
    """Noted, what it had not seen of the inputs would count as written by the job."""
    run, notes, stop = a_run(tmp_path), tmp_path / "notes" / "one", threading.Event()
    await asyncio.to_thread(write, run.volume / "input", 6 * MIB)
    stop.set()
    with pytest.raises(Stopped):
        await asyncio.to_thread(note_start, run.volume, notes, stop)
    assert await a_watch(tmp_path, ScriptedExecutor(), run).written() == 0


async def test_a_job_prepared_by_an_agent_that_did_not_look(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    await asyncio.to_thread(write, run.volume / "input", 6 * MIB)
    assert await a_watch(tmp_path, ScriptedExecutor(), run).written() == 0


@pytest.mark.parametrize(
    ("exit", "filled"),
    [
        ({"code": 0}, False),
        ({"code": 1}, True),
        ({"code": 137, "timed_out": True}, False),
        ({"code": 137, "oom_killed": True}, False),
        ({"code": 137, "terminated": True}, False),
        ({"code": 153}, True),
    ],
)
async def test_why_a_run_ended_badly(tmp_path: Path, exit: dict[str, Any], filled: bool) -> None:
    run = a_run(tmp_path)
    await asyncio.to_thread(note_start, run.volume, tmp_path / "notes" / "one", threading.Event())
    await asyncio.to_thread(write, run.volume / "output", LIMIT)
    watch = a_watch(tmp_path, ScriptedExecutor(), run)
    ended = Exit(started_at_ns=1, finished_at_ns=2, **exit)
    assert await watch.filled(ended) is filled
    without = a_watch(tmp_path, ScriptedExecutor(), evolve(run, limits=evolve(run.limits, disk_bytes=None)))
    assert not await without.filled(ended)


def fills(size: int) -> Callable[[Run], None]:
    """A script for the executor: write, and run on."""

    def script(run: Run) -> None:
        write(run.volume / "output" / "large.csv", size)

    return script


async def test_a_job_over_its_limit_fails_with_that_message_and_keeps_its_outputs(tmp_path: Path) -> None:
    async with stand(tmp_path, sample_interval=77, job_disk_limit=LIMIT) as stage:
        stage.executor.script = fills(5 * MIB)
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await until_forgotten(stage, T1)
        results = stage.controller.final(T1)["results"]
        assert results["status_message"] == MESSAGE
        assert results["exit_code"] == "137"
        assert not results["error"]
        assert (tmp_path / "high/workspaces/ws/output/large.csv").exists()
        assert not (tmp_path / f"high/volumes/{T1}").exists()


async def test_a_job_below_its_limit_runs_on_until_a_later_look(tmp_path: Path) -> None:
    async with stand(tmp_path, sample_interval=77, job_disk_limit=LIMIT) as stage:
        stage.executor.script = fills(3 * MIB)
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            async with asyncio.timeout(10):
                await stage.clock.until_sleeper(77)
            assert stage.executor.processes[T1].exit is None
            await asyncio.to_thread(write, stage.executor.processes[T1].run.volume / "more", 2 * MIB)
            stage.clock.advance(77)
            await until_forgotten(stage, T1)
        assert stage.controller.final(T1)["results"]["status_message"] == MESSAGE


async def test_the_verdict_outlives_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between noting it and ending the job: the next agent does the rest, and says why."""
    asked = asyncio.Event()

    async def hang(self: ScriptedExecutor, run: Run) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with stand(tmp_path, sample_interval=77, job_disk_limit=LIMIT) as stage:
        stage.executor.script = fills(5 * MIB)
        with monkeypatch.context() as patch:
            patch.setattr(ScriptedExecutor, "terminate", hang)
            async with stage.agent():
                await stage.controller.offer(stage.run_task())
                async with asyncio.timeout(10):
                    await asked.wait()
        assert stage.executor.processes[T1].exit is None
        # The job removes its traces; condemned it stays.
        (stage.executor.processes[T1].run.volume / "output" / "large.csv").unlink()
        async with stage.agent():
            await until_forgotten(stage, T1)
        assert stage.executor.starts == [T1]
        assert stage.controller.final(T1)["results"]["status_message"] == MESSAGE


async def test_without_a_limit_nobody_is_ended(tmp_path: Path) -> None:
    async with stand(tmp_path, sample_interval=77) as stage:
        stage.executor.script = fills(5 * MIB)
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            async with asyncio.timeout(10):
                await stage.clock.until_sleeper(77)
            stage.executor.finish(T1, 0)
            await until_forgotten(stage, T1)
        assert stage.controller.final(T1)["results"]["exit_code"] == "0"


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how much is free on every disk."""

    def says(size: int) -> None:
        monkeypatch.setattr(disk, "_free", lambda folder: size)

    says(1 << 40)
    return says


@contextlib.asynccontextmanager
async def cranking(stage: Stage) -> AsyncIterator[None]:
    """Let the agent's intervals pass as if in no time."""
    task = asyncio.create_task(stage.clock.crank(77))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def stand_on_a_disk(folder: Path, **changes: Any) -> AsyncIterator[Stage]:
    async with stand(folder, sample_interval=77, disk_reserve=10 * MIB, **changes) as stage:
        yield stage


async def test_no_job_is_taken_while_the_disk_is_nearly_full(tmp_path: Path, free: Callable[[int], None]) -> None:
    async with stand_on_a_disk(tmp_path) as stage:
        free(9 * MIB)
        async with stage.agent(poll_seconds=0.05), cranking(stage):
            await stage.controller.until(lambda: len(stage.controller.claims) > 2)
            assert {claim["slots"] for claim in stage.controller.claims} == {0}
            told = [line for line in stage.logged if line.get("setting") == "RAP_DISK_RESERVE"]
            assert len(told) == 1
            assert told[0]["free_bytes"] == 9 * MIB
            free(11 * MIB)
            await stage.controller.until(lambda: stage.controller.claims[-1]["slots"] == 2)


@pytest.mark.parametrize(
    ("names", "free_names", "room"), [(65_000_000, 60_000_000, True), (65_000_000, 999, False), (0, 0, True)]
)
async def test_empty_files_fill_a_disk_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: int, free_names: int, room: bool
) -> None:
    blocks = (4096, 4096, 1 << 30, 1 << 29, 1 << 29)
    monkeypatch.setattr(
        os, "statvfs", lambda folder: os.statvfs_result((*blocks, names, free_names, free_names, 0, 255))
    )
    assert await Disk(tmp_path, 10 * MIB).has_room() is room


async def test_a_storage_that_hangs_does_not_hold_up_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Semaphore(0)
    go = threading.Event()

    def hang(folder: Path) -> int:
        asked.release()
        go.wait(10)
        return 1 << 40

    monkeypatch.setattr(disk, "_free", hang)
    monkeypatch.setattr(disk, "_ANSWER_SECONDS", 0.01)
    shared = Disk(tmp_path, MIB)
    assert await shared.has_room()
    assert await shared.has_room()
    go.set()
    assert await shared.has_room()
    assert asked.acquire(blocking=False)
    assert not asked.acquire(blocking=False), "one question at a time"


async def test_when_the_disk_runs_out_the_job_that_wrote_most_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"jobone": 2 * MIB, "jobtwo": 5 * MIB}
    async with stand_on_a_disk(tmp_path) as stage:
        stage.executor.script = lambda run: fills(sizes[run.job_id])(run)
        async with stage.agent():
            for name in sizes:
                await stage.controller.offer(stage.run_task(name, action=name))
            shared = stage.loops[0]._tools.disk
            # Full as long as both are under way: what the one that has to go had is then free again.
            monkeypatch.setattr(disk, "_free", lambda folder: 9 * MIB if len(shared._watches) == 2 else 1 << 40)
            async with cranking(stage):
                await stage.controller.until(lambda: "jobtwo-001" in stage.controller.complete)
            assert stage.executor.processes[T1].exit is None
            stage.executor.finish(T1, 0)
            await until_forgotten(stage, T1)
        final = stage.controller.final("jobtwo-001")
        assert final["stage"] == "error"
        assert final["results"]["error"]["exception"] == "DiskFull"
        assert final["results"]["error"]["fatal"] is False
        assert "RAP_DISK_RESERVE" in final["results"]["error"]["message"]
        assert stage.controller.final(T1)["results"]["exit_code"] == "0"


async def test_who_wrote_next_to_nothing_is_not_ended(tmp_path: Path, free: Callable[[int], None]) -> None:
    shared = Disk(tmp_path, 100 * MIB)
    executor, run = ScriptedExecutor(lambda run: None), a_run(tmp_path, limit=None)
    watch = a_watch(tmp_path, executor, run, shared)
    notes = tmp_path / "notes" / "one"
    await asyncio.to_thread(note_start, run.volume, notes, threading.Event())
    await executor.execute(run)
    free(0)
    with shared.watched(watch):
        await asyncio.to_thread(write, run.volume / "small")
        await shared.relieve()
        assert await asyncio.to_thread(read_verdict, notes) is None
        await asyncio.to_thread(write, run.volume / "large", 10 * MIB)
        await shared.relieve()
        assert await asyncio.to_thread(read_verdict, notes) is Verdict.RESERVE
        assert executor.processes["one"].exit is not None


async def test_nobody_else_is_ended_until_the_volume_of_the_last_is_gone(
    tmp_path: Path, free: Callable[[int], None]
) -> None:
    shared = Disk(tmp_path, MIB)
    executor = ScriptedExecutor(lambda run: None)
    free(0)
    with contextlib.ExitStack() as stack:
        for name, size in (("one", 3 * MIB), ("two", 2 * MIB)):
            run = a_run(tmp_path, name, limit=None)
            await asyncio.to_thread(note_start, run.volume, tmp_path / "notes" / name, threading.Event())
            await executor.execute(run)
            await asyncio.to_thread(write, run.volume / "large", size)
            stack.enter_context(shared.watched(a_watch(tmp_path, executor, run, shared)))
        for _ in range(2):
            await shared.relieve()
            assert executor.processes["one"].exit is not None
            assert executor.processes["two"].exit is None


async def begin(folder: Path, executor: ScriptedExecutor, name: str, limit: int | None = None) -> Run:
    """A run under way, whose start was noted."""
    run = a_run(folder, name, limit=limit)
    await asyncio.to_thread(note_start, run.volume, folder / "notes" / name, threading.Event())
    await executor.execute(run)
    return run


async def test_a_full_disk_does_not_save_the_job_that_filled_it(
    tmp_path: Path, free: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    executor = ScriptedExecutor(lambda run: None)
    run = await begin(tmp_path, executor, "one")
    shared = Disk(tmp_path, MIB)
    await asyncio.to_thread(write, run.volume / "large", 3 * MIB)
    free(0)
    monkeypatch.setattr(disk, "replacing", no_room)
    with shared.watched(a_watch(tmp_path, executor, run, shared)):
        await shared.relieve()
    assert executor.processes["one"].exit is not None
    assert await asyncio.to_thread(read_verdict, tmp_path / "notes" / "one") is Verdict.RESERVE


async def test_a_job_is_ended_even_if_the_reason_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = ScriptedExecutor(lambda run: None)
    run = await begin(tmp_path, executor, "one")
    await asyncio.to_thread((tmp_path / "notes").rename, tmp_path / "gone")
    await asyncio.to_thread((tmp_path / "notes").touch)
    await a_watch(tmp_path, executor, run).condemn(Verdict.LIMIT)
    assert executor.processes["one"].exit is not None


async def test_a_job_over_its_limit_makes_room_too_and_keeps_its_reason(
    tmp_path: Path, free: Callable[[int], None]
) -> None:
    executor = ScriptedExecutor(lambda run: None)
    shared = Disk(tmp_path, MIB)
    free(0)
    with contextlib.ExitStack() as stack:
        watches = {}
        for name, size in (("one", 5 * MIB), ("two", 3 * MIB)):
            run = await begin(tmp_path, executor, name, limit=LIMIT)
            await asyncio.to_thread(write, run.volume / "large", size)
            watches[name] = stack.enter_context(_watched(shared, a_watch(tmp_path, executor, run, shared)))
        await watches["one"].condemn(Verdict.LIMIT)
        await shared.relieve()
        await watches["one"].condemn(Verdict.RESERVE)
        assert await asyncio.to_thread(read_verdict, tmp_path / "notes" / "one") is Verdict.LIMIT
        assert executor.processes["two"].exit is None


async def test_a_volume_that_cannot_be_removed_makes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a container's user, say: the next one has to go then."""
    sizes = {"jobone": 2 * MIB, "jobtwo": 5 * MIB}

    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(folder))

    async with stand_on_a_disk(tmp_path) as stage:
        stage.executor.script = lambda run: fills(sizes[run.job_id])(run)
        async with stage.agent():
            for name in sizes:
                await stage.controller.offer(stage.run_task(name, action=name))
            shared, both = stage.loops[0]._tools.disk, []

            def free(folder: Path) -> int:
                both.extend([True] if len(shared._watches) == 2 else [])
                return 9 * MIB if both else 1 << 40

            monkeypatch.setattr(disk, "_free", free)
            monkeypatch.setattr(job, "remove_tree", refuse)
            async with cranking(stage):
                await stage.controller.until(lambda: T1 in stage.controller.complete)
        assert stage.controller.final(T1)["results"]["error"]["exception"] == "DiskFull"


@contextlib.contextmanager
def _watched(shared: Disk, watch: Watch) -> Iterator[Watch]:
    with shared.watched(watch):
        yield watch


def test_sockets_in_a_volume_are_nothing_special(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert measure(tmp_path) < MIB
