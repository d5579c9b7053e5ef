"""The event stream on real sockets: what is sent, when it ends, and who is dropped."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from attrs import define, field
from jsonschema import Draft202012Validator

from controller.core.errors import NotFound, Rejected, Unavailable
from controller.core.happenings import Happened
from controller.dialects.native import events, query, routes
from controller.engine.following import End, Told
from controller.web import event_stream
from controller.web.errors import Unauthorized
from tests.dialects.serving import AGENT, CLIENT, PRINCIPAL, serve
from tests.factories import NOW
from tests.fakes.engine import ScriptedEngine

RAP = "abcdefgh23456777"
JOB = {
    "job_id": "mzxw6ytboi2dgnbu",
    "workspace": "study-main",
    "action": "describe",
    "attempt": 1,
    "state": "running",
    "code": "executing",
    "message": "one line\nand <b>another</b>\r\n\r\ndata: not an event",
}
CONTENTS: dict[str, Any] = {
    "rap": {"workspace": "w", "created_by": "alice", "requested_actions": ["run_all"], "jobs": 2},
    "job": JOB,
    "flags": {"changed": {"paused": "true", "mode": None}},
    "agent": {"agent": "node-1", "news": "silent"},
}
LONG = 20.0


@define
class ScriptedReader:
    """Stands in for the engine's reader; `script` is taken from the front, the last for ever."""

    script: list[Any]
    forgotten: bool = False
    place: str = "test:41"
    backends: tuple[str, ...] = ("test",)
    left: asyncio.Event = field(factory=asyncio.Event)

    def __enter__(self) -> "ScriptedReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.left.set()

    async def next(self, seconds: float, admit: Callable[[], Any]) -> Sequence[Told] | End:
        del seconds
        await admit()
        news = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(news, Exception):
            raise news
        if isinstance(news, asyncio.Event):
            await news.wait()
            return ()
        found: Sequence[Told] | End = news
        return found


def told(kind: str, seq: int) -> Told:
    rap_id = RAP if kind in ("rap", "job") else None
    event = Happened(backend="test", seq=seq, at=NOW, kind=kind, rap_id=rap_id, content=CONTENTS[kind])
    return Told(event, f"test:{seq}")


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def client(engine: ScriptedEngine) -> AsyncIterator[Any]:
    async with serve(engine, "/api", routes.make_app()) as client:
        yield client


async def read(client: Any, path: str = "/api/events", **headers: str) -> list[dict[str, str]]:
    """The whole stream, as a browser would take it apart: a dictionary of fields per block."""
    async with asyncio.timeout(LONG):
        response = await client.get(path, headers=CLIENT | headers)
        text = await response.text()
    assert response.status == 200
    assert response.content_type == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-store"
    assert text.endswith("\n\n")
    assert "\r" not in text
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in text[:-2].split("\n\n")]


def check(shape: str, data: str) -> None:
    components = query.CONTRACT.document["components"]
    Draft202012Validator({**components["schemas"][shape], "components": components}).validate(json.loads(data))


async def test_what_a_stream_is_made_of(client: Any, engine: ScriptedEngine) -> None:
    kinds = list(CONTENTS)
    news = [told(kind, 42 + n) for n, kind in enumerate(kinds)]
    engine.script["follow"] = ScriptedReader([news[:3], news[3:], (), End.CLOSING])
    retry, ready, *rest = await read(client)
    assert retry == {"retry": "1000"}
    assert (ready["event"], ready["id"], json.loads(ready["data"])) == ("ready", "test:41", {"backends": ["test"]})
    check("eventsReady", ready["data"])
    *blocks, beat, closing = rest
    assert [(block["event"], block["id"]) for block in blocks] == [(k, f"test:{42 + n}") for n, k in enumerate(kinds)]
    for block in blocks:
        check("event", block["data"])
        assert json.loads(block["data"])["content"] == CONTENTS[block["event"]]
    assert beat == {"": "alive", "id": "test:41"}
    assert closing["event"] == "closing"
    check("eventsNotice", closing["data"])


