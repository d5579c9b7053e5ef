"""`rap submit` over real HTTP: what it finds out, asks for, follows, prints, and exits with."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli import progress
from cli.client import Client
from tests.cli.fake_controller import (
    RAP,
    TRACE,
    FakeController,
    backend,
    check_one_line,
    detail,
    invoke,
    job,
)

pytestmark = pytest.mark.usefixtures("alone")

CREATE = "POST /controller/v1/rap/create/"
CANCEL = "POST /controller/v1/rap/cancel/"
CREATED = (201, {"result": "Success", "details": "Jobs created", "rap_id": RAP, "count": 2})
ROOT = Path(__file__).parents[2]


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository `my study.git-like` with one commit on `main`."""
    path = tmp_path / "my study"
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    (path / "project.yaml").write_text("version: '4'\n")
    git(path, "add", ".")
    git(path, "commit", "-qm", "one")
    return path


def git(path: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", str(path), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


async def test_submit_of_a_local_repository(controller: FakeController, repo: Path) -> None:
    controller.script[CREATE] = CREATED
    result = await invoke(controller, "submit", str(repo))
    assert result.exit_code == 0, result.output
    path, body = controller.requests[-1]
    assert path == CREATE
    assert len(body.pop("rap_id")) == 16
    assert body.pop("created_by")
    assert body == {
        "backend": "test",
        "workspace": "my-study",
        "repo_url": str(repo),
        "branch": "main",
        "commit": git(repo, "rev-parse", "HEAD"),
        "database_name": "default",
        "requested_actions": ["run_all"],
        "codelists_ok": True,
        "force_run_dependencies": False,
        "project": "my-study",
        "orgs": [],
    }
    assert "2 jobs on backend test" in result.stdout
    assert result.stderr == ""


async def test_submit_with_everything_named(controller: FakeController, repo: Path) -> None:
    git(repo, "checkout", "-qb", "feature")
    git(repo, "commit", "-qm", "two", "--allow-empty")
    controller.script[CREATE] = CREATED
    options = ["--branch", "main", "--backend", "b", "--workspace", "w", "--project", "p", "--force", "--json"]
    result = await invoke(controller, "submit", str(repo), "one", "two", *options)
    assert result.exit_code == 0
    assert controller.paths() == [CREATE], "a named backend needs no look-up"
    body = controller.requests[0][1]
    assert body["commit"] == git(repo, "rev-parse", "main") != git(repo, "rev-parse", "HEAD")
    wanted = {"branch": "main", "backend": "b", "workspace": "w", "project": "p", "force_run_dependencies": True}
    assert body | wanted == body
    assert body["requested_actions"] == ["one", "two"]
    document = json.loads(result.stdout)
    assert (document["rap_id"], document["count"], document["rap"]) == (body["rap_id"], 2, None)
    assert document["result"] == "Success"


async def test_submit_of_a_relative_path_and_a_short_commit(
    controller: FakeController, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repo.parent)
    controller.script[CREATE] = CREATED
    short = git(repo, "rev-parse", "--short", "HEAD")
    result = await invoke(controller, "submit", "my study", "--commit", short)
    assert result.exit_code == 0
    body = controller.requests[-1][1]
    assert (body["repo_url"], body["commit"]) == (str(repo), git(repo, "rev-parse", "HEAD"))


async def test_submit_of_an_address(controller: FakeController, repo: Path) -> None:
    controller.script[CREATE] = CREATED
    result = await invoke(controller, "submit", f"file://{repo}")
    assert result.exit_code == 0
    body = controller.requests[-1][1]
    assert (body["repo_url"], body["branch"]) == (f"file://{repo}", "main")
    assert body["commit"] == git(repo, "rev-parse", "HEAD")


async def test_submit_warns_of_what_is_not_committed(controller: FakeController, repo: Path) -> None:
    (repo / "new.py").write_text("")
    controller.script[CREATE] = CREATED
    result = await invoke(controller, "submit", str(repo))
    assert result.exit_code == 0
    check_one_line(result.stderr, "warning", "1 file has changes", "not committed")


async def test_submit_says_when_there_is_nothing_to_do(controller: FakeController, repo: Path) -> None:
    said = {"result": "Nothing to do", "details": "All actions have already completed successfully", "count": 0}
    controller.script[CREATE] = (200, said)
    result = await invoke(controller, "submit", str(repo), "--wait")
    assert result.exit_code == 0
    assert result.stdout == "Nothing to do: All actions have already completed successfully\n"


@pytest.mark.parametrize(("last", "code"), [("succeeded", 0), ("failed", 1)])
async def test_submit_waits_for_the_end(controller: FakeController, repo: Path, last: str, code: int) -> None:
    done = {
        "at": "2026-01-01T00:01:15.500000Z",
        "attempt": 1,
        "state": last,
        "code": last,
        "message": "It has\nended",
    }
    output = {
        "path": "output/t.csv",
        "level": "moderately_sensitive",
        "size": 2048,
        "sha256": "0" * 64,
        "excluded": True,
        "message": "too many rows",
    }
    metrics = {"cpu_mean": 10.4, "cpu_peak": 20, "mem_mb_mean": 30, "mem_mb_peak": 40}
    ended = job("one", last, outputs=[output], metrics=metrics)
    ended["history"] = [*ended["history"], done]
    answers = iter([detail(job("one", "running"), job("two", "pending")), detail(ended, job("two"))])
    waiting = detail(job("one", "pending"), job("two", "pending"))

    def show(request: Any) -> Any:
        return (200, next(answers, waiting))

    def create(request: Any) -> Any:
        rap_id = controller.requests[-1][1]["rap_id"]
        controller.script[f"GET /api/raps/{rap_id}"] = show
        return CREATED

    controller.script[CREATE] = create
    result = await invoke(controller, "submit", str(repo), "--wait")
    assert result.exit_code == code, result.output
    lines = result.stdout
    assert "one: pending (Created)" in lines
    assert f"one: {last} (It has ended)" in lines
    for part in ("1.0s", "1m 14s", "10/20", "30/40", "2.0 KiB", "moderately_sensitive", "too many rows"):
        assert part in lines
    assert f"Trace id: {TRACE}" in lines


async def test_submit_wait_json_is_one_document(controller: FakeController, repo: Path) -> None:
    def create(request: Any) -> Any:
        rap_id = controller.requests[-1][1]["rap_id"]
        controller.script[f"GET /api/raps/{rap_id}"] = (200, detail(job("one", "failed"), rap_id=rap_id))
        return CREATED

    controller.script[CREATE] = create
    result = await invoke(controller, "submit", str(repo), "--wait", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["rap"]["jobs"][0]["state"] == "failed"
    assert "one: pending" in result.stderr


async def test_submit_is_refused_in_the_controllers_words(controller: FakeController, repo: Path) -> None:
    said = {"error": "Error creating jobs", "details": "ProjectValidationError\n unknown action 'x'"}
    controller.script[CREATE] = (400, said)
    result = await invoke(controller, "submit", str(repo), "x")
    assert result.exit_code == 2
    assert result.stdout == ""
    check_one_line(result.stderr, "ProjectValidationError unknown action 'x'")


async def test_submit_does_not_guess_among_backends(controller: FakeController, repo: Path) -> None:
    controller.script["GET /api/backends"] = (200, {"backends": [backend("a"), backend("b")]})
    result = await invoke(controller, "submit", str(repo))
    assert result.exit_code == 2
    check_one_line(result.stderr, "a, b", "--backend")


async def test_submit_to_an_unknown_backend_names_those_there_are(controller: FakeController, repo: Path) -> None:
    controller.script["GET /api/backends"] = (200, {"backends": [backend("a"), backend("b")]})
    controller.script[CREATE] = (400, {"error": "unknown", "details": "Unknown error"})
    result = await invoke(controller, "submit", str(repo), "--backend", "c")
    assert result.exit_code == 2
    check_one_line(result.stderr, "--backend", "'c'", "a, b")
    known = await invoke(controller, "submit", str(repo), "--backend", "a")
    check_one_line(known.stderr, "backend a refuses", "Unknown error", "may read there, but not run")


async def test_a_create_whose_answer_was_lost_is_sent_again_with_the_same_id(
    controller: FakeController, repo: Path
) -> None:
    again = (200, {"result": "No change", "details": "Jobs already created", "rap_id": RAP, "count": 2})
    controller.script[CREATE] = [None, (503, "<html>", {"Retry-After": "0"}), again]
    result = await invoke(controller, "submit", str(repo), RAP_RETRY_FOR="30")
    assert result.exit_code == 0, result.output
    bodies = [body for path, body in controller.requests if path == CREATE]
    assert len(bodies) == 3
    assert bodies[0] == bodies[1] == bodies[2]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nowhere"], "there is no repository at nowhere"),
        (["."], "not a git repository"),
        (["REPO", "--branch", "gone"], "has no branch gone"),
        (["REPO", "--commit", "abcabc"], "has no commit abcabc"),
        (["REPO", "--commit", "--output=x"], "has no commit --output=x"),
        (["https://user:word@example.org/x.git"], "must not hold a user name or password"),
        (["file://REPO", "--commit", "abc"], "full 40 characters"),
        (["file://REPO", "--branch", "gone"], "has no branch gone"),
        (["file:///nowhere/at/all"], "cannot be used"),
        (["ext::sh -c true"], "there is no repository"),
    ],
)
async def test_a_source_that_is_unusable(
    controller: FakeController, repo: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], part: str
) -> None:
    elsewhere = repo.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(repo.parent))
    result = await invoke(controller, "submit", *(each.replace("REPO", str(repo)) for each in arguments))
    assert result.exit_code == 2
    check_one_line(result.stderr, part)
    assert "word" not in result.stderr.replace("password", "")
    assert controller.requests == []


