"""A collector that speaks OTLP over HTTP, asynchronously: what it says to an export, in three words.

The OpenTelemetry SDK's own exporter is for threads: it blocks one for as long as a collector hangs, and tells only
whether it failed. Here an export is an ordinary request of the loop, ends with it, and is judged as the protocol says.
"""

import enum
import gzip
import sys
from collections.abc import Mapping, Sequence
from typing import Final, TextIO

import aiohttp
import structlog
from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import ReadableSpan

from controller.trace_settings import TraceSettings, tls

log = structlog.get_logger(__name__)

_REFUSED: Final = frozenset({400, 413, 415, 422})
"""What says that these spans will never be taken; the rest may be a proxy, a wrong key, a collector that restarts."""
_LONGEST_ANSWER: Final = 64 * 1024
"""Bytes of an answer that are looked at."""


class Verdict(enum.Enum):
    """What became of an export."""

    TAKEN = "taken"
    REFUSED = "refused"
    """These spans will never be taken."""
    AWAY = "away"
    """Not now."""


class Collector:
    """Where spans are sent; an async context manager.

    :param console: where spans are printed besides, if the settings want that.
    """

    def __init__(self, settings: TraceSettings, *, console: TextIO | None = None) -> None:
        self._settings = settings
        self._console = console or sys.stdout
        self._session: aiohttp.ClientSession | None = None
        self.rejected = 0
        """Spans out of exports that were taken, which the collector says it has thrown away."""

    async def __aenter__(self) -> "Collector":
        settings = self._settings
        own_tls = settings.certificate is not None or settings.client_certificate is not None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=2, ssl=tls(settings) if own_tls else True),
            timeout=aiohttp.ClientTimeout(total=settings.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, spans: Sequence[ReadableSpan]) -> Verdict:
        """Export spans in one request, within the settings' timeout. Never raises for what the collector does."""
        if self._settings.console:
            self._console.writelines(f"{span.to_json(indent=None)}\n" for span in spans)
            self._console.flush()
        if self._settings.endpoint is None:
            return Verdict.TAKEN
        body = encode_spans(spans).SerializeToString()
        headers: Mapping[str, str] = {"Content-Type": "application/x-protobuf", **self._settings.headers}
        if self._settings.gzip:
            body = gzip.compress(body, compresslevel=1)
            headers = {**headers, "Content-Encoding": "gzip"}
        if self._session is None:
            raise RuntimeError("the collector is used outside of its `async with`")
        try:
            async with self._session.post(
                self._settings.endpoint, data=body, headers=headers, allow_redirects=False
            ) as response:
                answer = await response.content.read(_LONGEST_ANSWER)
                return self._judge(response.status, answer)
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
            # What comes is nobody we know: it may be anything, and its words may hold what we have sent.
            log.warning("collector_away", reason=type(error).__name__)
            return Verdict.AWAY

    def _judge(self, status: int, answer: bytes) -> Verdict:
        if 200 <= status < 300:
            rejected = _rejected(answer)
            if rejected:
                self.rejected += rejected
                log.warning("collector_rejected_spans", count=rejected)
            return Verdict.TAKEN
        if status in _REFUSED:
            log.warning("collector_refused", status=status)
            return Verdict.REFUSED
        log.warning("collector_away", status=status)
        return Verdict.AWAY


def _rejected(answer: bytes) -> int:
    """How many spans a collector that has taken an export says it has not kept."""
    try:
        said = ExportTraceServiceResponse.FromString(answer)
    except DecodeError:
        return 0  # it need not say anything, and JSON is allowed
    return max(0, said.partial_success.rejected_spans)
