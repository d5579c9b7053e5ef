"""What one controller traces with: a tracer for what happens in it, and the loop that exports; or nothing."""

from collections.abc import Sequence

from attrs import frozen
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracer, Tracer

from common.clock import Clock
from controller.engine.facade import Engine
from controller.telemetry.counts import TelemetryCounts
from controller.telemetry.exporter import TraceExporter
from controller.telemetry.live_spans import LiveSpans
from controller.telemetry.sdk_spans import Resources
from controller.trace_settings import TraceSettings


@frozen(kw_only=True)
class Tracing:
    """Without anything to export to, the tracer costs nothing and there is no loop."""

    tracer: Tracer
    exporters: Sequence[TraceExporter]
    """None or one, to be run."""

    async def begin(self) -> None:
        """From now on, what ends is kept for export: before any of the controller's loops ends anything.

        :raises Unavailable: the database is away.
        """
        for exporter in self.exporters:
            await exporter.begin()


def tracing(settings: TraceSettings, *, version: str, engine: Engine, clock: Clock, counts: TelemetryCounts) -> Tracing:
    """The tracing of one controller; nothing of it is global, so that a process can have several."""
    if not settings.enabled:
        return Tracing(tracer=NoOpTracer(), exporters=())
    live = LiveSpans(counts)
    resource = Resources(settings=settings, version=version).controller()
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(live)
    exporter = TraceExporter(engine, live, settings=settings, version=version, clock=clock, counts=counts)
    return Tracing(tracer=provider.get_tracer("rap_controller", version), exporters=(exporter,))
