"""Spans of what happens in a controller: which are told, how many may wait, and what becomes of them."""

import asyncio
import io
import json

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, Tracer

from common.clock import SystemClock
from controller.telemetry.counts import TelemetryCounts
from controller.telemetry.exporter import TraceExporter
from controller.telemetry.live_spans import LiveSpans
from controller.telemetry.otlp import Collector
from controller.telemetry.tracing import tracing
from controller.trace_settings import TraceSettings
from tests.fakes.collector import collecting
from tests.fakes.engine import ScriptedEngine

ENGINE = {"keep_traces": 0, "claim_traces": (), "settle_traces": None}


def tracer(live: LiveSpans) -> Tracer:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(live)
    return provider.get_tracer("test")


@pytest.mark.parametrize(
    ("kind", "route", "told"),
    [
        (SpanKind.SERVER, "/controller/v1/rap/status/", True),
        (SpanKind.SERVER, "/api/raps", True),
        (SpanKind.SERVER, "/agent/v1/{backend}/claim", False),
        (SpanKind.SERVER, "/readyz", False),
        (SpanKind.SERVER, "unmatched", False),
        (SpanKind.INTERNAL, "", True),
    ],
)
def test_which_requests_are_told(kind: SpanKind, route: str, told: bool) -> None:
    live = LiveSpans(TelemetryCounts())
    with tracer(live).start_as_current_span("x", kind=kind, attributes={"http.route": route} if route else {}):
        pass
    assert len(live.first(10)) == told


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    counts = TelemetryCounts()
    live = LiveSpans(counts, most=3)
    of = tracer(live)
    for number in range(5):
        of.start_span(str(number)).end()
    assert [span.name for span in live.first(10)] == ["0", "1", "2"]
    live.forget(2)
    of.start_span("5").end()
    assert ([span.name for span in live.first(10)], counts.dropped) == (["2", "5"], 2)


async def test_they_stay_until_somebody_has_them() -> None:
    async with collecting() as collector:
        settings = TraceSettings(endpoint="http://127.0.0.1:1/v1/traces", timeout=5)
        counts = TelemetryCounts()
        live = LiveSpans(counts)
        exporter = TraceExporter(
            ScriptedEngine(**ENGINE),  # type: ignore[arg-type]
            live,
            settings=settings,
            version="1",
            clock=SystemClock(),
            counts=counts,
        )
        tracer(live).start_span("LOOP").end()
        async with Collector(settings) as nobody:
            assert await exporter.round(nobody) is None
        assert len(live.first(10)) == 1
        async with Collector(TraceSettings(endpoint=f"{collector.url}/v1/traces", timeout=5)) as somebody:
            assert await exporter.round(somebody) is False
        assert (live.first(10), [span.name for span in collector.spans]) == ([], ["LOOP"])
        assert (counts.exported, counts.dropped) == (1, 0)


async def test_the_last_ones_leave_with_the_controller() -> None:
    async with collecting() as collector:
        counts = TelemetryCounts()
        live = LiveSpans(counts)
        settings = TraceSettings(endpoint=f"{collector.url}/v1/traces", delay=3600)
        looked = asyncio.Event()

        def claim(*_: object, **__: object) -> tuple[()]:
            looked.set()
            return ()

        exporter = TraceExporter(
            ScriptedEngine(**ENGINE | {"claim_traces": claim}),  # type: ignore[arg-type]
            live,
            settings=settings,
            version="1",
            clock=SystemClock(),
            counts=counts,
        )
        running = asyncio.create_task(exporter.run())
        await looked.wait()
        tracer(live).start_span("last").end()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert [span.name for span in collector.spans] == ["last"]


async def test_the_console_shows_a_span_per_line() -> None:
    console = io.StringIO()
    live = LiveSpans(TelemetryCounts())
    for name in ("one", "two"):
        tracer(live).start_span(name).end()
    async with Collector(TraceSettings(console=True), console=console) as collector:
        await collector.send(live.first(10))
    assert [json.loads(line)["name"] for line in console.getvalue().splitlines()] == ["one", "two"]


def test_without_a_place_to_go_there_is_no_loop_and_no_span() -> None:
    clock, counts = SystemClock(), TelemetryCounts()
    made = tracing(TraceSettings(), version="1", engine=ScriptedEngine(), clock=clock, counts=counts)  # type: ignore[arg-type]
    assert list(made.exporters) == []
    with made.tracer.start_as_current_span("x") as span:
        assert not span.is_recording()
