"""`rap jobs`, `kill`, `retry`, `limits` and `agents` over real HTTP: what they ask for, say, and exit with."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.cli.fake_controller import RAP, FakeController, invoke, job, serving

pytestmark = pytest.mark.usefixtures("alone")

A, B = "a" * 16, "b" * 16
SINCE = "2026-01-01T00:00:00.000000Z"


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with serving() as controller:
        yield controller


def listed(identifier: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": identifier,
        "rap_id": RAP,
        "backend": "test",
        "workspace": "study",
        "action": "extract",
        "created_by": "alice",
        "state": "pending",
        "code": "waiting_on_workers",
        "weight": 1,
        "attempt": 0,
        "agent": None,
        "code_changed_at": SINCE,
        **changes,
    }


def now(identifier: str, state: str = "failed", code: str = "killed_by_admin") -> dict[str, Any]:
    return {"id": identifier, "action": "extract", "backend": "test", "state": state, "code": code}


def there(controller: FakeController, identifier: str, state: str = "running", attempt: int = 2) -> None:
    controller.script[f"GET /api/jobs/{identifier}"] = (
        200,
        job("extract", state, id=identifier, backend="test", attempt=attempt),
    )


# jobs


async def test_jobs_are_listed_with_their_filters_over_empty_pages(controller: FakeController) -> None:
    controller.script["GET /api/jobs"] = [
        (200, {"jobs": [listed(A)], "next_cursor": "x"}),
        (200, {"jobs": [], "next_cursor": "y"}),
        (200, {"jobs": [listed(B, weight=2.5, attempt=1, agent="\x1b[2J")], "next_cursor": None}),
    ]
    result = await invoke(controller, "jobs", "--state", "active", "--code", "waiting_on_workers", "--limit", "3")
    assert (result.exit_code, result.stderr) == (0, "")
    assert controller.paths() == [
        "GET /api/jobs?limit=3&state=active&code=waiting_on_workers",
        "GET /api/jobs?limit=2&cursor=x&state=active&code=waiting_on_workers",
        "GET /api/jobs?limit=2&cursor=y&state=active&code=waiting_on_workers",
    ]
    header, *rows = result.stdout.splitlines()
    assert "Weight" in header
    assert [row.split()[0] for row in rows] == [A, B]
    assert "pending: waiting_on_workers" in rows[0]
    assert "2.5" in rows[1]
    assert "\x1b" not in result.stdout


async def test_weights_that_say_nothing_are_left_out(controller: FakeController) -> None:
    controller.script["GET /api/jobs"] = (200, {"jobs": [listed(A)], "next_cursor": "x"})
    result = await invoke(controller, "jobs", "--limit", "1")
    assert "Weight" not in result.stdout
    assert "There are more" in result.stdout
    document = await invoke(controller, "jobs", "--limit", "1", "--json")
    assert json.loads(document.stdout) == {"jobs": [listed(A)], "next_cursor": "x"}


# kill


async def test_each_job_is_killed_and_told(controller: FakeController) -> None:
    there(controller, A)
    there(controller, B, "succeeded")
    controller.script[f"POST /api/jobs/{A}/kill"] = (200, {"changed": True, "job": now(A)})
    controller.script[f"POST /api/jobs/{B}/kill"] = (
        200,
        {"changed": False, "job": now(B, "succeeded", "succeeded")},
    )
    result = await invoke(controller, "kill", A, B, A, "-y")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"Job {A} (extract, failed, backend test) killed",
        f"Job {B} (extract, succeeded, backend test) was over already (succeeded): nothing changed",
    ]
    posts = [path for path in controller.paths() if path.startswith("POST")]
    assert posts == [f"POST /api/jobs/{A}/kill", f"POST /api/jobs/{B}/kill"]
    document = await invoke(controller, "kill", A, "-y", "--json")
    assert json.loads(document.stdout) == {"jobs": [{"changed": True, "job": now(A)}]}


async def test_what_is_over_already_needs_no_yes(controller: FakeController) -> None:
    there(controller, B, "succeeded")
    over = {"changed": False, "job": now(B, "succeeded", "succeeded")}
    controller.script[f"POST /api/jobs/{B}/kill"] = (200, over)
    result = await invoke(controller, "kill", B)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "was over already" in result.stdout


async def test_a_name_with_a_slip_stops_all(controller: FakeController) -> None:
    there(controller, A)
    result = await invoke(controller, "kill", A, "nosuchjobatall00", "-y")
    assert result.exit_code == 2
    assert not [path for path in controller.paths() if path.startswith("POST")]


@pytest.mark.parametrize("command", ["kill", "retry"])
async def test_without_a_terminal_there_is_no_question(controller: FakeController, command: str) -> None:
    there(controller, A)
    result = await invoke(controller, command, A)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "-y" in result.stderr
    assert not [path for path in controller.paths() if path.startswith("POST")]


# retry


async def test_a_running_job_is_retried_by_its_attempt(controller: FakeController) -> None:
    there(controller, A)
    done = {"outcome": "stopped", "message": "Attempt 2 is stopped.", "rap_id": None, "new_job": None}
    controller.script[f"POST /api/jobs/{A}/retry"] = (200, {**done, "job": now(A, "pending")})
    result = await invoke(controller, "retry", A, "-y")
    assert (result.exit_code, result.stdout) == (
        0,
        f"Job {A} (extract, pending, backend test): Attempt 2 is stopped.\n",
    )
    assert controller.requests[-1] == (f"POST /api/jobs/{A}/retry", {"attempt": 2})


async def test_a_failed_job_needs_no_yes_and_its_rap_is_told(controller: FakeController) -> None:
    there(controller, A, "failed")
    done = {"outcome": "resubmitted", "message": "RAP asks.", "rap_id": RAP, "new_job": B, "job": now(A)}
    controller.script[f"POST /api/jobs/{A}/retry"] = (200, done)
    result = await invoke(controller, "retry", A)
    assert result.exit_code == 0
    assert f"rap status {RAP} (job {B})" in result.stdout
    assert json.loads((await invoke(controller, "retry", A, "--json")).stdout) == done


async def test_a_refusal_is_one_line(controller: FakeController) -> None:
    there(controller, A, "succeeded")
    controller.script[f"POST /api/jobs/{A}/retry"] = (400, {"error": "rejected", "message": "It has succeeded."})
    result = await invoke(controller, "retry", A)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", "rap: It has succeeded.\n")


# limits


def pool(**changes: Any) -> dict[str, Any]:
    values = {"configured": 10, "override": None, "limit": 10, "in_use": 0}
    return {**values, "running": 0, "pending": 0, "too_heavy": 0, **changes}


CAPACITY = {"backend": "b", "workers": pool(override=2, limit=2, in_use=4, too_heavy=3), "db_workers": pool()}


async def test_limits_are_shown(controller: FakeController) -> None:
    controller.script["GET /api/limits"] = (200, {"limits": [CAPACITY]})
    result = await invoke(controller, "limits")
    _, first, second = result.stdout.splitlines()
    assert "2 (set by an operator)" in first
    assert second.split() == ["b", "database", "workers", "10", "10", "0", "0", "0", "0"]
    document = await invoke(controller, "limits", "b", "--json")
    assert json.loads(document.stdout) == {"limits": [CAPACITY]}
    assert controller.paths() == ["GET /api/limits", "GET /api/limits?backend=b"]


@pytest.mark.parametrize(
    ("options", "body"),
    [
        (["--workers", "2"], {"workers": 2.0}),
        (["--workers", "0", "--db-workers", "1.5"], {"workers": 0.0, "db_workers": 1.5}),
        (["--reset"], {"workers": None, "db_workers": None}),
    ],
)
async def test_limits_are_changed(controller: FakeController, options: list[str], body: Any) -> None:
    controller.script["POST /api/backends/b/limits"] = [
        (200, {"changed": ["workers"], "capacity": CAPACITY}),
        (200, {"changed": [], "capacity": CAPACITY}),
    ]
    result = await invoke(controller, "limits", "b", *options)
    assert result.stdout.splitlines() == [
        "Backend b has 2 workers and 10 database workers",
        "Jobs use 4 workers: they run on, and others wait until there is room",
        "Too heavy for 2 workers: 3 pending jobs, waiting until the limit is raised",
    ]
    again = await invoke(controller, "limits", "b", *options)
    assert "it was so already: nothing changed" in again.stdout
    assert controller.requests == [("POST /api/backends/b/limits", body)] * 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["b", "--workers", "-1"],
        ["b", "--workers", "nan"],
        ["b", "--db-workers", "inf"],
        ["b", "--db-workers", "many"],
        ["b", "--reset", "--workers", "1"],
        ["--workers", "1"],
        ["--reset"],
    ],
)
async def test_what_makes_no_sense_is_not_asked(controller: FakeController, arguments: list[str]) -> None:
    result = await invoke(controller, "limits", *arguments)
    assert result.exit_code == 2
    assert "orkers" in result.stderr or "BACKEND" in result.stderr
    assert controller.requests == []


# agents


async def test_agents_tell_their_load_and_silence(controller: FakeController) -> None:
    def agent(name: str, **changes: Any) -> dict[str, Any]:
        values = {"id": name, "backend": "b", "version": "1", "executor": "sandbox", "slots": 4, "last_seen": SINCE}
        return {**values, "egress": {}, "on_loss": "retry", "load": 3, "silent": False, **changes}

    found = [agent("one"), agent("two", silent=True, on_loss="fail"), agent("three", backend="other")]
    controller.script["GET /api/agents"] = (200, {"agents": found})
    result = await invoke(controller, "agents", "--backend", "b")
    _, one, two = result.stdout.splitlines()
    assert "3/4" in one
    assert "silent" not in one
    assert "jobs fail" in two
    assert two.rstrip().endswith("silent")
    assert json.loads((await invoke(controller, "agents", "--json")).stdout) == {"agents": found}
    controller.script["GET /api/agents"] = (200, {"agents": []})
    assert (await invoke(controller, "agents")).stdout == "No agents.\n"


@pytest.mark.parametrize("command", ["agents", "jobs"])
async def test_a_backend_with_a_slip_is_not_taken_for_an_empty_one(controller: FakeController, command: str) -> None:
    controller.script["GET /api/agents"] = (200, {"agents": []})
    controller.script["GET /api/jobs"] = (200, {"jobs": [], "next_cursor": None})
    controller.script["GET /api/backends"] = (200, {"backends": [{"slug": "tpp"}]})
    slip = await invoke(controller, command, "--backend", "ttp")
    assert (slip.exit_code, slip.stdout) == (2, "")
    assert "no backend 'ttp'" in slip.stderr
    empty = await invoke(controller, command, "--backend", "tpp")
    assert (empty.exit_code, empty.stdout) == (0, f"No {command}.\n")
