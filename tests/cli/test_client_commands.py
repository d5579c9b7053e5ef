"""The commands that talk to a controller, over real HTTP: what they ask, print, and exit with."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rich.console import Console
from yarl import URL

from cli import client, main, progress
from cli.client import Client
from tests.cli.fake_controller import RAP, TRACE, FakeController, detail, invoke, job, serving, summary

CREATE = "POST /controller/v1/rap/create/"
CANCEL = "POST /controller/v1/rap/cancel/"
CREATED = (201, {"result": "Success", "details": "Jobs created", "rap_id": RAP, "count": 2})
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `rap up` of the person who runs the tests is found."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with serving() as controller:
        controller.script["GET /api/backends"] = (200, {"backends": [_backend("test")]})
        yield controller


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


def _backend(slug: str, **changes: Any) -> dict[str, Any]:
    return {
        "slug": slug,
        "last_seen": "2026-01-01T00:00:00.000000Z",
        "paused": False,
        "paused_since": None,
        "db_maintenance": False,
        "db_maintenance_since": None,
        "db_maintenance_type": None,
        **changes,
    }


def _one_line(stderr: str, *parts: str) -> None:
    assert stderr.startswith("rap: ")
    assert stderr.count("\n") == 1
    assert "Traceback" not in stderr
    for part in parts:
        assert part in stderr


# submit


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
    _one_line(result.stderr, "warning", "1 file has changes", "not committed")


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
    _one_line(result.stderr, "ProjectValidationError unknown action 'x'")


async def test_submit_does_not_guess_among_backends(controller: FakeController, repo: Path) -> None:
    controller.script["GET /api/backends"] = (200, {"backends": [_backend("a"), _backend("b")]})
    result = await invoke(controller, "submit", str(repo))
    assert result.exit_code == 2
    _one_line(result.stderr, "a, b", "--backend")


async def test_submit_to_an_unknown_backend_names_those_there_are(controller: FakeController, repo: Path) -> None:
    controller.script["GET /api/backends"] = (200, {"backends": [_backend("a"), _backend("b")]})
    controller.script[CREATE] = (400, {"error": "unknown", "details": "Unknown error"})
    result = await invoke(controller, "submit", str(repo), "--backend", "c")
    assert result.exit_code == 2
    _one_line(result.stderr, "--backend", "'c'", "a, b")
    known = await invoke(controller, "submit", str(repo), "--backend", "a")
    _one_line(known.stderr, "backend a refuses", "Unknown error", "may read there, but not run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_output_that_cannot_be_written_is_one_line(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "cli.main", *arguments]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, text=True, check=False)
    assert done.returncode == 2
    _one_line(done.stderr, "No space left")


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
    _one_line(result.stderr, part)
    assert "word" not in result.stderr.replace("password", "")
    assert controller.requests == []


async def test_a_detached_head_needs_a_branch(controller: FakeController, repo: Path) -> None:
    git(repo, "checkout", "-q", "--detach")
    result = await invoke(controller, "submit", str(repo))
    assert result.exit_code == 2
    _one_line(result.stderr, "--branch")


async def test_a_repository_without_commits(controller: FakeController, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "empty")
    result = await invoke(controller, "submit", str(tmp_path / "empty"))
    assert result.exit_code == 2
    _one_line(result.stderr, "has no commit yet")


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


# status, list, cancel, backends


async def test_status_shows_the_jobs(controller: FakeController) -> None:
    jobs = (job("one"), job("two", "failed", message="broke \x1b[2J[red]x\u202ey"), job("three", "pending"))
    controller.script[f"GET /api/raps/{RAP}"] = (200, detail(*jobs))
    result = await invoke(controller, "status", RAP)
    assert result.exit_code == 0
    for part in ("one", "nonzero_exit", "pending", "message of three", TRACE, "backend test"):
        assert part in result.stdout
    assert "\x1b" not in result.stdout
    assert "broke \\x1b[2J[red]x\\u202ey" in result.stdout
    as_json = await invoke(controller, "status", RAP, "--json")
    assert json.loads(as_json.stdout) == detail(*jobs)


async def test_status_by_the_beginning_of_an_id(controller: FakeController) -> None:
    other = "abczzzzzzzzzzzzz"
    pages = {
        None: {"raps": [summary(RAP)], "next_cursor": "N"},
        "N": {"raps": [summary(other)], "next_cursor": None},
    }
    controller.script["GET /api/raps"] = lambda request: (200, pages[request.query.get("cursor")])
    controller.script[f"GET /api/raps/{other}"] = (200, detail(job("one"), rap_id=other))
    result = await invoke(controller, "status", "abcz")
    assert result.exit_code == 0
    assert other in result.stdout
    several = await invoke(controller, "status", "abc")
    _one_line(several.stderr, "more than one", RAP, other)
    none = await invoke(controller, "status", "q")
    _one_line(none.stderr, "no RAP id")
    assert (several.exit_code, none.exit_code) == (2, 2)


async def test_an_unknown_rap(controller: FakeController) -> None:
    said = {"error": "not_found", "message": "There is no RAP with this id."}
    controller.script[f"GET /api/raps/{RAP}"] = (404, said)
    for arguments in (["status", RAP], ["cancel", RAP], ["logs", f"{RAP}/one"]):
        result = await invoke(controller, *arguments)
        assert result.exit_code == 2
        _one_line(result.stderr, "There is no RAP with this id.")


async def test_list_goes_over_pages(controller: FakeController) -> None:
    ids = [f"{number:016}" for number in range(3)]

    def page(request: Any) -> Any:
        start = int(request.query.get("cursor", 0))
        following = start + 1 if start < 2 else None
        return (200, {"raps": [summary(ids[start])], "next_cursor": following and str(following)})

    controller.script["GET /api/raps"] = page
    result = await invoke(controller, "list", "--active", "--workspace", "w", "--backend", "b", "--json")
    assert json.loads(result.stdout) == {"raps": [summary(each) for each in ids], "next_cursor": None}
    queries = [dict(URL(path.split()[1]).query) for path in controller.paths()]
    filters = {"workspace": "w", "backend": "b", "state": "active"}
    assert queries == [
        {"limit": "20", **filters},
        {"limit": "19", "cursor": "1", **filters},
        {"limit": "18", "cursor": "2", **filters},
    ]
    shorter = await invoke(controller, "list", "--limit", "2")
    assert ids[1] in shorter.stdout
    assert ids[2] not in shorter.stdout
    assert "--limit" in shorter.stdout
    assert "1/2" in shorter.stdout


async def test_an_empty_list(controller: FakeController) -> None:
    controller.script["GET /api/raps"] = (200, {"raps": [], "next_cursor": None})
    assert (await invoke(controller, "list")).stdout == "No RAPs.\n"


async def test_cancel_takes_all_that_is_active(controller: FakeController) -> None:
    jobs = detail(job("one"), job("two", "running"), job("three", "pending"))
    controller.script[f"GET /api/raps/{RAP}"] = (200, jobs)
    controller.script[CANCEL] = (200, {"result": "Success", "details": "2 actions cancelled", "count": 2})
    result = await invoke(controller, "cancel", RAP)
    assert result.exit_code == 0
    assert controller.requests[-1] == (CANCEL, {"rap_id": RAP, "actions": ["two", "three"]})
    assert "two, three" in result.stdout


async def test_cancel_of_named_actions(controller: FakeController) -> None:
    controller.script[CANCEL] = (200, {"result": "Success", "details": "1 actions cancelled", "count": 1})
    result = await invoke(controller, "cancel", RAP, "two", "two", "--json")
    assert controller.requests == [(CANCEL, {"rap_id": RAP, "actions": ["two"]})]
    assert json.loads(result.stdout) == {"rap_id": RAP, "actions": ["two"], "count": 1}


async def test_cancel_of_what_has_ended(controller: FakeController) -> None:
    controller.script[f"GET /api/raps/{RAP}"] = (200, detail(job("one")))
    result = await invoke(controller, "cancel", RAP)
    assert result.exit_code == 0
    assert "ended already" in result.stdout
    assert CANCEL not in controller.paths()


async def test_backends_with_their_agents(controller: FakeController) -> None:
    agent = {
        "id": "node-1",
        "backend": "test",
        "version": "1",
        "executor": "sandbox",
        "slots": 4,
        "last_seen": None,
        "egress": {},
    }
    controller.script["GET /api/agents"] = (200, {"agents": [agent]})
    checks = [
        {"kind": "dbstatus", "finished_at": "2026-01-01T00:00:00Z", "answer": "none;0"},
        {"kind": "dbdatacheck", "finished_at": "2026-01-01T00:00:00Z", "answer": "FAILED"},
    ]
    both = [
        _backend("test", paused=True, checks=checks),
        _backend("other", db_maintenance=True, db_maintenance_type="manual"),
    ]
    controller.script["GET /api/backends"] = (200, {"backends": both})
    result = await invoke(controller, "backends")
    for part in ("paused", "database maintenance (manual)", "node-1: sandbox, 4 slots, seen never", "none"):
        assert part in result.stdout
    document = json.loads((await invoke(controller, "backends", "--json")).stdout)
    assert document["backends"][0]["agents"] == [agent]
    assert document["backends"][1]["agents"] == []


# logs, history


def _log(text: str, start: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "job_id": "onexxxxxxxxxxxxx",
        "attempt": 1,
        "offset": start,
        "text": text,
        "next_offset": start + len(text),
        "complete": False,
        "truncated": False,
        **changes,
    }


LOG = "GET /api/jobs/onexxxxxxxxxxxxx/log"


async def test_logs_of_an_action(controller: FakeController) -> None:
    controller.script[f"GET /api/raps/{RAP}"] = (200, detail(job("one"), job("two")))
    controller.script[LOG] = [(200, _log("first\n")), (200, _log("second\n", 6, complete=True))]
    result = await invoke(controller, "logs", f"{RAP}/one")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "first\nsecond\n", "")
    missing = await invoke(controller, "logs", f"{RAP}/three")
    _one_line(missing.stderr, "no action 'three'", "one, two")


async def test_logs_stop_at_what_is_there_unless_followed(controller: FakeController) -> None:
    controller.script["GET /api/jobs/onexxxxxxxxxxxxx"] = (200, job("one"))
    script = [(200, _log("a\n")), (200, _log("", 2)), (200, _log("b\n", 2)), (200, _log("", 4, complete=True))]
    controller.script[LOG] = list(script)
    assert (await invoke(controller, "logs", "onexxxxxxxxxxxxx")).stdout == "a\n"
    controller.script[LOG] = list(script)
    followed = await invoke(controller, "logs", "onexxxxxxxxxxxxx", "--follow", "--json")
    document = json.loads(followed.stdout)
    assert (document["text"], document["complete"], document["attempt"]) == ("a\nb\n", True, 1)


async def test_logs_follow_a_new_attempt_from_its_start(controller: FakeController) -> None:
    controller.script["GET /api/jobs/onexxxxxxxxxxxxx"] = (200, job("one"))

    def log(request: Any) -> Any:
        asked = sum(path.startswith(LOG) for path in controller.paths())
        if asked == 1:
            return (200, _log("one\n"))
        start = int(request.query["offset"])
        return (200, _log("two\n"[start:], start, attempt=2, complete=True))

    controller.script[LOG] = log
    result = await invoke(controller, "logs", "onexxxxxxxxxxxxx", "-f")
    assert result.stdout == "one\ntwo\n"
    assert "attempt 2" in result.stderr


async def test_logs_that_are_not_let_out(controller: FakeController) -> None:
    controller.script["GET /api/jobs/onexxxxxxxxxxxxx"] = (200, job("one"))
    controller.script[LOG] = (200, _log("", complete=True))
    result = await invoke(controller, "logs", "onexxxxxxxxxxxxx")
    assert (result.exit_code, result.stdout) == (0, "")
    _one_line(result.stderr, "no log")


async def test_logs_by_the_beginning_of_a_jobs_id(controller: FakeController) -> None:
    pages = [{"jobs": [job("one")], "next_cursor": "more"}, {"jobs": [job("other")], "next_cursor": None}]
    controller.script["GET /api/jobs"] = lambda request: (200, pages["cursor" in request.query])
    controller.script[LOG] = (200, _log("x", complete=True))
    assert (await invoke(controller, "logs", "on")).stdout == "x"
    _one_line((await invoke(controller, "logs", "o")).stderr, "more than one")
    _one_line((await invoke(controller, "logs", "zz")).stderr, "no job id")
    _one_line((await invoke(controller, "logs", "No Job")).stderr, "RAP_ID/ACTION")


async def test_logs_of_a_rap_says_how_to_name_a_job(controller: FakeController) -> None:
    controller.script[f"GET /api/raps/{RAP}"] = (200, detail(job("one")))
    result = await invoke(controller, "logs", RAP)
    assert result.exit_code == 2
    _one_line(result.stderr, f"{RAP}/one")


async def test_history(controller: FakeController) -> None:
    controller.script["GET /api/jobs/onexxxxxxxxxxxxx"] = (200, job("one"))
    result = await invoke(controller, "history", "onexxxxxxxxxxxxx")
    assert "created" in result.stdout
    assert "Created" in result.stdout
    assert json.loads((await invoke(controller, "history", "onexxxxxxxxxxxxx", "--json")).stdout) == job("one")
    # A controller that says nothing of limits and metrics.
    assert "May use: " not in result.stdout
    assert "Used: " not in result.stdout


@pytest.mark.parametrize(
    ("state", "time_limit", "lines"),
    [
        ("running", 5400, ["May use: 1 CPU, 8G of memory, 1h30m", "Uses: CPU 97 % (at most 101 %), memory 120 MiB"]),
        ("failed", None, ["May use: 1 CPU, 8G of memory, no time limit", "Used: CPU 97 % (at most 101 %), memory"]),
    ],
)
async def test_history_ends_with_what_the_job_may_use_and_uses(
    controller: FakeController, state: str, time_limit: float | None, lines: list[str]
) -> None:
    limits = {"cpu_count": 1.0, "memory_limit": "8G", "time_limit": time_limit}
    metrics = {"cpu_mean": 96.5001, "cpu_peak": 101.0, "mem_mb_mean": 120, "mem_mb_peak": 131.4}
    controller.script["GET /api/jobs/onexxxxxxxxxxxxx"] = (200, job("one", state, limits=limits, metrics=metrics))
    told = (await invoke(controller, "history", "onexxxxxxxxxxxxx")).stdout.splitlines()
    assert [line.startswith(words) for line, words in zip(told[-2:], lines, strict=True)] == [True, True], told


# connection


@pytest.mark.parametrize("arguments", [["status", RAP], ["list"], ["backends"], ["cancel", RAP], ["logs", RAP]])
async def test_a_wrong_token(controller: FakeController, arguments: list[str]) -> None:
    result = await invoke(controller, *arguments, RAP_TOKEN="my-secret")
    assert result.exit_code == 2
    assert result.stdout == ""
    _one_line(result.stderr, "does not accept the token", "RAP_TOKEN")
    assert "my-secret" not in result.stderr


@pytest.mark.parametrize("arguments", [["status", RAP], ["list", "--json"], ["backends"], ["cancel", RAP]])
async def test_a_controller_that_is_away(arguments: list[str], unused_tcp_port: int) -> None:
    result = await invoke(None, *arguments, RAP_URL=f"http://127.0.0.1:{unused_tcp_port}", RAP_TOKEN="t")
    assert result.exit_code == 2
    assert result.stdout == ""
    _one_line(result.stderr, "no controller answers", str(unused_tcp_port))


async def test_a_controller_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_READ_TIMEOUT", aiohttp.ClientTimeout(total=0.2))
    streams = []
    server = await asyncio.start_server(lambda _, writer: streams.append(writer), "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        result = await invoke(None, "list", RAP_URL=url, RAP_TOKEN="t")
        for stream in streams:
            stream.close()
    assert result.exit_code == 2
    _one_line(result.stderr, "no answer within 0.2 s")


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        ((503, {"error": "unavailable", "message": "database away"}, {"Retry-After": "1"}), "database away"),
        ((502, "<html>bad gateway"), "HTTP 502"),
        ((500, "<html>oops"), "failed (HTTP 500)"),
        ((200, "<html>hello"), "does not answer like a RAP controller"),
        ((404, "<html>hello"), "check --url"),
        ((301, "", {"Location": "https://elsewhere.example"}), "elsewhere.example"),
        (None, "failed"),
    ],
)
async def test_answers_that_are_no_use(controller: FakeController, answer: Any, part: str) -> None:
    controller.script["GET /api/raps"] = answer
    result = await invoke(controller, "list")
    assert result.exit_code == 2
    _one_line(result.stderr, part)


@pytest.mark.parametrize("passing", [None, (502, "<html>"), (503, "<html>", {"Retry-After": "0"}), (200, "<html>")])
async def test_what_passes_is_waited_for(controller: FakeController, passing: Any) -> None:
    controller.script["GET /api/raps"] = [passing, (200, {"raps": [], "next_cursor": None})]
    result = await invoke(controller, "list", "--retry-for", "30")
    assert result.exit_code == 0, result.output
    assert len(controller.requests) == 2


@pytest.mark.parametrize("url", ["ftp://x", "localhost:8000", "http://", "http://[", "https://u:p@h"])
async def test_an_address_that_is_none(url: str) -> None:
    result = await invoke(None, "list", RAP_URL=url, RAP_TOKEN="t")
    assert result.exit_code == 2
    _one_line(result.stderr, "--url")


async def test_nothing_is_configured() -> None:
    _one_line((await invoke(None, "list")).stderr, "no `rap up`", "RAP_URL")
    _one_line((await invoke(None, "list", RAP_URL="http://h")).stderr, "RAP_TOKEN")
    _one_line((await invoke(None, "list", RAP_URL="http://h", RAP_TOKEN="a\nb")).stderr, "characters")


async def test_wrong_usage_is_2() -> None:
    for arguments in (["status"], ["submit"], ["list", "--limit", "0"], ["nothing"], ["list", "--retry-for", "x"]):
        assert (await invoke(None, *arguments)).exit_code == 2


# the group


async def test_help_imports_no_command() -> None:
    code = "import sys; from cli.main import rap; rap(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    done = await asyncio.create_subprocess_exec(*(sys.executable, "-c", code), cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    text = (await done.communicate())[0].decode()
    help_text, modules = text.rsplit("\n[", 1)
    for name in [*main.USING, *main.OPERATING, *main.RUNNING]:
        assert f"\n  {name} " in help_text
    for module in ("aiohttp", "rich", "asyncpg", "cli.commands.submit"):
        assert f"'{module}'" not in modules


@pytest.mark.parametrize("name", [*main.USING, *main.OPERATING])
async def test_every_command_explains_itself(name: str) -> None:
    result = await invoke(None, name, "--help")
    assert result.exit_code == 0
    assert "RAP_TOKEN" in result.stdout


async def test_a_missing_package_hurts_its_command_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(main.SECTIONS["Run the system"], "up", main.Lazy("no_such_package.up:up", "."))
    result = await invoke(None, "up")
    assert result.exit_code == 2
    _one_line(result.stderr, "no_such_package")
    assert (await invoke(None, "--version")).exit_code == 0
