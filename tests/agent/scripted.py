"""An executor whose jobs do what a test says, in this process; it outlives the agents that use it, like an engine."""

import asyncio
import shutil
from collections.abc import Callable, Mapping

from attrs import define, field

from agent.executors.base import ExecutorError, Exit, Phase, Run, Status
from common.protocol import OnLoss


@define
class Process:
    """A job's process."""

    run: Run
    log: bytes = b""
    exit: Exit | None = None
    ended: asyncio.Event = field(factory=asyncio.Event)


class ScriptedExecutor:
    """`script` is called when a job starts; a number ends the job with that exit code, None lets it run on."""

    name = "scripted"
    on_loss = OnLoss.RETRY

    def __init__(self, script: Callable[[Run], int | None] = lambda run: 0) -> None:
        self.script = script
        self.processes: dict[str, Process] = {}
        self.starts: list[str] = []
        self.cleaned: list[str] = []
        self.log = b"hello from the job\n"
        self.labels: Mapping[str, str] = {"org.opencontainers.image.version": "v2"}
        self.metadata: Mapping[str, object] = {}
        self.prepare_fault: ExecutorError | None = None
        self.prepare_gate: asyncio.Event | None = None
        self.preparing = asyncio.Event()
        self.metrics: Mapping[str, float] = {"cpu_mean": 50.0, "mem_mb_peak": 12.5}
        self.changed = asyncio.Condition()

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds; looked at after each change here."""
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(condition)

    async def check(self) -> None:
        return

    async def prepare(self, run: Run) -> None:
        if self.prepare_fault is not None:
            raise self.prepare_fault
        self.preparing.set()
        if self.prepare_gate is not None:
            await self.prepare_gate.wait()

    async def execute(self, run: Run) -> None:
        if run.task_id in self.processes:
            return
        self.starts.append(run.task_id)
        self.processes[run.task_id] = Process(run=run, log=self.log)
        code = await asyncio.to_thread(self._play, run)
        if code is not None:
            self.finish(run.task_id, code)
        await self._notify()

    def _play(self, run: Run) -> int | None:
        run.state_dir.mkdir(parents=True, exist_ok=True)
        return self.script(run)

    def finish(self, task_id: str, code: int, **more: object) -> None:
        """End a job's process."""
        process = self.processes[task_id]
        process.exit = Exit(
            code=code,
            started_at_ns=1_770_000_000_000_000_000,
            finished_at_ns=1_770_000_005_000_000_000,
            image_id="sha256:image",
            labels=self.labels,
            metadata=self.metadata,
            metrics=self.metrics,
            **more,  # type: ignore[arg-type]  # the test names Exit's own fields
        )
        process.ended.set()

    async def status(self, run: Run) -> Status:
        process = self.processes.get(run.task_id)
        if process is None:
            return Status(phase=Phase.ABSENT)
        phase = Phase.RUNNING if process.exit is None else Phase.EXITED
        return Status(phase=phase, started_at_ns=1, exit=process.exit)

    async def wait(self, run: Run) -> Exit:
        process = self.processes.get(run.task_id)
        if process is None:
            raise ExecutorError("absent", fatal=False)
        await process.ended.wait()
        assert process.exit is not None
        return process.exit

    async def terminate(self, run: Run) -> None:
        process = self.processes.get(run.task_id)
        if process is not None and process.exit is None:
            self.finish(run.task_id, 137, terminated=True)
            await self._notify()

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        process = self.processes.get(run.task_id)
        return process.log[offset : offset + limit] if process else b""

    async def sample(self, run: Run) -> Mapping[str, float]:
        return self.metrics if run.task_id in self.processes else {}

    async def cleanup(self, run: Run) -> None:
        self.processes.pop(run.task_id, None)
        await asyncio.to_thread(shutil.rmtree, run.state_dir, ignore_errors=True)
        self.cleaned.append(run.task_id)
        await self._notify()

    async def close(self) -> None:
        return
