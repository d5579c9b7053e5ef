"""The processes of a run, in one folder: PostgreSQL, two controllers, three agents.

Each is kept: whoever ends, is killed or cannot start yet is started again, as an init system would do. What the keeper
did not order and no fault explains (exit code 1, a traceback) is remembered as a crash.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil
from attrs import define, field, frozen

from cli.stack.children import signal_group, spawn
from cli.stack.place import free_port
from cli.stack.postgres import Postgres, PostgresError, ensure_database
from controller.store.schema import migrate
from tests.chaos.plan import AGENTS, ALPHA, BACKENDS, BETA, CONTROLLERS, LEASE_SECONDS

ROOT: Final = Path(__file__).parents[2]
AWAY: Final = 2
"""Exit code of a controller that found no database, and of an agent that cannot start yet."""
_PAUSE: Final = 0.3
_SLOTS: Final = 4


@define
class Service:
    """A process of ours, and whether it is meant to run."""

    name: str
    argv: list[str]
    env: dict[str, str]
    log: Path
    wanted: asyncio.Event = field(factory=asyncio.Event)
    process: subprocess.Popen[bytes] | None = None
    crashes: list[str] = field(factory=list)
    starts: int = 0

    async def keep(self) -> None:
        """Have it run whenever it is wanted; for ever."""
        while True:
            await self.wanted.wait()
            with self.log.open("ab") as output:
                self.process = spawn(self.argv, env=self.env, output=output, cwd=ROOT)
            self.starts += 1
            code = await asyncio.to_thread(self.process.wait)
            signal_group(self.process, signal.SIGKILL)
            if code not in (0, AWAY, -signal.SIGKILL, -signal.SIGTERM):
                self.crashes.append(f"{self.name} ended by itself with exit code {code} (see {self.log})")
            await asyncio.sleep(_PAUSE)

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; whether it was there to get it."""
        if self.process is None or self.process.poll() is not None:
            return False
        self.process.send_signal(number)
        return True


@frozen(kw_only=True)
class Tokens:
    """One of each kind, for all backends."""

    client: str = field(factory=lambda: secrets.token_hex(16), repr=False)
    operator: str = field(factory=lambda: secrets.token_hex(16), repr=False)
    agent: str = field(factory=lambda: secrets.token_hex(16), repr=False)


