"""Following events: none is lost and none comes twice, whatever is interleaved, forgotten, or too slow."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ids import random_id
from common.protocol import Declaration
from controller.broadcaster import Broadcaster
from controller.core.errors import NotFound, Rejected, Unavailable
from controller.core.happenings import AgentNews, Happened, of_agent
from controller.core.model import RapId
from controller.engine import following
from controller.engine.broadcast import Broadcast
from controller.engine.following import End, Reader
from controller.store import events
from controller.store.db import TakenBack, prepare_connection
from controller.store.listen import Listener
from tests.engine.conftest import Harness, Study
from tests.factories import NOW, operator, principal

BOTH = principal("test", "other")
LONG = 20.0


async def admitted() -> None:
    """The token is as good as it was."""


async def follow(harness: Harness, who: Any = BOTH, **wanted: Any) -> Reader:
    return await harness.engine.follow(who, **{"backend": None, "rap_id": None, "since": None} | wanted)


async def heard(reader: Reader, count: int) -> list[tuple[str, str]]:
    """The next events, as (kind, what of)."""
    return [_brief(each.event) for each in await told(reader, count)]


async def told(reader: Reader, count: int) -> list[following.Told]:
    found: list[following.Told] = []
    while len(found) < count:
        news = await reader.next(LONG, admitted)
        assert news, "nothing came"
        assert not isinstance(news, End), news
        found += news
    assert len(found) == count, [_brief(each.event) for each in found]
    return found


async def silent(reader: Reader) -> bool:
    """Whether nothing is to be told now."""
    return await reader.next(0, admitted) == ()


def _brief(event: Happened) -> tuple[str, str]:
    content = event.content
    match event.kind:
        case "job":
            return ("job", f"{content['action']} {content['code']}")
        case "rap":
            return ("rap", str(event.rap_id))
        case "flags":
            return ("flags", ",".join(f"{name}={value}" for name, value in content["changed"].items()))
        case _:
            return (event.kind, f"{content['agent']} {content['news']}")


async def happen(harness: Harness, *names: str, backend: str = "test", kept: int = events.KEPT) -> None:
    """Events in one transaction."""
    async with harness.context.db.transaction() as tx:
        news = [of_agent(name, AgentNews.DECLARED, NOW) for name in names]
        await events.record(tx, backend, news, kept=kept)


@pytest.fixture
async def live(harness: Harness) -> AsyncIterator[Harness]:
    """The harness with the broadcaster and its wake-ups, as a controller has them."""
    listens = asyncio.Event()
    wakeups = harness.context.wakeups

    def reconnected() -> None:
        listens.set()
        wakeups.wake_all()

    listener = Listener(
        harness.context.db.dsn,
        (events.EVENTS_CHANNEL,),
        harness.clock,
        heard=wakeups.wake,
        reconnected=reconnected,
    )
    broadcaster = Broadcaster(harness.engine, wakeups, clock=harness.clock)
    tasks = [asyncio.create_task(run()) for run in (listener.run, broadcaster.run)]
    await listens.wait()
    yield harness
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_happens_to_a_rap_is_told_in_its_order(live: Harness, study: Study) -> None:
    with await follow(live) as reader:
        request = study.request("extract")
        await live.create(request)
        await live.settle()
        (task,) = await live.claim()
        await live.report(task, "executing")
        await live.finish(task)
        expected = [("rap", str(request.rap_id))]
        expected += [("job", f"extract {code}") for code in ("initiated", "executing", "succeeded")]
        assert await heard(reader, 4) == expected
        assert await silent(reader)


async def test_switches_and_agents_are_told(live: Harness) -> None:
    with await follow(live) as reader:
        await live.engine.pause(operator("test"), "test")
        await live.engine.pause(operator("test"), "test")  # changes nothing
        await live.engine.declare_agent("other", "node-2", Declaration(version="1", executor="fake", slots=1))
        # Between backends there is no order.
        assert sorted(await heard(reader, 2)) == [("agent", "node-2 declared"), ("flags", "paused=true")]
        assert await silent(reader)


async def test_an_agent_that_comes_or_comes_back_is_told_once(live: Harness) -> None:
    def declare(version: str) -> Any:
        return live.engine.declare_agent("test", "node-2", Declaration(version=version, executor="fake", slots=1))

    with await follow(live) as reader:
        for version in ("1", "1", "2", "2"):
            await declare(version)
        assert await heard(reader, 2) == [("agent", "node-2 declared")] * 2
        live.clock.advance(live.context.lease_seconds + 1)
        await declare("2")
        assert await heard(reader, 1) == [("agent", "node-2 declared")]
        assert await silent(reader)


async def test_only_what_the_reader_may_see_and_asked_for(live: Harness, study: Study) -> None:
    mine = study.request("extract", workspace="mine")
    await live.create(mine)
    with (
        await follow(live, principal("other")) as other,
        await follow(live, backend="test") as one,
        await follow(live, rap_id=mine.rap_id) as rap,
    ):
        assert (other.backends, one.backends, rap.backends) == (("other",), ("test",), ("test",))
        theirs = study.request("extract", workspace="theirs")
        await live.create(theirs)
        await live.engine.cancel(BOTH, mine.rap_id, ["extract"])
        await happen(live, "elsewhere", backend="other")
        assert await heard(other, 1) == [("agent", "elsewhere declared")]
        assert await heard(one, 2) == [("rap", theirs.rap_id), ("job", "extract cancelled_by_user")]
        assert await heard(rap, 1) == [("job", "extract cancelled_by_user")]


async def test_what_is_not_there_for_the_caller(harness: Harness, study: Study) -> None:
    request = study.request("extract")
    await harness.create(request)
    with pytest.raises(NotFound):
        await follow(harness, principal("other"), backend="test")
    with pytest.raises(NotFound):
        await follow(harness, principal("other"), rap_id=request.rap_id)
    with pytest.raises(NotFound):
        await follow(harness, rap_id=RapId(random_id()))


async def test_a_commit_that_comes_late_is_not_overtaken(live: Harness, database_dsn: str) -> None:
    """Two transactions at once: the second cannot get its number, let alone become visible, before the first is over.

    With numbers of an identity column, a reader would see the second, and never the first.
    """
    with await follow(live) as reader:
        first, second = await asyncpg.connect(database_dsn), await asyncpg.connect(database_dsn)
        try:
            for connection in (first, second):
                await prepare_connection(connection)
            late, early = first.transaction(), second.transaction()
            await late.start()
            await events.record(first, "test", [of_agent("late", AgentNews.DECLARED, NOW)])
            await early.start()
            waiting = asyncio.create_task(events.record(second, "test", [of_agent("early", AgentNews.DECLARED, NOW)]))
            await _until_somebody_waits_for_a_lock(live)
            await happen(live, "elsewhere", backend="other")  # other backends do not wait
            assert await heard(reader, 1) == [("agent", "elsewhere declared")]
            await late.commit()
            await waiting
            await early.commit()
            assert await heard(reader, 2) == [("agent", "late declared"), ("agent", "early declared")]
        finally:
            await first.close()
            await second.close()


async def _until_somebody_waits_for_a_lock(harness: Harness) -> None:
    async with asyncio.timeout(LONG), harness.context.db.connection() as tx:
        while not await tx.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):
            pass


async def test_what_is_taken_back_leaves_no_gap(live: Harness) -> None:
    with await follow(live) as reader:
        with suppress(TakenBack):
            async with live.context.db.transaction() as tx:
                await events.record(tx, "test", [of_agent("void", AgentNews.DECLARED, NOW)])
                raise TakenBack(None)
        await happen(live, "next")
        (only,) = await told(reader, 1)
        assert _brief(only.event) == ("agent", "next declared")
        assert only.event.seq == 2  # after the declaration of the harness's agent


async def test_somebody_who_was_away_goes_on_from_every_place(live: Harness) -> None:
    """From each event's place, everything after it and nothing else, although several events are one transaction."""
    start = (await follow(live)).place
    await happen(live, "a", "b", "c")
    await happen(live, "d", backend="other")
    await happen(live, *(f"e{n}" for n in range(following.PAGE)))
    with await follow(live, since=start) as reader:
        everything = await told(reader, following.PAGE + 4)
    for n in (0, 1, 3, 4, 100):
        seen = {(each.event.backend, each.event.seq) for each in everything[: n + 1]}
        with await follow(live, since=everything[n].place) as reader:
            rest = await told(reader, len(everything) - n - 1)
        again = {(each.event.backend, each.event.seq) for each in rest}
        assert not seen & again
        assert len(seen | again) == len(everything)


