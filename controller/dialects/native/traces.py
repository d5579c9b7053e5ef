"""`GET raps/{rap}/trace`: the spans of a RAP, made from its history; no collector is needed."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from aiohttp import web
from attrs import frozen

from controller.core.model import RapId
from controller.core.spans import Primitive, SpanKind
from controller.core.spans import Span as CoreSpan
from controller.dialects.native import query, times
from controller.engine.traces import RapTrace
from controller.web import json_api
from controller.web.keys import ENGINE

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_OF_A_JOB: Final = (SpanKind.STATE, SpanKind.FINAL)


@frozen(kw_only=True)
class Link:
    """A span that this one has to do with: of a job that it waited for."""

    trace_id: str
    span_id: str


@frozen(kw_only=True)
class Span:
    """One span; `ended_at` is null while it is not over."""

    kind: str
    """`rap`, `job`, `state`, `final` or `step`."""
    name: str
    span_id: str
    parent_id: str | None
    started_at: str
    ended_at: str | None
    is_error: bool
    attributes: Mapping[str, Primitive]
    """Those of a job's codes without what its JOB span says, too."""
    links: tuple[Link, ...]


@frozen(kw_only=True)
class Trace:
    """Answer to `GET raps/{rap}/trace`: the RAP's span, then each job's, dependencies first."""

    rap_id: str
    trace_id: str
    at: str
    spans: tuple[Span, ...]


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_get("/raps/{rap}/trace", show_trace)


async def show_trace(request: web.Request) -> web.Response:
    """Every span of a RAP as it is now."""
    principal = await query.caller(request)
    rap = RapId(query.identifier("RAP", request.match_info["rap"]))
    return json_api.send(trace(await request.config_dict[ENGINE].rap_trace(principal, rap)))


def trace(value: RapTrace) -> Trace:
    """A RAP's spans. What all spans of a job repeat is told once."""
    jobs = {each.span_id: each.attributes for each in value.spans if each.kind is SpanKind.JOB}
    return Trace(
        rap_id=value.rap_id,
        trace_id=value.spans[0].trace_id,
        at=times.timestamp(value.at),
        spans=tuple(span(each, jobs.get(each.parent_id or "", {})) for each in value.spans),
    )


def span(value: CoreSpan, job: Mapping[str, Primitive]) -> Span:
    """One span.

    :param job: the attributes of its JOB span, if it has one.
    """
    told = job if value.kind in _OF_A_JOB else {}
    return Span(
        kind=value.kind.value,
        name=value.name,
        span_id=value.span_id,
        parent_id=value.parent_id,
        started_at=_timestamp(value.start_ns),
        ended_at=None if value.end_ns is None else _timestamp(value.end_ns),
        is_error=value.is_error,
        attributes={name: said for name, said in value.attributes.items() if name not in told or told[name] != said},
        links=tuple(Link(trace_id=link.trace_id, span_id=link.span_id) for link in value.links),
    )


def _timestamp(ns: int) -> str:
    return times.timestamp(_EPOCH + timedelta(microseconds=ns // 1000))
