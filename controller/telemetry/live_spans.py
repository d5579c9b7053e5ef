"""Spans of what happens in this process, kept in a bounded queue until they are exported.

They are few and of little weight beside the spans of jobs, which are made from history: what does not fit is dropped
and counted, and what is in the queue when the process is killed is lost.
"""

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind

from controller.telemetry.counts import TelemetryCounts

MOST: Final = 2048
"""Spans that wait; one has about a kilobyte."""
_ROUTES: Final = ("/controller/v1/", "/api/")
"""Requests that are told: of portals and people. Agents' polls come every few seconds, and probes say nothing."""


class LiveSpans(SpanProcessor):
    """A queue at the end of the SDK's pipeline."""

    def __init__(self, counts: TelemetryCounts, *, most: int = MOST) -> None:
        self._counts = counts
        self._most = most
        self._queue: deque[ReadableSpan] = deque()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing to do."""

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span that is over, if it is one to be told and there is room."""
        attributes = span.attributes or {}
        if span.kind is SpanKind.SERVER and not str(attributes.get("http.route", "")).startswith(_ROUTES):
            return
        if len(self._queue) >= self._most:
            self._counts.dropped += 1
            return
        self._queue.append(span)

    def first(self, most: int) -> Sequence[ReadableSpan]:
        """The oldest spans; they stay until `forget`."""
        return list(islice(self._queue, most))

    def forget(self, count: int) -> None:
        """The oldest `count` spans are dealt with."""
        for _ in range(count):
            self._queue.popleft()

    def shutdown(self) -> None:
        """Nothing to do: the exporter empties the queue."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing to do, likewise."""
        return True
