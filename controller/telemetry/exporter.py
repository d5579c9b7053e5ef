"""The loop that brings spans to a collector: those of jobs and RAPs that have ended, and those of this process.

A collector that is away, slow or talks nonsense costs this loop time and nobody else: jobs are written and scheduled
without it. What waits is in the database, so that another controller, or this one after a restart, goes on.

What a collector did not take goes alone the next time, so that one job that it cannot digest keeps no other back.
"""

import asyncio
import math
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final

import structlog
from attrs import define, field
from opentelemetry.sdk.trace import ReadableSpan

from common.clock import Clock
from controller.core.errors import Unavailable
from controller.engine.facade import Engine
from controller.engine.traces import Due
from controller.telemetry.counts import TelemetryCounts
from controller.telemetry.live_spans import LiveSpans
from controller.telemetry.otlp import Collector, Verdict
from controller.telemetry.sdk_spans import Resources, converted
from controller.trace_settings import TraceSettings

log = structlog.get_logger(__name__)

_BATCH: Final = 20
"""Jobs and RAPs that are taken to be exported at once."""
_SPANS: Final = 64
"""Spans in one request: their encoding holds up the loop, for some milliseconds."""
_TRIES: Final = 1500
"""How often a job's spans are offered while nobody takes them: about a day, at one try a minute."""
_ROUND: Final = 2
"""Timeouts after which a round begins nothing further: what it has claimed must be settled while it is its own."""
_LEASE: Final = 6
"""Timeouts for which that is."""
_KEEP_SECONDS: Final = 60.0
"""Between two looks at how much waits."""
_LONGEST_PAUSE: Final = 60.0
_LAST_SECONDS: Final = 1.0


@define
class _Settled:
    """What became of what a round has claimed, by `Due.seq`; see `Engine.settle_traces`."""

    done: list[int] = field(factory=list)
    failed: list[int] = field(factory=list)
    untried: list[int] = field(factory=list)


class TraceExporter:
    """Exports until it is cancelled.

    :param live: spans of this process, to be exported along with the others.
    :param counts: where it is told how many left, and how many were given up.
    """

    def __init__(
        self,
        engine: Engine,
        live: LiveSpans,
        *,
        settings: TraceSettings,
        version: str,
        clock: Clock,
        counts: TelemetryCounts,
    ) -> None:
        self._engine = engine
        self._live = live
        self._settings = settings
        self._resources = Resources(settings=settings, version=version)
        self._clock = clock
        self._counts = counts
        self._kept_at = -math.inf

    async def begin(self) -> None:
        """Have ended jobs noted for us.

        :raises Unavailable: the database is away.
        """
        await self._keep()

    async def run(self) -> None:
        """Look for ended jobs and RAPs, again and again; at once if there are more, slowly if nobody takes them.

        When it is cancelled it offers the spans of this process once more, for a second: nobody else has them.
        """
        async with Collector(self._settings) as collector:
            try:
                await self._run(collector)
            finally:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_SECONDS):
                        await self._export_live(collector)

    async def _run(self, collector: Collector) -> None:
        failures = 0
        while True:
            more = await self._safely(collector)
            failures = failures + 1 if more is None else 0
            if more is None:
                await self._clock.sleep(_jitter(min(_LONGEST_PAUSE, self._settings.delay * 2 ** min(failures, 10))))
            elif not more:
                await self._clock.sleep(_jitter(self._settings.delay))

    async def _safely(self, collector: Collector) -> bool | None:
        """See `round`; what fails is logged and tried again later."""
        try:
            return await self.round(collector)
        except Unavailable as error:
            log.warning("trace_export_unavailable", error=str(error))
        except Exception:
            log.exception("trace_export_failed")
        return None

    async def round(self, collector: Collector) -> bool | None:
        """Export what is there now, up to some bound: whether there may be more; None if the collector took nothing.

        :raises Unavailable: the database is away.
        """
        await self._keep()
        claimed = await self._engine.claim_traces(_BATCH, lease=_LEASE * timedelta(seconds=self._settings.timeout))
        settled = _Settled()
        verdict = await self._export(collector, claimed, settled)
        await self._engine.settle_traces(done=settled.done, failed=settled.failed, untried=settled.untried)
        if verdict is not Verdict.AWAY:
            verdict = await self._export_live(collector)
        if verdict is Verdict.AWAY:
            return False if settled.done else None
        return len(claimed) == _BATCH

    async def _keep(self) -> None:
        """Have ended jobs noted for us, and not too many."""
        now = self._clock.monotonic()
        if now - self._kept_at < _KEEP_SECONDS:
            return
        dropped = await self._engine.keep_traces()
        self._kept_at = now
        if dropped:
            self._counts.dropped += dropped
            log.warning("traces_dropped", count=dropped, reason="too many wait for the collector")

    async def _export(self, collector: Collector, claimed: Sequence[Due], settled: _Settled) -> Verdict:
        """What was never offered goes together, the rest one by one; nothing goes after somebody who is not there."""
        groups = [[due for due in claimed if not due.attempts], *([due] for due in claimed if due.attempts)]
        began, verdict = self._clock.monotonic(), Verdict.TAKEN
        for group in groups:
            if verdict is Verdict.AWAY or self._clock.monotonic() - began > _ROUND * self._settings.timeout:
                settled.untried += [due.seq for due in group]
                continue
            spans = [converted(span, self._resources) for due in group for span in due.spans]
            verdict = await self._send(collector, spans)
            if verdict is Verdict.TAKEN:
                settled.done += [due.seq for due in group]
            else:
                self._keep_for_later(group, settled, lost=verdict is Verdict.REFUSED and len(group) == 1)
        return verdict

    def _keep_for_later(self, group: Iterable[Due], settled: _Settled, *, lost: bool) -> None:
        """What nobody took is tried again, unless it never will be taken or was tried long enough."""
        for due in group:
            if lost or due.attempts + 1 >= _TRIES:
                settled.done.append(due.seq)
                self._counts.dropped += len(due.spans)
                log.warning("trace_dropped", spans=len(due.spans), attempts=due.attempts + 1)
            else:
                settled.failed.append(due.seq)

    async def _export_live(self, collector: Collector) -> Verdict:
        spans = self._live.first(_SPANS)
        verdict = await self._send(collector, spans)
        if verdict is not Verdict.AWAY:
            self._live.forget(len(spans))
        if verdict is Verdict.REFUSED:
            self._counts.dropped += len(spans)
        return verdict

    async def _send(self, collector: Collector, spans: Sequence[ReadableSpan]) -> Verdict:
        """Request by request, as long as they are taken. A part that was taken is sent again with the rest: the spans
        have the same ids then."""
        for start in range(0, len(spans), _SPANS):
            part, rejected = spans[start : start + _SPANS], collector.rejected
            verdict = await collector.send(part)
            if verdict is not Verdict.TAKEN:
                return verdict
            lost = min(collector.rejected - rejected, len(part))
            self._counts.exported += len(part) - lost
            self._counts.dropped += lost
        return Verdict.TAKEN


def _jitter(seconds: float) -> float:
    """So that controllers do not keep asking together."""
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311  no secret
