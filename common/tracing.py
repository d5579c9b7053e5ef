"""W3C trace context: where a RAP's trace comes from, and the span ids that its jobs carry.

One trace per RAP: the portal's, if it sent a valid `traceparent`, else a new one. Each job has a span id of its own in
it (reference sections 1.5 and 6).
"""

from typing import Final

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, TraceFlags, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_IDS = RandomIdGenerator()
_PROPAGATOR = TraceContextTextMapPropagator()
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


def parse(header: str | None) -> str | None:
    """The `traceparent` if it is valid W3C, in its canonical form; None for anything else, never an error."""
    context = _context(header)
    return None if context is INVALID_SPAN_CONTEXT else _format(context.trace_id, context.span_id, context.trace_flags)


def child(parent: str | None) -> str:
    """A `traceparent` with a new span id: in the parent's trace, or in a new one if there is no valid parent."""
    context = _context(parent)
    if context is INVALID_SPAN_CONTEXT:
        return _format(_IDS.generate_trace_id(), _IDS.generate_span_id(), _SAMPLED)
    return _format(context.trace_id, _IDS.generate_span_id(), context.trace_flags)


def trace_id(traceparent: str) -> str:
    """The 32 hexadecimal digits that a user searches for; empty if the `traceparent` is not valid."""
    context = _context(traceparent)
    return "" if context is INVALID_SPAN_CONTEXT else f"{context.trace_id:032x}"


def _context(header: str | None) -> SpanContext:
    if not header:
        return INVALID_SPAN_CONTEXT
    context = get_current_span(_PROPAGATOR.extract({"traceparent": header})).get_span_context()
    return context if context.is_valid else INVALID_SPAN_CONTEXT


def _format(trace: int, span: int, flags: int) -> str:
    return f"00-{trace:032x}-{span:016x}-{flags:02x}"
