"""Our spans as the OpenTelemetry SDK's, with the resource that tells who did what they tell of."""

from collections.abc import Mapping
from typing import Final

from attrs import frozen
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from controller.core import spans
from controller.trace_settings import TraceSettings

_JOBS: Final = InstrumentationScope("jobs")
"""As upstream's tracer is called (reference section 6)."""
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


@frozen(kw_only=True)
class Resources:
    """Who speaks: a controller for itself, and for the agents of its backends, which nobody can ask."""

    settings: TraceSettings
    version: str

    def controller(self) -> Resource:
        """The controller serves no single backend."""
        return self._made("controller", "unknown")

    def agent(self, backend: str) -> Resource:
        """An agent of a backend."""
        return self._made("agent", backend)

    def _made(self, service: str, backend: str) -> Resource:
        ours: Mapping[str, str] = {
            "service.name": self.settings.service_name,
            "service.namespace": backend,
            "service.version": self.version,
            "rap.service": service,
            "rap.backend": backend,
        }
        return Resource({**self.settings.resource, **ours})


def converted(span: spans.Span, resources: Resources) -> ReadableSpan:
    """A span that is over, to be exported. The agent's steps are told in its name."""
    of_agent = span.kind is spans.SpanKind.STEP
    backend = str(span.attributes.get("backend", "unknown"))
    return ReadableSpan(
        name=span.name,
        context=_context(span.trace_id, span.span_id),
        parent=_context(span.trace_id, span.parent_id, remote=True) if span.parent_id else None,
        resource=resources.agent(backend) if of_agent else resources.controller(),
        attributes=dict(span.attributes),
        links=[Link(_context(link.trace_id, link.span_id)) for link in span.links],
        kind=SpanKind.INTERNAL,
        status=Status(StatusCode.ERROR if span.is_error else StatusCode.UNSET),
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=_JOBS,
    )


def _context(trace_id: str, span_id: str, *, remote: bool = False) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=remote, trace_flags=_SAMPLED)