async def test_a_reader_whose_place_is_forgotten_is_told_to_read_anew(client: Any, engine: ScriptedEngine) -> None:
    engine.script["follow"] = ScriptedReader([End.OVERRUN], forgotten=True)
    blocks = await read(client)
    assert [block.get("event") for block in blocks] == [None, "ready", "reset", "overrun"]
    assert {block["id"] for block in blocks[1:]} == {"test:41"}


async def test_filters_and_places_reach_the_engine(client: Any, engine: ScriptedEngine) -> None:
    engine.script["follow"] = ScriptedReader([End.CLOSING])
    await read(client, f"/api/events?backend=test&rap={RAP}&since=test:1")
    assert engine.last_call == ("follow", (PRINCIPAL,), {"backend": "test", "rap_id": RAP, "since": "test:1"})
    await read(client, "/api/events?since=test:1", **{"Last-Event-ID": "test:2"})
    assert engine.last_call == ("follow", (PRINCIPAL,), {"backend": None, "rap_id": None, "since": "test:2"})


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Rejected("since is no place", field="since"), 400),
        (NotFound("no such RAP"), 404),
        (Unavailable("too many"), 503),
    ],
)
async def test_what_goes_wrong_before_the_stream_is_answered(
    client: Any, engine: ScriptedEngine, error: Any, status: int
) -> None:
    engine.script["follow"] = error
    response = await client.get("/api/events", headers=CLIENT)
    assert (response.status, (await response.json())["error"]) == (status, error.key)


@pytest.mark.parametrize(
    ("path", "status"),
    [("?colour=red", 400), ("?backend=", 400), ("?rap=NOT-AN-ID", 404), (f"?rap={RAP}%27--", 404)],
)
async def test_what_cannot_be_meant_asks_no_engine(client: Any, engine: ScriptedEngine, path: str, status: int) -> None:
    assert (await client.get(f"/api/events{path}", headers=CLIENT)).status == status
    assert engine.calls == []


async def test_only_clients_and_only_get(client: Any, engine: ScriptedEngine) -> None:
    for headers in ({}, AGENT, {"Authorization": "wrong"}):
        assert (await client.get("/api/events", headers=headers)).status == 401
    assert (await client.head("/api/events", headers=CLIENT)).status == 405
    assert engine.calls == []


@pytest.mark.parametrize("error", [Unauthorized("Invalid token"), Unavailable("the database is away")])
async def test_a_stream_ends_without_a_second_answer(client: Any, engine: ScriptedEngine, error: Exception) -> None:
    engine.script["follow"] = reader = ScriptedReader([[told("job", 42)], error])
    blocks = await read(client)
    assert [block.get("event") for block in blocks] == [None, "ready", "job"]
    assert reader.left.is_set()


async def test_who_goes_away_is_let_go(client: Any, engine: ScriptedEngine) -> None:
    engine.script["follow"] = reader = ScriptedReader([asyncio.Event()])
    response = await client.get("/api/events", headers=CLIENT)
    await response.content.readuntil(b"\n\n")
    response.close()
    async with asyncio.timeout(LONG):
        await reader.left.wait()


async def test_who_does_not_read_is_cut(client: Any, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets' buffers are some megabytes: more than that is never under way, and none of it is kept here."""
    monkeypatch.setattr(event_stream, "WRITE_SECONDS", 0.2)
    engine.script["follow"] = reader = ScriptedReader([[told("job", n) for n in range(200)]])
    reading, writing = await asyncio.open_connection(client.server.host, client.server.port, limit=1024)
    try:
        writing.write(b"GET /api/events HTTP/1.1\r\nHost: x\r\nAuthorization: client-token\r\n\r\n")
        async with asyncio.timeout(LONG):
            await reader.left.wait()
    finally:
        reading.feed_eof()
        writing.transport.abort()


async def test_equal_bytes_are_made_once() -> None:
    one, same = told("job", 1), told("job", 1)
    assert events._data(one.event) is events._data(one.event)
    assert events._data(one.event) == events._data(same.event)
