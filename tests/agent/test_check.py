"""Checks of the database: what the agent runs for them, and what it believes and tells of the answer."""

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from agent.check import LIMIT_SECONDS
from agent.core.checks import BadAnswer, Program, parse_check, read_answer
from agent.core.errors import BadDefinition
from agent.executors.base import ExecutorError, Run
from agent.executors.fake import FakeExecutor
from agent.executors.sandbox.executor import SandboxExecutor
from agent.images import ImageTable, Interpreter
from agent.loop import StopMode
from common.protocol import Egress, TaskOffer
from tests.agent.stage import Stage, stand

IMAGE = "ghcr.io/opensafely-core/tpp-database-utils:latest"
STATUS = "dbstatus-2026-11-21-0123456789abcdef0123"
DATA = "dbdatacheck-2026-11-21-0123456789abcdef0123"
DEFINITIONS: dict[str, dict[str, Any]] = {
    STATUS: {"database_name": "default", "image": IMAGE, "image_sha": None},
    DATA: {"hes_expected_activity_month": "202304", "image": IMAGE, "image_sha": "sha256:abc"},
}


def offer(task_id: str = STATUS, **changes: Any) -> TaskOffer:
    return TaskOffer(
        id=task_id,
        type=task_id.partition("-")[0],
        attempt=1,
        job_id=None,
        definition=DEFINITIONS[task_id] | changes,
        attributes={},
        traceparent=None,
        created_at=1_770_000_001,
    )


async def answered(stage: Stage, task_id: str = STATUS) -> Any:
    """The results of a task, once nothing of it is left to take up."""
    await stage.controller.until(lambda: task_id in stage.controller.complete)
    for loop in stage.loops:
        for check in list(loop._checks.values()):
            await check.ended.wait()
    assert stage.notes == []
    assert not list(stage.places.high.glob("volumes/*"))
    assert not list(stage.places.work.glob("tasks/*"))
    return stage.controller.final(task_id)["results"]


def told(results: Any) -> str:
    assert results["results"] is None
    assert set(results["error"]) == {"type", "message"}
    return f"{results['error']['type']}: {results['error']['message']}"


class TestAnswers:
    @pytest.mark.parametrize(
        ("output", "status", "builds"),
        [
            ("", "", None),
            ("\n", "", None),
            ("connected\ndb-maintenance\n", "db-maintenance", None),
            ("db-maintenance;2", "db-maintenance", 2),
            ("none;0\n", "", 0),
        ],
    )
    def test_status(self, output: str, status: str, builds: int | None) -> None:
        answer = read_answer("dbstatus", output.encode())
        assert (answer.status, answer.builds) == (status, builds)

    @pytest.mark.parametrize("output", ["OK", "x\nFAILED\n"])
    def test_data(self, output: str) -> None:
        assert read_answer("dbdatacheck", output.encode()).status == output.strip().removeprefix("x\n")

    @pytest.mark.parametrize(
        ("kind", "output"),
        [
            ("dbstatus", "OK"),
            ("dbstatus", "none;3"),
            ("dbstatus", "db-maintenance;3"),
            ("dbstatus", "db-maintenance\nconnection closed"),
            ("dbstatus", "DB-MAINTENANCE"),
            ("dbdatacheck", ""),
            ("dbdatacheck", "Ok"),
            ("dbdatacheck", "patient 1234567890"),
        ],
    )
    def test_anything_else_is_an_error_that_does_not_repeat_it(self, kind: str, output: str) -> None:
        with pytest.raises(BadAnswer) as caught:
            read_answer(kind, output.encode())
        for line in output.splitlines():
            assert line not in f"{caught.value} {caught.value.public}"


class TestDefinitions:
    def test_the_commands(self) -> None:
        assert parse_check("dbstatus", DEFINITIONS[STATUS]) == Program(
            type="dbstatus", image=IMAGE, image_sha=None, args=("in_maintenance_mode",)
        )
        assert parse_check("dbdatacheck", DEFINITIONS[DATA]) == Program(
            type="dbdatacheck", image=IMAGE, image_sha="sha256:abc", args=("hes_cutoff_date_check", "202304")
        )

    @pytest.mark.parametrize(
        ("kind", "definition", "named"),
        [
            ("dbstatus", {"database_name": "default"}, "image"),
            ("dbstatus", {"database_name": "default", "image": 5}, "image"),
            ("dbdatacheck", {"image": IMAGE}, "hes_expected_activity_month"),
            ("dbdatacheck", {"image": IMAGE, "hes_expected_activity_month": "--help"}, "hes_expected_activity_month"),
        ],
    )
    def test_what_is_wrong_is_named(self, kind: str, definition: dict[str, Any], named: str) -> None:
        with pytest.raises(BadDefinition, match=named):
            parse_check(kind, definition)


