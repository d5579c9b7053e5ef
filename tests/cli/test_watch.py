"""`rap watch` over HTTP: what is printed, and that a lost connection loses nothing."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from tests.cli.fake_controller import RAP, FakeController, check_one_line, detail, invoke, job, serving

AT = "2026-01-01T12:00:00.000000Z"


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    async with serving() as controller:
        yield controller


def event(kind: str, number: int, rap: str | None = None, **content: Any) -> str:
    data = {"kind": kind, "at": AT, "backend": "test", "rap_id": rap, "content": content}
    return f"event: {kind}\nid: test:{number}\ndata: {json.dumps(data)}\n\n"


def moved(number: int, action: str, state: str, **changes: Any) -> str:
    content = {"action": action, "state": state, "code": "executing", "message": f"{state} it is", "attempt": 1}
    return event("job", number, RAP, **content | changes)


READY = 'retry: 1000\n\nevent: ready\nid: test:1\ndata: {"backends": ["test"]}\n\n'


class Streams:
    """The answers to one `GET /api/events` after the other; each then ends as if the controller had stopped."""

    def __init__(self, *texts: str | tuple[int, Any]) -> None:
        self.texts = list(texts)
        self.places: list[str | None] = []

    def __call__(self, request: web.Request) -> Any:
        self.places.append(request.headers.get("Last-Event-ID"))
        text = self.texts.pop(0) if self.texts else (400, {"error": "rejected", "message": "That is all."})
        if isinstance(text, tuple):
            return text
        return 200, text, {"Content-Type": "text/event-stream; charset=utf-8"}


async def watch(controller: FakeController, streams: Streams, *arguments: str) -> Any:
    controller.script["GET /api/events"] = streams
    return await invoke(controller, "watch", *arguments, RAP_RETRY_FOR="5")


async def test_everything_is_one_line(controller: FakeController) -> None:
    told = (
        READY
        + event("rap", 2, RAP, workspace="study", created_by="alice", requested_actions=["run_all"], jobs=2)
        + moved(3, "describe", "running")
        + moved(4, "describe", "failed", message="bad\nand \x1b[31mred")
        + ": alive\nid: test:9\n\n"
        + event("flags", 10, changed={"paused": "true", "mode": None})
        + event("agent", 11, agent="node-1", news="silent")
    )
    result = await watch(controller, Streams(told), "--backend", "test")
    lines = [line.split(" ", 1)[1] for line in result.stdout.splitlines()]
    assert lines == [
        f"test RAP {RAP} was accepted: 2 jobs, workspace study, for alice",
        f"test {RAP}/describe: running (executing)",
        f"test {RAP}/describe: failed (bad and \\x1b[31mred)",
        "test flag paused is 'true', mode is null",
        "test agent node-1: silent",
    ]
    check_one_line(result.stderr, "That is all.")
    assert result.exit_code == 2
    assert controller.paths()[0] == "GET /api/events?backend=test"


async def test_a_lost_connection_goes_on_where_it_was(controller: FakeController) -> None:
    streams = Streams(
        READY + moved(2, "a", "running"),
        (503, {"error": "unavailable", "message": "later"}),
        ": alive\nid: test:7\n\n",
        moved(8, "b", "running") + 'event: closing\nid: test:8\ndata: {"message": "stops"}\n\n',
    )
    result = await watch(controller, streams, "--json")
    assert [json.loads(line)["content"]["action"] for line in result.stdout.splitlines()] == ["a", "b"]
    assert streams.places == [None, "test:2", "test:2", "test:7", "test:8"]


@pytest.mark.parametrize(("state", "code"), [("succeeded", 0), ("failed", 1)])
async def test_a_rap_is_watched_to_its_end(controller: FakeController, state: str, code: int) -> None:
    running = detail(job("a", "running"), job("b", "pending"))
    half = detail(job("a", "succeeded"), job("b", "running"))
    over = detail(job("a", "succeeded"), job("b", state))
    over["rap"]["state"] = state
    controller.script[f"GET /api/raps/{RAP}"] = [(200, running), (200, half), (200, over)]
    told = READY + moved(2, "a", "succeeded") + moved(3, "b", "running") + moved(4, "b", state)
    result = await watch(controller, Streams(told), RAP)
    assert result.exit_code == code
    assert [line.split(": ")[1].split()[0] for line in result.stdout.splitlines()] == ["succeeded", "running", state]
    assert controller.paths()[0] == f"GET /api/events?rap={RAP}"


async def test_a_rap_that_has_ended_is_not_waited_for(controller: FakeController) -> None:
    over = detail(job("a"))
    over["rap"]["state"] = "succeeded"
    controller.script[f"GET /api/raps/{RAP}"] = (200, over)
    result = await watch(controller, Streams(READY), RAP)
    assert (result.exit_code, result.stdout) == (0, "")


async def test_what_was_forgotten_is_said(controller: FakeController) -> None:
    result = await watch(controller, Streams(READY + 'event: reset\nid: test:5\ndata: {"message": "x"}\n\n'))
    assert "some events are missing" in result.stderr


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, {"error": "unauthorized", "message": "Invalid token"}), "token"),
        ((404, {"error": "not_found", "message": "There is no backend."}), "no backend"),
        ("data: nonsense\n\n", "events that are none"),
        ("data: []\n\n", "events that are none"),
    ],
)
async def test_what_is_refused_or_no_stream_ends_it(controller: FakeController, answer: Any, words: str) -> None:
    result = await watch(controller, Streams(answer))
    assert result.exit_code == 2
    check_one_line(result.stderr, words)
