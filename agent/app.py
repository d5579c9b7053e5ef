"""Puts the agent together and runs it until it is told to stop."""

import asyncio
import contextlib
import fcntl
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import aiohttp
import structlog

from agent.checkout import Checkouts, Rules
from agent.client import Client
from agent.disk import Disk
from agent.executors.base import Executor, Unusable
from agent.loop import Loop, StopMode
from agent.outputs.workspaces import Places
from agent.reports import Reports
from agent.settings import Settings
from agent.tools import Tools
from common import proxies
from common.clock import Clock
from common.loop_lag import LoopLag
from common.protocol import Declaration, Report, Verdict

_log = structlog.get_logger()


async def run(
    settings: Settings,
    executor: Executor,
    clock: Clock,
    stop_event: asyncio.Event,
    *,
    stop_mode: StopMode | None = None,
) -> None:
    """Serve the backend until `stop_event` is set; then let go of the jobs as `stop_mode` says.

    :param stop_mode: None for what the settings say.
    :raises Unusable: the executor does not work here, a folder cannot be written, or another agent uses it.
    """
    await executor.check()
    mode = StopMode(settings.exit_mode) if stop_mode is None else stop_mode
    pool = ThreadPoolExecutor(max_workers=settings.slots + 8, thread_name_prefix="files")
    asyncio.get_running_loop().set_default_executor(pool)
    places = await asyncio.to_thread(make_places, settings)
    with await asyncio.to_thread(_alone, places.work):
        async with assemble(settings, places, executor, clock) as (loop, reports):
            await _serve(loop, reports, LoopLag(clock, loop.vitals.lagged), stop_event, mode)
    await executor.close()


def make_places(settings: Settings) -> Places:
    """The agent's folders, made if they are not there.

    :raises Unusable: one cannot be made, or not be written.
    """
    places = Places(
        high=settings.high_privacy_dir.absolute(),
        medium=settings.medium_privacy_dir.absolute(),
        archive=settings.archive_dir.absolute(),
        work=settings.work_dir.absolute(),
    )
    # The storage areas are for others, too, as the umask says. WORKDIR (studies' code, tasks) is the agent's alone, and
    # volumes are its group's: in a container a job may make programs that run as its user, whoever starts them.
    folders = {
        places.work: ("WORKDIR", 0o700),
        places.work / "tasks": ("WORKDIR", 0o700),
        places.high: ("HIGH_PRIVACY_STORAGE_BASE", 0o777),
        places.high / "volumes": ("HIGH_PRIVACY_STORAGE_BASE", 0o770),
        places.medium: ("MEDIUM_PRIVACY_STORAGE_BASE", 0o777),
    }
    for folder, (setting, mode) in folders.items():
        try:
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise Unusable(
                f"{setting}: the folder {folder} cannot be made or written: {error.strerror}; let the agent's user "
                f"write it, or set {setting} to another folder"
            ) from error
    return places


def _alone(work: Path) -> BinaryIO:
    """Keep a second agent out of the same WORKDIR, until the file is closed: both would take up the same tasks.

    :raises Unusable: there is one.
    """
    lock = (work / "agent.lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise Unusable(f"another agent uses WORKDIR {work}") from error
    return lock


@contextlib.asynccontextmanager
async def assemble(
    settings: Settings, places: Places, executor: Executor, clock: Clock
) -> AsyncIterator[tuple[Loop, Reports]]:
    """The agent's parts, joined; nothing runs yet."""
    checkouts = Checkouts(
        cache=places.work / "repos",
        rules=Rules(
            allow_local=settings.allow_local_git_repos,
            allowed_orgs=settings.allowed_orgs,
            proxy_domain=settings.github_proxy_domain,
        ),
        clock=clock,
        time_limit=settings.git_timeout,
        user=f"jobrunner-{settings.backend}",
        token=settings.private_repo_access_token,
    )
    async with aiohttp.ClientSession(trust_env=proxies.apply_to(settings.controller_url)) as session:
        client = Client(
            session,
            url=settings.controller_url,
            backend=settings.backend,
            agent=settings.agent_id,
            token=settings.token,
            clock=clock,
        )

        def on_verdict(report: Report, verdict: Verdict) -> None:
            loop.on_verdict(report, verdict)

        reports = Reports(client, settings.agent_id, on_verdict)
        tools = Tools(
            settings=settings,
            executor=executor,
            clock=clock,
            places=places,
            checkouts=checkouts,
            client=client,
            reports=reports,
            disk=Disk(places.high, settings.disk_reserve),
        )
        declaration = Declaration(
            version=settings.version,
            executor=executor.name,
            slots=settings.slots,
            egress=settings.egress,
            on_loss=settings.on_loss or executor.on_loss,
        )
        loop = Loop(tools, declaration)
        yield loop, reports


async def _serve(loop: Loop, reports: Reports, lag: LoopLag, stop_event: asyncio.Event, mode: StopMode) -> None:
    measuring = asyncio.create_task(lag.run())
    claiming = asyncio.create_task(loop.run())
    sending = asyncio.create_task(reports.run())
    stopping = asyncio.create_task(stop_event.wait())
    try:
        await asyncio.wait({claiming, sending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (claiming, sending):
            if task.done():
                task.result()  # neither ends by itself: this raises the bug that ended it
        _log.info("agent is stopping", mode=mode.value)
    finally:
        stopping.cancel()
        measuring.cancel()
        claiming.cancel()
        await asyncio.gather(claiming, stopping, measuring, return_exceptions=True)
        await loop.stop(mode if stop_event.is_set() else StopMode.LEAVE)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
