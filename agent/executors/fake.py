"""An executor without processes, for tests and benchmarks: every run ends at once, unless its arguments say more.

Arguments that it understands; all others, and so any real study's, are ignored:

- `write:PATH` or `write:PATH=TEXT`: make that file in the volume;
- `log:TEXT`: a line of output;
- `exit:N`: end with that code;
- `hang`: run until `terminate`, `release`, or the time limit.
"""

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from attrs import evolve, field, frozen

from agent.executors.base import ExecutorError, Exit, Phase, Run, Status
from common.convert import dumps, loads
from common.protocol import OnLoss

METRICS: Mapping[str, float] = {"cpu_mean": 0.0, "cpu_peak": 0.0, "mem_mb_mean": 0.0, "mem_mb_peak": 0.0}
_EXIT = re.compile(r"exit:(\d{1,3})")


@frozen(kw_only=True)
class Script:
    """What the arguments ask for."""

    writes: tuple[tuple[str, str], ...] = ()
    log: str = ""
    code: int = 0
    hangs: bool = False


@frozen(kw_only=True)
class Record:
    """What is known of one run: the whole of `run.json`."""

    started_at_ns: int
    deadline_ns: int | None = None
    log: str = ""
    code: int = 0
    finished_at_ns: int | None = None
    terminated: bool = False
    timed_out: bool = False

    def status(self) -> Status:
        """The same in the words of the contract."""
        if self.finished_at_ns is None:
            return Status(phase=Phase.RUNNING, started_at_ns=self.started_at_ns)
        ended = Exit(
            code=self.code,
            started_at_ns=self.started_at_ns,
            finished_at_ns=self.finished_at_ns,
            terminated=self.terminated,
            timed_out=self.timed_out,
            metrics=METRICS,
        )
        return Status(phase=Phase.EXITED, started_at_ns=self.started_at_ns, exit=ended)


@frozen
class _Waiters:
    """Who sleeps until a run ends."""

    events: dict[str, asyncio.Event] = field(factory=dict)

    def of(self, task_id: str) -> asyncio.Event:
        return self.events.setdefault(task_id, asyncio.Event())

    def wake(self, task_id: str) -> None:
        if event := self.events.pop(task_id, None):
            event.set()


class FakeExecutor:
    """The executor `fake`.

    :param durable: keep each run in its `state_dir`, so that another executor finds it. False, for benchmarks:
        keep it in memory only.
    """

    name = "fake"
    on_loss = OnLoss.RETRY

    def __init__(self, *, durable: bool = True) -> None:
        self._durable = durable
        self._memory: dict[str, Record] = {}
        self._waiters = _Waiters()

    async def check(self) -> None:
        """It works anywhere."""

    async def prepare(self, run: Run) -> None:
        """Read the arguments.

        :raises ExecutorError: a path to write leads out of the volume.
        """
        parse_script(run.args)

    async def execute(self, run: Run) -> None:
        """Do what the arguments ask, and end or hang."""
        if await self._load(run) is not None:
            return
        script = parse_script(run.args)
        if script.writes:
            await asyncio.to_thread(_write_files, run.volume, script)
        now = time.time_ns()
        seconds = run.limits.seconds
        await self._save(
            run,
            Record(
                started_at_ns=now,
                deadline_ns=None if seconds is None else now + int(seconds * 1e9),
                log=script.log,
                code=script.code,
                finished_at_ns=None if script.hangs else time.time_ns(),
            ),
        )

    async def status(self, run: Run) -> Status:
        """The run's phase."""
        record = await self._load(run)
        return Status(phase=Phase.ABSENT) if record is None else record.status()

    async def wait(self, run: Run) -> Exit:
        """Sleep until the run is ended through this object, or by its time limit.

        :raises ExecutorError: the run is absent.
        """
        while True:
            ended = self._waiters.of(run.task_id)
            record = await self._load(run)
            if record is None:
                raise ExecutorError(f"Task {run.task_id} is not there to wait for", fatal=False)
            if (status := record.status()).exit is not None:
                self._waiters.wake(run.task_id)
                return status.exit
            left = None if record.deadline_ns is None else (record.deadline_ns - time.time_ns()) / 1e9
            try:
                await asyncio.wait_for(ended.wait(), left)
            except TimeoutError:
                await self._end(run, code=137, timed_out=True)

    async def terminate(self, run: Run) -> None:
        """End a run that hangs."""
        await self._end(run, code=137, terminated=True)

    async def release(self, run: Run) -> None:
        """Let a run that hangs end by itself, with the exit code of its arguments. For tests."""
        await self._end(run)

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """The `log:` lines."""
        record = await self._load(run)
        return b"" if record is None else record.log.encode()[offset : offset + limit]

    async def sample(self, run: Run) -> Mapping[str, float]:
        """Zeros: no process uses anything."""
        return {} if await self._load(run) is None else METRICS

    async def cleanup(self, run: Run) -> None:
        """Forget the run."""
        self._memory.pop(run.task_id, None)
        if self._durable:
            await asyncio.to_thread(shutil.rmtree, run.state_dir, ignore_errors=True)
        self._waiters.wake(run.task_id)

    async def close(self) -> None:
        """Nothing to let go of."""

    async def _end(
        self, run: Run, *, code: int | None = None, terminated: bool = False, timed_out: bool = False
    ) -> None:
        record = await self._load(run)
        if record is None or record.finished_at_ns is not None:
            return
        code = record.code if code is None else code
        now = max(time.time_ns(), record.started_at_ns)
        await self._save(run, evolve(record, code=code, finished_at_ns=now, terminated=terminated, timed_out=timed_out))
        self._waiters.wake(run.task_id)

    async def _load(self, run: Run) -> Record | None:
        if not self._durable:
            return self._memory.get(run.task_id)
        return await asyncio.to_thread(_read_record, run.state_dir)

    async def _save(self, run: Run, record: Record) -> None:
        if self._durable:
            await asyncio.to_thread(_write_record, run.state_dir, record)
        else:
            self._memory[run.task_id] = record


def parse_script(args: tuple[str, ...]) -> Script:
    """What `args` ask of the fake executor.

    :raises ExecutorError: a path to write leads out of the volume.
    """
    script = Script()
    for arg in args:
        if arg == "hang":
            script = evolve(script, hangs=True)
        elif arg.startswith("log:"):
            script = evolve(script, log=f"{script.log}{arg[4:]}\n")
        elif match := _EXIT.fullmatch(arg):
            script = evolve(script, code=int(match[1]))
        elif arg.startswith("write:"):
            path, _, text = arg[6:].partition("=")
            if not path or path.startswith("/") or ".." in path.split("/"):
                raise ExecutorError(f"'{arg}' leads out of the job's files", fatal=True)
            script = evolve(script, writes=(*script.writes, (path, text)))
    return script


def _write_files(volume: Path, script: Script) -> None:
    try:
        for path, text in script.writes:
            target = volume / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    except OSError as error:
        raise ExecutorError(f"cannot write the job's files: {error}", fatal=False) from error


def _read_record(state_dir: Path) -> Record | None:
    with contextlib.suppress(FileNotFoundError):
        return loads((state_dir / "run.json").read_bytes(), Record)
    return None


def _write_record(state_dir: Path, record: Record) -> None:
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = state_dir / "run.json.new"
    fresh.write_bytes(dumps(record))
    fresh.replace(state_dir / "run.json")
