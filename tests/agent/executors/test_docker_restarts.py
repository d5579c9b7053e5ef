"""Engines that go away while jobs run: with live-restore jobs go on, without it they are lost, never failed."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.executors.base import Executor, Phase
from agent.executors.docker.executor import DockerExecutor
from agent.executors.docker.spec import DockerSettings
from tests.agent.executors import docker_host
from tests.agent.executors.docker_host import PYTHON, Daemon
from tests.agent.executors.executor_contract import Maker, ended, output, pipe_from, pipe_to
from tests.agent.executors.process_contract import READY_THEN_GO

pytestmark = pytest.mark.slow  # engines of their own


@pytest.fixture(scope="module")
def keeping() -> Iterator[Daemon]:
    """An engine that leaves containers alone when it ends."""
    with docker_host.daemon("--live-restore") as engine:
        docker_host.load_images(engine)
        yield engine


@pytest.fixture(scope="module")
def ending() -> Iterator[Daemon]:
    """An engine that takes its containers with it, which is the default."""
    with docker_host.daemon("--shutdown-timeout=1") as engine:
        docker_host.load_images(engine)
        yield engine


def make_executor(engine: Daemon, tmp_path: Path) -> Executor:
    settings = DockerSettings(agent_id=tmp_path.name, host=engine.address, user="0:0", allowed_images=("localhost",))
    return DockerExecutor(settings, sample_seconds=0.2)


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path, PYTHON, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_jobs_go_on_with_live_restore(
    keeping: Daemon, maker: Maker, tmp_path: Path, number: signal.Signals
) -> None:
    executor = make_executor(keeping, tmp_path)
    code = f"print('before', flush=True)\n{READY_THEN_GO}\nprint('after'); raise SystemExit(5)"
    run = maker("python", "-c", code, name=f"live-{number}")
    async with pipe_from(run.volume / "ready") as ready, pipe_to(run.volume / "go") as go:
        await executor.execute(run)
        assert await ready()
        waiter = asyncio.create_task(ended(executor, run))
        await asyncio.to_thread(keeping.stop, number)
        asked = asyncio.create_task(executor.status(run))  # while nobody answers
        await asyncio.to_thread(keeping.start)
        assert (await asked).phase is Phase.RUNNING
        go()
        exit = await waiter
    assert exit.code == 5
    assert exit.lost is None
    assert await output(executor, run) == "before\nafter\n"
    await executor.cleanup(run)
    await executor.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("agent_lives", [True, False])
async def test_jobs_that_an_engine_ended_are_lost(
    ending: Daemon, maker: Maker, tmp_path: Path, number: signal.Signals, agent_lives: bool
) -> None:
    executor = make_executor(ending, tmp_path)
    run = maker("sleep", "1000", name=f"ended-{number}-{agent_lives}")
    await executor.execute(run)
    if not agent_lives:
        await executor.close()
    waiter = asyncio.create_task(ended(executor, run)) if agent_lives else None
    await asyncio.to_thread(ending.stop, number)
    await asyncio.to_thread(ending.start)
    exit = await (waiter or ended(executor, run))
    assert exit.lost == "the container engine was restarted, and ended it"
    assert not exit.terminated
    assert not exit.timed_out
    await executor.cleanup(run)
    await executor.close()


async def test_jobs_that_ended_before_their_engine_are_not_lost(ending: Daemon, maker: Maker, tmp_path: Path) -> None:
    executor = make_executor(ending, tmp_path)
    run = maker("sh", "-c", "echo done; exit 3", name="finished")
    await executor.execute(run)
    await ended(executor, run)
    for note in run.state_dir.iterdir():
        if note.name in {"exit.json", "log"}:
            note.unlink()  # as if no agent had looked
    await asyncio.to_thread(ending.stop)
    await asyncio.to_thread(ending.start)
    exit = await ended(executor, run)
    assert (exit.code, exit.lost) == (3, None)
    assert await output(executor, run) == "done\n"
    await executor.cleanup(run)
    await executor.close()
