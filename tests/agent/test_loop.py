"""The agent end to end: real HTTP to a scripted controller, real git, real files, a scripted executor."""

import asyncio
import functools
import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from agent.core import definition
from agent.loop import StopMode
from agent.outputs import metadata
from common.protocol import OPEN, Egress, Named
from tests.agent.fake_controller import Fault
from tests.agent.stage import TRACEPARENT, Stage, stand, write_output

T1, C1 = "jobone-001", "jobone-001-cancel"
WHOLE_LIFE = ["preparing", "prepared", "executing", "finalizing", "finalized"]


async def until_forgotten(stage: Stage, *tasks: str) -> None:
    """Wait until final reports of `tasks` were acknowledged and nothing of them is left to take up."""
    await stage.controller.until(lambda: len(stage.controller.declarations) >= len(stage.loops))
    await stage.controller.until(lambda: set(tasks) <= stage.controller.complete)
    for loop in stage.loops:
        await loop._await_tasks()
    assert not set(tasks) & set(stage.notes)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


async def test_a_job_runs_from_offer_to_stored_outputs(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = write_output
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await until_forgotten(stage, T1)
        assert stage.controller.stages(T1) == WHOLE_LIFE
        results = stage.controller.final(T1)["results"]
        assert results["error"] is False
        assert results["exit_code"] == "0"
        assert results["status_message"] == "Completed successfully"
        assert results["action_version"] == "v2"
        assert results["job_metrics"] == {"cpu_mean": 50.0, "mem_mb_peak": 12.5}
        assert results["outputs"][0]["path"] == "output/table.csv"
        for area in ("high", "medium"):
            assert (tmp_path / area / "workspaces/ws/output/table.csv").read_text() == "a,b\n1,2\n"
        log = (tmp_path / "high/workspaces/ws/metadata/analyse.log").read_text()
        assert log.startswith("hello from the job\n")
        assert "exit_code: 0" in log
        assert stage.controller.logs[T1] == log
        assert not (tmp_path / f"high/volumes/{T1}").exists()
        assert stage.controller.declarations[0]["executor"] == "scripted"


async def test_the_job_gets_its_environment_and_only_database_jobs_the_secrets(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        seen = {}

        def script(run: Any) -> int:
            seen[run.job_id] = (dict(run.env), run.network, run.limits.memory_bytes)
            assert (run.volume / "analyse.py").exists()
            assert not (run.volume / ".git").exists()
            return 0

        stage.executor.script = script
        async with stage.agent():
            await stage.controller.offer(
                stage.run_task("jobone"), stage.run_task("jobtwo", allow_database_access=True, action="extract")
            )
            await until_forgotten(stage, T1, "jobtwo-001")
        plain = {"HOME": "/tmp", "OPENSAFELY_BACKEND": "test", "TRACEPARENT": TRACEPARENT}
        assert seen["jobone"] == (plain, False, 512 * 1024**2)
        assert seen["jobtwo"] == (plain | {"DATABASE_URL": "canary-database-url"}, True, 512 * 1024**2)


async def test_a_run_that_the_machine_lost_is_no_exit_of_the_job(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await stage.executor.until(lambda: T1 in stage.executor.processes)
            stage.executor.finish(T1, 137, lost="the machine restarted")
            await until_forgotten(stage, T1)
        final = stage.controller.final(T1)
        assert final["stage"] == "error"
        assert final["results"]["error"]["fatal"] is False
        assert "the machine restarted" in final["results"]["error"]["message"]


async def test_inputs_are_the_outputs_of_the_needed_jobs(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = write_output
        async with stage.agent():
            await stage.controller.offer(stage.run_task("jobone"))
            await until_forgotten(stage, T1)
            found = []
            stage.executor.script = lambda run: (
                found.append((run.volume / "output/table.csv").read_text()) or write_output(run, "x\n", "output/b.csv")
            )
            await stage.controller.offer(stage.run_task("jobtwo", input_job_ids=["jobone", "neverran"]))
            await until_forgotten(stage, "jobtwo-001")
            assert found == ["a,b\n1,2\n"]
            # An input is no output of the job that reads it, though its pattern matches.
            (tmp_path / "high/workspaces/ws/output/b.csv").unlink()
            await stage.controller.offer(stage.run_task("jobthree", input_job_ids=["jobtwo"]))
            await until_forgotten(stage, "jobthree-001")
        error = stage.controller.final("jobthree-001")["results"]["error"]
        assert error["fatal"] is True
        assert "output/b.csv" in error["message"]
        assert stage.executor.starts == [T1, "jobtwo-001"]


@pytest.mark.parametrize(
    ("changes", "exception", "named"),
    [
        ({"memory_limit": "lots"}, "BadDefinition", "memory_limit"),
        ({"memory_limit": "9" * 400}, "BadDefinition", "memory_limit"),
        ({"workspace": "../x"}, "BadDefinition", "workspace"),
        ({"workspace": "ws2", "input_job_ids": ["jobzero"]}, "BadDefinition", "jobzero is no job of workspace ws2"),
        ({"commit": "0" * 40}, "BadSource", "0" * 40),
        ({"repo_url": "/no/such/repo"}, "BadSource", "/no/such/repo"),
        ({"repo_url": "https://example.org/a/b"}, "BadSource", "github.com"),
        ({"workspace": "old"}, "ArchivedWorkspace", "old"),
    ],
)
async def test_what_the_user_must_fix_is_a_fatal_error(
    tmp_path: Path, changes: dict[str, Any], exception: str, named: str
) -> None:
    async with stand(tmp_path) as stage:
        (tmp_path / "archives").mkdir()
        (tmp_path / "archives/old.tar.zstd").touch()
        of_ws = {"task_id": "jobzero-001", "workspace": "ws", "outputs": {"output/a.csv": "highly_sensitive"}}
        await asyncio.to_thread(metadata.write, tmp_path / "high/logs/2026-01/os-job-jobzero", of_ws)
        # A workspace and an action that are called so that this is found where jobs' records are looked for.
        (tmp_path / "high/logs/actions/os-job-jobzero/metadata.json").mkdir(parents=True)
        async with stage.agent():
            await stage.controller.offer(stage.run_task(**changes))
            await until_forgotten(stage, T1)
        final = stage.controller.final(T1)
        assert final["stage"] == "error"
        assert final["results"]["error"]["exception"] == exception
        assert final["results"]["error"]["fatal"] is True
        assert named in final["results"]["error"]["message"]
        assert stage.executor.starts == []


async def test_tasks_of_an_unknown_type_are_refused(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage, stage.agent():
        await stage.controller.offer(evolve(stage.run_task(), id="new-1", type="new", job_id=None))
        await stage.controller.until(lambda: "new-1" in stage.controller.complete)
        results = stage.controller.final("new-1")["results"]
        assert results["results"] is None
        assert results["error"] == {"type": "Unsupported", "message": "this agent knows no tasks of type new"}


async def test_a_freed_slot_is_offered_without_waiting_for_the_poll(tmp_path: Path) -> None:
    async with stand(tmp_path, slots=1) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent():
            await stage.controller.offer(stage.run_task("jobone"), stage.run_task("jobtwo"))
            await stage.executor.until(lambda: T1 in stage.executor.starts)
            await stage.controller.until(lambda: stage.controller.claims[-1]["slots"] == 0)
            stage.executor.finish(T1, 0)
            await stage.executor.until(lambda: "jobtwo-001" in stage.executor.starts)
            assert stage.clock.elapsed == 0
            stage.executor.finish("jobtwo-001", 0)
            await until_forgotten(stage, T1, "jobtwo-001")


async def test_jobs_beyond_the_slots_are_not_taken_however_many_are_offered(tmp_path: Path) -> None:
    names = [f"job{number}" for number in range(5)]

    def has_started(number: int) -> bool:
        return len(stage.executor.starts) == number

    async with stand(tmp_path, slots=2) as stage:
        stage.executor.script = lambda run: None
        stage.controller.generous = True
        async with stage.agent() as loop:
            await stage.controller.offer(*map(stage.run_task, names))
            await stage.executor.until(lambda: len(stage.executor.starts) == 2)
            # Offers that are not taken are answered at once: the loop slows down, and sleeps.
            await stage.controller.until(lambda: len(stage.controller.claims) > 6)
            assert stage.controller.claims[-1]["slots"] == 0
            assert {held["task_id"] for held in stage.controller.claims[-1]["holding"]} == set(stage.executor.starts)
            assert len(stage.notes) == 2
            assert len(loop._jobs) == 2
            for started in range(2, 6):
                # A slot that becomes free is used without waiting for the clock.
                stage.executor.finish(stage.executor.starts[started - 2], 0)
                await stage.executor.until(functools.partial(has_started, min(started + 1, 5)))
            assert stage.clock.elapsed == 0
            stage.executor.finish(stage.executor.starts[-1], 0)
            await until_forgotten(stage, *(f"{name}-001" for name in names))
    [warning] = [line for line in stage.logged if line["event"] == "more jobs are offered than slots are free"]
    assert (warning["left"], warning["setting"]) == (3, "RAP_AGENT_SLOTS")


async def test_where_no_slot_is_free_cancels_and_checks_are_taken(tmp_path: Path) -> None:
    async with stand(tmp_path, slots=1) as stage:
        stage.executor.script = lambda run: None
        stage.controller.generous = True
        async with stage.agent():
            await stage.controller.offer(stage.run_task("jobone"), stage.run_task("jobtwo"))
            await stage.executor.until(lambda: stage.executor.starts == [T1])
            unknown = evolve(stage.run_task(), id="new-1", type="new", job_id=None, definition={})
            await stage.controller.offer(unknown, stage.cancel_task("jobone"))
            cranking = asyncio.create_task(stage.clock.crank(5))  # at most, until the loop asks again
            await stage.controller.until(lambda: {"new-1", f"{T1}-cancel"} <= stage.controller.complete)
            cranking.cancel()
            await stage.executor.until(lambda: stage.executor.starts == [T1, "jobtwo-001"])
            stage.executor.finish("jobtwo-001", 0)
            await until_forgotten(stage, "jobtwo-001")


async def test_jobs_on_disk_go_on_where_the_slots_were_lowered(tmp_path: Path) -> None:
    async with stand(tmp_path, slots=2) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent(stop=StopMode.LEAVE):
            await stage.controller.offer(stage.run_task("jobone"), stage.run_task("jobtwo"))
            await stage.executor.until(lambda: len(stage.executor.starts) == 2)
        async with stage.agent(slots=1):
            await stage.controller.until(lambda: len(stage.controller.claims[-1]["holding"]) == 2)
            assert stage.controller.claims[-1]["slots"] == 0
            for name in (T1, "jobtwo-001"):
                stage.executor.finish(name, 0)
            await until_forgotten(stage, T1, "jobtwo-001")


async def test_a_claim_that_offers_a_slot_is_not_disturbed_by_a_job_that_ends(tmp_path: Path) -> None:
    async with stand(tmp_path, slots=2) as stage, stage.agent():
        await stage.controller.offer(stage.run_task())
        await until_forgotten(stage, T1)
        await stage.controller.until(lambda: stage.controller.open_claims == 1)
        assert len(stage.controller.claims) == 2


async def test_metrics_and_log_are_pushed_while_the_job_runs(tmp_path: Path) -> None:
    async with stand(tmp_path, sample_interval=10) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await stage.controller.until(lambda: "executing" in stage.controller.stages(T1))
            await stage.clock.until_sleeper(10)
            stage.clock.advance(10)
            await stage.controller.until(lambda: stage.controller.logs.get(T1) == "hello from the job\n")
            await stage.controller.until(lambda: stage.controller.reports[-1]["metrics"] != {})
            assert stage.controller.reports[-1]["metrics"]["cpu_mean"] == 50.0
            stage.executor.processes[T1].log += "Grüße\n".encode()
            stage.executor.finish(T1, 3)
            await until_forgotten(stage, T1)
        assert stage.controller.logs[T1].startswith("hello from the job\nGrüße\n")
        assert stage.controller.logs[T1].count("hello") == 1
        assert stage.controller.final(T1)["results"]["exit_code"] == "3"


async def test_a_definition_that_breaks_the_agent_ends_its_own_task_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(limit: object) -> int:
        raise OverflowError("cannot convert float infinity to integer")

    async with stand(tmp_path) as stage, stage.agent():
        with monkeypatch.context() as broken:
            broken.setattr(definition, "parse_memory", parse)
            await stage.controller.offer(stage.run_task())
            await until_forgotten(stage, T1)
        assert stage.controller.final(T1)["results"]["error"]["exception"] == "MachineTrouble"
        stage.executor.script = write_output
        await stage.controller.offer(stage.run_task("jobtwo"))
        await until_forgotten(stage, "jobtwo-001")
        assert stage.controller.final("jobtwo-001")["results"]["exit_code"] == "0"


async def test_an_agent_that_was_forgotten_declares_itself_again(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage, stage.agent():
        await stage.controller.until(lambda: stage.controller.open_claims == 1)
        stage.controller.forgotten = True
        await stage.controller.offer(stage.run_task())
        await stage.controller.until(lambda: len(stage.controller.declarations) == 2)
        await until_forgotten(stage, T1)
    assert stage.controller.declarations[0] == stage.controller.declarations[1]


@pytest.mark.parametrize("egress", [Egress(logs=True), Egress(logs=True, outputs=Named.MODERATELY_SENSITIVE), OPEN])
async def test_the_summary_of_a_log_leaves_only_where_all_outputs_may_be_named(tmp_path: Path, egress: Egress) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = write_output
        async with stage.agent(egress=egress):
            await stage.controller.offer(stage.run_task())
            await until_forgotten(stage, T1)
        assert stage.controller.logs[T1].startswith("hello from the job\n")
        assert ("output/table.csv" in stage.controller.logs[T1]) is (egress == OPEN)
        assert (b"output/table.csv" in b"".join(stage.controller.traffic)) is (egress.outputs is not Named.NONE)


async def test_tasks_offered_twice_run_once(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.controller.duplicate = True
        stage.executor.script = lambda run: None
        async with stage.agent():
            await stage.controller.offer(stage.run_task())
            await stage.executor.until(lambda: T1 in stage.executor.starts)
            await stage.controller.until(lambda: len(stage.controller.claims) > 4)
            stage.executor.finish(T1, 0)
            await until_forgotten(stage, T1)
        assert stage.executor.starts == [T1]


async def test_hand_back_ends_the_jobs_and_releases_them(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent(stop=StopMode.HAND_BACK):
            await stage.controller.offer(stage.run_task())
            await stage.executor.until(lambda: T1 in stage.executor.starts)
        assert stage.controller.released[0]["tasks"] == [{"task_id": T1, "attempt": 1}]
        assert stage.executor.processes == {}
        assert stage.notes == []
        assert T1 not in stage.controller.complete


async def test_an_attempt_whose_return_nobody_heard_is_returned_by_the_next_agent_and_never_run_again(
    tmp_path: Path,
) -> None:
    """Killed after the job was stopped and before the controller was told: it would offer the attempt again."""
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent(stop=StopMode.HAND_BACK):
            await stage.controller.offer(stage.run_task())
            await stage.executor.until(lambda: T1 in stage.executor.starts)
            stage.controller.faults += [Fault("release", status=400)]
        assert stage.controller.released == []
        assert stage.notes == [T1]
        async with stage.agent():
            claims = len(stage.controller.claims)
            await stage.controller.until(lambda: len(stage.controller.claims) > claims)
            assert stage.notes == []
        assert stage.controller.released[0]["tasks"] == [{"task_id": T1, "attempt": 1}]
        assert stage.executor.starts == [T1]


async def test_leave_keeps_the_process_and_the_next_agent_finishes_it(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent(stop=StopMode.LEAVE):
            await stage.controller.offer(stage.run_task())
            await stage.executor.until(lambda: T1 in stage.executor.starts)
        assert stage.notes == [T1]
        stage.executor.finish(T1, 0)
        async with stage.agent():
            await until_forgotten(stage, T1)
        assert stage.executor.starts == [T1]
        assert stage.controller.final(T1)["results"]["exit_code"] == "0"
