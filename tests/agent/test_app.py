"""The agent as a whole: started, told to stop, and kept from sharing its folder."""

import asyncio
import contextlib
import errno
import tempfile
from pathlib import Path

import pytest
from attrs import evolve

from agent import app
from agent.executors.base import Unusable
from agent.loop import StopMode
from common.clock import SystemClock
from tests.agent.stage import make_settings, stand, write_output
from tests.agent.test_loop import T1


async def test_an_agent_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = write_output
        stop = asyncio.Event()
        agent = asyncio.create_task(app.run(stage.settings, stage.executor, SystemClock(), stop))
        await stage.controller.offer(stage.run_task())
        await stage.controller.until(lambda: T1 in stage.controller.complete)
        stop.set()
        async with asyncio.timeout(10):
            await agent
        assert stage.notes == []


async def test_a_stop_leaves_or_hands_back_as_asked(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        for mode, running in ((StopMode.LEAVE, 1), (StopMode.HAND_BACK, 0)):
            stop, claims = asyncio.Event(), len(stage.controller.claims)
            agent = asyncio.create_task(app.run(stage.settings, stage.executor, SystemClock(), stop, stop_mode=mode))
            if mode is StopMode.LEAVE:
                await stage.controller.offer(stage.run_task())
            await stage.executor.until(lambda: T1 in stage.executor.starts)
            await stage.controller.until(lambda before=claims: len(stage.controller.claims) > before)
            stop.set()
            async with asyncio.timeout(10):
                await agent
            assert len(stage.executor.processes) == running
        assert [held["task_id"] for held in stage.controller.released[0]["tasks"]] == [T1]


def test_who_may_enter_the_folders(tmp_path: Path) -> None:
    """In a container a job may make programs that run as its user: nobody of the machine may start them."""
    places = app.make_places(make_settings(tmp_path, "http://127.0.0.1:1"))
    assert (places.high / "volumes").stat().st_mode & 0o007 == 0
    assert places.work.stat().st_mode & 0o077 == 0


async def test_two_agents_do_not_share_a_folder(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stop = asyncio.Event()
        agent = asyncio.create_task(app.run(stage.settings, stage.executor, SystemClock(), stop))
        await stage.controller.until(lambda: stage.controller.open_claims == 1)
        with pytest.raises(Unusable, match="WORKDIR"):
            await app.run(stage.settings, stage.executor, SystemClock(), stop)
        stop.set()
        async with asyncio.timeout(10):
            await agent


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        await asyncio.to_thread((tmp_path / "file").touch)
        settings = evolve(stage.settings, high_privacy_dir=tmp_path / "file" / "high")
        with pytest.raises(Unusable, match="file/high"):
            await app.run(settings, stage.executor, SystemClock(), asyncio.Event())


async def test_a_folder_that_takes_no_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*, dir: Path) -> None:
        if dir.name == "medium":
            raise OSError(errno.EROFS, "Read-only file system")

    async with stand(tmp_path) as stage:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: contextlib.nullcontext(full(dir=dir)))
        settings = evolve(stage.settings, medium_privacy_dir=tmp_path / "medium")
        with pytest.raises(Unusable, match=r"medium cannot be .*: Read-only"):
            await app.run(settings, stage.executor, SystemClock(), asyncio.Event())


def test_a_new_workdir_is_the_agents_alone(tmp_path: Path) -> None:
    """It holds the code of studies, and what tasks say."""
    places = app.make_places(make_settings(tmp_path, "http://127.0.0.1:1"))
    assert [each.stat().st_mode & 0o077 for each in (places.work, places.work / "tasks")] == [0, 0]
