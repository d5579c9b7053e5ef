"""`rap doctor` and `rap prune`: what they ask, say, and exit with."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner

from cli.doctor import controller as controller_checks
from cli.doctor import findings
from cli.main import rap
from controller.core.diagnosis import Severity
from controller.store.db import Database
from tests.cli.fake_controller import FakeController, invoke, serving

DIAGNOSIS = "GET /api/diagnosis"
PRUNE = "POST /api/backends/b/prune"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `rap up` of the person who runs the tests is found, and none of their settings."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("RAP_DATABASE_URL", "RAP_CONTROLLER_URL", "CONTROLLER_TASK_API_ENDPOINT", "RAP_URL", "RAP_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with serving() as controller:
        controller.script["GET /readyz"] = [(200, {"status": "ok"})]
        yield controller


def finding(level: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": "agents",
        "level": level,
        "backend": "tpp",
        "message": "A sentence.",
        "advice": "do this",
        **changes,
    }


def diagnosis(*found: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return 200, {"at": "2026-01-01T00:00:00.000000Z", "findings": list(found)}


@pytest.mark.parametrize(("levels", "code"), [(["ok"], 0), (["ok", "warning"], 0), (["warning", "problem"], 1)])
async def test_the_exit_code_tells(controller: FakeController, levels: list[str], code: int) -> None:
    controller.script[DIAGNOSIS] = [diagnosis(*(finding(level) for level in levels))]
    done = await invoke(controller, "doctor")
    assert done.exit_code == code, done.output
    shown = [level for level in levels if level != "ok"]
    assert [level for level in ("warning", "problem") if f"  {level}" in done.stdout] == shown
    assert done.stdout.count("-> do this") == len(shown)
    document = json.loads((await invoke(controller, "doctor", "--json")).stdout)
    assert document["ok"] is (code == 0)
    assert [each["level"] for each in document["findings"] if each["name"] == "agents"] == levels


async def test_all_shows_what_is_in_order(controller: FakeController) -> None:
    controller.script[DIAGNOSIS] = [diagnosis(finding("ok", advice=""))]
    assert "A sentence." not in (await invoke(controller, "doctor")).stdout
    assert "tpp: A sentence." in (await invoke(controller, "doctor", "--all")).stdout


async def test_without_a_token_everything_else_is_checked(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAP_DATABASE_URL", "postgresql://u@127.0.0.1:1/none")
    done = await asyncio.to_thread(CliRunner().invoke, rap, ["doctor", "--all", "--url", controller.url])
    assert done.exit_code == 1, done.output
    assert "cannot be reached" in done.stdout
    assert "is ready" in done.stdout
    assert "RAP_TOKEN" in done.stdout


async def test_a_controller_that_is_not_ready(controller: FakeController) -> None:
    controller.script["GET /readyz"] = [(503, {"status": "unavailable", "failing": ["database"]})]
    controller.script[DIAGNOSIS] = [(503, {"error": "unavailable", "message": "away"})]
    done = await invoke(controller, "doctor", "--retry-for", "0")
    assert done.exit_code == 1
    assert "is not ready" in done.stdout
    assert "database" in done.stdout
    assert "There is no diagnosis" in done.stdout


@pytest.mark.parametrize(
    ("date", "level"),
    [("Sat, 01 Jan 2000 00:00:00 GMT", Severity.PROBLEM), ("nonsense", None), (None, Severity.OK)],
)
async def test_the_clock_of_a_controller(date: str | None, level: Severity | None) -> None:
    async def ready(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"}, headers={"Date": date} if date else {})

    app = web.Application()
    app.router.add_get("/readyz", ready)
    async with TestServer(app) as server:
        found = await controller_checks.check_health(str(server.make_url("/")))
    clocks = [each.level for each in found if each.name == "controller_clock"]
    assert clocks == ([level] if level else [])


def run(*arguments: str, **env: str) -> Any:
    return CliRunner().invoke(rap, list(arguments), env=env)


def bare(folder: Path) -> dict[str, str]:
    """A machine with no program and no engine."""
    return {"PATH": "/nowhere", "DOCKER_HOST": f"unix://{folder}/docker.sock", "HOME": str(folder), "RAP_EXECUTOR": ""}


def test_where_nothing_is_set_the_executors_are_explained(tmp_path: Path) -> None:
    done = run("doctor", **bare(tmp_path))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "Executors (`rap up` would take sandbox): 0 of 1 checks in order"
    for words in (
        f"  not usable docker   there is no {tmp_path}/docker.sock",
        "  not usable slurm    there is no sbatch",
        "  taken      sandbox  jobs run WITHOUT isolation, as plain processes (RAP_ALLOW_UNISOLATED): bubblewrap",
        "systemctl start docker",
        "slurm-client",
        "apt install bubblewrap",
    ):
        assert words in done.stdout
    document = json.loads(run("doctor", "--json", **bare(tmp_path)).stdout)
    told = [(each["name"], each["standing"], each["taken"], each["isolated"]) for each in document["executors"]]
    assert told == [
        ("docker", "unusable", False, True),
        ("slurm", "unusable", False, True),
        ("sandbox", "ready", True, False),
    ]
    assert [each["level"] for each in document["findings"]] == ["warning"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"RAP_EXECUTOR": "docker"}, "docker cannot be used: there is no"),
        ({"RAP_EXECUTOR": "dokcer"}, "RAP_EXECUTOR is 'dokcer', which is not one of"),
        ({"RAP_ALLOW_UNISOLATED": "false"}, "No executor can be used"),
    ],
)
def test_an_executor_that_cannot_be_had_is_a_problem(tmp_path: Path, values: dict[str, str], words: str) -> None:
    done = run("doctor", **{**bare(tmp_path), **values})
    assert done.exit_code == 1, done.output
    assert words in done.stdout


def test_a_folder_that_cannot_be_looked_at_ends_no_look(tmp_path: Path) -> None:
    """As one behind a folder of another user's."""
    hidden = str(tmp_path / ("n" * 300))
    assert run("doctor", XDG_DATA_HOME=hidden, **bare(tmp_path)).exit_code == 0
    agent = {"BACKEND": "tpp", "RAP_CONTROLLER_URL": "http://127.0.0.1:1", "CONTROLLER_TASK_API_TOKEN": "s3cret"}
    done = run("doctor", HIGH_PRIVACY_STORAGE_BASE=hidden, **agent, **bare(tmp_path))
    assert "Agent: 3 of 4 checks in order" in done.stdout, done.output