async def test_a_place_outlives_the_process(live: Harness, harness: Harness) -> None:
    """Another controller's memory, or none: the place is in the reader's hands."""
    with await follow(live) as reader:
        await happen(live, "a", "b")
        (first, _) = await told(reader, 2)
    live.context.broadcast.recent.clear()
    with await follow(live, since=first.place) as reader:
        assert await heard(reader, 1) == [("agent", "b declared")]


async def test_what_is_forgotten_is_said(harness: Harness) -> None:
    old = (await follow(harness)).place
    for size in (1500, 700):
        await happen(harness, *(f"n{n}" for n in range(size)), kept=10)
    reader = await follow(harness, since=old)
    assert reader.forgotten
    assert reader.place == (await follow(harness)).place
    async with harness.context.db.connection() as tx:
        assert await tx.fetchval("SELECT count(*) FROM event") == 700  # what was just told is not forgotten yet


async def test_what_is_forgotten_while_somebody_catches_up_is_not_passed_over(harness: Harness) -> None:
    with await follow(harness) as reader:
        for size in (1500, 700):
            await happen(harness, *(f"n{n}" for n in range(size)), kept=10)
        assert await reader.next(LONG, admitted) is End.OVERRUN


async def test_the_oldest_that_is_kept_can_be_gone_on_from(harness: Harness) -> None:
    for size in (1500, 700):
        await happen(harness, *(f"n{n}" for n in range(size)), kept=10)
    assert not (await follow(harness, since="test:1501")).forgotten  # one is the declaration of the harness's agent
    assert (await follow(harness, since="test:1500")).forgotten


