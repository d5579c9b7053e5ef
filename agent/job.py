"""One task's life: look at disk and executor, ask `agent.core.lifecycle` what to do, do it, look again.

Each job is an asyncio task of its own, so a slow checkout or copy holds up nobody else. A change of intent
(cancel, revoke, leave) interrupts what can be interrupted; finalizing is only interrupted where its result is
not wanted, because its steps can all be repeated.
"""

import asyncio
import threading
from pathlib import Path
from typing import Any, Final, assert_never

import structlog

from agent import disk
from agent.core import messages
from agent.core.definition import JobDefinition
from agent.core.errors import DiskFull, RunLost
from agent.core.lifecycle import Intent, Recorded, Situation, Step, next_step, stage_of
from agent.core.redact import redact_metrics, redact_results
from agent.executors.base import Exit, Phase
from agent.faults import blame, describe
from agent.logs import LogPush
from agent.outputs import finalization, metadata, preparation
from agent.outputs.metadata import Ending
from agent.outputs.trees import remove_tree
from agent.outputs.workspaces import replacing
from agent.tools import Tools, build_run
from agent.waits import Interrupted, in_thread, unless
from common.protocol import Named, Report, Stage, TaskOffer, Verdict

_log = structlog.get_logger()
_FINAL_LOG_TRIES: Final = 4
_MOST_FAILURES: Final = 5


RETURNED: Final = "returned"
"""The note that an attempt was ended and only has to be given back."""


def forget(notes: Path) -> None:
    """Remove a task's notes; first the offer, so that a half-removed task is not taken up again."""
    (notes / "offer.json").unlink(missing_ok=True)
    remove_tree(notes)