def test_nobody_answers() -> None:
    done = run("doctor", RAP_URL="http://127.0.0.1:1", RAP_TOKEN="s3cret")
    assert done.exit_code == 1
    assert "No controller answers at http://127.0.0.1:1" in done.stdout
    assert "s3cret" not in done.output


def test_a_database_that_is_away(tmp_path: Path) -> None:
    done = run("doctor", RAP_DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/x", WORKDIR=str(tmp_path))
    assert done.exit_code == 1
    assert "cannot be reached" in done.stdout
    assert "hunter2" not in done.output


async def test_a_database(database: Database, tmp_path: Path) -> None:
    """That of the tests is as it should be, but for fsync."""
    done = await invoke_here("doctor", "--json", RAP_DATABASE_URL=database.dsn, WORKDIR=str(tmp_path / "not" / "yet"))
    levels = {each["name"]: each["level"] for each in json.loads(done.stdout)["findings"]}
    assert levels.pop("workdir_disk")
    assert levels.pop("database_disk")
    assert levels == {
        "database": "ok",
        "database_version": "ok",
        "database_durability": "problem",
        "database_clock": "ok",
        "schema": "ok",
    }
    assert done.exit_code == 1
    async with database.connection() as tx:
        await tx.execute("DELETE FROM schema_migration WHERE number > 1")
    done = await invoke_here("doctor", RAP_DATABASE_URL=database.dsn, WORKDIR=str(tmp_path))
    assert "-> rap migrate" in done.stdout


async def invoke_here(*arguments: str, **env: str) -> Any:
    return await asyncio.to_thread(run, *arguments, **env)


def test_an_agents_machine(tmp_path: Path) -> None:
    environ = {
        "BACKEND": "tpp",
        "RAP_CONTROLLER_URL": "http://127.0.0.1:1",
        "CONTROLLER_TASK_API_TOKEN": "s3cret",
        "WORKDIR": str(tmp_path),
        "RAP_EXECUTOR": "fake",
    }
    done = run("doctor", "--json", **environ)
    levels = {each["name"]: each["level"] for each in json.loads(done.stdout)["findings"]}
    assert (levels["agent_settings"], levels["executor"], levels["controller"]) == ("ok", "warning", "problem")
    assert "s3cret" not in done.output
    sandbox = run("doctor", "--json", **{**environ, "RAP_EXECUTOR": "sandbox", "PATH": "/nowhere"})
    told = {each["name"]: each for each in json.loads(sandbox.stdout)["findings"]}
    assert (told["executor"]["level"], "not installed" in told["executor"]["message"]) == ("problem", True)
    faulty = run("doctor", **{**environ, "CONTROLLER_TASK_API_TOKEN": ""})
    assert (faulty.exit_code, "CONTROLLER_TASK_API_TOKEN must be set" in faulty.stdout) == (1, True)


@pytest.mark.parametrize(("free", "level"), [(50 << 30, "ok"), (5 << 30, "warning"), (1 << 30, "problem")])
def test_room_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str) -> None:
    class Usage:
        total = 100 << 30

    Usage.free = free  # type: ignore[attr-defined]  # what shutil answers, as far as it is read
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    assert findings.disk("d", "it", tmp_path / "not" / "there").level.value == level


