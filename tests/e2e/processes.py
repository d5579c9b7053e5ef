"""Controllers and agents as real processes, for the tests of what dies, is cut off, or is there twice."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from attrs import define, field

from tests.e2e.conftest import AGENT_TOKEN, CLIENT_TOKEN, LiveController

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds after which a test gives up; nothing is measured by it."""
OPERATOR_TOKEN = "operator-token-of-test"
LEASE = 5.0
"""Seconds. Long enough that an agent on a busy machine is not taken for a silent one."""


@define
class Process:
    """One `python -m <module>`, whose log lines can be waited for."""

    module: str
    environ: Mapping[str, str]
    prefix: tuple[str, ...] = ()
    """A command in front of it, such as one that enters a network namespace."""
    process: asyncio.subprocess.Process | None = None
    said: list[str] = field(factory=list)
    _reader: asyncio.Task[None] | None = None
    _more: asyncio.Event = field(factory=asyncio.Event)

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *self.prefix,
            sys.executable,
            "-m",
            self.module,
            env={"PATH": os.environ["PATH"], **self.environ},
            cwd=ROOT,
            stderr=asyncio.subprocess.PIPE,
        )
        self.said = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.said.append(line.decode().rstrip())
            self._more.set()
        self._more.set()

    async def wait_for(self, words: str) -> str:
        """The first line since the start that has these words, once it is there."""
        async with asyncio.timeout(PATIENCE):
            while True:
                self._more.clear()
                found = next((line for line in self.said if words in line), None)
                if found is not None:
                    return found
                assert self._reader is not None
                assert not self._reader.done(), f"{self.module} ended without saying {words!r}: {self.said[-5:]}"
                await self._more.wait()

    async def end(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signum)
        async with asyncio.timeout(PATIENCE):
            code = await self.process.wait()
            assert self._reader is not None
            await self._reader
        return code


def controller_process(dsn: str, folder: Path, listen: str = "127.0.0.1:0", **more: str) -> Process:
    """A controller of the backend `test` on this database."""
    environ = {
        "RAP_DATABASE_URL": dsn,
        "RAP_LISTEN": listen,
        "BACKENDS": "test",
        "TEST_CLIENT_TOKENS": CLIENT_TOKEN,
        "TEST_OPERATOR_TOKENS": OPERATOR_TOKEN,
        "TEST_JOB_SERVER_TOKEN": AGENT_TOKEN,
        "ALLOW_LOCAL_GIT_REPOS": "true",
        "RAP_LEASE_SECONDS": str(LEASE),
        "RAP_RETRY_FIRST_SECONDS": "0",
        "RAP_RETRY_LONGEST_SECONDS": "0",
        "WORKDIR": str(folder),
    }
    return Process("controller", environ | more)


def agent_process(name: str, url: str, folder: Path, *, prefix: tuple[str, ...] = (), **more: str) -> Process:
    """An agent of the backend `test`; those of one backend share its storage."""
    environ = {
        "BACKEND": "test",
        "RAP_CONTROLLER_URL": url,
        "CONTROLLER_TASK_API_TOKEN": AGENT_TOKEN,
        "RAP_AGENT_ID": name,
        "RAP_EXECUTOR": "fake",
        "RAP_AGENT_SLOTS": "4",
        "RAP_POLL_SECONDS": "20",
        "ALLOW_LOCAL_GIT_REPOS": "true",
        "WORKDIR": str(folder / name),
        "HIGH_PRIVACY_STORAGE_BASE": str(folder / "high"),
        "MEDIUM_PRIVACY_STORAGE_BASE": str(folder / "medium"),
    }
    return Process("agent", environ | more, prefix)


@asynccontextmanager
async def ended(*processes: Process) -> AsyncIterator[None]:
    """Whatever of these is alive at the end is killed; what they said last is shown if the test fails."""
    try:
        yield
    except BaseException:
        for process in processes:
            print(process.module, process.environ.get("RAP_AGENT_ID", ""), *process.said[-20:], sep="\n")  # noqa: T201
        raise
    finally:
        for process in processes:
            if process.process is not None:
                await process.end(signal.SIGKILL)


@asynccontextmanager
async def running(*processes: Process) -> AsyncIterator[None]:
    """Started in this order, and killed at the end."""
    async with ended(*processes):
        for process in processes:
            await process.start()
        yield


async def address(controller: Process) -> str:
    """`host:port` that the controller listens on, once it does."""
    return str(json.loads(await controller.wait_for("controller_ready"))["listen"][0])


@asynccontextmanager
async def portal(where: str) -> AsyncIterator[LiveController]:
    """A portal of the controller at `host:port`."""
    async with aiohttp.ClientSession(headers={"Authorization": CLIENT_TOKEN}) as session:
        yield LiveController(f"http://{where}", session)


async def job(live: LiveController, job_id: str) -> dict[str, Any]:
    """The native API's view of one job."""
    async with live.portal.get(f"{live.url}/api/jobs/{job_id}") as response:
        assert response.status == 200, await response.text()
        return dict(await response.json())


async def eventually(look: Callable[[], Awaitable[T | None]], patience: float = PATIENCE) -> T:
    """What `look` finds, asking again and again: another process gives no other sign."""
    async with asyncio.timeout(patience):
        while not (found := await look()):  # noqa: ASYNC110  another process sets no event of ours
            await asyncio.sleep(0.02)
    return found


async def let_go(work_dir: Path) -> bool:
    """Whether the agent with this WORKDIR holds no task any more."""
    return not any((work_dir / "tasks").iterdir())
