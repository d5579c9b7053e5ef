"""Jobs on a Slurm cluster: each is one batch job, in which the sandbox's supervisor runs the job's process.

The agent is on a machine that can submit; its folders are on storage that the nodes share, and so is this program.
What a job sees and may use is what the executor `sandbox` gives it (`agent.executors.sandbox`); Slurm places it,
queues it, and reserves CPUs and memory for it.

Waiting in Slurm's queue is not running: until the supervisor has begun, `execute` sleeps and the run's phase is
ABSENT. The agent therefore reports such a job as prepared, its time limit has not begun, and an agent that was
restarted calls `execute` again, which finds the job in the queue instead of submitting another.

Who decides what happens is the state directory (`notes`), not Slurm: the specification of a run can be taken away
once, by one node or by the agent. So two submissions run once, a withdrawn run does not begin even if slurmctld never
hears of it, and while slurmctld is away jobs run, end and are reported as ever.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import structlog
from attrs import evolve

from agent.executors.base import ExecutorError, Exit, Phase, Run, Status, Unusable
from agent.executors.sandbox.executor import SandboxExecutor
from agent.executors.slurm.commands import PROGRAMS, Away, Busy, Refused, Slurm
from agent.executors.slurm.notes import SlurmNotes
from agent.executors.slurm.options import PARTITION_SETTING, Options
from agent.executors.slurm.poller import Poller
from agent.executors.slurm.probe import PROBE_SECONDS, probe
from agent.executors.slurm.script import (
    RUN_BOOTSTRAP,
    arguments,
    mark_of,
    name_of,
    requests,
    script,
)
from agent.executors.slurm.state import Verdict
from common.protocol import OnLoss

SETTLE_SECONDS: Final = 15.0
TERMINATE_SECONDS: Final = 10.0
"""How long a supervisor may take to end its run before Slurm is told to end the job."""
CANCEL_SECONDS: Final = 60.0
"""How long Slurm may take for that."""
_RETRY: Final = (0.5, 30.0)
_LOCK_SECONDS: Final = 0.05

T = TypeVar("T")
log = structlog.get_logger()


class SlurmExecutor:
    """The executor `slurm`.

    :param sandbox: makes the specifications; what it may and may not do, its jobs on the nodes may and may not.
    :param folders: those of the agent that the nodes have to see. Empty: `check` does not ask a node.
    """

    name = "slurm"
    on_loss = OnLoss.RETRY

    def __init__(
        self,
        sandbox: SandboxExecutor,
        options: Options,
        *,
        folders: Sequence[Path] = (),
        settle_seconds: float = SETTLE_SECONDS,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        self._sandbox = sandbox
        self._options = options
        self._folders = tuple(folders)
        self._probe_seconds = probe_seconds
        self._slurm = Slurm()
        self._poller = Poller(self._slurm, poll_seconds=options.poll_seconds, settle_seconds=settle_seconds)
        self._checked = False
        self._checking = asyncio.Lock()

    @property
    def isolated(self) -> bool:
        """Whether jobs run in a sandbox; known after `check`."""
        return self._sandbox.isolated

    async def check(self) -> None:
        """Ask the cluster, and one of its nodes if one is free.

        :raises Unusable: no Slurm here, no answer, no such partition, folders that nodes do not see, no sandbox.
        """
        async with self._checking:
            if self._checked:
                return
            for program in PROGRAMS:
                if not await asyncio.to_thread(shutil.which, program):
                    raise Unusable(
                        f"there is no {program} in PATH: install the cluster's client programs (Debian: "
                        "slurm-client), or set RAP_EXECUTOR to another executor"
                    )
            partition = self._options.partition
            try:
                await self._slurm.ping()
                known = not partition or await self._slurm.has_partition(partition)
            except (Away, Busy, Refused) as error:
                raise Unusable(
                    f"slurmctld does not answer: {error}; see `scontrol ping`, and whether SLURM_CONF must be set"
                ) from error
            if not known:
                raise Unusable(f"{PARTITION_SETTING} is {partition!r}, which is no partition of this cluster")
            await self._sandbox.check()
            if self._folders:
                await probe(self._slurm, self._options, self._sandbox.bubblewrap, self._folders, self._probe_seconds)
            self._checked = True

    async def prepare(self, run: Run) -> None:
        """Find the interpreter, as the sandbox does.

        :raises ExecutorError: the image is unknown, its program is missing, or the environment is malformed.
        """
        await self._sandbox.prepare(run)

    async def execute(self, run: Run) -> None:
        """Submit the job if need be, and sleep until it has left the queue.

        While slurmctld is away this waits for it. Cancelled, it leaves the job in the queue.

        :raises ExecutorError: Slurm refuses the job, or can never start it.
        """
        await self.check()
        await self.prepare(run)
        notes = SlurmNotes(run.state_dir)
        if (await asyncio.to_thread(notes.status)).phase is not Phase.ABSENT:
            return
        await asyncio.to_thread(run.state_dir.mkdir, mode=0o700, parents=True, exist_ok=True)
        async with _locked(notes) as held:
            job_id = await self._submit_once(run, notes, held)
        try:
            await self._poller.until(notes, job_id, for_start=True)
        except ExecutorError:
            # Slurm would keep it in the queue for ever.
            await asyncio.to_thread(notes.unsubmit)
            with contextlib.suppress(Away, Busy):
                await self._slurm.cancel(job_id)
            raise

    async def _submit_once(self, run: Run, notes: SlurmNotes, held: int) -> int:
        """The number of the run's job, submitted now or before."""
        submission = await asyncio.to_thread(notes.submission)
        if submission is None:
            spec = await asyncio.to_thread(self._sandbox.specify, run, set())
            await asyncio.to_thread(notes.write_spec, spec)
            submission = await asyncio.to_thread(notes.begin_submission)
            known: int | None = None
        else:
            known = await asyncio.to_thread(notes.job_id)
            known = known or await self._find(run, submission.nonce)
        if known is None:
            mark = mark_of(run, submission.nonce)
            options = arguments(run, self._options, mark)
            text = script(self._options.python, RUN_BOOTSTRAP, run.state_dir)

            async def submit() -> int:
                return await self._slurm.submit(options, text, held=held)

            try:
                known = await self._persist(submit, lost=lambda: self._find(run, submission.nonce))
            except Refused as error:
                await asyncio.to_thread(notes.unsubmit)
                raise ExecutorError(
                    f"Slurm refused the job: {error} (it asks for {' '.join(requests(run.limits))}; where it goes say "
                    f"{PARTITION_SETTING}, RAP_SLURM_ACCOUNT, RAP_SLURM_QOS and RAP_SLURM_ARGS)",
                    fatal=True,
                ) from error
        await asyncio.to_thread(notes.save, evolve(submission, job_id=known))
        return known

    async def _find(self, run: Run, nonce: str) -> int | None:
        """The job of a submission whose answer was lost."""

        async def find() -> tuple[int, ...]:
            return await self._slurm.find(name_of(run), mark_of(run, nonce))

        found = await self._persist(find)
        return found[0] if found else None

    async def _persist(
        self, act: Callable[[], Awaitable[T]], *, lost: Callable[[], Awaitable[T | None]] | None = None
    ) -> T:
        """Do something that needs slurmctld, as soon as that answers.

        :param lost: whether the deed was done although no answer came; asked before it is done again.
        """
        pause, most = _RETRY
        while True:
            try:
                return await act()
            except (Away, Busy) as error:
                log.warning("Slurm cannot take a job now; trying again", reason=str(error), seconds=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, most)
            if lost is not None and (done := await lost()) is not None:
                return done

    async def status(self, run: Run) -> Status:
        """The run's phase, from its notes; see `wait` for a run that left none."""
        return await asyncio.to_thread(SlurmNotes(run.state_dir).status)

    async def wait(self, run: Run) -> Exit:
        """Sleep until the run has exited, or until Slurm is known to have done with it.

        :raises ExecutorError: the run is absent.
        """
        notes = SlurmNotes(run.state_dir)
        status, job_id = await asyncio.to_thread(lambda: (notes.status(), notes.job_id()))
        if status.exit is None and job_id is not None:
            await self._poller.until(notes, job_id, for_start=False)
            status = await asyncio.to_thread(notes.status)
        if status.exit is None:
            raise ExecutorError(f"Task {run.task_id} is not there to wait for", fatal=False)
        return status.exit

    async def terminate(self, run: Run) -> None:
        """Take the run away from the cluster, or end it where it is; return when nothing of it is left.

        :raises ExecutorError: neither the supervisor nor Slurm could be brought to it in time.
        """
        notes = SlurmNotes(run.state_dir)
        submission = await asyncio.to_thread(notes.submission)
        if submission is None or (await asyncio.to_thread(notes.exit)) is not None:
            return
        await asyncio.to_thread(notes.request_end)
        job_id = await asyncio.to_thread(notes.job_id)
        if await asyncio.to_thread(notes.withdraw):
            await asyncio.to_thread(notes.settle, Verdict())
            # What is left in the queue would find nothing to do; it only should not stand in others' way.
            with contextlib.suppress(Away, Busy):
                found = (job_id,) if job_id else await self._slurm.find(name_of(run), mark_of(run, submission.nonce))
                for each in found:
                    await self._slurm.cancel(each)
            return
        for act, seconds in ((self._slurm.signal, TERMINATE_SECONDS), (self._slurm.cancel, CANCEL_SECONDS)):
            with contextlib.suppress(Away, Busy):
                if job_id is not None:
                    await act(job_id)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poller.until(notes, job_id, for_start=False), seconds)
                return
        raise ExecutorError(f"Slurm job {job_id} of task {run.task_id} does not end", fatal=False)

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes of the combined output from byte `offset`."""
        return await self._sandbox.logs(run, offset, limit)

    async def sample(self, run: Run) -> Mapping[str, float]:
        """The four metrics, as the supervisor saw them last."""
        return await self._sandbox.sample(run)

    async def cleanup(self, run: Run) -> None:
        """End the run if need be, and remove its notes."""
        await self.terminate(run)
        notes = SlurmNotes(run.state_dir)
        await asyncio.to_thread(notes.withdraw)
        await asyncio.to_thread(notes.plain.forget)

    async def close(self) -> None:
        """Stop looking; jobs carry on."""
        await self._poller.close()


@asynccontextmanager
async def _locked(notes: SlurmNotes) -> AsyncIterator[int]:
    """Hold the lock of submissions: yields the descriptor that holds it."""
    while True:
        fd = await asyncio.to_thread(notes.try_lock)
        if fd is not None:
            break
        await asyncio.sleep(_LOCK_SECONDS)  # the kernel wakes only whole threads for it
    try:
        yield fd
    finally:
        os.close(fd)