def test_a_disk_below_an_agents_reserve_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        total, used, free = 1 << 40, 1 << 39, 1 << 39

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    assert findings.disk("d", "it", tmp_path, reserve=1 << 39).level.value == "ok"
    found = findings.disk("d", "it", tmp_path, reserve=(1 << 39) + 1)
    assert found.level.value == "problem"
    assert "RAP_DISK_RESERVE" in found.message


def pruned(next_after: int | None = None, **changes: Any) -> tuple[int, dict[str, Any]]:
    counts = dict.fromkeys(("raps", "jobs", "kept", "outputs", "events", "logs", "tasks"), 2)
    cutoff = "2026-01-01T00:00:00.000000Z"
    body = {"backend": "b", "cutoff": cutoff, "dry_run": False, **counts, "next_after": next_after, **changes}
    return 200, body


async def test_pruning_goes_on_to_the_end_and_adds_up(controller: FakeController) -> None:
    controller.script[PRUNE] = [pruned(7), pruned(9), pruned()]
    done = await invoke(controller, "prune", "b", "--older-than", "90d", "-y", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["raps"], document["tasks"], "next_after" in document) == (6, 6, False)
    base = {"older_than_seconds": 90 * 86_400, "dry_run": False}
    assert controller.requests == [(PRUNE, {**base, "after": after}) for after in (0, 7, 9)]


async def test_a_dry_run_asks_nothing_and_says_would(controller: FakeController) -> None:
    controller.script[PRUNE] = [pruned(dry_run=True)]
    done = await invoke(controller, "prune", "b", "--older-than", "2w", "--dry-run")
    assert (done.exit_code, "would be forgotten: 2 RAPs with 2 jobs and 2 outputs" in done.stdout) == (0, True)
    assert controller.requests == [(PRUNE, {"older_than_seconds": 14 * 86_400, "dry_run": True, "after": 0})]


@pytest.mark.parametrize("age", ["90", "1.5d", "-1d", "d", "90m", "", "0d", "101y"])
async def test_an_age_that_is_none(controller: FakeController, age: str) -> None:
    done = await invoke(controller, "prune", "b", "--older-than", age, "-y")
    assert (done.exit_code, controller.requests) == (2, [])


async def test_pruning_needs_a_yes(controller: FakeController) -> None:
    done = await invoke(controller, "prune", "b", "--older-than", "90d")
    assert (done.exit_code, controller.requests) == (2, [])
    assert "-y" in done.stderr