@pytest.mark.parametrize(
    ("since", "forgotten"),
    [("test:1,other:0", False), ("test:0", False), ("mars:7", False), ("", False), ("test:99", True)],
)
async def test_places_of_other_times_and_backends(harness: Harness, since: str, forgotten: bool) -> None:
    """A backup that was restored has fewer events; a token may open other backends than it did."""
    reader = await follow(harness, since=since)
    assert reader.forgotten is forgotten
    assert reader.backends == ("test", "other")


@pytest.mark.parametrize(
    "since",
    ["x", "test", "test:", "test:-1", "test:01", "test:1,", "test:٣", "test:99999999999999999999", "a:1" * 4000],
)
async def test_what_is_no_place_is_refused(harness: Harness, since: str) -> None:
    with pytest.raises(Rejected, match="since"):
        await follow(harness, since=since)


async def test_who_is_too_slow_is_dropped_and_can_come_again(live: Harness) -> None:
    broadcast = live.context.broadcast
    broadcast._lately = 5
    with await follow(live) as quick, await follow(live) as slow:
        while not broadcast.recent:
            await broadcast.changed.wait()
        assert await silent(slow)  # up to date, and on what is in memory
        for n in range(30):
            await happen(live, f"n{n}")
            assert await heard(quick, 1) == [("agent", f"n{n} declared")]
        assert await slow.next(LONG, admitted) is End.OVERRUN
        with await follow(live, since=slow.place) as again:
            assert len(await told(again, 30)) == 30


async def test_a_thousand_readers_cost_one_look(live: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    really = events.after.all

    async def counting(*args: Any, **values: Any) -> Sequence[Happened]:
        nonlocal looks
        looks += 1
        found: Sequence[Happened] = await really(*args, **values)
        return found

    readers = [await follow(live) for _ in range(1000)]
    for reader in readers:
        reader.__enter__()
    # Everybody is up to date, and on what is in memory.
    await happen(live, "first")
    await asyncio.gather(*(told(reader, 1) for reader in readers))
    monkeypatch.setattr(type(events.after), "all", lambda _, *args, **values: counting(*args, **values))
    await happen(live, "second")
    found = await asyncio.gather(*(told(reader, 1) for reader in readers))
    assert {id(each.event) for (each,) in found} == {id(found[0][0].event)}
    assert looks <= 2
    for reader in readers:
        reader.__exit__(None, None, None)


async def test_nobody_reads_so_nothing_is_read(live: Harness) -> None:
    with await follow(live) as reader:
        await happen(live, "a")
        await told(reader, 1)
    await happen(live, "b")
    async with asyncio.timeout(LONG):
        while live.context.broadcast.wanted.is_set():
            await happen(live, "c")
    assert live.context.broadcast.recent == {}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set as soon as a reader has looked, found nothing, and waits."""
    waiting = asyncio.Event()
    really = following._set_before

    async def observed(event: asyncio.Event, deadline: float) -> bool:
        waiting.set()
        return await really(event, deadline)

    monkeypatch.setattr(following, "_set_before", observed)
    return waiting


async def test_a_reader_ends_with_the_process(harness: Harness, waits: asyncio.Event) -> None:
    """At once, and without a look at the database, which may be away: nothing else runs here."""
    with await follow(harness) as reader:
        ended = asyncio.create_task(reader.next(LONG, admitted))
        await waits.wait()
        harness.engine.close()
        async with asyncio.timeout(5):
            assert await ended is End.CLOSING


async def test_a_reader_is_asked_again_when_tokens_change(harness: Harness, waits: asyncio.Event) -> None:
    async def refused() -> None:
        raise Unavailable("revoked")

    with await follow(harness) as reader:
        ended = asyncio.create_task(reader.next(LONG, refused))
        await waits.wait()
        harness.engine.forget_tokens()
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable, match="revoked"):
                await ended


async def test_a_silence_asks_again_too(live: Harness) -> None:
    asked = []

    async def admit() -> None:
        asked.append(1)

    with await follow(live) as reader:
        assert await reader.next(0, admit) == ()
    assert asked == [1]


async def test_there_are_only_so_many_readers(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MOST_READERS", 1)
    with await follow(harness), pytest.raises(Unavailable, match="Too many"):
        await follow(harness)


@given(st.lists(st.integers(1, 7), max_size=40), st.integers(1, 9), st.integers(0, 60))
def test_memory_gives_each_reader_what_comes_after_its_place(sizes: list[int], lately: int, place: int) -> None:
    broadcast = Broadcast(lately=lately)
    broadcast.begin("test", 10)
    number = 10
    for size in sizes:
        broadcast.add(
            Happened(backend="test", seq=number + n, at=NOW, kind="job", rap_id=None, content={})
            for n in range(1, size + 1)
        )
        number += size
    recent = broadcast.recent["test"]
    assert (recent.head, recent.events[-1].seq if recent.events else number) == (number, number)
    assert number - recent.before >= min(number - 10, lately)
    if place >= recent.before:
        found = [event.seq for event in recent.after(place, 5)]
        assert found == list(range(place + 1, number + 1))[:5]
