"""Answers sorted, delays computed, reports kept in order, logs continued: the agent's side of the wire."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from agent.client import Answer, Client, Outcome, Rejected, classify, compute_delay, parse_retry_after
from agent.logs import LogPush
from agent.reports import Reports
from common.protocol import Declaration, Report, ReportsRequest, Verdict
from tests.agent.fake_controller import FakeController, Fault
from tests.agent.hand_clock import HandClock


@pytest.mark.parametrize(
    ("status", "readable", "outcome"),
    [
        (None, False, Outcome.RETRY),
        (200, True, Outcome.DONE),
        (200, False, Outcome.RETRY),
        (204, False, Outcome.RETRY),
        (301, False, Outcome.REFUSED),
        (400, False, Outcome.REJECTED),
        (401, False, Outcome.REFUSED),
        (403, False, Outcome.REFUSED),
        (404, False, Outcome.REFUSED),
        (408, False, Outcome.RETRY),
        (413, False, Outcome.REJECTED),
        (422, False, Outcome.REJECTED),
        (425, False, Outcome.RETRY),
        (429, False, Outcome.RETRY),
        (500, False, Outcome.RETRY),
        (503, False, Outcome.RETRY),
    ],
)
def test_classify(status: int | None, readable: bool, outcome: Outcome) -> None:
    assert classify(Answer(status=status, readable=readable)) is outcome


def test_delays_grow_to_a_bound_and_honour_the_controller() -> None:
    delays = [compute_delay(Outcome.RETRY, n, None, 1.0) for n in range(1, 12)]
    assert delays[:3] == [0.25, 0.5, 1.0]
    assert delays[-1] == 30.0
    assert compute_delay(Outcome.REFUSED, 10_000, None, 1.0) == 300.0
    assert compute_delay(Outcome.RETRY, 1, None, 0.0) == pytest.approx(0.0625)
    assert compute_delay(Outcome.RETRY, 1, 7.0, 0.0) == 7.0
    assert compute_delay(Outcome.RETRY, 1, 1e9, 0.0) == 600.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("5", 5.0),
        ("-5", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:00:30 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, 20.0) == seconds


def make_client(session: aiohttp.ClientSession, controller: FakeController, clock: HandClock) -> Client:
    return Client(
        session,
        url=controller.url + "/",
        backend="test",
        agent="agent-1",
        token="secret",
        clock=clock,
        jitter=lambda: 1.0,
    )


async def test_a_client_waits_as_long_as_it_was_asked_to() -> None:
    clock = HandClock()
    async with FakeController().serving() as controller, aiohttp.ClientSession() as session:
        controller.faults = [Fault(path="agent-1", headers={"Retry-After": "40"})]
        declaring = asyncio.create_task(
            make_client(session, controller, clock).declare(Declaration(version="1", executor="x", slots=1))
        )
        await clock.until_sleeper(44.0)
        clock.advance(43.9)
        await asyncio.sleep(0)
        assert not declaring.done()
        clock.advance(0.2)
        welcome = await declaring
    assert welcome.lease_seconds == 900
    assert all(b"Authorization: Bearer secret" in sent for sent in controller.traffic)


async def test_a_request_that_makes_no_sense_is_given_up() -> None:
    async with FakeController().serving() as controller, aiohttp.ClientSession() as session:
        controller.faults = [Fault(path="agent-1", status=422, body=b"slots: too many")]
        with pytest.raises(Rejected, match="slots: too many"):
            await make_client(session, controller, HandClock()).declare(Declaration(version="1", executor="x", slots=1))


async def test_answers_that_do_not_fit_the_reports_are_asked_for_again() -> None:
    clock = HandClock()
    report = Report(task_id="t", attempt=1, stage="prepared")
    bodies = [
        b'{"answers": []}',
        b'{"answers": [{"task_id": "other", "verdict": "applied"}]}',
        b'{"answers": [{"task_id": "t", "verdict": "perhaps"}]}',
    ]
    async with FakeController().serving() as controller, aiohttp.ClientSession() as session:
        controller.faults = [Fault(path="/reports", status=200, body=body) for body in bodies]
        client = make_client(session, controller, clock)
        cranking = asyncio.create_task(clock.crank(60))
        response = await client.report(ReportsRequest(agent="agent-1", reports=(report,)))
        cranking.cancel()
        await asyncio.wait([cranking])
    assert response.answers[0].verdict == "applied"


async def test_reports_keep_their_order_and_repeats_take_no_room() -> None:
    clock = HandClock()
    seen: list[tuple[str, Verdict]] = []
    async with FakeController().serving() as controller, aiohttp.ClientSession() as session:
        reports = Reports(
            make_client(session, controller, clock),
            "agent-1",
            lambda report, verdict: seen.append((report.stage, verdict)),
        )
        for number in range(1000):
            reports.put(Report(task_id="t", attempt=1, stage="executing", metrics={"cpu_mean": number}))
        other = reports.put(Report(task_id="u", attempt=1, stage="finalized", complete=True))
        final = reports.put(Report(task_id="t", attempt=1, stage="finalized", complete=True))
        dropped = reports.put(Report(task_id="v", attempt=1, stage="preparing"))
        reports.forget("v")
        sending = asyncio.create_task(reports.run())
        await reports.drain()
        sending.cancel()
        await asyncio.wait([sending])
    assert [(r["task_id"], r["stage"]) for r in controller.reports] == [
        ("t", "executing"),
        ("t", "finalized"),
        ("u", "finalized"),
    ]
    assert controller.reports[0]["metrics"] == {"cpu_mean": 999}
    assert final.result() is other.result() is Verdict.APPLIED
    assert dropped.cancelled()
    assert len(seen) == 3


async def test_one_report_that_the_controller_rejects_does_not_hold_up_the_others() -> None:
    async with FakeController().serving() as controller, aiohttp.ClientSession() as session:
        bad = b'"task_id":"bad"'
        controller.faults = [Fault(path="/reports", status=400, containing=bad) for _ in range(2)]
        reports = Reports(make_client(session, controller, HandClock()), "agent-1", lambda report, verdict: None)
        futures = [
            reports.put(Report(task_id=name, attempt=1, stage="finalized", complete=True)) for name in ("a", "bad", "b")
        ]
        futures.append(reports.put(Report(task_id="c", attempt=1, stage="prepared", results={"x": object()})))
        sending = asyncio.create_task(reports.run())
        await reports.drain()
        sending.cancel()
        await asyncio.wait([sending])
    verdicts = [future.result() for future in futures]
    assert verdicts == [Verdict.APPLIED, Verdict.INVALID, Verdict.APPLIED, Verdict.INVALID]


TEXT = "Grüße \x00 und mehr\n" * 10_000


async def push(controller: FakeController, *, limit: int = 10**9, faults: int = 0) -> None:
    body = TEXT.encode()

    async def source(offset: int, most: int) -> bytes:
        return body[offset : offset + min(most, 7001)]  # cuts characters in two

    clock = HandClock()
    async with aiohttp.ClientSession() as session:
        client = make_client(session, controller, clock)
        controller.faults = [Fault(path="/logs", drop_answer=True) for _ in range(faults)]
        log = LogPush(client, agent="agent-1", task_id="t", attempt=1, limit=limit)
        cranking = asyncio.create_task(clock.crank(60))
        await log.push(source, tries=3)
        cranking.cancel()
        await asyncio.wait([cranking])


async def test_a_log_arrives_whole_through_lost_answers_and_restarts() -> None:
    async with FakeController().serving() as controller:
        controller.logs["t"] = TEXT.replace("\x00", "\ufffd")[:12345]  # an earlier agent came so far
        await push(controller, faults=2)
        assert controller.logs["t"] == TEXT.replace("\x00", "\ufffd")


async def test_a_log_stops_at_either_sides_bound() -> None:
    async with FakeController().serving() as controller:
        await push(controller, limit=1000)
        assert len(controller.logs["t"]) == 1000
    async with FakeController().serving() as controller:
        controller.log_bound = 500
        await push(controller)
        assert len(controller.logs["t"]) == 500


async def test_a_log_that_cannot_be_delivered_is_given_up(tmp_path: Path) -> None:
    async with FakeController().serving() as controller:
        await push(controller, faults=50)
        assert len(controller.traffic) == 3
