"""Starts an agent or a controller as the run wants it: the real program, with a few parts exchanged.

    python -m tests.chaos.launcher agent|controller

An agent gets a clock that is wrong by CHAOS_SKEW seconds and executors whose jobs write into CHAOS_RECORD. A controller
is the real one; with CHAOS_MUTATE one of its safeguards is off, to see whether the run notices.
"""

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import attrs

import agent.__main__ as agent_program
import controller.__main__ as controller_program
from agent.executors.base import Executor, Exit, Phase, Run, Status
from agent.executors.fake import FakeExecutor
from agent.executors.fake import Record as FakeRun
from agent.executors.sandbox import executor as sandbox
from agent.executors.sandbox.bubblewrap import Bubblewrap
from agent.images import parse_image_table
from agent.settings import Settings
from common.clock import SystemClock
from controller.core.reports import Judgement, Statement, TaskState, judge
from controller.engine import batch
from controller.store import tasks
from tests.chaos import record

FENCING: Final = "fencing"
CAS: Final = "cas"
MUTATIONS: Final = (FENCING, CAS)
_INSIDE: Final = "/record"
"""Where a sandboxed job finds the record."""


class SkewedClock(SystemClock):
    """The machine's clock, ahead by some seconds. Only the wall clock: durations are right, as on a real machine."""

    def __init__(self, seconds: float) -> None:
        self._ahead = timedelta(seconds=seconds)

    def now(self) -> datetime:
        return super().now() + self._ahead


class RecordingBubblewrap(Bubblewrap):
    """A sandbox in which the record can be written."""

    def _writable(self, memory_bytes: int) -> list[str]:
        return [*super()._writable(memory_bytes), "--bind", os.environ["CHAOS_RECORD"], _INSIDE]


class RecordingSandbox(sandbox.SandboxExecutor):
    """The sandbox executor; its jobs know their task and the record."""

    async def _probe(self) -> Bubblewrap:
        found = await super()._probe()
        return RecordingBubblewrap(path=found.path, options=found.options)

    async def execute(self, run: Run) -> None:
        await self.check()
        where = _INSIDE if self.isolated else os.environ["CHAOS_RECORD"]
        told = {"CHAOS_RECORD": where, "CHAOS_JOB": run.job_id, "CHAOS_TASK": run.task_id}
        await super().execute(attrs.evolve(run, env={**run.env, **told}))


class RecordingFake(FakeExecutor):
    """The fake executor, doing what `job.sh` does, inside the agent: a job dies with the agent that runs it, and the
    next agent finds it lost, as an engine would say of a machine that was switched off."""

    name = "fake"

    def __init__(self, path: Path) -> None:
        super().__init__(durable=True)
        self._path = path
        self._living: dict[str, asyncio.Task[None]] = {}

    async def execute(self, run: Run) -> None:
        if await self._load(run) is not None:
            return
        await self._save(run, FakeRun(started_at_ns=time.time_ns()))
        self._living[run.task_id] = asyncio.create_task(self._work(run))

    async def _work(self, run: Run) -> None:
        _, seconds, code, lines, outputs, inputs = run.args
        record.append(self._path, "start", run.job_id, run.task_id)
        await asyncio.sleep(float(seconds))
        ended = await asyncio.to_thread(_make_outputs, run, int(code), int(lines), outputs, inputs)
        record.append(self._path, f"end:{ended}", run.job_id, run.task_id)
        found = await self._load(run)
        if found is not None and found.finished_at_ns is None:
            await self._save(run, attrs.evolve(found, code=ended))
            await self.release(run)

    async def status(self, run: Run) -> Status:
        status = await super().status(run)
        if status.phase is Phase.RUNNING and run.task_id not in self._living:
            return Status(phase=Phase.EXITED, started_at_ns=status.started_at_ns, exit=_lost(status))
        return status

    async def wait(self, run: Run) -> Exit:
        status = await self.status(run)
        return status.exit if status.exit is not None else await super().wait(run)

    async def terminate(self, run: Run) -> None:
        if (work := self._living.get(run.task_id)) is not None:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        await super().terminate(run)

    async def cleanup(self, run: Run) -> None:
        await self.terminate(run)
        self._living.pop(run.task_id, None)
        await super().cleanup(run)


def _lost(status: Status) -> Exit:
    started = status.started_at_ns or 0
    return Exit(code=137, started_at_ns=started, finished_at_ns=time.time_ns(), lost="its agent ended")


def _make_outputs(run: Run, code: int, lines: int, outputs: str, inputs: str) -> int:
    """The files of `job.sh`; its exit code."""
    try:
        for name in inputs.split(",") if inputs != "-" else ():
            file = run.volume / name
            if not file.is_file() or not file.read_bytes().splitlines()[-1].startswith(b"end"):
                code = 99
        for name in outputs.split(","):
            file = run.volume / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(record.content(run.job_id, run.task_id, name, lines))
    except OSError:
        return 98
    return code


def run_agent(environ: Mapping[str, str]) -> int:
    """The agent's own `main`, with our clock and our executors."""

    def make_executor(settings: Settings) -> Executor:
        if settings.executor == "fake":
            return RecordingFake(Path(environ["CHAOS_RECORD"]))
        return RecordingSandbox(
            parse_image_table(settings.sandbox_images), allow_unisolated=settings.allow_unisolated, sample_seconds=1.0
        )

    skewed = SkewedClock(float(environ["CHAOS_SKEW"]))
    exchanged: dict[str, Any] = {"make_executor": make_executor, "SystemClock": lambda: skewed}
    for name, part in exchanged.items():
        setattr(agent_program, name, part)
    return agent_program.main(environ)


def run_controller(environ: Mapping[str, str]) -> int:
    """The controller's own `main`, perhaps without one of its safeguards."""
    mutation = environ.get("CHAOS_MUTATE")
    if mutation == FENCING:
        _switch_off_fencing()
    elif mutation == CAS:
        _switch_off_compare()
    return controller_program.main(environ)


def _switch_off_fencing() -> None:
    """Believe every report about a job that is running, whoever sends it and whatever attempt it is about; and do not
    tell agents that their attempts are over."""

    def believe(statement: Statement, task: TaskState | None, job: Any, **kept: Any) -> Judgement:
        if task is not None and not task.complete:
            task = attrs.evolve(task, active=True, agent=statement.agent)
        return judge(attrs.evolve(statement, attempt=None), task, job, **kept)

    _exchange(batch, "judge", believe)
    _exchange(tasks, "revoked", attrs.evolve(tasks.revoked, sql=f"{tasks.revoked.sql} LIMIT 0"))


def _switch_off_compare() -> None:
    """Let a claim take what another agent holds already."""
    sql = tasks.claim.sql
    for compared, instead in (
        ("AND active AND agent IS NULL AND type = 'runjob'", "AND active AND type = 'runjob'"),
        ("AND active AND (agent IS NULL OR agent = ", "AND active AND (true OR agent = "),
    ):
        if compared not in sql:
            raise LookupError(f"the claim no longer has {compared!r}: the mutation has to follow it")
        sql = sql.replace(compared, instead)
    _exchange(tasks, "claim", attrs.evolve(tasks.claim, sql=sql))


def _exchange(module: Any, name: str, part: Any) -> None:
    getattr(module, name)  # a mutation of what is not there would be none
    setattr(module, name, part)


if __name__ == "__main__":
    programs = {"agent": run_agent, "controller": run_controller}
    sys.exit(programs[sys.argv[1]](os.environ))
