"""What breaks, when: agents killed at every point, answers lost, cancels, revocations, storms."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.core.messages import COMPLETED
from agent.executors.base import ExecutorError
from agent.job import Job
from agent.outputs import finalization
from agent.outputs.workspaces import TIMESTAMP
from tests.agent.fake_controller import Fault
from tests.agent.stage import Stage, git, make_repo, stand, write_output
from tests.agent.test_loop import C1, T1, until_forgotten


class Killed(BaseException):
    """Ends an agent's work at a chosen point, past every handler for errors."""


@contextlib.asynccontextmanager
async def cranking(stage: Stage, longest: float = 400) -> AsyncIterator[None]:
    """Let back-offs pass as if in no time."""
    task = asyncio.create_task(stage.clock.crank(longest))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def end_job(stage: Stage) -> None:
    """Let the job end by itself once the agent watches it."""
    await stage.clock.until_sleeper(77)
    stage.executor.finish(T1, 0)


POINTS = ["_prepare", "_execute", "_watch", "_finalize", "_clean_up", "_await_verdicts", "_forget"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", POINTS)
async def test_an_agent_killed_at_any_point_is_succeeded_by_one_that_finishes_the_job_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, when: str
) -> None:
    reached = asyncio.Event()
    original = getattr(Job, point)

    async def die(self: Job, *arguments: Any) -> None:
        if when == "after":
            await original(self, *arguments)
        reached.set()
        await asyncio.Event().wait()

    async with stand(tmp_path, sample_interval=77) as stage:
        stage.executor.script = lambda run: None if write_output(run) == 0 else 1
        with monkeypatch.context() as patch:
            patch.setattr(Job, point, die)
            async with stage.agent():
                await stage.controller.offer(stage.run_task())
                async with asyncio.timeout(10):
                    ending = asyncio.create_task(end_job(stage))
                    await reached.wait()
                    ending.cancel()
        if T1 in stage.executor.processes:
            stage.executor.finish(T1, 0)
        async with stage.agent():
            ending = asyncio.create_task(end_job(stage))
            await until_forgotten(stage, T1)
            ending.cancel()
        assert stage.executor.starts == [T1]
        final = stage.controller.final(T1)
        assert final["stage"] == "finalized"
        assert final["results"]["exit_code"] == "0"
        assert (tmp_path / "high/workspaces/ws/output/table.csv").exists()
        assert not (tmp_path / f"high/volumes/{T1}").exists()


