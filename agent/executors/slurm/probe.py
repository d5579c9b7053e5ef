"""Asking a node of the cluster, at the agent's start, whether jobs can work there.

The agent's own machine is no measure of the nodes: they may not see its folders, or be forbidden to make sandboxes.
A small job looks (`node.probe`). If no node is free in time the agent starts without an answer.
"""

import asyncio
import contextlib
import marshal
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from agent.executors.base import Unusable
from agent.executors.sandbox.bubblewrap import Bubblewrap
from agent.executors.slurm.commands import Away, Busy, Refused, Slurm
from agent.executors.slurm.options import PARTITION_SETTING, PYTHON_SETTING, Options
from agent.executors.slurm.script import PROBE_BOOTSTRAP, script

PROBE_SECONDS: Final = 60.0
"""How long a free node is waited for."""
_LOOK_SECONDS: Final = 0.2
_LATE_SECONDS: Final = 5.0
"""How long an answer may take to be seen here after its job has ended."""

log = structlog.get_logger()


async def probe(
    slurm: Slurm, options: Options, bubblewrap: Bubblewrap | None, folders: Sequence[Path], seconds: float
) -> None:
    """As `ask`, where having no answer is no reason not to start.

    :raises Unusable: a node lacks something, or Slurm takes no jobs from us.
    """
    try:
        await ask(slurm, options, bubblewrap, folders, seconds)
    except (Away, Busy, TimeoutError) as error:
        log.warning("no node could be asked; a fault of theirs will show in the first job", reason=str(error))


async def ask(
    slurm: Slurm, options: Options, bubblewrap: Bubblewrap | None, folders: Sequence[Path], seconds: float
) -> None:
    """Let a node say what it sees.

    :param folders: what it has to see, the first of them for question and answer.
    :raises Unusable: it lacks something, or Slurm takes no jobs from us.
    :raises Away: slurmctld does not answer.
    :raises Busy: the cluster takes no jobs now.
    :raises TimeoutError: no node was free in time.
    """
    folder = folders[0] / f".slurm-probe-{uuid.uuid4().hex}"
    try:
        await asyncio.to_thread(_write_question, folder, folders, bubblewrap)
    except OSError as error:
        raise Unusable(f"the folder {folders[0]} cannot be written: {error.strerror}") from error
    job_id: int | None = None
    try:
        wanted = [*options.placing(), "--job-name=rap-probe", "--mem=64M", "--time=2", "--output=/dev/null"]
        job_id = await slurm.submit(wanted, script(options.python, PROBE_BOOTSTRAP, folder))
        judge_answer(await _answer(slurm, folder, job_id, seconds))
    except Refused as error:
        raise Unusable(
            f"Slurm refuses jobs: {error} (settings {PARTITION_SETTING}, RAP_SLURM_ACCOUNT, RAP_SLURM_QOS and "
            "RAP_SLURM_ARGS)"
        ) from error
    finally:
        if job_id is not None:
            with contextlib.suppress(Away, Busy):
                await slurm.cancel(job_id)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _answer(slurm: Slurm, folder: Path, job_id: int, seconds: float) -> dict[str, Any] | None:
    """What the node answered; None if its job ended without an answer.

    :raises TimeoutError: no node was free in time.
    """
    loop = asyncio.get_running_loop()
    over: float | None = None
    async with asyncio.timeout(seconds + _LATE_SECONDS):
        while True:
            answer = await asyncio.to_thread(_read_answer, folder)
            if answer is not None or (over is not None and loop.time() - over > _LATE_SECONDS):
                return answer
            await asyncio.sleep(_LOOK_SECONDS)
            if over is None:
                row = (await slurm.queue()).get(job_id)
                over = loop.time() if row is None or row.is_over else None


def judge_answer(answer: dict[str, Any] | None) -> None:
    """Compare what a node said with what jobs need.

    :param answer: None if it could not say anything.
    :raises Unusable: the node lacks something.
    """
    if answer is None:
        raise Unusable(
            "a job on a node of the cluster could not answer: the nodes do not see the folder of WORKDIR, or not "
            f"this program, or {PYTHON_SETTING} is no Python there"
        )
    where = f"node {answer['node']}" if answer["node"] else "a node"
    if answer["unseen"]:
        raise Unusable(
            f"{where} of the cluster does not see {', '.join(answer['unseen'])}: WORKDIR and "
            "HIGH_PRIVACY_STORAGE_BASE must be on storage that the nodes share"
        )
    if answer["unrun"]:
        raise Unusable(
            f"{where} of the cluster cannot make a sandbox: {answer['unrun']}; install the package `bubblewrap` "
            "there and allow user namespaces"
        )


def _write_question(folder: Path, folders: Sequence[Path], bubblewrap: Bubblewrap | None) -> None:
    question = {
        "seen": [str(each.absolute()) for each in folders],
        "sandbox": bubblewrap.trial() if bubblewrap else [],
    }
    for each in folders:
        each.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700)
    (folder / "question").write_bytes(marshal.dumps(question))


def _read_answer(folder: Path) -> dict[str, Any] | None:
    (folder / "look").touch()  # a network file system then asks again what is there
    try:
        answer: dict[str, Any] = marshal.loads((folder / "answer").read_bytes())  # noqa: S302  # our own node's
    except FileNotFoundError:
        return None
    return answer
