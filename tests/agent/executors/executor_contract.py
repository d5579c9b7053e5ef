"""What every executor must do, as a suite that a test module runs by subclassing it.

It asks nothing of the runs but what any executor can be told through a `Subject`; `process_contract` adds what holds
where a run is a real process.

Jobs and tests wait for each other through named pipes in the volume, never by the clock.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest
from attrs import frozen

from agent.executors.base import Executor, ExecutorError, Exit, Limits, Phase, Run

PATIENCE = 60.0
"""Seconds after which a test that hangs fails; nothing is timed by it."""
MIB = 1 << 20


class Subject(Protocol):
    """An executor under test, and how a run is told what to do."""

    image: str

    def make(self) -> Executor:
        """A new executor object, as a restarted agent makes it."""
        ...

    def quick(self, *, log: str = "", code: int = 0, writes: str = "") -> tuple[str, ...]:
        """Arguments of a run that prints, makes a file, and ends."""
        ...

    def hang(self) -> tuple[str, ...]:
        """Arguments of a run that does not end by itself."""
        ...


@frozen
class Maker:
    """Makes runs with directories of their own, and remembers them for the end of the test."""

    root: Path
    image: str
    made: list[Run]

    def __call__(
        self,
        *args: str,
        name: str = "",
        image: str | None = None,
        env: Mapping[str, str] | None = None,
        seconds: float | None = None,
        memory: int = 1024 * MIB,
        cpu_count: float = 1,
        network: bool = False,
    ) -> Run:
        name = name or f"job{len(self.made)}"
        volume = self.root / "volumes" / name
        volume.mkdir(parents=True)
        run = Run(
            task_id=f"{name}-001",
            job_id=name,
            workspace="workspace",
            action="action",
            image=image or self.image,
            image_sha=None,
            args=args,
            env=env or {},
            volume=volume,
            state_dir=self.root / "state" / f"{name}-001",
            limits=Limits(cpu_count=cpu_count, memory_bytes=memory, seconds=seconds),
            network=network,
        )
        self.made.append(run)
        return run


async def ended(executor: Executor, run: Run) -> Exit:
    """How the run ends."""
    return await asyncio.wait_for(executor.wait(run), PATIENCE)


async def output(executor: Executor, run: Run) -> str:
    """All that the run has printed."""
    return (await executor.logs(run, 0, MIB)).decode()


async def printed(executor: Executor, run: Run, text: str) -> None:
    """Return when the run's output is `text`: what a job prints may take a moment on its way through an engine."""
    async with asyncio.timeout(PATIENCE):
        while (so_far := await output(executor, run)) != text:
            assert text.startswith(so_far)
            await asyncio.sleep(0)


@asynccontextmanager
async def pipe_from(path: Path) -> AsyncIterator[Callable[[], "asyncio.Future[bytes]"]]:
    """A new named pipe that a job writes to; yields a function that waits for the next bytes (none: no writer left)."""
    os.mkfifo(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    loop = asyncio.get_running_loop()

    def next_bytes() -> "asyncio.Future[bytes]":
        future: asyncio.Future[bytes] = loop.create_future()

        def readable() -> None:
            loop.remove_reader(fd)
            if not future.done():
                future.set_result(os.read(fd, 4096))

        loop.add_reader(fd, readable)
        loop_timeout = loop.call_later(PATIENCE, future.cancel)
        future.add_done_callback(lambda _: loop_timeout.cancel())
        return future

    try:
        yield next_bytes
    finally:
        loop.remove_reader(fd)
        os.close(fd)


@asynccontextmanager
async def pipe_to(path: Path) -> AsyncIterator[Callable[[], object]]:
    """A new named pipe that a job reads from; yields a function that writes one byte to it."""
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)  # both ends, so that it opens before the job comes
    try:
        yield lambda: os.write(fd, b"!")
    finally:
        os.close(fd)


class Suite:
    """What the tests of an executor work with; subclasses say which executor it is."""

    @pytest.fixture
    def subject(self) -> Subject:
        raise NotImplementedError("the subclass says which executor is tested")

    @pytest.fixture
    async def executor(self, subject: Subject, maker: Maker) -> AsyncIterator[Executor]:
        executor = subject.make()
        await executor.check()
        yield executor
        for run in maker.made:
            await executor.cleanup(run)
            assert not run.state_dir.exists()
        await executor.close()

    @pytest.fixture
    def maker(self, subject: Subject, tmp_path: Path) -> Maker:
        return Maker(tmp_path, subject.image, [])


