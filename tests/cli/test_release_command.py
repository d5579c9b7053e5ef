"""`rap release` over real HTTP: what it asks for, how it waits, what it says and exits with."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.cli.fake_controller import FakeController, invoke, job, serving

pytestmark = pytest.mark.usefixtures("alone")

ID = "describexxxxxxxx"
ASK, LOOK = f"POST /api/jobs/{ID}/release", f"GET /api/jobs/{ID}/releases"
TABLE = {"path": "output/table.csv", "level": "moderately_sensitive", "size": 2048, "sha256": "ab"}


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with serving() as controller:
        controller.script[f"GET /api/jobs/{ID}"] = (200, job("describe", id=ID, backend="test"))
        yield controller


def release(state: str = "waiting", message: str = "Waiting for an agent of the backend.", **more: Any) -> Any:
    values = {"number": 2, "state": state, "message": message, "released": [], "refused": [], "withheld": 0}
    return {**values, "left_out": 0, **more}


def script(controller: FakeController, *looks: Any) -> None:
    controller.script[ASK] = (200, {"changed": True, "job_id": ID, "release": release()})
    older = release("done", "old", number=1)
    controller.script[LOOK] = [(200, {"releases": [older, look]}) for look in looks]


async def test_it_waits_for_the_answer_and_tells_it(controller: FakeController) -> None:
    script(controller, release(), release(), release("done", "1 output is released.", released=[TABLE]))
    result = await invoke(controller, "release", ID, "output/table.csv", "-y")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("1 output is released.\n")
    assert "output/table.csv" in result.stdout
    assert "2.0 KiB" in result.stdout
    assert (ASK, {"paths": ["output/table.csv"]}) in controller.requests


async def test_without_paths_all_that_the_policy_lets_out_is_meant(controller: FakeController) -> None:
    script(controller, release("done", "0 outputs are released."))
    result = await invoke(controller, "release", ID, "-y", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["state"] == "done"
    assert (ASK, None) in controller.requests


async def test_what_stays_inside_is_told_by_the_exit_code_too(controller: FakeController) -> None:
    refused = [{"path": "output/x.csv", "message": "This is no output."}]
    script(controller, release("done", "0 outputs are released. 1 was refused.", refused=refused))
    result = await invoke(controller, "release", ID, "output/x.csv", "-y")
    assert result.exit_code == 1
    assert "This is no output." in result.stdout
    script(controller, release("failed", "No agent has the files."))
    result = await invoke(controller, "release", ID, "-y")
    assert (result.exit_code, result.stdout) == (1, "No agent has the files.\n")
    script(controller, release("done", "0 outputs are released.", withheld=1))
    assert (await invoke(controller, "release", ID, "-y")).exit_code == 1


async def test_without_an_answer_in_time_it_says_how_to_go_on(controller: FakeController) -> None:
    script(controller, release())
    result = await invoke(controller, "release", ID, "-y", "--wait", "0")
    assert result.exit_code == 2
    assert "the release is not lost" in result.stderr
    assert result.stdout == "Waiting for an agent of the backend.\n"


async def test_nothing_leaves_without_a_yes(controller: FakeController) -> None:
    script(controller, release())
    result = await invoke(controller, "release", ID)
    assert result.exit_code == 2
    assert "letting outputs out of a backend needs a yes" in result.stderr
    assert not controller.requests


async def test_a_refusal_is_one_line(controller: FakeController) -> None:
    message = "No agent of backend 'test' has a policy with a review"
    controller.script[ASK] = (409, {"error": "conflict", "message": message})
    result = await invoke(controller, "release", ID, "-y")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"rap: {message}\n")