@pytest.mark.parametrize(
    ("task_id", "log", "status"),
    [(STATUS, b"noise\nnone;1\n", ""), (STATUS, b"db-maintenance", "db-maintenance"), (DATA, b"FAILED\n", "FAILED")],
)
async def test_the_answer_is_reported(tmp_path: Path, task_id: str, log: bytes, status: str) -> None:
    async with stand(tmp_path) as stage, stage.agent():
        seen: list[Run] = []
        stage.executor.script = lambda run: seen.append(run) or 0  # type: ignore[func-returns-value]  # terse
        stage.executor.log = log
        await stage.controller.offer(offer(task_id))
        assert await answered(stage, task_id) == {"results": {"status": status}, "error": None}
        final = stage.controller.final(task_id)
        assert (final["stage"], final["complete"], final["timestamp_ns"]) == ("", True, None)
        (run,) = seen
        assert (run.image, run.image_sha) == (IMAGE, DEFINITIONS[task_id]["image_sha"])
        assert run.env == {"HOME": "/tmp", "OPENSAFELY_BACKEND": "test", "DATABASE_URL": "canary-database-url"}
        assert run.network
        assert run.limits.seconds == LIMIT_SECONDS
        assert stage.executor.cleaned == [task_id]


async def test_a_check_needs_no_slot(tmp_path: Path) -> None:
    async with stand(tmp_path, slots=1) as stage, stage.agent():
        stage.executor.script = lambda run: None
        await stage.controller.offer(offer(STATUS), offer(DATA))
        await stage.executor.until(lambda: len(stage.executor.starts) == 2)
        await stage.controller.until(lambda: stage.controller.open_claims == 1)
        assert stage.controller.claims[-1]["slots"] == 1
        for task_id in (STATUS, DATA):
            stage.executor.finish(task_id, 0)
        await answered(stage, STATUS)
        await answered(stage, DATA)


@pytest.mark.parametrize("egress", [Egress(), Egress(logs=True)])
async def test_failures_are_told_without_secrets_or_output(tmp_path: Path, egress: Egress) -> None:
    async with stand(tmp_path, egress=egress) as stage, stage.agent():
        stage.executor.log = b"cannot reach canary-database-url for patient 42"
        stage.executor.script = lambda run: 3
        await stage.controller.offer(offer())
        assert told(await answered(stage)).startswith("CheckFailed: ")
        stage.executor.prepare_fault = ExecutorError(
            "no canary-database-url, canary-token-value, in /srv/inside", fatal=True
        )
        await stage.controller.offer(offer(DATA))
        assert told(await answered(stage, DATA)).startswith("ExecutorFailed: ")
        bodies = b"".join(body.partition(b"\n\n")[2] for body in stage.controller.traffic)
        for canary in (b"canary-", b"patient 42", b"/srv/inside"):
            assert canary not in bodies
        assert "canary-" not in json.dumps(stage.logged, default=str)
        kept = (tmp_path / "high/logs/checks/dbstatus.log").read_bytes()
        assert kept.startswith(b"cannot reach canary-database-url")