class ExecutorContract(Suite):
    """What holds for every executor."""

    async def test_phases(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        run = maker(*subject.quick(code=3))
        await executor.prepare(run)
        assert (await executor.status(run)).phase is Phase.ABSENT
        await executor.execute(run)
        exit = await ended(executor, run)
        status = await executor.status(run)
        assert status.phase is Phase.EXITED
        assert status.exit == exit
        assert exit.code == 3
        assert status.started_at_ns == exit.started_at_ns
        assert 0 < exit.started_at_ns <= exit.finished_at_ns
        assert not any((exit.oom_killed, exit.timed_out, exit.terminated))
        await executor.cleanup(run)
        assert (await executor.status(run)).phase is Phase.ABSENT

    async def test_running(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        run = maker(*subject.hang())
        await executor.execute(run)
        status = await executor.status(run)
        assert status.phase is Phase.RUNNING
        assert status.exit is None
        assert status.started_at_ns is not None

    async def test_every_method_may_be_repeated(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        run = maker(*subject.quick(log="once"))
        for _ in range(2):
            await executor.check()
            await executor.prepare(run)
        for _ in range(2):
            await executor.execute(run)
        first = await ended(executor, run)
        await executor.execute(run)
        assert await ended(executor, run) == first
        await executor.terminate(run)
        assert await ended(executor, run) == first
        assert await output(executor, run) == "once\n"
        for _ in range(2):
            await executor.cleanup(run)
        assert run.volume.exists(), "the volume is the agent's"

    async def test_absent(self, executor: Executor, maker: Maker, subject: Subject) -> None:
        run = maker(*subject.quick())
        assert (await executor.status(run)).phase is Phase.ABSENT
        assert await executor.logs(run, 0, 100) == b""
        assert await executor.sample(run) == {}
        await executor.terminate(run)
        await executor.cleanup(run)
        with pytest.raises(ExecutorError, match=run.task_id) as caught:
            await executor.wait(run)
        assert not caught.value.fatal

    async def test_run_again_after_cleanup(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        run = maker(*subject.quick(log="again"))
        for _ in range(2):
            await executor.execute(run)
            assert (await ended(executor, run)).code == 0
            assert await output(executor, run) == "again\n"
            await executor.cleanup(run)

    async def test_logs_by_offset(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        run = maker(*subject.quick(log="0123456789"))
        await executor.execute(run)
        await ended(executor, run)
        assert await executor.logs(run, 0, 4) == b"0123"
        assert await executor.logs(run, 4, 4) == b"4567"
        assert await executor.logs(run, 8, 100) == b"89\n"
        assert await executor.logs(run, 11, 100) == b""
        assert await executor.logs(run, 1000, 100) == b""

    async def test_writes_into_the_volume(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        run = maker(*subject.quick(writes="out.txt"))
        await executor.execute(run)
        await ended(executor, run)
        assert (run.volume / "out.txt").exists()

    async def test_terminate(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        run = maker(*subject.hang())
        await executor.execute(run)
        waiter = asyncio.create_task(ended(executor, run))
        await executor.terminate(run)
        exit = await waiter
        assert exit.terminated
        assert exit.code == 137
        assert not exit.timed_out
        assert (await executor.status(run)).exit == exit
        await executor.terminate(run)
        assert (await executor.status(run)).exit == exit

    async def test_cleanup_ends_a_running_job(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        run = maker(*subject.hang())
        await executor.execute(run)
        await executor.cleanup(run)
        assert (await executor.status(run)).phase is Phase.ABSENT

    async def test_time_limit(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        run = maker(*subject.hang(), seconds=0.01)
        await executor.execute(run)
        exit = await ended(executor, run)
        assert exit.timed_out
        assert not exit.terminated
        assert exit.code == 137

    async def test_another_executor_finds_the_runs(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        done, going = maker(*subject.quick(log="done", code=4)), maker(*subject.hang())
        for run in (done, going):
            await executor.execute(run)
        exit = await ended(executor, done)
        await executor.close()
        restarted = subject.make()
        await restarted.check()
        assert (await restarted.status(done)).exit == exit
        assert await output(restarted, done) == "done\n"
        assert (await restarted.status(going)).phase is Phase.RUNNING
        await restarted.execute(going)
        waiter = asyncio.create_task(ended(restarted, going))
        await restarted.terminate(going)
        assert (await waiter).terminated
        await restarted.close()

    async def test_short_runs_have_metrics(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        run = maker(*subject.quick())
        await executor.execute(run)
        metrics = (await ended(executor, run)).metrics
        assert set(metrics) == {"cpu_mean", "cpu_peak", "mem_mb_mean", "mem_mb_peak"}
        assert all(value >= 0 for value in metrics.values())
        assert await executor.sample(run) == metrics

    async def test_runs_side_by_side(self, subject: Subject, executor: Executor, maker: Maker) -> None:
        runs = [maker(*subject.quick(code=code)) for code in range(4)]
        await asyncio.gather(*(executor.execute(run) for run in runs))
        exits = await asyncio.gather(*(ended(executor, run) for run in runs))
        assert [exit.code for exit in exits] == [0, 1, 2, 3]
