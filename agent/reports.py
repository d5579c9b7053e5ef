"""Sends the agent's reports: in order for each task, in batches, again and again until each has a verdict.

While the controller is away, a stage that is reported again (with newer metrics) takes the place of the one
that waits. A task has a handful of stages, so hours of silence cost a bounded amount of memory and the job's
history still has no gaps. Final results are on disk as well; a restarted agent states them again.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from attrs import define, field

from agent.client import Client, Rejected
from common.protocol import Report, ReportAnswer, ReportsRequest, Verdict

_log = structlog.get_logger()
BATCH: Final = 100


@define(eq=False)
class _Queued:
    report: Report
    settled: asyncio.Future[Verdict] = field(factory=lambda: asyncio.get_running_loop().create_future())


class Reports:
    """The queue of reports and the task that empties it."""

    def __init__(self, client: Client, agent: str, on_verdict: Callable[[Report, Verdict], None]) -> None:
        """:param on_verdict: called with every verdict, in order; must not raise."""
        self._client = client
        self._agent = agent
        self._on_verdict = on_verdict
        self._queues: dict[str, list[_Queued]] = {}
        self._filled = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def put(self, report: Report) -> asyncio.Future[Verdict]:
        """Queue a report. An unsent one of the same task and stage is replaced; a final report never is.

        :returns: the verdict, when there is one; cancelled if a newer report took this one's place.
        """
        queued = _Queued(report)
        waiting = self._queues.setdefault(report.task_id, [])
        if waiting and not waiting[-1].report.complete and waiting[-1].report.stage == report.stage:
            waiting.pop().settled.cancel()
        waiting.append(queued)
        self._filled.set()
        self._empty.clear()
        return queued.settled

    @property
    def queued(self) -> int:
        """How many reports wait to be sent."""
        return sum(len(waiting) for waiting in self._queues.values())

    def forget(self, task_id: str) -> None:
        """Drop what is queued about a task; what is on its way is not called back."""
        for queued in self._queues.pop(task_id, []):
            queued.settled.cancel()

    async def drain(self) -> None:
        """Return when every report has its verdict. The caller bounds it."""
        await self._empty.wait()

    async def run(self) -> None:
        """Send for ever."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while batch := self._take():
                await self._send(batch)
            if not self._queues:
                self._empty.set()

    def _take(self) -> list[_Queued]:
        """Whole queues, in the order in which their tasks came, until the batch is full."""
        batch: list[_Queued] = []
        while self._queues and len(batch) < BATCH:
            batch += self._queues.pop(next(iter(self._queues)))
        return batch

    async def _send(self, batch: list[_Queued]) -> None:
        request = ReportsRequest(agent=self._agent, reports=tuple(queued.report for queued in batch))
        try:
            answers = (await self._client.report(request)).answers
        except (Rejected, TypeError) as error:  # TypeError: what cannot be written as JSON
            if len(batch) > 1:
                # One report spoils the batch: find it by sending each alone.
                for queued in batch:
                    await self._send([queued])
                return
            _log.error("the controller rejects a report: given up", task_id=batch[0].report.task_id, fault=str(error))
            answers = (ReportAnswer(task_id=batch[0].report.task_id, verdict=Verdict.INVALID, detail=str(error)),)
        for queued, answer in zip(batch, answers, strict=True):
            self._settle(queued, answer)

    def _settle(self, queued: _Queued, answer: ReportAnswer) -> None:
        report = queued.report
        if answer.verdict is Verdict.INVALID:
            _log.error("report is invalid", task_id=report.task_id, stage=report.stage, detail=answer.detail)
        # The converter leaves the wire's text where a string enum is declared; the client has checked it.
        verdict = Verdict(answer.verdict)
        if not queued.settled.done():
            queued.settled.set_result(verdict)
        self._on_verdict(report, verdict)
