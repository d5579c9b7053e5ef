"""PostgreSQL, a controller and an agent as one: started in order, watched, stopped in the opposite order.

Cancelling stops whatever has been started, at every moment of the start-up too. A kill -9 takes everything down as
well (see `children`); only jobs under way carry on, as they do whenever an agent dies, and the next start on the
same folder finds them.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import asyncpg
from attrs import frozen

from agent.executors.choice import Choice
from cli.client import Client
from cli.errors import Problem
from cli.local import Local
from cli.stack import defaults
from cli.stack import executor as executors
from cli.stack import place as places
from cli.stack.place import BACKEND, HOST, Place
from cli.stack.postgres import Postgres, PostgresError, ensure_database
from cli.stack.service import Service, bound_log
from controller.store.schema import SchemaError, migrate

T = TypeVar("T")

_START_SECONDS: Final = 60.0
_AGENT_STOP: Final = 20.0
_CONTROLLER_STOP: Final = 15.0
_POSTGRES_STOP: Final = 20.0
_LOOK: Final = 0.05
"""Seconds between two looks whether something has come up."""

_NOT_INHERITED: Final = frozenset({"RAP_URL", "RAP_TOKEN", "RAP_AGENT_ID", "CONTROLLER_TASK_API_ENDPOINT"})


@frozen(kw_only=True)
class Running:
    """A stack that is ready."""

    info: Local
    place: Place
    executor: str
    """As the agent declared it: the one of `info`, and whether it isolates jobs."""
    stack: "Stack"

    async def failed(self) -> None:
        """Wait for a part that cannot be kept running; never returns otherwise.

        :raises Problem: which one, and why.
        """
        await self.stack.failed()


@asynccontextmanager
async def running(
    folder: Path,
    port: int,
    say: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
    *,
    executor: Choice | None = None,
) -> AsyncIterator[Running]:
    """A stack on `folder` (absolute), stopped on leaving.

    :param port: where the controller listens; 0 for any free one.
    :param say: shows the user a sentence.
    :param executor: what runs jobs; None to have the best taken that works here.
    :raises Problem: it cannot be started, in one sentence.
    """
    lock = places.Lock(folder)
    try:
        port = places.free_port(port)
        stack = Stack(places.prepare(folder), port, say, environ, executor)
        try:
            yield await stack.start()
        finally:
            await stack.stop()
    finally:
        lock.release()


class Stack:
    """The three processes on one folder, which the caller has locked."""

    def __init__(
        self,
        place: Place,
        port: int,
        say: Callable[[str], None],
        environ: Mapping[str, str],
        executor: Choice | None,
    ) -> None:
        self._place = place
        self._port = port
        self._say = say
        self._environ = environ
        self._executor = executor
        self._url = f"http://{HOST}:{port}"
        self._tokens = places.tokens(place.folder)
        self._postgres = Postgres(place.postgres, place.logs / "postgres.log")
        self._services: list[tuple[Service, float]] = []
        self._watches: list[asyncio.Task[None]] = []

    async def start(self) -> Running:
        """Start everything; returns when the agent has been heard of.

        :raises Problem: something does not start.
        """
        # Side by side with what takes longer; an engine that hangs would show.
        choosing = asyncio.create_task(executors.decide(self._place, self._agent_env(), self._executor))
        try:
            dsn = await self._start_postgres()
            controller = self._serve("controller", self._controller_env(dsn), _CONTROLLER_STOP)
            await self._unless_failed(self._controller_answers(), "the controller does not answer")
            controller.proven = True
            choice = await choosing
        finally:
            choosing.cancel()
            await asyncio.gather(choosing, return_exceptions=True)
        self._say(f"executor: {choice.name} ({choice.reason})")
        began = datetime.now(UTC)
        agent = self._serve("agent", _with_executor(self._agent_env(), choice), _AGENT_STOP)
        executor = await self._unless_failed(self._agent_seen(began), "the agent does not reach the controller")
        agent.proven = True
        info = Local(
            controller_url=self._url,
            client_token=self._tokens.client,
            agent_token=self._tokens.agent,
            backend=BACKEND,
            data_dir=str(self._place.folder),
            pid=os.getpid(),
            executor=choice.name,
            executor_reason=choice.reason,
        )
        return Running(info=info, place=self._place, executor=executor, stack=self)

    async def failed(self) -> None:
        """Wait for the first watch to give up.

        :raises Problem: why it did.
        """
        done, _ = await asyncio.wait(self._watches, return_when=asyncio.FIRST_COMPLETED)
        for watch in done:
            watch.result()

    async def stop(self) -> None:
        """Stop everything that runs: agent, controller, PostgreSQL; each within a bound."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        for service, seconds in reversed(self._services):
            await service.stop(seconds)
        await asyncio.to_thread(self._postgres.stop, _POSTGRES_STOP)

    async def _start_postgres(self) -> str:
        """The DSN of the migrated database."""
        try:
            await self._bring_up_postgres()
            dsn = await ensure_database(self._postgres, "rap")
            await migrate(dsn)
        except (PostgresError, SchemaError, asyncpg.PostgresError, OSError) as error:
            raise Problem(str(error)) from error
        self._watches.append(asyncio.create_task(self._watch_postgres()))
        return dsn

    async def _bring_up_postgres(self) -> None:
        bound_log(self._place.logs / "postgres.log", 0)
        await _to_the_end(self._postgres.prepare)
        self._postgres.spawn()
        await asyncio.to_thread(self._postgres.wait_ready)

    async def _watch_postgres(self) -> None:
        """Start PostgreSQL again whenever it ends; the controller waits for it meanwhile.

        :raises Problem: it cannot be started again.
        """
        while True:
            await asyncio.to_thread(self._postgres.wait)
            self._say(f"PostgreSQL ended unexpectedly; starting it again (see {self._place.logs})")
            try:
                await self._bring_up_postgres()
            except PostgresError as error:
                raise Problem(str(error)) from error

    def _serve(self, name: str, env: Mapping[str, str], stop_seconds: float) -> Service:
        service = Service(name, env, self._place.logs / f"{name}.log", self._say)
        self._services.append((service, stop_seconds))
        self._watches.append(asyncio.create_task(service.watch()))
        return service

    async def _unless_failed(self, work: Coroutine[Any, Any, T], fault: str) -> T:
        """The result of `work`, unless a watch gives up first or the time is over."""
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task, *self._watches}, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for watch in self._watches:
                if watch.done():
                    watch.result()
            if not task.done():
                raise Problem(f"{fault} within {_START_SECONDS:g} s (see {self._place.logs})")
            return task.result()
        finally:
            task.cancel()

    async def _controller_answers(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while True:
                try:
                    async with session.get(f"{self._url}/readyz") as response:
                        if response.status == 200:
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass  # not yet
                await asyncio.sleep(_LOOK)

    async def _agent_seen(self, since: datetime) -> str:
        """The executor of an agent that was heard of after `since`; an earlier start's is not enough."""
        async with Client(self._url, self._tokens.client) as client:
            while True:
                for agent in (await client.read("agents"))["agents"]:
                    seen = agent["last_seen"]
                    if agent["backend"] == BACKEND and seen and datetime.fromisoformat(seen) >= since:
                        return str(agent["executor"])
                await asyncio.sleep(_LOOK)

    def _common_env(self) -> dict[str, str]:
        return {
            **defaults.AGENT,
            **{name: value for name, value in self._environ.items() if name not in _NOT_INHERITED},
        }

    def _controller_env(self, dsn: str) -> dict[str, str]:
        return {
            **self._common_env(),
            "RAP_DATABASE_URL": dsn,
            "RAP_LISTEN": f"{HOST}:{self._port}",
            "BACKENDS": BACKEND,
            f"{BACKEND.upper()}_CLIENT_TOKENS": self._tokens.client,
            f"{BACKEND.upper()}_OPERATOR_TOKENS": self._tokens.client,
            f"{BACKEND.upper()}_JOB_SERVER_TOKEN": self._tokens.agent,
            "WORKDIR": str(self._place.folder / "controller"),
        }

    def _agent_env(self) -> dict[str, str]:
        return {
            **self._common_env(),
            "BACKEND": BACKEND,
            "RAP_CONTROLLER_URL": self._url,
            "CONTROLLER_TASK_API_TOKEN": self._tokens.agent,
            "RAP_AGENT_ID": "local",
            "WORKDIR": str(self._place.agent),
            "HIGH_PRIVACY_STORAGE_BASE": str(self._place.storage / "high_privacy"),
            "MEDIUM_PRIVACY_STORAGE_BASE": str(self._place.storage / "medium_privacy"),
            "HIGH_PRIVACY_ARCHIVE_DIR": str(self._place.storage / "archives"),
        }


def _with_executor(environ: dict[str, str], choice: Choice) -> dict[str, str]:
    """The agent's environment, once its executor is known.

    Many a shell has a DOCKER_HOST for other programs, of a form that no agent knows; without Docker that is no fault.
    """
    if choice.name != "docker":
        environ.pop("DOCKER_HOST", None)
    return {**environ, defaults.EXECUTOR: choice.name}


async def _to_the_end(work: Callable[[], None]) -> None:
    """Run `work` in a thread; if we are cancelled meanwhile, it still ends before we go on (to undo it)."""
    thread = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait({thread})
        raise
