"""Around every request: an id, a span, one log line, safe headers, and an answer whatever goes wrong.

`install` gives the root application all of it; sub-applications inherit it.
"""

import re
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common import ids, tracing
from controller.core.observer import UNOBSERVED
from controller.web import errors
from controller.web.keys import CLOCK, OBSERVER, TOKENS, TRACER

log = structlog.get_logger()

SAFE_HEADERS = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Reference section 1.1."""

SERVER = "rap-controller"
"""Our versions, which aiohttp would tell, are nobody's business."""

GONE: Final = 499
"""Stands in logs and metrics for the status of an answer that nobody waited for."""

_W3C = TraceContextTextMapPropagator()
_ID: Final = re.compile(r"[a-z0-9]{16}")
_SUBJECTS: Final = {"rap": "rap_id", "job": "job_id"}
"""Parts of paths that are ids of ours, and what lines call them."""


def install(app: web.Application) -> None:
    """Put the middleware and the headers around everything that `app` serves."""
    app.middlewares.extend([record, answer_always])
    app.on_response_prepare.append(_set_headers)


def traceparent(request: web.Request) -> str | None:
    """The W3C `traceparent` that the caller sent, if it is a valid one; anything else counts as none."""
    return tracing.parse(request.headers.get("traceparent"))


@web.middleware
async def record(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Bind the request's ids for all log lines within, and write the one canonical line at its end.

    Only the route's template is logged, never the URL itself, which may hold anything. Of what is in it a line has the
    backend, the RAP and the job, if these look like ones.
    """
    clock = request.config_dict[CLOCK]
    began = clock.monotonic()
    route = _route(request)
    tracer = request.config_dict.get(TRACER) or trace.get_tracer(__name__)
    with tracer.start_as_current_span(
        f"{request.method} {route}", context=_W3C.extract(request.headers), kind=trace.SpanKind.SERVER
    ) as span:
        request_id = ids.random_id()
        structlog.contextvars.bind_contextvars(request_id=request_id, **_subjects(request))
        if span.get_span_context().is_valid:
            structlog.contextvars.bind_contextvars(trace_id=f"{span.get_span_context().trace_id:032x}")
        status = GONE
        try:
            response = await handler(request)
            status = response.status
            if not response.prepared:
                response.headers["X-Request-ID"] = request_id
        finally:
            # Also when the client has gone, which cancels the handler.
            _tell(request, span, route=route, status=status, seconds=clock.monotonic() - began)
        return response


def _tell(request: web.Request, span: trace.Span, *, route: str, status: int, seconds: float) -> None:
    """A request is over: to its span, to whoever measures, and to the log."""
    span.set_attributes(
        {"http.request.method": request.method, "http.route": route, "http.response.status_code": status}
    )
    observer = request.config_dict.get(OBSERVER, UNOBSERVED)
    observer.answered(method=request.method, route=route, status=status, seconds=seconds)
    log.info("request", method=request.method, route=route, status=status, duration_ms=round(seconds * 1000, 1))


def about(*, rap_id: str | None = None, backend: str | None = None) -> None:
    """Say in this request's line what it is about; for handlers that learn it from the body.

    :param backend: one that exists.
    """
    found = {"rap_id": rap_id if rap_id and _ID.fullmatch(rap_id) else None, "backend": backend}
    structlog.contextvars.bind_contextvars(**{name: value for name, value in found.items() if value})


@web.middleware
async def answer_always(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The last resort: what no dialect answered. A bug is told to the log, not to the caller."""
    try:
        return await handler(request)
    except web.HTTPException as answer:
        return errors.of_http(answer)
    except ConnectionError as error:
        log.info("the client went away", reason=type(error).__name__)
        return errors.page(400)  # nobody reads it
    except Exception:
        log.exception("unexpected error")
        return errors.bug()


async def _set_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in SAFE_HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = SERVER


def _subjects(request: web.Request) -> dict[str, str]:
    named = request.match_info
    found = {line: named[part] for part, line in _SUBJECTS.items() if _ID.fullmatch(named.get(part, ""))}
    known = request.config_dict.get(TOKENS)
    if known is not None and named.get("backend") in known.backends:
        found["backend"] = named["backend"]
    return found


def _route(request: web.Request) -> str:
    """The template of the route, such as `/{backend}/tasks/`; system routes (404, 405) have none."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else "unmatched"
