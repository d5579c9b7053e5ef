"""The commands that talk to a controller, over real HTTP: what they ask, print, and exit with."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from cli import client, main
from tests.cli.fake_controller import (
    RAP,
    TRACE,
    FakeController,
    backend,
    check_one_line,
    detail,
    invoke,
    job,
    summary,
)

pytestmark = pytest.mark.usefixtures("alone")

CANCEL = "POST /controller/v1/rap/cancel/"
ROOT = Path(__file__).parents[2]


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
    check_one_line(several.stderr, "more than one", RAP, other)
    none = await invoke(controller, "status", "q")
    check_one_line(none.stderr, "no RAP id")
    assert (several.exit_code, none.exit_code) == (2, 2)


async def test_an_unknown_rap(controller: FakeController) -> None:
    said = {"error": "not_found", "message": "There is no RAP with this id."}
    controller.script[f"GET /api/raps/{RAP}"] = (404, said)
    for arguments in (["status", RAP], ["cancel", RAP], ["logs", f"{RAP}/one"]):
        result = await invoke(controller, *arguments)
        assert result.exit_code == 2
        check_one_line(result.stderr, "There is no RAP with this id.")


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
        backend("test", paused=True, checks=checks),
        backend("other", db_maintenance=True, db_maintenance_type="manual"),
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
    check_one_line(missing.stderr, "no action 'three'", "one, two")


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
    check_one_line(result.stderr, "no log")


async def test_logs_by_the_beginning_of_a_jobs_id(controller: FakeController) -> None:
    pages = [{"jobs": [job("one")], "next_cursor": "more"}, {"jobs": [job("other")], "next_cursor": None}]
    controller.script["GET /api/jobs"] = lambda request: (200, pages["cursor" in request.query])
    controller.script[LOG] = (200, _log("x", complete=True))
    assert (await invoke(controller, "logs", "on")).stdout == "x"
    check_one_line((await invoke(controller, "logs", "o")).stderr, "more than one")
    check_one_line((await invoke(controller, "logs", "zz")).stderr, "no job id")
    check_one_line((await invoke(controller, "logs", "No Job")).stderr, "RAP_ID/ACTION")


async def test_logs_of_a_rap_says_how_to_name_a_job(controller: FakeController) -> None:
    controller.script[f"GET /api/raps/{RAP}"] = (200, detail(job("one")))
    result = await invoke(controller, "logs", RAP)
    assert result.exit_code == 2
    check_one_line(result.stderr, f"{RAP}/one")


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
    check_one_line(result.stderr, "does not accept the token", "RAP_TOKEN")
    assert "my-secret" not in result.stderr


@pytest.mark.parametrize("arguments", [["status", RAP], ["list", "--json"], ["backends"], ["cancel", RAP]])
async def test_a_controller_that_is_away(arguments: list[str], unused_tcp_port: int) -> None:
    result = await invoke(None, *arguments, RAP_URL=f"http://127.0.0.1:{unused_tcp_port}", RAP_TOKEN="t")
    assert result.exit_code == 2
    assert result.stdout == ""
    check_one_line(result.stderr, "no controller answers", str(unused_tcp_port))


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
    check_one_line(result.stderr, "no answer within 0.2 s")


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
    check_one_line(result.stderr, part)


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
    check_one_line(result.stderr, "--url")


async def test_nothing_is_configured() -> None:
    check_one_line((await invoke(None, "list")).stderr, "no `rap up`", "RAP_URL")
    check_one_line((await invoke(None, "list", RAP_URL="http://h")).stderr, "RAP_TOKEN")
    check_one_line((await invoke(None, "list", RAP_URL="http://h", RAP_TOKEN="a\nb")).stderr, "characters")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_output_that_cannot_be_written_ischeck_one_line(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "cli.main", *arguments]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, text=True, check=False)
    assert done.returncode == 2
    check_one_line(done.stderr, "No space left")


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
    check_one_line(result.stderr, "no_such_package")
    assert (await invoke(None, "--version")).exit_code == 0


@pytest.mark.parametrize(("command", "key"), [("list", "raps"), ("jobs", "jobs")])
async def test_lists_look_for_users_and_texts_page_by_page(controller: FakeController, command: str, key: str) -> None:
    """A page that looks for something may be empty, and not the last."""
    empty, last = {key: [], "next_cursor": "more"}, {key: [], "next_cursor": None}
    controller.script[f"GET /api/{key}"] = [(200, empty), (200, last)]
    result = await invoke(controller, command, "--by", "O'Hara & co", "--search", "100% <b>", "--limit", "7", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, last)
    asked = "created_by=O'Hara+%26+co&search=100%25+%3Cb%3E"
    assert controller.paths() == [f"GET /api/{key}?limit=7&{asked}", f"GET /api/{key}?limit=7&cursor=more&{asked}"]
