"""One watcher for all runs of an agent on a cluster: Slurm has nothing that wakes us.

The supervisor's notes come first, for they are exact and cost a `stat`: a young run is looked at often, an old one
seldom (a twentieth of its age, at most `poll_seconds`). Whether Slurm still has the jobs is one `squeue` every
`poll_seconds` for all of them, whatever their number; it only matters for runs that end without a note.
"""

import asyncio
import contextlib
from typing import Final

import structlog
from attrs import define, field

from agent.executors.base import ExecutorError
from agent.executors.slurm.commands import Away, Busy, Refused, Slurm
from agent.executors.slurm.notes import Look, SlurmNotes
from agent.executors.slurm.options import PARTITION_SETTING
from agent.executors.slurm.state import Row, judge

SOONEST: Final = 0.05
AGE_SHARE: Final = 20
AGAIN_SECONDS: Final = 0.5
"""Between two questions to Slurm while a run's end is to be explained."""

log = structlog.get_logger()


@define(eq=False)
class Watch:
    """Somebody who waits for a run to start, or to exit."""

    notes: SlurmNotes
    job_id: int | None
    for_start: bool
    since: float
    happened: asyncio.Future[None]
    due: float
    missing_since: float | None = None
    """When Slurm was first seen without the job, or with one that is over."""
    hopeless: int = 0
    """How often in a row Slurm said that the job can never start."""
    reason: str = field(default="")


class Poller:
    """Looks while anybody waits, and not otherwise.

    :param settle_seconds: how long after Slurm is done with a job its supervisor's last note may take to be seen
        here, over a network file system that remembers what was not there.
    """

    def __init__(self, slurm: Slurm, *, poll_seconds: float, settle_seconds: float) -> None:
        self._slurm = slurm
        self._poll_seconds = poll_seconds
        self._settle_seconds = settle_seconds
        self._watches: list[Watch] = []
        self._task: asyncio.Task[None] | None = None
        self._nudge = asyncio.Event()
        self._queue_due = 0.0
        self._away = False

    async def until(self, notes: SlurmNotes, job_id: int | None, *, for_start: bool) -> None:
        """Sleep until the run has started (or exited), or with `for_start=False` until it has exited.

        :raises ExecutorError: Slurm says that the job can never start.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        watch = Watch(notes, job_id, for_start, now, loop.create_future(), now)
        self._watches.append(watch)
        self._nudge.set()
        if self._task is None or self._task.done():
            self._queue_due = max(self._queue_due, now + min(1.0, self._poll_seconds))
            self._task = loop.create_task(self._poll())
        try:
            await watch.happened
        finally:
            self._watches.remove(watch)
            self._nudge.set()

    async def close(self) -> None:
        """Stop looking; whoever still waits is cancelled."""
        for watch in self._watches:
            watch.happened.cancel()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while self._watches:
            self._nudge.clear()
            try:
                await self._look()
                if loop.time() >= self._queue_due:
                    await self._ask()
            except Exception:
                log.exception("watching the cluster failed; it goes on")
                self._queue_due = loop.time() + self._poll_seconds
                for watch in self._watches:
                    watch.due = self._queue_due
            wake = min([self._queue_due, *(watch.due for watch in self._watches)])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._nudge.wait(), max(0.0, wake - loop.time()))

    async def _look(self) -> None:
        """Read the notes of the runs whose turn it is."""
        now = asyncio.get_running_loop().time()
        turn = [watch for watch in self._watches if watch.due <= now]
        if not turn:
            return
        looks = await asyncio.to_thread(lambda: [watch.notes.look() for watch in turn])
        for watch, look in zip(turn, looks, strict=True):
            watch.due = now + min(max((now - watch.since) / AGE_SHARE, SOONEST), self._poll_seconds)
            if _is_over(watch, look):
                _tell(watch)
            elif look.stopped:
                self._queue_due = min(self._queue_due, now)

    async def _ask(self) -> None:
        """One question about all jobs; then whoever Slurm has done with is looked at closely."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        self._queue_due = asked + self._poll_seconds
        try:
            rows = await self._slurm.queue()
        except (Away, Busy, Refused) as error:
            if not self._away:
                log.warning("Slurm does not answer; jobs go on without it", reason=str(error))
            self._away = True
            return
        if self._away:
            log.info("Slurm answers again")
            self._away = False
        for watch in [each for each in self._watches if each.since < asked and each.job_id is not None]:
            row = None if watch.job_id is None else rows.get(watch.job_id)
            if row is not None and not row.is_over:
                self._note_waiting(watch, row)
                continue
            if watch.missing_since is None:
                watch.missing_since = asked
            self._queue_due = min(self._queue_due, asked + AGAIN_SECONDS)
            await self._settle(watch, row)

    def _note_waiting(self, watch: Watch, row: Row) -> None:
        watch.missing_since = None
        watch.hopeless = watch.hopeless + 1 if row.never_starts else 0
        if watch.hopeless == 1:
            self._queue_due = min(self._queue_due, asyncio.get_running_loop().time() + AGAIN_SECONDS)
        if watch.for_start and watch.hopeless > 1 and not watch.happened.done():
            watch.happened.set_exception(
                ExecutorError(
                    f"Slurm can never start the job: {row.reason} (its limits against those of the partition, "
                    f"see {PARTITION_SETTING})",
                    fatal=True,
                )
            )
        if row.reason != watch.reason:
            watch.reason = row.reason
            log.info("job in the cluster", slurm_job_id=row.job_id, state=row.state, reason=row.reason)

    async def _settle(self, watch: Watch, row: Row | None) -> None:
        """A run that Slurm has done with: its own last note if that turns up, else what Slurm knows."""

        def look() -> Look:
            watch.notes.refresh()
            return watch.notes.look()

        seen = await asyncio.to_thread(look)
        if _is_over(watch, seen):
            _tell(watch)
            return
        waited = asyncio.get_running_loop().time() - (watch.missing_since or 0.0)
        # Whoever takes the run away knows that no node has it, and need not wait for a note.
        certain = seen.stopped or await asyncio.to_thread(watch.notes.withdraw)
        if not certain and waited < self._settle_seconds:
            return
        if row is None and watch.job_id is not None:
            try:
                row = await self._slurm.show(watch.job_id)
            except (Away, Busy):
                return
            if row is not None and not row.is_over:
                return

        def settle() -> None:
            watch.notes.settle(judge(row, started=seen.started, said=watch.notes.said()))
            watch.notes.request_end()  # should anything of it live after all

        await asyncio.to_thread(settle)
        log.warning("the cluster ended a job", slurm_job_id=watch.job_id, state=row.state if row else None)
        _tell(watch)


def _is_over(watch: Watch, look: Look) -> bool:
    return look.exited or (watch.for_start and look.started)


def _tell(watch: Watch) -> None:
    if not watch.happened.done():
        watch.happened.set_result(None)