async def test_a_detached_head_needs_a_branch(controller: FakeController, repo: Path) -> None:
    git(repo, "checkout", "-q", "--detach")
    result = await invoke(controller, "submit", str(repo))
    assert result.exit_code == 2
    check_one_line(result.stderr, "--branch")


async def test_a_repository_without_commits(controller: FakeController, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "empty")
    result = await invoke(controller, "submit", str(tmp_path / "empty"))
    assert result.exit_code == 2
    check_one_line(result.stderr, "has no commit yet")


async def test_ctrl_c_leaves_the_rap_running(controller: FakeController, repo: Path) -> None:
    looked = asyncio.Event()

    def show(request: Any) -> Any:
        looked.set()
        return (200, detail(job("one", "running")))

    def create(request: Any) -> Any:
        controller.script[f"GET /api/raps/{controller.requests[-1][1]['rap_id']}"] = show
        return CREATED

    controller.script[CREATE] = create
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "submit", str(repo), "--wait"),
        cwd=ROOT,
        env={**os.environ, "RAP_URL": controller.url, "RAP_TOKEN": "client-token"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        await looked.wait()
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
    rap_id = next(body["rap_id"] for path, body in controller.requests if path == CREATE)
    assert process.returncode == 130
    assert f"rap status {rap_id}" in stderr.decode()
    assert f"rap cancel {rap_id}" in stderr.decode()
    assert "Traceback" not in stderr.decode()
    assert not any(path == CANCEL for path in controller.paths())


async def test_a_terminal_gets_a_table_that_moves(controller: FakeController) -> None:
    running, ended = detail(job("one", "running")), detail(job("one"))
    controller.script[f"GET /api/raps/{RAP}"] = [(200, running), (200, ended)]
    screen = io.StringIO()
    async with Client(controller.url, "client-token") as client:
        console = Console(file=screen, force_terminal=True, width=100)
        assert await progress.follow(client, RAP, console) == ended
    assert "executing" in screen.getvalue()
    assert "one: pending" not in screen.getvalue(), "that is the form for pipes"
    assert len(controller.requests) == 2
