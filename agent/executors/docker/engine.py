"""The connection to a Docker Engine, or to Podman's compatible socket.

Everything that is asked of the engine may be asked twice, so an engine that is away for a moment (an upgrade, a
restart) is simply asked again: jobs that it keeps alive meanwhile must not fail for it.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import aiohttp
import orjson
from aiodocker import Docker, DockerError
from aiodocker.containers import DockerContainer
from attrs import frozen

from agent.executors.base import ExecutorError, Unusable

T = TypeVar("T")

SETTING: Final = "RAP_DOCKER_HOST"
OLDEST_API: Final = (1, 41)
"""Of Docker Engine 20.10 and Podman 4: the first with samples that do not take a second each."""
QUICK: Final = 300.0
"""Seconds for any call but a pull and a wait, as upstream (section 5.5): a busy engine can be slow to create."""
INSPECT: Final = 15.0
PATIENCE: Final = 60.0
FIRST_DELAY: Final = 0.05
LONGEST_DELAY: Final = 2.0
_NOT_FOUND: Final = 404
NO_CONNECTION: Final = 900
"""The status that aiodocker gives an engine that cannot be reached."""


class EngineAway(ExecutorError):
    """The engine cannot be reached now."""

    def __init__(self, host: str, reason: object) -> None:
        super().__init__(f"cannot reach the container engine at {host} ({SETTING}): {reason}", fatal=False)


@frozen(kw_only=True)
class Flavour:
    """What sort of engine answers."""

    api: str
    podman: bool
    cpus: int
    machine: str
    """The processor, as the engine calls it."""


def is_outage(error: BaseException) -> bool:
    """Whether the error says nothing about what was asked, only that nobody answered it."""
    if isinstance(error, DockerError):
        return error.status in (NO_CONNECTION, 502, 503, 504)
    # ValueError: an answer that was cut in the middle is no JSON any more.
    return isinstance(error, (aiohttp.ClientError, OSError, TimeoutError, ValueError))


def is_gone(error: BaseException) -> bool:
    """Whether the engine says that it does not have what it was asked for.

    Podman, asked while it removes a container, calls that an error of its own.
    """
    return isinstance(error, DockerError) and (
        error.status == _NOT_FOUND or "no such container" in error.message.lower()
    )


def _reason(error: BaseException) -> str:
    """What went wrong, in the kernel's words where it was the kernel: the libraries wrap them three times."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientConnectorError):
            cause = cause.os_error
        if isinstance(cause, OSError) and cause.errno is not None:
            # asyncio has words of its own for a refused connection, and the resolver has numbers of its own.
            return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, DockerError):
        return str(error.message)
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__