async def test_killed_while_outputs_are_stored_they_are_stored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()

    async def die(*arguments: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    async with stand(tmp_path) as stage:
        stage.executor.script = write_output
        with monkeypatch.context() as patch:
            patch.setattr(finalization, "write_log", die)
            async with stage.agent():
                await stage.controller.offer(stage.run_task())
                async with asyncio.timeout(10):
                    await reached.wait()
        assert (tmp_path / "high/workspaces/ws/output/table.csv").exists()
        async with stage.agent():
            await until_forgotten(stage, T1)
        assert stage.executor.starts == [T1]


async def test_a_dropped_answer_to_the_final_report_is_asked_for_again(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent(), cranking(stage):
            await stage.controller.offer(stage.run_task())
            await stage.controller.until(lambda: "executing" in stage.controller.stages(T1))
            fault = Fault(path="/reports", drop_answer=True, containing=b'"complete":true')
            stage.controller.faults += [fault, fault]
            stage.executor.finish(T1, 0)
            await until_forgotten(stage, T1)
        assert len([r for r in stage.controller.reports if r["complete"]]) == 3


async def test_a_storm_of_refusals_and_nonsense_loses_nothing(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = write_output
        for path in ("/agents/agent-1", "/claim", "/reports", "/logs"):
            stage.controller.faults += [
                Fault(path=path),
                Fault(path=path, status=200, body=b"<html>proxy</html>"),
                Fault(path=path, status=429, headers={"Retry-After": "30"}),
                Fault(path=path, status=404),
                Fault(path=path, drop_answer=True),
            ]
        async with stage.agent(), cranking(stage):
            await stage.controller.offer(stage.run_task())
            await until_forgotten(stage, T1)
        assert stage.executor.starts == [T1]
        assert [r["stage"] for r in stage.controller.reports if r["complete"]][-1] == "finalized"
        assert "canary-token-value" not in json.dumps(stage.logged, default=str)


async def test_a_stale_verdict_stops_the_job_without_another_word(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        stage.controller.verdicts[T1, "executing"] = "stale"
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await stage.executor.until(lambda: T1 in stage.executor.cleaned)
            del stage.controller.tasks[T1]
            for loop in stage.loops:
                await loop._await_tasks()
        assert stage.notes == []
        assert T1 not in stage.controller.complete
        assert not (tmp_path / f"high/volumes/{T1}").exists()


async def test_a_revoked_task_is_ended_without_a_report(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await stage.executor.until(lambda: T1 in stage.executor.starts)
            del stage.controller.tasks[T1]
            stage.controller.revoke.add(T1)
            await stage.controller.notify()
            await stage.executor.until(lambda: T1 in stage.executor.cleaned)
            for loop in stage.loops:
                await loop._await_tasks()
        assert T1 not in stage.controller.complete
        assert stage.notes == []


async def test_a_task_revoked_while_the_agent_was_down_is_ended_by_the_next(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await stage.executor.until(lambda: T1 in stage.executor.starts)
        del stage.controller.tasks[T1]
        stage.controller.revoke.add(T1)
        async with stage.agent():
            await stage.executor.until(lambda: T1 in stage.executor.cleaned)
            for loop in stage.loops:
                await loop._await_tasks()
        assert stage.notes == []


def cancelled(stage: Stage) -> dict[str, Any]:
    """The results of the cancel, after checking that the RUNJOB task itself reported no end."""
    assert T1 not in stage.controller.complete
    final = stage.controller.final(C1)
    assert final["stage"] == "finalized"
    results: dict[str, Any] = final["results"]
    return results


async def test_cancel_while_preparing(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.prepare_gate = asyncio.Event()
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            async with asyncio.timeout(10):
                await stage.executor.preparing.wait()
            del stage.controller.tasks[T1]
            await stage.controller.offer(stage.cancel_task())
            await until_forgotten(stage, C1)
        assert cancelled(stage)["cancelled"] is True
        assert stage.executor.starts == []
        assert stage.notes == []


async def test_cancel_while_executing_ends_the_process_and_stores_nothing(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None if write_output(run) == 0 else 1
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await stage.executor.until(lambda: T1 in stage.executor.starts)
            del stage.controller.tasks[T1]
            stage.controller.revoke.add(T1)  # the real one does both at once
            await stage.controller.offer(stage.cancel_task())
            await until_forgotten(stage, C1)
        results = cancelled(stage)
        assert results["cancelled"] is True
        assert results["status_message"] == "Job cancelled by system"
        assert results["exit_code"] == "137"
        assert stage.controller.stages(C1) == ["executing", "executed", "finalized"]
        assert not (tmp_path / "high/workspaces/ws").exists()


async def test_cancel_while_finalizing_lets_the_end_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, reached = asyncio.Event(), asyncio.Event()
    original = finalization.write_log

    async def hold(*arguments: Any) -> Any:
        reached.set()
        await gate.wait()
        return await original(*arguments)

    monkeypatch.setattr(finalization, "write_log", hold)
    async with stand(tmp_path) as stage:
        stage.executor.script = write_output
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            async with asyncio.timeout(10):
                await reached.wait()
            del stage.controller.tasks[T1]
            claims = len(stage.controller.claims)
            await stage.controller.offer(stage.cancel_task())
            await stage.controller.until(lambda: len(stage.controller.claims) > claims)
            gate.set()
            await until_forgotten(stage, C1)
        assert stage.controller.final(C1)["results"]["cancelled"] is False
        assert (tmp_path / "high/workspaces/ws/output/table.csv").exists()


async def test_cancel_after_the_agent_died_while_the_job_ran(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await stage.executor.until(lambda: T1 in stage.executor.starts)
        del stage.controller.tasks[T1]
        await stage.controller.offer(stage.cancel_task())
        async with stage.agent():
            await until_forgotten(stage, C1)
        assert cancelled(stage)["cancelled"] is True
        assert stage.executor.processes == {}
        assert stage.notes == []


async def test_cancel_of_a_task_that_never_was_here(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage, stage.agent():
        await stage.controller.offer(stage.cancel_task())
        await until_forgotten(stage, C1)
        assert cancelled(stage)["exit_code"] == "None"


async def test_cancel_of_an_old_attempt_leaves_the_new_one_alone(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent():
            await stage.controller.offer(stage.run_task(attempt=2))
            await stage.executor.until(lambda: "jobone-002" in stage.executor.starts)
            await stage.controller.offer(stage.cancel_task(attempt=1))
            await stage.controller.until(lambda: C1 in stage.controller.complete)
            stage.executor.finish("jobone-002", 0)
            await until_forgotten(stage, "jobone-002")
        assert stage.controller.final("jobone-002")["results"]["exit_code"] == "0"


async def test_metadata_of_another_attempt_is_ignored(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await until_forgotten(stage, T1)
            await stage.controller.offer(stage.run_task(attempt=2))
            await until_forgotten(stage, "jobone-002")
        assert stage.executor.starts == [T1, "jobone-002"]


async def test_a_process_that_is_gone_is_not_started_again(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await stage.executor.until(lambda: T1 in stage.executor.starts)
            await stage.controller.until(lambda: "executing" in stage.controller.stages(T1))
            await stage.executor.until(lambda: True)
            marker = tmp_path / "work/tasks" / T1 / "started"
            while not marker.exists():
                await asyncio.to_thread(marker.exists)
        stage.executor.processes.clear()
        async with stage.agent():
            await until_forgotten(stage, T1)
        error = stage.controller.final(T1)["results"]["error"]
        assert error["exception"] == "RunLost"
        assert error["fatal"] is False
        assert stage.executor.starts == [T1]


@pytest.mark.parametrize("fatal", [True, False])
async def test_the_executors_faults_keep_their_blame(tmp_path: Path, fatal: bool) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.prepare_fault = ExecutorError("no image python:v99", fatal=fatal)
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await until_forgotten(stage, T1)
        error = stage.controller.final(T1)["results"]["error"]
        assert (error["fatal"], error["message"]) == (fatal, "no image python:v99")


async def test_a_full_disk_is_told_and_worth_another_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agent.outputs.preparation._stamp", full)
    monkeypatch.setattr("agent.outputs.metadata.write", full)
    async with stand(tmp_path) as stage:
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await until_forgotten(stage, T1)
        error = stage.controller.final(T1)["results"]["error"]
        assert error["exception"] == "DiskFull"
        assert error["fatal"] is False


async def test_a_closed_backend_sends_no_name_no_log_and_no_environment(tmp_path: Path) -> None:
    """Every byte that left is searched for what was planted in names, contents, logs, environment and errors."""

    def script(run: Any) -> int:
        write_output(run, "canary-content\n", "output/canary-name.csv")
        write_output(run, "x", "canary-unmatched.txt")
        return 0

    async with stand(tmp_path, sample_interval=10) as stage:
        stage.executor.log = b"canary-log-text\n"
        stage.executor.metadata = {"Config": {"Env": ["SECRET=canary-env"], "Cmd": ["canary-command"]}}
        stage.executor.script = script
        repo, commit = await asyncio.to_thread(make_repo, tmp_path / "canary-repo", {"canary-file": "x"})
        specs = {"output/*.csv": "moderately_sensitive", "canary-missing/*.csv": "highly_sensitive"}
        from agent.settings import parse_egress

        async with stage.agent(egress=parse_egress("status")):
            common = {"env": {"SECRET": "canary-env"}, "allow_database_access": True, "action": "canary-action"}
            # An action has one job at a time.
            two, three = ({**common, "action": f"canary-{name}"} for name in ("two", "three"))
            await stage.controller.offer(
                stage.run_task("jobone", output_spec=specs, repo_url=repo, commit=commit, **common),
                stage.run_task("jobtwo", commit="0" * 40, **two),
                stage.run_task("jobthree", memory_limit="canary-limit", **three),
            )
            await until_forgotten(stage, T1, "jobtwo-001", "jobthree-001")
            await stage.controller.offer(stage.run_task("jobfour", input_job_ids=["jobone"], **common))
            await until_forgotten(stage, "jobfour-001")
            await asyncio.to_thread((tmp_path / "high/workspaces/ws/output/canary-name.csv").unlink)
            await stage.controller.offer(stage.run_task("jobfive", input_job_ids=["jobone"], **common))
            await until_forgotten(stage, "jobfive-001")
        sent = b"\n".join(stage.controller.traffic).replace(b"Bearer canary-token-value", b"")
        assert b"canary" not in sent
        assert str(tmp_path).encode() not in sent
        results = stage.controller.final(T1)["results"]
        assert results["has_unmatched_patterns"] is True
        assert results["status_message"] == results["hint"] == ""
        assert results["job_metrics"] == {}
        assert "outputs" not in results
        assert stage.controller.final("jobfive-001")["results"]["error"]["exception"] == "MissingInput"
        assert stage.controller.final("jobthree-001")["results"]["error"]["fatal"] is True
        assert stage.controller.logs == {}
        # The same facts are whole inside the backend.
        stored = await asyncio.to_thread(next((tmp_path / "high/logs").glob("*/os-job-jobone/metadata.json")).read_text)
        assert "canary-unmatched.txt" in stored
        assert "canary-env" not in stored


async def test_a_link_of_the_repository_is_not_followed_while_preparing(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        repository, target = Path(stage.repo), tmp_path / "made-by-the-agent"

        def commit_links() -> str:
            for name in (TIMESTAMP, f"{TIMESTAMP}.probe", f"{TIMESTAMP}.tmp"):
                (repository / name).symlink_to(target)
            git(repository, "add", "--all")
            git(repository, "commit", "--quiet", "--message", "links")
            return git(repository, "rev-parse", "HEAD")

        stage.executor.script = write_output
        async with stage.agent():
            await stage.controller.offer(stage.run_task(commit=await asyncio.to_thread(commit_links)))
            await until_forgotten(stage, T1)
        assert stage.controller.final(T1)["results"]["status_message"] == COMPLETED
        assert not await asyncio.to_thread(os.path.lexists, target)


@pytest.mark.parametrize("suffix", [".csv", ".xyz"])
async def test_a_name_too_long_for_a_note_beside_it_is_no_obstacle(tmp_path: Path, suffix: str) -> None:
    name = "n" * (255 - len(suffix)) + suffix
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: write_output(run, name=f"output/{name}")
        async with stage.agent():
            await stage.controller.offer(stage.run_task(output_spec={f"output/*{suffix}": "moderately_sensitive"}))
            await until_forgotten(stage, T1)
        final = stage.controller.final(T1)["results"]
        assert (final["error"], final["has_level4_excluded_files"]) == (False, suffix == ".xyz")
        medium = tmp_path / "medium/workspaces/ws/output" / name
        assert await asyncio.to_thread(medium.exists) is (suffix == ".csv")