async def test_a_definition_that_makes_no_sense_is_refused_in_the_same_shape(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage, stage.agent():
        await stage.controller.offer(offer(image=5))
        assert told(await answered(stage)).startswith("BadDefinition: definition: ")
        assert stage.executor.starts == []


async def test_a_check_is_bounded_in_time(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage, stage.agent():
        stage.executor.script = lambda run: None
        await stage.controller.offer(offer())
        await stage.executor.until(lambda: STATUS in stage.executor.starts)
        await stage.clock.until_sleeper(LIMIT_SECONDS)
        stage.clock.advance(LIMIT_SECONDS)
        assert told(await answered(stage)).startswith("CheckTimedOut: ")
        assert stage.executor.processes == {}


async def test_a_restarted_agent_finds_the_check_that_runs(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent():
            await stage.controller.offer(offer())
            await stage.executor.until(lambda: STATUS in stage.executor.starts)
        assert stage.notes == [STATUS]
        async with stage.agent():
            stage.executor.processes[STATUS].log = b"db-maintenance"
            stage.executor.finish(STATUS, 0)
            assert (await answered(stage))["results"] == {"status": "db-maintenance"}
        assert stage.executor.starts == [STATUS]


async def test_a_revoked_check_is_stopped_and_forgotten(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage, stage.agent() as loop:
        stage.executor.script = lambda run: None
        await stage.controller.offer(offer())
        await stage.executor.until(lambda: STATUS in stage.executor.starts)
        del stage.controller.tasks[STATUS]
        check = loop._checks[STATUS]
        stage.controller.revoke.add(STATUS)
        await stage.controller.notify()
        await check.ended.wait()
        assert stage.executor.processes == {}
        assert stage.notes == []
        await stage.controller.until(lambda: stage.controller.claims[-1]["holding"] == [])
        assert stage.controller.reports == []


@pytest.mark.parametrize(("mode", "left"), [(StopMode.LEAVE, [STATUS]), (StopMode.HAND_BACK, [])])
async def test_a_stopping_agent_leaves_it_or_ends_it(tmp_path: Path, mode: StopMode, left: list[str]) -> None:
    async with stand(tmp_path) as stage:
        stage.executor.script = lambda run: None
        async with stage.agent(stop=mode):
            await stage.controller.offer(offer())
            await stage.executor.until(lambda: STATUS in stage.executor.starts)
        assert stage.notes == left
        assert list(stage.executor.processes) == left
        assert stage.controller.reports == []


async def test_the_fake_executor_finds_no_maintenance(tmp_path: Path) -> None:
    async with stand(tmp_path) as stage:
        stage.executor = FakeExecutor()  # type: ignore[assignment]  # not scripted
        async with stage.agent():
            await stage.controller.offer(offer())
            assert (await answered(stage))["results"] == {"status": ""}


async def test_where_data_are_dummies_nothing_is_asked(tmp_path: Path) -> None:
    async with stand(tmp_path, dummy_data=True, egress=Egress()) as stage, stage.agent():
        await stage.controller.offer(offer())
        results = await answered(stage)
    assert told(results) == "NoDatabase: This backend has dummy data only: there is no database to check."
    assert stage.executor.starts == []


UTILITIES = """
echo "connecting to $DATABASE_URL" >&2
echo 'connected'
case "$1" in
    in_maintenance_mode) echo 'db-maintenance;1' ;;
    hes_cutoff_date_check) if [ "$2" = 202304 ]; then echo OK; else echo FAILED; fi ;;
esac
echo 'connection closed' >&2
"""


@pytest.mark.slow
@pytest.mark.parametrize("isolated", [True, False])
async def test_a_real_program(tmp_path: Path, isolated: bool) -> None:
    program = tmp_path / "utilities.sh"
    program.write_text(UTILITIES)
    images = ImageTable({"tpp-database-utils": Interpreter(command=("/bin/sh", str(program)))})
    bubblewrap = "bwrap" if isolated else None
    executor = SandboxExecutor(images, allow_unisolated=not isolated, bubblewrap_path=bubblewrap)
    await executor.check()
    async with stand(tmp_path) as stage:
        stage.executor = executor  # type: ignore[assignment]  # not scripted
        async with stage.agent():
            await stage.controller.offer(
                offer(STATUS), offer(DATA), evolve(offer(DATA, hes_expected_activity_month="202305"), id="later")
            )
            assert (await answered_all(stage, STATUS, DATA, "later")) == ["db-maintenance", "OK", "FAILED"]
        kept = (tmp_path / "high/logs/checks/dbstatus.log").read_text()
        assert "connecting to canary-database-url\nconnection closed" in kept


async def answered_all(stage: Stage, *task_ids: str) -> list[str]:
    await stage.controller.until(lambda: set(task_ids) <= stage.controller.complete)
    return [(await answered(stage, task_id))["results"]["status"] for task_id in task_ids]
