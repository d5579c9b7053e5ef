"""Operators' commands over real HTTP: what they ask for, say, and exit with."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import confirmation
from cli.main import rap
from tests.cli.fake_controller import TOKEN, FakeController, invoke, serving

pytestmark = pytest.mark.usefixtures("alone")

SINCE = "2026-01-01T00:00:00.000000Z"
COMMANDS = [("pause", "b"), ("unpause", "b"), ("db-maintenance", "on", "b"), ("prepare-for-reboot", "b", "-y")]
STATUS = "GET /api/backends/b/reboot-status"
PREPARE = "POST /api/backends/b/prepare-for-reboot"


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with serving() as controller:
        yield controller


def flags_set(*changed: str, backend: str = "b") -> tuple[int, dict[str, Any]]:
    flag = {"backend": backend, "id": "paused", "value": "true", "changed_at": SINCE}
    return 200, {"backend": backend, "changed": list(changed), "flags": [flag]}


def status(**changes: Any) -> dict[str, Any]:
    return {"backend": "b", "paused": True, "running": 0, "cancelling": 0, "safe": True, **changes}


@pytest.mark.parametrize(
    ("arguments", "request_", "sentence"),
    [
        (["pause", "b"], ("POST /api/backends/b/pause", None), "Backend b is paused: no job starts"),
        (["unpause", "b"], ("POST /api/backends/b/unpause", None), "Backend b is not paused: jobs start again"),
        (
            ["db-maintenance", "on", "b"],
            ("POST /api/backends/b/maintenance", {"on": True, "disable_checks": False}),
            "Backend b is in database maintenance: database jobs wait, the database is asked for its status as usual",
        ),
        (
            ["db-maintenance", "on", "b", "--disable-checks"],
            ("POST /api/backends/b/maintenance", {"on": True, "disable_checks": True}),
            "the database is not asked for its status",
        ),
        (
            ["db-maintenance", "off", "b"],
            ("POST /api/backends/b/maintenance", {"on": False, "disable_checks": False}),
            "Backend b is not in database maintenance: database jobs start again",
        ),
    ],
)
async def test_a_mode_is_set_and_told(
    controller: FakeController, arguments: list[str], request_: Any, sentence: str
) -> None:
    controller.script[request_[0]] = [flags_set("paused"), flags_set()]
    first = await invoke(controller, *arguments)
    assert (first.exit_code, first.stderr) == (0, "")
    assert sentence in first.stdout
    assert "nothing changed" not in first.stdout
    again = await invoke(controller, *arguments)
    assert again.exit_code == 0
    assert sentence in again.stdout
    assert "it was so already: nothing changed" in again.stdout
    document = await invoke(controller, *arguments, "--json")
    assert json.loads(document.stdout) == flags_set()[1]
    assert controller.requests == [request_] * 3


async def test_a_backends_name_is_quoted_and_shown_safely(controller: FakeController) -> None:
    controller.script["POST /api/backends/../x/pause"] = flags_set("paused", backend="\x1b[2J")
    result = await invoke(controller, "pause", "../x")
    assert controller.paths() == ["POST /api/backends/..%2Fx/pause"]
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("arguments", [["db-maintenance", "off", "b", "--disable-checks"], ["db-maintenance", "b"]])
async def test_what_makes_no_sense_is_not_asked(controller: FakeController, arguments: list[str]) -> None:
    assert (await invoke(controller, *arguments)).exit_code == 2
    assert controller.requests == []


@pytest.mark.parametrize("arguments", COMMANDS)
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((403, {"error": "forbidden", "message": "This token may use 'b', but not manage it."}), "not manage it"),
        ((404, {"error": "not_found", "message": "There is no backend 'b' for this token."}), "no backend 'b'"),
        ((503, {"error": "unavailable", "message": "away"}), "not available"),
    ],
)
async def test_refusals_are_one_line(
    controller: FakeController, arguments: tuple[str, ...], answer: Any, words: str
) -> None:
    for command in ("pause", "unpause", "maintenance", "prepare-for-reboot"):
        controller.script[f"POST /api/backends/b/{command}"] = answer
    result = await invoke(controller, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("rap: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


# reboot


async def test_prepare_says_what_it_did_and_what_is_left(controller: FakeController) -> None:
    left = status(cancelling=1, safe=False)
    controller.script[PREPARE] = [
        (200, {"changed": ["paused"], "jobs": ["a" * 16], "status": left}),
        (200, {"changed": [], "jobs": [], "status": status()}),
    ]
    first = await invoke(controller, "prepare-for-reboot", "b", "-y")
    assert first.exit_code == 0
    assert first.stdout.splitlines() == [
        "Backend b paused, 1 running job sent back to the queue",
        "Backend b is paused, 0 jobs running, 1 job being stopped: NOT safe to reboot yet",
    ]
    again = await invoke(controller, "prepare-for-reboot", "b", "-y")
    assert again.stdout.splitlines() == [
        "Backend b was prepared already: nothing changed",
        "Backend b is paused, 0 jobs running, 0 jobs being stopped: safe to reboot",
    ]
    document = await invoke(controller, "prepare-for-reboot", "b", "-y", "--json")
    assert json.loads(document.stdout)["status"] == status()
    assert controller.paths() == [PREPARE] * 3


@pytest.mark.parametrize(
    ("found", "code", "words"),
    [
        (status(), 0, "safe to reboot"),
        (status(running=2, safe=False), 1, "2 jobs running, 0 jobs being stopped: NOT safe"),
        (status(paused=False, safe=False), 1, "is not paused"),
    ],
)
async def test_status_changes_nothing(controller: FakeController, found: Any, code: int, words: str) -> None:
    controller.script[STATUS] = (200, found)
    for option in ([], ["-y"], ["--json"]):
        result = await invoke(controller, "prepare-for-reboot", "b", "--status", *option)
        assert result.exit_code == code
        assert "--json" in option or words in result.stdout
    assert json.loads(result.stdout) == found
    assert controller.paths() == [STATUS] * 3


async def test_without_a_terminal_there_is_no_question(controller: FakeController) -> None:
    result = await invoke(controller, "prepare-for-reboot", "b")
    assert result.exit_code == 2
    assert result.stderr.startswith("rap: ")
    assert result.stderr.count("\n") == 1
    assert "-y" in result.stderr
    assert controller.requests == []


@pytest.mark.parametrize(("said", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
async def test_at_a_terminal_it_asks(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch, said: str, code: int
) -> None:
    monkeypatch.setattr(confirmation, "has_person", lambda: True)
    controller.script[STATUS] = (200, status(paused=False, running=3, safe=False))
    controller.script[PREPARE] = (200, {"changed": ["paused"], "jobs": ["a" * 16] * 3, "status": status()})
    environ = {"RAP_URL": controller.url, "RAP_TOKEN": TOKEN, "RAP_RETRY_FOR": "0"}

    def ask() -> Result:
        return CliRunner().invoke(rap, ["prepare-for-reboot", "b", "--json"], input=said, env=environ)

    result = await asyncio.to_thread(ask)
    assert result.exit_code == code
    assert "Pause backend b and stop its 3 running jobs?" in result.stderr
    assert controller.paths() == ([STATUS, PREPARE] if code == 0 else [STATUS])
    assert bool(result.stdout) == (code == 0)
    assert ("nothing was changed" in result.stderr) == (code == 1)


# flags


async def test_flags_are_listed_with_null_apart_from_empty(controller: FakeController) -> None:
    listed = [
        {"backend": "b", "id": "paused", "value": None, "changed_at": SINCE},
        {"backend": "b", "id": "mode", "value": "", "changed_at": SINCE},
        {"backend": "b", "id": "manual-db-maintenance", "value": None, "changed_at": None},
    ]
    controller.script["GET /api/flags"] = (200, {"flags": listed})
    result = await invoke(controller, "flags")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows == [
        ["Backend", "Flag", "Value", "Since"],
        ["b", "paused", "null", SINCE],
        ["b", "mode", '""', SINCE],
        ["b", "manual-db-maintenance", "null", "never", "set"],
    ]
    document = await invoke(controller, "flags", "b", "--json")
    assert json.loads(document.stdout) == {"flags": listed}
    assert controller.paths() == ["GET /api/flags", "GET /api/flags?backend=b"]


async def test_an_agent_is_forgotten_and_its_work_told(controller: FakeController) -> None:
    answer = {"backend": "b", "agent": "node-1", "jobs": ["a" * 16], "stops": 2}
    controller.script["POST /api/backends/b/agents/node-1/forget"] = (200, answer)
    result = await invoke(controller, "forget-agent", "b", "node-1", "-y")
    assert (result.exit_code, result.stdout) == (
        0,
        "Agent node-1 of backend b is forgotten: 1 job moved on, 2 unconfirmed stops taken as done\n",
    )
    document = await invoke(controller, "forget-agent", "b", "node-1", "-y", "--json")
    assert json.loads(document.stdout) == answer


async def test_forgetting_an_agent_without_a_yes_changes_nothing(controller: FakeController) -> None:
    result = await invoke(controller, "forget-agent", "b", "node-1")
    assert result.exit_code == 2
    assert "taking an agent's work away needs a yes" in result.stderr
    assert controller.requests == []


async def test_an_agent_that_lives_is_not_forgotten(controller: FakeController) -> None:
    said = {"error": "conflict", "message": "Agent 'node-1' was seen 3 s ago. Stop it first."}
    controller.script["POST /api/backends/b/agents/node-1/forget"] = (409, said)
    result = await invoke(controller, "forget-agent", "b", "node-1", "-y")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "was seen 3 s ago" in result.stderr


async def test_single_flags_are_set_and_shown(controller: FakeController) -> None:
    controller.script["POST /api/backends/b/flags"] = flags_set("paused", "mode")
    result = await invoke(controller, "flags", "b", "paused=true", 'mode=""', "manual-db-maintenance=")
    assert result.exit_code == 0
    assert result.stdout.startswith("Backend b, changed: paused, mode\n")
    sent = {"paused": "true", "mode": "", "manual-db-maintenance": None}
    assert controller.requests == [("POST /api/backends/b/flags", sent)]
    controller.script["GET /api/flags"] = (200, {"flags": flags_set()[1]["flags"]})
    shown = await invoke(controller, "flags", "b", "paused", "--json")
    assert json.loads(shown.stdout) == {"flags": flags_set()[1]["flags"]}
    unknown = await invoke(controller, "flags", "b", "pausd")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "no flag 'pausd'; there are paused" in unknown.stderr
