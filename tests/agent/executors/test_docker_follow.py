"""What a follower does about an engine that is away for long; the engine itself is in test_executors_docker.py."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from aiodocker import DockerError

from agent.executors.base import Exit, Limits, Run
from agent.executors.docker import follower as docker_follow
from agent.executors.docker.engine import Engine, EngineAway
from agent.executors.docker.follower import Follower
from agent.executors.docker.notes import TIMED_OUT, Notes, Usage


class Absent:
    """An engine that answers nothing until it is back; then it does what it is told."""

    def __init__(self, away: int) -> None:
        self.away = away
        """Calls that nobody answers."""
        self.killed = asyncio.Event()

    def container(self, name: str) -> "Absent":
        return self

    async def wait(self, *, condition: str) -> None:
        await self.killed.wait()

    async def inspect(self, name: str) -> None:
        return None

    async def call(self, ask: Callable[[Any], Awaitable[Any]]) -> None:
        self.away -= 1
        if self.away >= 0:
            raise EngineAway("unix:///nowhere", "no answer")
        self.killed.set()

    def stream(self, path: str, params: Any) -> Any:
        raise DockerError(404, "no output")

    async def get_json(self, path: str, params: Any) -> Any:
        raise EngineAway("unix:///nowhere", "no answer")


async def test_a_time_limit_that_passes_while_the_engine_is_away_is_kept_once_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_follow, "FIRST_DELAY", 0.001)
    run = Run(
        task_id="one-001", job_id="one", workspace="w", action="a", image="i", image_sha=None, args=(), env={},
        volume=tmp_path / "volume", state_dir=tmp_path / "notes",
        limits=Limits(cpu_count=1, memory_bytes=1 << 20, seconds=1),
    )  # fmt: skip
    await asyncio.to_thread(Notes(run.state_dir).begin)
    engine = Absent(away=3)

    async def settle(run: Run) -> Exit | None:
        return None

    began = time.time_ns() - 2_000_000_000
    follower = Follower(
        cast(Engine, engine), run, "one", began, log_bytes=1, sample_seconds=1000, settle=settle
    )  # fmt: skip
    async with asyncio.timeout(5):
        await follower.task
    assert engine.killed.is_set()
    assert await asyncio.to_thread(Notes(run.state_dir).marked, TIMED_OUT)


def test_a_disk_that_takes_no_notes_costs_the_note_and_not_the_sampling(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Notes(tmp_path / "file").keep_usage(Usage())
