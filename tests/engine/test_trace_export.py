"""Spans on their way to a collector: once, whoever brings them and whatever the collector is up to."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from aiohttp import web
from attrs import evolve

from common.clock import SystemClock
from controller.core.model import RapId
from controller.engine.facade import Engine
from controller.engine.traces import WANTED
from controller.telemetry import exporter as exporting
from controller.telemetry.counts import TelemetryCounts
from controller.telemetry.exporter import TraceExporter
from controller.telemetry.live_spans import LiveSpans
from controller.telemetry.otlp import Collector as Client
from controller.trace_settings import TraceSettings
from tests.engine.conftest import Harness, Study
from tests.factories import operator
from tests.fakes.collector import Collector, collecting

LEASE = timedelta(seconds=60)


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as made:
        yield made


def settings(collector: Collector, **changes: object) -> TraceSettings:
    return evolve(TraceSettings(endpoint=f"{collector.url}/v1/traces", timeout=5), **changes)


def exporter(harness: Harness, collector: Collector, **changes: object) -> tuple[TraceExporter, TelemetryCounts]:
    counts = TelemetryCounts()
    made = TraceExporter(
        harness.engine,
        LiveSpans(counts),
        settings=settings(collector, **changes),
        version="1.2",
        clock=SystemClock(),
        counts=counts,
    )
    return made, counts


async def rounds(made: TraceExporter, collector: Collector, **changes: object) -> list[bool | None]:
    """Rounds until there is nothing more at once; what each said."""
    said: list[bool | None] = []
    async with Client(settings(collector, **changes)) as client:
        while not said or said[-1]:
            said.append(await made.round(client))
    return said


async def run(harness: Harness, study: Study, *actions: str, **changes: object) -> RapId:
    created = await harness.create(study.request(*actions, **changes))
    await harness.run_all()
    return created.rap_id


async def waiting(harness: Harness) -> int:
    async with harness.context.db.connection() as tx:
        return int(await tx.fetchval("SELECT count(*) FROM trace_due"))


async def test_what_has_ended_is_exported_once(harness: Harness, study: Study, collector: Collector) -> None:
    made, counts = exporter(harness, collector)
    await made.begin()
    rap_id = await run(harness, study, "report", workspace="w")
    unfinished = await harness.create(study.request("extract", workspace="other"))
    for _ in range(2):
        assert await rounds(made, collector) == [False]
    assert len(collector.named("JOB")) == 4
    (root,) = collector.named("RAP")
    assert (root.attributes["rap.id"], root.attributes["rap.succeeded"]) == (rap_id, True)
    assert unfinished.rap_id not in {span.attributes.get("rap.id") for span in collector.spans}
    assert collector.doubled() == []
    assert (counts.exported, counts.dropped, await waiting(harness)) == (len(collector.spans), 0, 0)


async def test_two_controllers_export_once_between_them(harness: Harness, study: Study, collector: Collector) -> None:
    pair = [exporter(harness, collector)[0] for _ in range(2)]
    await pair[0].begin()
    for number in range(10):
        await run(harness, study, "report", workspace=f"w{number}")
    await asyncio.gather(*(rounds(made, collector) for made in pair))
    assert (len(collector.named("RAP")), len(collector.named("JOB"))) == (10, 40)
    assert collector.doubled() == []
    assert await waiting(harness) == 0


async def test_where_nobody_exports_nothing_piles_up(harness: Harness, study: Study, collector: Collector) -> None:
    await run(harness, study, "extract", workspace="before")
    assert await waiting(harness) == 0
    await harness.engine.keep_traces()
    await run(harness, study, "extract", workspace="during")
    assert await waiting(harness) == 2
    harness.clock.advance(WANTED.total_seconds() + 1)
    await run(harness, study, "extract", workspace="after")
    assert await waiting(harness) == 2


async def test_the_rap_ends_with_its_last_job_however_that_ends(
    harness: Harness, study: Study, collector: Collector
) -> None:
    """Failed dependants, kills and cancels are ends like any other; a second cancel is none."""
    made, _ = exporter(harness, collector)
    await made.begin()
    created = await harness.create(study.request("report", "query"))
    await harness.settle()
    for task in await harness.claim():
        if "query.sql" not in str(task.definition):
            await harness.finish(task, exit_code=1)
    await harness.settle()
    await rounds(made, collector)
    assert (len(collector.named("JOB")), collector.named("RAP")) == (4, [])
    query = (await harness.jobs(created.rap_id))["query"]
    await harness.engine.kill(operator(), query.id)
    await harness.engine.cancel(operator(), created.rap_id, ["query"])
    await rounds(made, collector)
    assert len(collector.named("JOB")) == 5
    (root,) = collector.named("RAP")
    assert (root.attributes["rap.jobs_failed"], root.attributes["rap.succeeded"]) == (5, False)
    assert {span.name for span in collector.spans if span.status == 2} == set()


async def answer(status: int, body: bytes = b"") -> web.StreamResponse:
    return web.Response(status=status, body=body)


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.write(b"\x00\xff garbage \r\n\r\n")
    request.transport.close()
    return web.Response()


async def hang(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    return web.Response()


@pytest.mark.parametrize(
    "bad",
    [
        lambda request: answer(500),
        lambda request: answer(401),
        lambda request: answer(404),
        lambda request: answer(429),
        lambda request: answer(302, b"<html>"),
        hang_up,
        hang,
    ],
    ids=["500", "401", "404", "429", "302", "garbage", "hangs"],
)
async def test_a_collector_that_does_not_take_them_gets_them_later(
    harness: Harness, study: Study, collector: Collector, bad: object
) -> None:
    made, counts = exporter(harness, collector, timeout=0.2)
    await made.begin()
    await run(harness, study, "extract")
    collector.answers += [bad, bad]  # type: ignore[list-item]
    for _ in range(2):
        assert await rounds(made, collector, timeout=0.2) == [None]
        # Jobs go on as ever.
        await run(harness, study, "extract", force_run_dependencies=True)
    assert (counts.exported, collector.spans) == (0, [])
    await rounds(made, collector, timeout=0.2)
    assert (len(collector.named("RAP")), len(collector.named("JOB"))) == (3, 3)
    assert (collector.doubled(), counts.dropped, await waiting(harness)) == ([], 0, 0)


async def test_a_collector_that_is_not_there_gets_them_later(
    harness: Harness, study: Study, collector: Collector
) -> None:
    made, _ = exporter(harness, collector)
    await made.begin()
    await run(harness, study, "extract")
    nowhere = settings(collector, endpoint="http://127.0.0.1:1/v1/traces")
    async with Client(nowhere) as client:
        assert await made.round(client) is None
    await rounds(made, collector)
    assert len(collector.named("RAP")) == 1


async def test_nonsense_with_a_2xx_counts_as_taken(harness: Harness, study: Study, collector: Collector) -> None:
    """Some collectors answer JSON, some nothing."""
    made, counts = exporter(harness, collector)
    await made.begin()
    await run(harness, study, "extract")
    collector.answers.append(lambda request: answer(200, b"\xff" * 100_000))
    assert await rounds(made, collector) == [False]
    assert (counts.dropped, await waiting(harness)) == (0, 0)
    assert counts.exported > 0


async def test_what_a_collector_will_never_take_is_dropped_and_holds_up_nobody(
    harness: Harness, study: Study, collector: Collector
) -> None:
    made, counts = exporter(harness, collector)
    await made.begin()
    await run(harness, study, "extract", workspace="one")
    collector.answers += [lambda request: answer(400), lambda request: answer(400)]
    await rounds(made, collector)  # job and RAP together: refused, and tried alone from now on
    assert (counts.dropped, await waiting(harness)) == (0, 2)
    await rounds(made, collector)
    assert counts.dropped == 4  # JOB, CREATED, INITIATED, SUCCEEDED: refused alone
    assert [span.name for span in collector.spans] == ["RAP"]
    assert await waiting(harness) == 0


async def test_what_was_tried_for_a_day_is_given_up(
    harness: Harness, study: Study, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_TRIES", 2)
    made, counts = exporter(harness, collector)
    await made.begin()
    await run(harness, study, "extract")
    collector.answers += [lambda request: answer(503)] * 3
    for _ in range(3):
        await rounds(made, collector)
    assert (await waiting(harness), counts.exported) == (0, 0)
    assert counts.dropped > 0


async def test_too_much_is_dropped_from_its_oldest_end(
    harness: Harness, study: Study, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.engine.traces.MOST_DUE", 4)
    await harness.engine.keep_traces()
    ids = [await run(harness, study, "extract", workspace=f"w{number}") for number in range(5)]
    made, counts = exporter(harness, collector)
    await made.begin()
    await rounds(made, collector)
    assert [span.attributes["rap.id"] for span in collector.named("RAP")] == ids[-2:]
    assert counts.dropped == 6


async def test_what_a_killed_controller_had_taken_is_exported_after_its_lease(
    harness: Harness, study: Study, collector: Collector
) -> None:
    made, _ = exporter(harness, collector)
    await made.begin()
    await run(harness, study, "extract")
    assert len(await harness.engine.claim_traces(10, lease=LEASE)) == 2  # and then it was killed
    await rounds(made, collector)
    assert collector.spans == []
    harness.clock.advance(61)
    await rounds(made, collector)
    assert len(collector.named("RAP")) == len(collector.named("JOB")) == 1


async def test_exporting_twice_is_exporting_the_same(harness: Harness, study: Study, collector: Collector) -> None:
    """The answer to an export was lost with the controller that waited for it."""
    made, _ = exporter(harness, collector)
    await made.begin()
    await run(harness, study, "report")
    twice = [await harness.engine.claim_traces(10, lease=LEASE)]
    harness.clock.advance(61)
    twice.append(await Engine(harness.context).claim_traces(10, lease=LEASE))
    assert twice[0] == twice[1]
    assert len(twice[0]) == 5


async def test_what_was_pruned_meanwhile_is_not_missed(harness: Harness, study: Study, collector: Collector) -> None:
    made, _ = exporter(harness, collector)
    await made.begin()
    await run(harness, study, "extract")
    harness.clock.advance(86_400 * 3)
    await run(harness, study, "extract", force_run_dependencies=True)
    await harness.engine.prune(operator(), "test", older_than=timedelta(days=2), after=0, dry_run=False)
    await rounds(made, collector)
    assert len(collector.named("RAP")) >= 1
    assert await waiting(harness) == 0


async def test_headers_compression_and_who_speaks(harness: Harness, study: Study, collector: Collector) -> None:
    said = {"gzip": True, "headers": {"x-team": "s3cret"}, "resource": {"deployment": "lab", "rap.service": "mine"}}
    made, _ = exporter(harness, collector, service_name="rap", **said)
    await made.begin()
    created = await harness.create(study.request("extract"))
    await harness.settle()
    (task,) = await harness.claim()
    await harness.report(task, "executing")
    await harness.finish(task, status_message={"odd": [1]})
    await rounds(made, collector, **said)
    assert {headers["x-team"] for headers in collector.headers} == {"s3cret"}
    assert {headers["Content-Encoding"] for headers in collector.headers} == {"gzip"}
    common = {"service.name": "rap", "service.version": "1.2", "deployment": "lab"}
    controller = common | {"service.namespace": "unknown", "rap.service": "controller", "rap.backend": "unknown"}
    agent = common | {"service.namespace": "test", "rap.service": "agent", "rap.backend": "test"}
    told = {span.name: span.resource for span in collector.spans}
    assert (told["RAP"], told["JOB"], told["SUCCEEDED"], told["execute"]) == (controller, controller, controller, agent)
    (job,) = collector.named("JOB")
    assert job.attributes["job.executor_message"] == "{'odd': [1]}"
    assert job.attributes["job.request"] == created.rap_id
