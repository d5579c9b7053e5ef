"""Agents that share a backend's storage, and a job that was taken from one and given to the other: the old attempt,
come back from wherever it was, must neither touch the files of the new one nor replace what it has stored."""

import asyncio
import contextlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from agent.core.errors import Superseded
from agent.outputs import attempts
from agent.waits import in_thread
from tests.agent.stage import Stage, stand, write_output
from tests.agent.test_loop import T1, until_forgotten

T2 = "jobone-002"


def write_own_name(run: Any) -> int:
    return write_output(run, f"{run.task_id}\n")


def stored(stage: Stage) -> str:
    return (stage.folder / "high/workspaces/ws/output/table.csv").read_text()


def recorded(stage: Stage) -> dict[str, Any]:
    (found,) = (stage.folder / "high/logs").glob("*/os-job-jobone/metadata.json")
    body: dict[str, Any] = json.loads(found.read_bytes())
    return body


async def test_an_old_attempt_does_not_replace_what_a_newer_one_has_stored(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None if run.task_id == T1 else write_own_name(run)
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await stage.executor.until(lambda: T1 in stage.executor.processes)
        # Cut off from now on; its process runs on, and the job is given to another agent.
        del stage.controller.tasks[T1]
        other: dict[str, Any] = {"work_dir": tmp_path / "other", "agent_id": "agent-2"}
        async with stage.agent(**other):
            await stage.controller.offer(stage.run_task(attempt=2))
            await until_forgotten(stage, T2)
        write_own_name(stage.executor.processes[T1].run)
        stage.executor.finish(T1, 0)
        log = next((tmp_path / "high/logs").glob("*/os-job-jobone/logs.txt")).read_bytes()
        async with stage.agent():
            await until_forgotten(stage, T1)
        assert stored(stage) == f"{T2}\n"
        assert recorded(stage)["task_id"] == T2
        assert next((tmp_path / "high/logs").glob("*/os-job-jobone/logs.txt")).read_bytes() == log
        final = stage.controller.final(T1)
        assert final["stage"] == "error"
        assert not final["results"]["error"]["fatal"]


async def test_a_cancel_of_an_old_attempt_leaves_the_newer_one_alone(tmp_path: Path) -> None:
    """It runs at another agent, out of the same folder, and its end is what dependants go by."""
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        other: dict[str, Any] = {"work_dir": tmp_path / "other", "agent_id": "agent-2"}
        async with stage.agent(**other):
            await stage.controller.offer(stage.run_task(attempt=2))
            await stage.executor.until(lambda: T2 in stage.executor.processes)
        del stage.controller.tasks[T2]
        async with stage.agent():
            await stage.controller.offer(stage.cancel_task())
            await until_forgotten(stage, f"{T1}-cancel")
        assert stage.controller.final(f"{T1}-cancel")["results"]["cancelled"] is True
        run = stage.executor.processes[T2].run
        assert (run.volume / "analyse.py").exists()
        assert not list((tmp_path / "high/logs").glob("*/os-job-jobone/metadata.json"))
        write_own_name(run)
        stage.executor.finish(T2, 0)
        async with stage.agent(**other):
            await until_forgotten(stage, T2)
        assert recorded(stage)["task_id"] == T2
        assert stored(stage) == f"{T2}\n"


def test_only_the_newest_attempt_that_has_begun_may_write(tmp_path: Path) -> None:
    for task_id in ("j-001", "j-001", "j-002", "j-010", "j-1000"):
        with attempts.newest(tmp_path, task_id):
            pass
    for task_id in ("j-001", "j-999"):
        with pytest.raises(Superseded), attempts.newest(tmp_path, task_id):
            raise AssertionError("let in")


def test_ids_that_count_nothing_are_not_held_back(tmp_path: Path) -> None:
    for task_id in ("some", "other-task"):
        with attempts.newest(tmp_path, task_id):
            pass


async def test_a_job_that_was_given_up_does_not_replace_what_the_action_has_stored_since(tmp_path: Path) -> None:
    """It was killed while its agent was out of reach: it has no newer attempt, but there is a newer job."""
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None if run.task_id == T1 else write_own_name(run)
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await stage.executor.until(lambda: T1 in stage.executor.processes)
        del stage.controller.tasks[T1]
        other: dict[str, Any] = {"work_dir": tmp_path / "other", "agent_id": "agent-2"}
        async with stage.agent(**other):
            await stage.controller.offer(stage.run_task("jobtwo"))
            await until_forgotten(stage, "jobtwo-001")
        log = (tmp_path / "high/workspaces/ws/metadata/analyse.log").read_bytes()
        write_own_name(stage.executor.processes[T1].run)
        stage.executor.finish(T1, 0)
        async with stage.agent():
            await until_forgotten(stage, T1)
        assert stored(stage) == "jobtwo-001\n"
        assert (tmp_path / "high/workspaces/ws/metadata/analyse.log").read_bytes() == log
        final = stage.controller.final(T1)
        assert final["stage"] == "error"
        assert not final["results"]["error"]["fatal"]


async def test_a_job_whose_action_nobody_has_begun_on_record_stores_its_outputs(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await stage.executor.until(lambda: T1 in stage.executor.processes)
            (tmp_path / "high/logs/actions/ws/analyse/job").unlink()
            write_own_name(stage.executor.processes[T1].run)
            stage.executor.finish(T1, 0)
            await until_forgotten(stage, T1)
        assert stored(stage) == f"{T1}\n"


async def test_whoever_waits_for_a_suspended_agent_can_be_stopped(tmp_path: Path) -> None:
    """A suspended process keeps its locks: waiting for them must not make the other agent deaf."""
    waiting = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(stop: threading.Event) -> None:
        loop.call_soon_threadsafe(waiting.set)
        with attempts.newest(tmp_path, "j-002", stop):
            raise AssertionError("let in")

    with contextlib.ExitStack() as suspended:
        await asyncio.to_thread(suspended.enter_context, attempts.newest(tmp_path, "j-001"))
        work = asyncio.create_task(in_thread(wait))
        await waiting.wait()
        work.cancel()
        async with asyncio.timeout(10):
            await asyncio.wait([work])
        assert work.cancelled()