class Engine:
    """One engine.

    :param host: `unix:///path`, `tcp://host:port`, `http(s)://host:port`.
    :param patience: seconds to go on asking an engine that is away.
    """

    def __init__(self, host: str, *, patience: float = PATIENCE) -> None:
        self.host = host
        self._patience = patience
        self._docker: Docker | None = None
        self._flavour: Flavour | None = None

    @property
    def docker(self) -> Docker:
        """The client; made when first asked for, since it belongs to the running loop."""
        if self._docker is None:
            self._docker = _connect(self.host)
        return self._docker

    async def check(self) -> Flavour:
        """Look at the engine itself, without patience.

        :raises Unusable: it cannot be reached, is too old, or cannot limit what jobs use.
        """
        try:
            async with asyncio.timeout(INSPECT):
                version = await self.docker.version()
                info = await self.docker.system.info()
        except (DockerError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            await self.close()
            raise Unusable(
                f"cannot use the container engine at {self.host}: {_reason(error)}; is it running, may this user open "
                f"its socket? {SETTING} or DOCKER_HOST says where it is"
            ) from error
        except (TypeError, LookupError, AttributeError) as error:  # the library's words for answers of another form
            await self.close()
            raise Unusable(f"what answers at {self.host} is no container engine: set {SETTING}") from error
        self._flavour = _judge(self.host, version, info)
        return self._flavour

    async def flavour(self) -> Flavour:
        """What sort of engine this is; asked once."""
        if self._flavour is None:
            try:
                return await self.check()
            except Unusable as error:
                raise ExecutorError(str(error), fatal=False) from error
        return self._flavour

    async def call(self, ask: Callable[[Docker], Awaitable[T]], *, seconds: float = QUICK) -> T:
        """What the engine answers, asked again while it is away.

        :param ask: must be harmless to repeat.
        :raises EngineAway: it stayed away.
        :raises DockerError: it answered with an error.
        """
        delay = FIRST_DELAY
        until = asyncio.get_running_loop().time() + self._patience
        while True:
            try:
                async with asyncio.timeout(seconds):
                    return await ask(self.docker)
            except Exception as error:
                if not is_outage(error):
                    raise
                if asyncio.get_running_loop().time() + delay > until:
                    raise EngineAway(self.host, _reason(error)) from error
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)

    async def inspect(self, name: str) -> dict[str, Any] | None:
        """A container as the engine describes it; None if there is none of that name or id."""

        async def ask(docker: Docker) -> dict[str, Any] | None:
            try:
                return await docker.containers.container(name).show()
            except DockerError as error:
                if is_gone(error):
                    return None
                raise

        return await self.call(ask, seconds=INSPECT)

    def container(self, name: str) -> DockerContainer:
        """The handle of a container; asks nothing."""
        return self.docker.containers.container(name)

    @asynccontextmanager
    async def stream(
        self, path: str, params: Mapping[str, str], *, seconds: float | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer of the engine to GET as it comes, which aiodocker would decode or collect.

        :raises DockerError: it answered with an error.
        """
        url = f"{self._base()}/v{(await self.flavour()).api}/{path}"
        timeout = aiohttp.ClientTimeout(total=seconds)
        async with self.docker.session.get(url, params=dict(params), timeout=timeout) as response:
            if response.status >= 400:
                raise DockerError(response.status, await response.text())
            yield response

    async def get_json(self, path: str, params: Mapping[str, str]) -> Any:
        """An answer of the engine to GET, once."""
        async with self.stream(path, params, seconds=INSPECT) as response:
            return await response.json(content_type=None)

    async def head(self, path: str) -> None:
        """Ask for a path without wanting its contents, once.

        :raises DockerError: the engine does not have it.
        """
        url = f"{self._base()}/v{(await self.flavour()).api}/{path}"
        async with self.docker.session.head(url, timeout=aiohttp.ClientTimeout(total=INSPECT)) as response:
            if response.status >= 400:
                raise DockerError(response.status, response.reason or "")

    def _base(self) -> str:
        return "http://localhost" if self.host.startswith("unix://") else _http(self.host)

    async def goes_away(self, name: str, seconds: float) -> bool:
        """Whether the engine breaks off an open question within some seconds, which only its own end does.

        :param name: a container to ask about that has ended.
        """
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self.container(name).wait(condition="removed")
        except TimeoutError:
            return False
        except Exception as error:
            if isinstance(error, DockerError) and not is_outage(error):
                return False
            return is_outage(error)
        return False

    async def read_events(self, until: int) -> list[dict[str, Any]]:
        """All events that the engine remembers, oldest first.

        :param until: Unix seconds; in the past or next to it, or the engine goes on telling.
        """
        async with self.stream("events", {"since": "1", "until": str(until)}, seconds=INSPECT) as response:
            return [orjson.loads(line) async for line in response.content if line.strip()]

    async def close(self) -> None:
        """Let go of all connections."""
        docker, self._docker = self._docker, None
        if docker is not None:
            await docker.close()
            await docker.connector.close()


def _connect(host: str) -> Docker:
    # Every running job holds two connections, so their number must have no limit.
    if host.startswith("unix://"):
        return Docker("unix://localhost", connector=aiohttp.UnixConnector(host.removeprefix("unix://"), limit=0))
    if host.startswith(("tcp://", "http://", "https://")):
        return Docker(_http(host), connector=aiohttp.TCPConnector(limit=0))
    raise Unusable(f"{SETTING} is {host!r}, which begins with none of unix://, tcp://, http://, https://")


def _http(host: str) -> str:
    return f"http://{host.removeprefix('tcp://')}" if host.startswith("tcp://") else host


def _judge(host: str, version: Mapping[str, Any], info: Mapping[str, Any]) -> Flavour:
    """
    :raises Unusable: the engine lacks something that jobs need.
    """
    api = str(version.get("ApiVersion", ""))
    try:
        known = tuple(int(part) for part in api.split("."))
    except ValueError:
        raise Unusable(f"what answers at {host} is no container engine: set {SETTING}") from None
    if known < OLDEST_API:
        raise Unusable(
            f"the container engine at {host} has API {api}, and {'.'.join(map(str, OLDEST_API))} (Docker 20.10) "
            f"is the oldest that will do: upgrade it, or set {SETTING} to another"
        )
    if info.get("OSType", "linux") != "linux":
        raise Unusable(
            f"the container engine at {host} runs {info['OSType']} containers, not Linux ones: set {SETTING}"
        )
    missing = [name for name in ("MemoryLimit", "CpuCfsQuota", "PidsLimit") if not info.get(name)]
    if missing:
        raise Unusable(
            f"the container engine at {host} cannot limit what jobs use (its cgroups lack {', '.join(missing)}): "
            f"let it have them, or set {SETTING} to another engine"
        )
    podman = any("podman" in str(part.get("Name", "")).lower() for part in version.get("Components") or ())
    return Flavour(api=api, podman=podman, cpus=int(info.get("NCPU") or 1), machine=str(info.get("Architecture")))
