"""The dashboard's stream: a word that something has changed, and an end when there is nobody to tell any more."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from attrs import define, field

from common import tokens
from controller.core.errors import NotFound, Rejected, Unavailable
from controller.core.happenings import Happened
from controller.dialects.ui import live
from controller.engine.following import End, Told
from tests.dialects.dashboard import RAP_ID, Browser, browsing, world
from tests.factories import NOW
from tests.fakes.clock import ManualClock
from tests.fakes.engine import ScriptedEngine

NEWS = [
    Told(event=Happened(backend="test", seq=seq, at=NOW, kind="job", rap_id=RAP_ID, content={}), place=f"test:{seq}")
    for seq in (42, 43)
]


@define
class ScriptedReader:
    """Stands in for the engine's reader: each entry of `script` is what comes next, or what happens before it comes."""

    script: list[Any]
    forgotten: bool = False
    place: str = "test:41"
    left: asyncio.Event = field(factory=asyncio.Event)

    def __enter__(self) -> "ScriptedReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.left.set()

    async def next(self, seconds: float, admit: Callable[[], Any]) -> Sequence[Told] | End:
        assert seconds == live.HEARTBEAT_SECONDS
        news = self.script.pop(0)
        if callable(news):
            news = news()
        await admit()
        if isinstance(news, Exception):
            raise news
        if not isinstance(news, End) and news:
            self.place = news[-1].place
        found: Sequence[Told] | End = news
        return found


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(**world())


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
async def browser(engine: ScriptedEngine, clock: ManualClock) -> AsyncIterator[Browser]:
    async with browsing(engine, clock) as browser:
        await browser.sign_in()
        yield browser


async def told(browser: Browser, engine: ScriptedEngine, reader: ScriptedReader) -> str:
    """Everything that a stream says until its end."""
    engine.script["follow"] = reader
    answer = await browser.get("/ui/events?since=test:41")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    text = await answer.text()
    assert reader.left.is_set()
    return text


async def test_many_changes_are_one_word_without_their_content(
    browser: Browser, engine: ScriptedEngine, clock: ManualClock
) -> None:
    stream = asyncio.create_task(told(browser, engine, ScriptedReader([NEWS, (), End.CLOSING])))
    await clock.asleep.wait()  # at most one word a second, whatever happens
    clock.advance(live.PAUSE_SECONDS)
    text = await stream
    assert text.count("event: change") == 1
    assert "id: test:43" in text
    assert "data: {}" in text
    assert text.count(": alive") == 2
    assert RAP_ID not in text


async def test_who_was_away_too_long_is_told_at_once(browser: Browser, engine: ScriptedEngine) -> None:
    assert (await told(browser, engine, ScriptedReader([End.CLOSING], forgotten=True))).count("event: change") == 1


async def test_who_is_too_slow_is_told_and_comes_again(browser: Browser, engine: ScriptedEngine) -> None:
    assert (await told(browser, engine, ScriptedReader([End.OVERRUN]))).count("event: change") == 1


async def test_a_stream_ends_with_its_session(browser: Browser, engine: ScriptedEngine) -> None:
    def revoke() -> Sequence[Told]:
        engine.script |= {"session_token": tokens.digest("revoked"), "recognise": None}
        return NEWS

    assert "event: change" not in await told(browser, engine, ScriptedReader([revoke, End.CLOSING]))


async def test_a_stream_ends_while_the_database_is_away(browser: Browser, engine: ScriptedEngine) -> None:
    assert "event: change" not in await told(browser, engine, ScriptedReader([Unavailable("the database is away")]))


async def test_the_browser_comes_again_from_where_it_was(browser: Browser, engine: ScriptedEngine) -> None:
    engine.script["follow"] = ScriptedReader([End.CLOSING])
    await (await browser.get(f"/ui/events?since=test:41&rap={RAP_ID}", **{"Last-Event-ID": "test:99"})).text()
    (asked,) = [named for name, _, named in engine.calls if name == "follow"]
    assert asked == {"backend": None, "rap_id": RAP_ID, "since": "test:99"}


@pytest.mark.parametrize(
    ("query", "error", "status"),
    [
        ("rap=none", None, 404),
        (f"rap={RAP_ID}", NotFound("No RAP"), 404),
        ("since=nonsense", Rejected("since is no place"), 400),
        ("", Unavailable("too many"), 503),
    ],
)
async def test_what_cannot_be_followed_is_refused(
    browser: Browser, engine: ScriptedEngine, query: str, error: Exception | None, status: int
) -> None:
    engine.script["follow"] = error
    assert (await browser.get(f"/ui/events?{query}")).status == status


async def test_a_page_says_from_where_on_it_wants_to_hear(browser: Browser, engine: ScriptedEngine) -> None:
    engine.calls.clear()
    text = await (await browser.get(f"/ui/raps/{RAP_ID}")).text()
    assert f'sse-connect="/ui/events?since=test:4&amp;rap={RAP_ID}"' in text
    asked = [name for name, _, _ in engine.calls]
    assert asked.index("follow") < asked.index("rap_detail")
