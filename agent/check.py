"""One DBSTATUS or DBDATACHECK task: runs the database utilities and makes of their answer what may be told.

A check occupies no slot and is bounded in time. What there is to know about it is on disk or with the executor, so a
restarted agent finds a check that is still running; and to carry one out twice is harmless.
"""

import asyncio
from pathlib import Path
from typing import Any, Final

import structlog

from agent.core.checks import CheckFailed, CheckTimedOut, NoDatabase, Program, read_answer
from agent.core.errors import JobError, RunLost
from agent.core.redact import redact_text
from agent.executors.base import HOME, Limits, Run
from agent.faults import blame
from agent.job import forget
from agent.outputs.trees import remove_tree
from agent.outputs.workspaces import replacing
from agent.settings import Settings
from agent.tools import Tools
from agent.waits import Interrupted, bounded, unless
from common.protocol import Named, TaskOffer

_log = structlog.get_logger()

LIMIT_SECONDS: Final = 300.0
"""How long a check may take; a DBSTATUS is asked for again after as long."""
_LIMITS: Final = Limits(cpu_count=1, memory_bytes=2 * 1024**3, seconds=LIMIT_SECONDS)
_PIECE: Final = 1024 * 1024
_KEPT: Final = 64 * 1024
"""Bytes at the end of each of the two outputs that are looked at, and kept for operators."""


def error_results(fault: JobError, settings: Settings) -> dict[str, Any]:
    """The results of a check that could not be carried out (reference section 2.5)."""
    whole = settings.egress.logs and settings.egress.outputs is Named.ALL  # as of a job: it may name files
    message = str(fault) if whole else fault.public
    error = {"type": type(fault).__name__, "message": redact_text(message, settings.secrets)}
    return {"results": None, "error": error}


class Check:
    """A check, from its offer to the results."""

    def __init__(self, tools: Tools, offer: TaskOffer, program: Program) -> None:
        self.offer = offer
        self.ended = asyncio.Event()
        """Set by the loop when nothing is left to do."""
        self._tools = tools
        self._program = program
        self._notes = tools.places.notes(offer.id)
        self._unwanted = asyncio.Event()
        self._run = _build_run(tools, offer, program)

    def revoke(self) -> bool:
        """Nobody wants the answer any more; False if that was known."""
        known = self._unwanted.is_set()
        self._unwanted.set()
        return not known

    async def carry_out(self) -> dict[str, Any] | None:
        """The results; None if the check was revoked. Neither process nor files are left then.

        Cancelled, it leaves everything as it is: the next start takes the check up.
        """
        try:
            results = await unless(self._unwanted, self._results())
        except Interrupted:
            results = None
        await self._remove()
        return results

    async def forget(self) -> None:
        """Remove what would make a restarted agent take the check up again."""
        try:
            await asyncio.to_thread(forget, self._notes)
        except OSError:
            _log.exception("notes of a check are left behind", task_id=self.offer.id)

    async def _results(self) -> dict[str, Any]:
        try:
            status = await bounded(self._tools.clock, LIMIT_SECONDS, self._ask())
        except TimeoutError:
            fault: JobError = CheckTimedOut(f"The check of the database took longer than {LIMIT_SECONDS:g} s")
        except Exception as error:
            fault = blame(error)
        else:
            return {"results": {"status": status}, "error": None}
        _log.error(
            "check of the database failed",
            task_id=self.offer.id,
            fault=redact_text(str(fault), self._tools.settings.secrets),
            output=str(self._kept_output),
        )
        return error_results(fault, self._tools.settings)

    async def _ask(self) -> str:
        """Run the program, or find the one that an earlier agent has started; its answer."""
        if self._tools.settings.dummy_data:
            raise NoDatabase("There is no database to check (USING_DUMMY_DATA_BACKEND)")
        executor, run = self._tools.executor, self._run
        await asyncio.to_thread(run.volume.mkdir, parents=True, exist_ok=True)
        await executor.prepare(run)
        await executor.execute(run)
        exit = await executor.wait(run)
        output = await self._read_output()
        await asyncio.to_thread(self._keep, output)
        if exit.lost:
            raise RunLost(f"The process of the database utilities did not end by itself: {exit.lost}")
        if exit.timed_out:
            raise TimeoutError
        if exit.code != 0:
            raise CheckFailed(f"The database utilities ended with exit code {exit.code}")
        answer = read_answer(self._program.type, output)
        _log.info("database checked", task_id=self.offer.id, status=answer.status, builds=answer.builds)
        return answer.status

    async def _read_output(self) -> bytes:
        """The end of what the program printed."""
        kept, offset = b"", 0
        while piece := await self._tools.executor.logs(self._run, offset, _PIECE):
            offset += len(piece)
            kept = (kept + piece)[-_KEPT:]
        return kept

    def _keep(self, output: bytes) -> None:
        """Leave the outputs of the newest check of a kind where operators of the backend can read them (blocking)."""
        errors = b""
        if self._run.errors is not None and self._run.errors.exists():
            errors = self._run.errors.read_bytes()[-_KEPT:]
        with replacing(self._kept_output, mode=0o600) as file:
            file.write(output + b"\n--- standard error:\n" + errors)

    @property
    def _kept_output(self) -> Path:
        return self._tools.places.high / "logs" / "checks" / f"{self._program.type}.log"

    async def _remove(self) -> None:
        try:
            await self._tools.executor.terminate(self._run)
            await self._tools.executor.cleanup(self._run)
            await asyncio.to_thread(remove_tree, self._run.volume)
        except Exception:
            _log.exception("cleaning up after a check failed; something of it is left behind", task_id=self.offer.id)


def _build_run(tools: Tools, offer: TaskOffer, program: Program) -> Run:
    """The run of a check: it sees what a database job sees, and nothing of any study."""
    notes = tools.places.notes(offer.id)
    environment = HOME | {"OPENSAFELY_BACKEND": tools.settings.backend}
    return Run(
        task_id=offer.id,
        job_id=offer.id,
        workspace="",
        action=program.type,
        image=program.image,
        image_sha=program.image_sha,
        args=program.args,
        env=environment | dict(tools.settings.db_env),
        volume=tools.places.volume(offer.id),
        state_dir=notes / "run",
        limits=_LIMITS,
        network=True,
        errors=notes / "errors",
    )
