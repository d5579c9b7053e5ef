"""A collector of OTLP over HTTP on a real socket: it decodes what comes, and answers as a test says."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from attrs import define, field, frozen
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@frozen(kw_only=True)
class Received:
    """One span that came."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    status: int
    links: tuple[str, ...]
    resource: Mapping[str, Any]


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@define
class Collector:
    """What has come, and how the next requests are answered."""

    url: str = ""
    spans: list[Received] = field(factory=list)
    """Of the requests that were taken."""
    headers: list[Mapping[str, str]] = field(factory=list)
    """Of all requests."""
    answers: list[Answer] = field(factory=list)
    """For the next requests, one each; after them everything is taken. What such a request brings is not kept."""
    asked: asyncio.Event = field(factory=asyncio.Event)
    """Set by every request; for tests to clear."""
    _more: asyncio.Event = field(factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.StreamResponse:
        """One export."""
        body = await request.read()
        self.headers.append(dict(request.headers))
        self.asked.set()
        if self.answers:
            return await self.answers.pop(0)(request)
        self.spans += decode(body)
        self._more.set()
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )

    async def until(self, there: Callable[["Collector"], object], patience: float = 60.0) -> None:
        """Wait until enough has come."""
        async with asyncio.timeout(patience):
            while not there(self):
                self._more.clear()
                await self._more.wait()

    def named(self, name: str) -> list[Received]:
        """The spans of one name."""
        return [span for span in self.spans if span.name == name]

    def doubled(self) -> list[str]:
        """Names of the spans that came more than once."""
        counted = Counter((span.span_id, span.name) for span in self.spans)
        return [name for (_, name), count in counted.items() if count > 1]


def decode(body: bytes) -> list[Received]:
    """The spans of one request."""
    found = []
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _attributes(group.resource.attributes)
        for scope in group.scope_spans:
            found += [
                Received(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    attributes=_attributes(span.attributes),
                    status=span.status.code,
                    links=tuple(link.span_id.hex() for link in span.links),
                    resource=resource,
                )
                for span in scope.spans
            ]
    return found


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector on a free port of the loopback interface."""
    collector = Collector()
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    collector.url = f"http://{host}:{port}"
    try:
        yield collector
    finally:
        await runner.cleanup()