class Job:
    """A RUNJOB task, a CANCELJOB task, or both for the same attempt."""

    def __init__(
        self, tools: Tools, task_id: str, definition: JobDefinition, *,
        run: TaskOffer | None = None, cancel: TaskOffer | None = None,
    ) -> None:  # fmt: skip
        """:param task_id: of the RUNJOB task, also where only its CANCELJOB task is here."""
        self.task_id = task_id
        self.definition = definition
        self.intent = Intent.CANCEL if cancel else Intent.RUN
        self.working = True
        """Whether the job still needs its slot."""
        self.handed_back = False
        self.ended = asyncio.Event()
        """Set by the loop when `live` has returned."""
        self._tools = tools
        self._offer = run
        self._cancel = cancel
        offer = run or cancel
        self._run = build_run(tools, task_id, definition, offer)
        self._notes = tools.places.notes(task_id)
        self._log_dir = tools.places.log_dir(definition.id, definition.created_at)
        self._disk = disk.Watch(
            tools.disk, tools.executor, tools.clock, self._run, self._notes, interval=tools.settings.sample_interval
        )
        self._changed = asyncio.Event()
        self._unwanted = asyncio.Event()
        self._tidied = False
        self._failures = 0
        self._unrecorded: dict[str, Any] | None = None
        """Metadata that could not be written to disk."""
        self._stated: dict[str, asyncio.Future[Verdict]] = {}
        self._reported: tuple[str, Stage] | None = None
        """The task and stage of the newest report that was not final."""
        self._log_push = LogPush(
            tools.client,
            agent=tools.settings.agent_id,
            task_id=task_id,
            attempt=offer.attempt if offer else 0,
            limit=tools.settings.log_limit,
        )

    @property
    def offers(self) -> tuple[TaskOffer, ...]:
        """The tasks that this job answers for."""
        return tuple(offer for offer in (self._offer, self._cancel) if offer)

    @property
    def trace_id(self) -> str:
        """The trace that this job's log lines belong to; empty if the controller named none."""
        parts = self._run.env.get("TRACEPARENT", "").split("-")
        return parts[1] if len(parts) == 4 else ""

    @property
    def executing(self) -> bool:
        """Whether its process runs, as far as was reported."""
        return self._reported is not None and self._reported[1] is Stage.EXECUTING

    @property
    def told(self) -> bool:
        """Whether the job's end has been acknowledged: only tidying is left."""
        return bool(self._stated) and all(verdict.done() for verdict in self._stated.values())

    def request(self, intent: Intent) -> None:
        """Change what is wanted. A drop overrides everything; nothing else overrides a first change."""
        if self.intent is not Intent.RUN and intent not in (Intent.DROP, Intent.LEAVE):
            return
        self.intent = intent
        if intent in (Intent.DROP, Intent.LEAVE):
            self._unwanted.set()
        self._changed.set()

    def cancel(self, offer: TaskOffer) -> None:
        """Take up the CANCELJOB task of this job."""
        self._cancel = offer
        self.request(Intent.CANCEL)
        self._changed.set()

    async def live(self) -> None:
        """Go through all steps until the end is acknowledged, or the task is dropped, handed back or left."""
        while self.intent is not Intent.LEAVE:
            self._changed.clear()
            try:
                situation, recorded = await self._look()
                step = next_step(self.intent, situation, self.task_id)
                _log.debug("next step", step=step.value)
                if await self._take(step, situation, recorded):
                    return
            except Interrupted:
                continue
            except Exception as error:
                # Whatever it is, it is this job's end and nobody else's.
                self._failures += 1
                if self._failures > _MOST_FAILURES:
                    _log.critical("job cannot even be failed; it is left on disk for the next start", exc_info=error)
                    return
                await self._fail(error)

    async def _take(self, step: Step, situation: Situation, recorded: dict[str, Any] | None) -> bool:
        """Do one step; True after the last one."""
        match step:
            case Step.PREPARE:
                await unless(self._changed, self._prepare())
            case Step.EXECUTE:
                await unless(self._changed, self._execute())
            case Step.WATCH:
                await unless(self._changed, self._watch(situation))
            case Step.FINALIZE:
                await unless(self._unwanted, self._finalize())
            case Step.FINALIZE_CANCELLED:
                await unless(self._unwanted, self._finalize_cancelled(situation))
            case Step.TERMINATE:
                self._state_current(situation)
                await self._tools.executor.terminate(self._run)
            case Step.CLEANUP:
                await self._clean_up(recorded or {})
            case Step.REPORT:
                await unless(self._changed, self._await_verdicts(recorded or {}))
                await self._forget()
                # A cancel that came in the last moment has to be answered as well.
                return self._cancel is None or self._cancel.id in self._stated
            case Step.DISCARD:
                await self._discard()
                return True
            case Step.FAIL_LOST:
                raise RunLost("The job's process was started and is gone without a trace")
            case Step.REST:
                return True
            case _:
                assert_never(step)
        return False

    async def _look(self) -> tuple[Situation, dict[str, Any] | None]:
        """What is true now; and the metadata of this task, if it has ended."""
        try:
            return await self._look_outside()
        except Exception:
            if self._unrecorded is None:
                raise
            # Neither disk nor executor answer, and the attempt's end is decided: it only has to be told.
            recorded = self._summarise(self._unrecorded)
            return Situation(recorded=recorded, cleaned=self._tidied), self._unrecorded

    def _summarise(self, recorded: dict[str, Any] | None) -> Recorded | None:
        return None if recorded is None else Recorded(task_id=self.task_id, failed=bool(recorded.get("error")))

    async def _look_outside(self) -> tuple[Situation, dict[str, Any] | None]:
        status = await self._tools.executor.status(self._run)

        def read() -> tuple[bool, bool, dict[str, Any] | None, bool, bool]:
            prepared = preparation.is_prepared(self._run.volume, self._notes)
            left = self._run.volume.exists() or self._run.state_dir.exists()
            started, condemned = (self._notes / "started").exists(), disk.is_condemned(self._notes)
            return prepared, started, metadata.read(self._log_dir), left, condemned

        prepared, started, recorded, left, condemned = await asyncio.to_thread(read)
        if recorded is None or recorded["task_id"] != self.task_id:
            recorded = self._unrecorded
        situation = Situation(
            phase=status.phase,
            prepared=prepared,
            started=started,
            terminated=bool(status.exit and status.exit.terminated) and not condemned,
            recorded=self._summarise(recorded),
            cleaned=self._tidied or (status.phase is Phase.ABSENT and not left),
        )
        return situation, recorded

    async def _prepare(self) -> None:
        self._state(Stage.PREPARING)
        tools = self._tools
        await preparation.prepare(tools.places, tools.checkouts, self.definition, self._run, self._notes)
        await self._tools.executor.prepare(self._run)
        self._state(Stage.PREPARED)

    async def _execute(self) -> None:
        if self._reported != (self.task_id, Stage.PREPARED):
            # The agent was restarted since, and what the executor had ready may be gone.
            await self._tools.executor.prepare(self._run)
        await self._tools.executor.execute(self._run)
        self._state(Stage.EXECUTING)
        await self._mark("started")

    async def _mark(self, name: str) -> None:
        """Note a fact of this attempt on disk."""

        def write() -> None:
            with replacing(self._notes / name):
                pass

        await asyncio.to_thread(write)

    async def _watch(self, situation: Situation) -> None:
        """Sleep until the process has exited, telling meanwhile what may be told."""
        if not situation.started:
            await self._mark("started")
        self._state(Stage.EXECUTING)
        company = [asyncio.create_task(work) for work in (self._accompany(), self._disk.guard())]
        try:
            await self._tools.executor.wait(self._run)
        finally:
            for task in company:
                task.cancel()
            await asyncio.gather(*company, return_exceptions=True)

    async def _accompany(self) -> None:
        """Every interval: metrics and new log text, as far as the egress policy allows."""
        egress = self._tools.settings.egress
        while egress.metrics or egress.logs:
            await self._tools.clock.sleep(self._tools.settings.sample_interval)
            try:
                if egress.metrics:
                    sample = await self._tools.executor.sample(self._run)
                    self._state(Stage.EXECUTING, redact_metrics(sample, egress))
                if egress.logs:
                    await self._log_push.push(self._read_log, tries=1)
            except Exception:
                _log.exception("sampling failed")  # never the job's fault, never its end

    async def _read_log(self, offset: int, limit: int) -> bytes:
        return await self._tools.executor.logs(self._run, offset, limit)

    async def _finalize(self) -> None:
        self._state(Stage.FINALIZING)
        exit = await self._tools.executor.wait(self._run)
        if exit.lost:
            raise RunLost(f"The job's process did not end by itself: {exit.lost}")
        if exit.terminated and await asyncio.to_thread(disk.read_verdict, self._notes) is disk.Verdict.RESERVE:
            raise DiskFull(
                f"The disk was nearly full ({disk.RESERVE_SETTING}), and of all jobs here this one had written most"
            )
        tools, over = self._tools, await self._disk.filled(exit)
        await finalization.finalize(
            tools.places, tools.checkouts, tools.executor, self.definition, self._run, exit, over_disk=over
        )

    async def _finalize_cancelled(self, situation: Situation) -> None:
        self._state_current(situation)
        await self._record(Ending(status_message=messages.CANCELLED, cancelled=True))

    async def _record(self, ending: Ending) -> None:
        """Write an ending without outputs; keep it in memory if the disk does not take it."""
        now_ns = int(self._tools.clock.now().timestamp() * 1e9)
        exit: Exit | None = None
        try:
            exit = (await self._tools.executor.status(self._run)).exit
            await finalization.record_ending(
                self._tools.places, self._tools.executor, self.definition, self._run, ending, exit, now_ns
            )
        except Exception:
            _log.exception("metadata could not be written; the report is made from memory")
            self._unrecorded = metadata.compose(self.definition, self.task_id, ending, exit, now_ns)

    async def _fail(self, error: Exception) -> None:
        """Make an error the recorded end of the attempt. What was running is stopped."""
        if self.intent in (Intent.DROP, Intent.LEAVE):
            # Nobody is told about this attempt any more; only its traces remain to be removed.
            _log.exception("step failed while the task was being given up", exc_info=error)
            self.intent = Intent.LEAVE
            return
        fault = blame(error)
        _log.error("job cannot go on", fatal=fault.fatal, exc_info=error)
        try:
            await self._tools.executor.terminate(self._run)
        except Exception:
            _log.exception("the failed job's process could not be ended")
        ending = Ending(
            status_message=messages.CANCELLED if self.intent is Intent.CANCEL else messages.ERRORED,
            cancelled=self.intent is Intent.CANCEL,
            error=False if self.intent is Intent.CANCEL else await asyncio.to_thread(describe, fault),
        )
        await self._record(ending)

    async def _clean_up(self, recorded: dict[str, Any]) -> None:
        """Leave neither process, nor volume, nor the executor's notes; failing at that never fails the job.

        The end is stated first: dependants need not wait until the files are gone.
        """
        self._tidied = True
        if self._tools.settings.egress.logs and self._offer:
            await unless(self._unwanted, self._push_final_log())
        await self._state_end(recorded)
        await self._remove()

    async def _remove(self) -> None:
        try:
            await self._tools.executor.cleanup(self._run)
            await asyncio.to_thread(remove_tree, self._run.volume)
        except Exception:
            _log.exception("cleaning up after the job failed; something of it is left behind")
            self._tools.disk.give_up(self._run.volume)

    async def _push_final_log(self) -> None:
        path = self._log_dir / "logs.txt"

        def read(offset: int, limit: int) -> bytes:
            try:
                with path.open("rb") as file:
                    file.seek(offset)
                    return file.read(limit)
            except FileNotFoundError:
                return b""

        async def source(offset: int, limit: int) -> bytes:
            return await asyncio.to_thread(read, offset, limit)

        # The file ends with our summary, which names outputs of every level: without leave for all of them, only
        # what the job printed.
        whole = self._tools.settings.egress.outputs is Named.ALL
        try:
            await self._log_push.push(source if whole else self._read_log, tries=_FINAL_LOG_TRIES)
        except Exception:
            _log.exception("the job's log could not be pushed")

    async def _await_verdicts(self, recorded: dict[str, Any]) -> None:
        """State the end until it is acknowledged. The slot is free from here on."""
        self.working = False
        self._tools.on_idle()
        await self._state_end(recorded)
        if self._stated:
            await asyncio.wait(self._stated.values())

    async def _state_end(self, recorded: dict[str, Any]) -> None:
        """Report how it ended, once for each task.

        A cancelled end is the CANCELJOB task's to tell: its RUNJOB task is no longer active at the controller.
        """
        stage = Stage.ERROR if recorded.get("error") else Stage.FINALIZED
        # In a thread: choosing among a hundred thousand outputs takes its time.
        results = await asyncio.to_thread(redact_results, recorded, self._tools.settings.egress)
        for offer in self.offers:
            if offer is self._offer and recorded.get("cancelled"):
                continue
            if offer.id not in self._stated:
                _log.info("job_stage", stage=stage.value, attempt=offer.attempt, final=True)
                self._stated[offer.id] = self._tools.reports.put(
                    Report(
                        task_id=offer.id,
                        attempt=offer.attempt,
                        stage=stage.value,
                        complete=True,
                        results=results,
                        timestamp_ns=recorded.get("timestamp_ns"),
                        metrics=results["job_metrics"],
                    )
                )

    async def _discard(self) -> None:
        for offer in self.offers:
            self._tools.reports.forget(offer.id)
        await self._remove()
        if self.intent is Intent.HAND_BACK:
            # Kept until the controller knows: else it would offer this attempt once more to the next start.
            await self._mark(RETURNED)
            self.handed_back = True
            return
        await self._forget()

    async def _forget(self) -> None:
        """Remove the tasks' notes: after this nothing on disk takes the task up again."""

        def remove(stop: threading.Event) -> None:
            del stop
            for notes in {self._notes, *(self._tools.places.notes(offer.id) for offer in self.offers)}:
                forget(notes)

        try:
            await in_thread(remove)
        except OSError:
            _log.exception("notes of a finished task are left behind")

    def _state(self, stage: Stage, metrics: dict[str, float] | None = None) -> None:
        """Report a stage that is not the last. Repeats say nothing unless they bring metrics."""
        offer = self._cancel or self._offer
        if offer is None or ((offer.id, stage) == self._reported and not metrics):
            return
        if (offer.id, stage) != self._reported:
            _log.info("job_stage", stage=stage.value, attempt=offer.attempt)
        self._reported = (offer.id, stage)
        self._tools.reports.put(
            Report(
                task_id=offer.id,
                attempt=offer.attempt,
                stage=stage.value,
                timestamp_ns=int(self._tools.clock.now().timestamp() * 1e9),
                metrics=metrics or {},
            )
        )

    def _state_current(self, situation: Situation) -> None:
        """A CANCELJOB task first reports where the job is (reference section 5.1)."""
        if self._cancel:
            self._state(stage_of(situation, self.task_id))
