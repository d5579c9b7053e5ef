"""Slurm's commands as functions. Nobody else starts one.

They get an environment of their own: the agent's has secrets, and `SBATCH_*` variables in it would change jobs.
"""

import asyncio
import contextlib
import os
from typing import Final

import structlog

from agent.executors.slurm.state import (
    ACCOUNT_FORMAT,
    FIND_FORMAT,
    QUEUE_FORMAT,
    Answer,
    Row,
    parse_accounted,
    parse_found,
    parse_queue,
    parse_shown,
    parse_submitted,
    read_answer,
)

PROGRAMS: Final = ("sbatch", "squeue", "scontrol", "scancel")
"""What has to be installed where the agent is."""
COMMAND_SECONDS: Final = 60.0
AT_ONCE: Final = 8
"""Commands side by side: slurmctld serves a whole cluster, not only us."""
_KEPT: Final = ("PATH", "HOME", "USER", "LOGNAME", "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "KRB5CCNAME",
                "LD_LIBRARY_PATH")  # fmt: skip

log = structlog.get_logger()


class Away(Exception):
    """slurmctld does not answer; nobody knows what is true."""


class Busy(Exception):
    """Slurm takes no more jobs just now."""


class Refused(Exception):
    """Slurm understood, and will not; the text is its own."""


class Slurm:
    """The cluster, as its commands show it to this user."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def submit(self, options: list[str], script: str, *, held: int | None = None) -> int:
        """Give a job to the cluster; its number.

        :param held: a descriptor that stays open as long as `sbatch` lives, whatever becomes of us.
        :raises Away: no answer, so the job may or may not be there.
        :raises Busy: not now.
        :raises Refused: not at all.
        """
        said = await self._run("sbatch", "--parsable", *options, given=script, held=held)
        job_id = parse_submitted(said)
        if job_id is None:
            raise Away(f"sbatch said {said[:200]!r}")
        return job_id

    async def find(self, name: str, mark: str) -> tuple[int, ...]:
        """Numbers of our jobs with that name and comment, the oldest first; ended ones as long as Slurm knows them."""
        said = await self._run("squeue", *_OURS, f"--name={name}", f"--format={FIND_FORMAT}")
        return parse_found(said, mark)

    async def queue(self) -> dict[int, Row]:
        """All our jobs, in one question."""
        return parse_queue(await self._run("squeue", *_OURS, f"--format={QUEUE_FORMAT}"))

    async def show(self, job_id: int) -> Row | None:
        """What Slurm knows of one job: from slurmctld, else from accounting where there is any; None if nothing."""
        with contextlib.suppress(Refused):
            if row := parse_shown(await self._run("scontrol", "--oneliner", "show", "job", str(job_id))):
                return row
        try:
            options = ("--allocations", "--parsable2", "--noheader", f"--format={ACCOUNT_FORMAT}")
            return parse_accounted(await self._run("sacct", *options, f"--jobs={job_id}"), job_id)
        except (Refused, Away, FileNotFoundError) as error:
            log.debug("no accounting", reason=str(error))
            return None

    async def signal(self, job_id: int) -> None:
        """SIGTERM to the batch script and to nothing else: it is the supervisor, which ends the rest in order."""
        with contextlib.suppress(Refused):  # not running (any more)
            await self._run("scancel", "--quiet", "--batch", "--signal=TERM", str(job_id))

    async def cancel(self, job_id: int) -> None:
        """End a job, in the queue or on its node."""
        with contextlib.suppress(Refused):
            await self._run("scancel", "--quiet", str(job_id))

    async def ping(self) -> None:
        """Whether slurmctld answers.

        :raises Away: it does not.
        :raises Refused: the cluster cannot be asked at all, say for want of a configuration.
        """
        said = await self._run("scontrol", "ping", given=None)
        if " UP" not in said:
            raise Away(said)

    async def has_partition(self, name: str) -> bool:
        """Whether the cluster has that partition, and lets us see it."""
        try:
            return "PartitionName=" in await self._run("scontrol", "--oneliner", "show", "partition", name)
        except Refused:
            return False

    async def _run(self, *command: str, given: str | None = None, held: int | None = None) -> str:
        """What a command prints.

        :raises Away: slurmctld did not answer, or not in time.
        :raises Busy: it asks to come back later.
        :raises Refused: it failed otherwise.
        """
        async with self._turns:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE if given is not None else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(),
                pass_fds=() if held is None else (held,),
            )
            try:
                out, err = await asyncio.wait_for(
                    process.communicate(None if given is None else given.encode()), COMMAND_SECONDS
                )
            except TimeoutError as error:
                raise Away(f"{command[0]} has not answered in {COMMAND_SECONDS:g} seconds") from error
            finally:
                if process.returncode is None:
                    process.kill()
                    await asyncio.shield(process.wait())
        if process.returncode == 0:
            return out.decode(errors="replace")
        said = (err + b"\n" + out).decode(errors="replace").strip()
        reason = _brief(said) or f"{command[0]} ended with exit code {process.returncode}"
        kind = {Answer.AWAY: Away, Answer.LATER: Busy, Answer.REFUSED: Refused}[read_answer(said)]
        raise kind(reason)


_OURS: Final = ("--noheader", "--states=all", f"--user={os.getuid()}")


def _environment() -> dict[str, str]:
    found = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {"PATH": os.defpath, **found, "LC_ALL": "C"}


def _brief(said: str) -> str:
    """What a command said, on one line and without its own name before each part."""
    lines = [line.strip() for line in said.splitlines() if line.strip(" *")]
    return "; ".join(line.split(": error: ", 1)[-1] for line in lines)[:1000]