class Cluster:
    """Everything that runs."""

    def __init__(self, folder: Path, *, skews: Mapping[str, float], mutation: str | None = None) -> None:
        self.folder = folder
        self.tokens = Tokens()
        self.record = folder / "record"
        self.ports = {name: free_port(0) for name in CONTROLLERS}
        self.services: dict[str, Service] = {}
        self.dsn = ""
        self._skews = skews
        self._mutation = mutation
        self._postgres = Postgres(folder / "postgres", folder / "postgres.log", durable=True)
        self._postgres_wanted = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []

    def high(self, backend: str) -> Path:
        """The backend's high-privacy storage, which its agents share."""
        return self.folder / backend / "high"

    def medium(self, backend: str) -> Path:
        """The backend's medium-privacy storage."""
        return self.folder / backend / "medium"

    def work(self, agent: str) -> Path:
        """An agent's own folder."""
        return self.folder / agent

    async def start(self, agent_port: int) -> None:
        """Start everything; agents reach the controllers through `agent_port`."""
        self.record.touch()
        await asyncio.to_thread(self._postgres.prepare)
        self._postgres.spawn()
        await asyncio.to_thread(self._postgres.wait_ready, 60)
        self.dsn = await ensure_database(self._postgres, "chaos")
        await migrate(self.dsn)
        self._postgres_wanted.set()
        for name, port in self.ports.items():
            self._add(name, "controller", self._controller_env(name, port))
        for name, backend in AGENTS.items():
            self._add(name, "agent", self._agent_env(name, backend, agent_port))
        self._keepers = [asyncio.create_task(service.keep()) for service in self.services.values()]
        self._keepers.append(asyncio.create_task(self._keep_postgres()))

    def mend(self) -> None:
        """Let everything run."""
        self._postgres_wanted.set()
        for service in self.services.values():
            service.signal(signal.SIGCONT)
            service.wanted.set()

    async def kill_postgres(self, seconds: float) -> None:
        """SIGKILL to the server; up again after `seconds`."""
        self._postgres_wanted.clear()
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            lines = (self.folder / "postgres" / "postmaster.pid").read_text().splitlines()
            psutil.Process(int(lines[0])).kill()
        await asyncio.sleep(seconds)
        self._postgres_wanted.set()

    def kill_jobs(self, agent: str) -> int:
        """SIGKILL to every supervisor of the agent's jobs, and so to their sandboxes; how many."""
        return _kill_in(self.work(agent))

    @property
    def crashes(self) -> list[str]:
        """What ended without a reason that we know."""
        return [crash for service in self.services.values() for crash in service.crashes]

    async def close(self) -> None:
        """End everything that was started, jobs included; the database last."""
        for service in self.services.values():
            service.wanted.clear()
        for keeper in self._keepers:
            keeper.cancel()
        for service in self.services.values():
            service.signal(signal.SIGCONT)
            service.signal(signal.SIGTERM)
        for service in self.services.values():
            await asyncio.to_thread(_end, service)
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for agent in AGENTS:
            self.kill_jobs(agent)
        await asyncio.to_thread(self._postgres.stop)

    async def _keep_postgres(self) -> None:
        while True:
            await asyncio.to_thread(self._postgres.wait)
            await self._postgres_wanted.wait()
            # A killed server's children end when they notice; what has not is ended here.
            await asyncio.to_thread(self._postgres.prepare)
            self._postgres.spawn()
            # Killed while it was starting: once more.
            with contextlib.suppress(PostgresError):
                await asyncio.to_thread(self._postgres.wait_ready, 60)

    def _add(self, name: str, program: str, env: dict[str, str]) -> None:
        # -P would keep tests out of the path; the environment has nothing of ours but what is said here.
        argv = [sys.executable, "-m", "tests.chaos.launcher", program]
        base = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
        made = Service(name=name, argv=argv, env=base | env, log=self.folder / f"{name}.log")
        made.wanted.set()
        self.services[name] = made

    def _controller_env(self, name: str, port: int) -> dict[str, str]:
        env = {
            "RAP_DATABASE_URL": self.dsn,
            "RAP_LISTEN": f"127.0.0.1:{port}",
            "BACKENDS": ",".join(BACKENDS),
            "ALLOW_LOCAL_GIT_REPOS": "true",
            "WORKDIR": str(self.folder / name),
            "RAP_LEASE_SECONDS": str(LEASE_SECONDS),
            "RAP_POLL_SECONDS": "2",
            "RAP_SAFETY_SECONDS": "0.5",
            # Faults of the platform are what the run is made of: they must not use jobs up.
            "RAP_RETRY_LIMIT": "1000",
            "RAP_RETRY_FIRST_SECONDS": "0.2",
            "RAP_RETRY_LONGEST_SECONDS": "1",
        }
        for backend in BACKENDS:
            prefix = backend.upper()
            env[f"{prefix}_CLIENT_TOKENS"] = self.tokens.client
            env[f"{prefix}_OPERATOR_TOKENS"] = self.tokens.operator
            env[f"{prefix}_JOB_SERVER_TOKEN"] = self.tokens.agent
            env[f"{prefix}_MAX_WORKERS"] = env[f"{prefix}_MAX_DB_WORKERS"] = str(2 * _SLOTS)
        return env if self._mutation is None else env | {"CHAOS_MUTATE": self._mutation}

    def _agent_env(self, name: str, backend: str, port: int) -> dict[str, str]:
        isolated = shutil.which("bwrap") is not None
        return {
            "BACKEND": backend,
            "RAP_CONTROLLER_URL": f"http://127.0.0.1:{port}",
            "CONTROLLER_TASK_API_TOKEN": self.tokens.agent,
            "RAP_AGENT_ID": name,
            "RAP_AGENT_SLOTS": str(_SLOTS),
            "RAP_EXECUTOR": {ALPHA: "sandbox", BETA: "fake"}[backend],
            "RAP_SANDBOX_IMAGES": "python=/bin/sh,sqlrunner=/bin/sh",
            "RAP_ALLOW_UNISOLATED": "false" if isolated else "true",
            "ALLOW_LOCAL_GIT_REPOS": "true",
            "WORKDIR": str(self.work(name)),
            "HIGH_PRIVACY_STORAGE_BASE": str(self.high(backend)),
            "MEDIUM_PRIVACY_STORAGE_BASE": str(self.medium(backend)),
            "RAP_EGRESS": "open",
            "RAP_POLL_SECONDS": "2",
            "CHAOS_RECORD": str(self.record),
            "CHAOS_SKEW": str(self._skews[name]),
        }


def _end(service: Service) -> None:
    if service.process is None:
        return
    with contextlib.suppress(subprocess.TimeoutExpired):
        service.process.wait(15)
    signal_group(service.process, signal.SIGKILL)
    service.process.wait()


def _kill_in(folder: Path) -> int:
    """Kill whatever works in a folder of ours: supervisors do, each in its run's."""
    killed = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(folder):
                process.kill()
                killed += 1
    return killed
