"""Following one running container: its end, its time limit, its output, its use of CPU and memory.

Nothing depends on a follower being there: what it misses is read from the engine when it is back.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import aiohttp
import structlog
from aiodocker import DockerError

from agent.executors.base import ExecutorError, Exit, Run
from agent.executors.docker.engine import FIRST_DELAY, LONGEST_DELAY, Engine, is_gone, is_outage
from agent.executors.docker.exit import has_ended
from agent.executors.docker.notes import OUTAGE, TIMED_OUT, Notes, Spool, Usage, add_sample

STDERR: Final = 2
_FIRST_SAMPLE: Final = 0.1
_HEADER: Final = 8
_DRAIN_SECONDS: Final = 60.0
"""How long the rest of an ended run's output may take to come."""

LOG_SECONDS: Final = 30.0
"""How long an engine may take for the next piece of the log of a run that has ended. Docker 20.10 has been seen to go
silent in the middle of a log that it had rotated."""
_STUCK: Final = 599

log = structlog.get_logger()


class Demultiplexer:
    """Takes an engine's stream apart: frames of a stream's number, three zeros, a length, and that many bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The whole frames so far, as stream number (1 output, 2 errors) and bytes."""
        self._buffer += data
        frames: list[tuple[int, bytes]] = []
        start = 0
        while len(self._buffer) - start >= _HEADER:
            body = start + _HEADER
            end = body + int.from_bytes(self._buffer[body - 4 : body], "big")
            if len(self._buffer) < end:
                break
            frames.append((self._buffer[start], bytes(self._buffer[body:end])))
            start = end
        del self._buffer[:start]
        return frames


async def copy_log(engine: Engine, run: Run, name: str, limit: int, *, follow: bool) -> None:
    """Bring what the run has printed to its notes; with `follow`, go on until it has ended.

    :param limit: bytes that are kept.
    :raises DockerError: the engine has no such log, or no more of it comes.
    """
    main = Spool(Notes(run.state_dir).log, limit)
    errors = main if run.errors is None else Spool(run.errors, limit)
    demultiplexer = Demultiplexer()
    params = {"stdout": "1", "stderr": "1", "follow": "1" if follow else "0"}
    async with engine.stream(f"containers/{name}/logs", params) as response:
        while not (main.full and errors.full):
            data = await _read_some(response, None if follow else LOG_SECONDS)
            if not data:
                return
            frames = demultiplexer.feed(data)
            if main is errors:
                await asyncio.to_thread(main.write, [piece for _, piece in frames])
                continue
            await asyncio.to_thread(main.write, [piece for stream, piece in frames if stream != STDERR])
            await asyncio.to_thread(errors.write, [piece for stream, piece in frames if stream == STDERR])
        response.close()  # the rest is not wanted


async def _read_some(response: aiohttp.ClientResponse, seconds: float | None) -> bytes:
    try:
        async with asyncio.timeout(seconds):
            return await response.content.readany()
    except TimeoutError:
        # Not an outage, which would be asked again: the log is as long as the engine can tell.
        raise DockerError(_STUCK, f"no more of the log came within {LOG_SECONDS:g} s") from None


class Follower:
    """One run that is under way.

    :param name: the container's.
    :param started_ns: when the engine started it.
    :param settle: looks at the ended container and notes how it ended.
    """

    def __init__(
        self,
        engine: Engine,
        run: Run,
        name: str,
        started_ns: int,
        *,
        log_bytes: int,
        sample_seconds: float,
        settle: Callable[[Run], Awaitable[Exit | None]],
    ) -> None:
        self._engine = engine
        self._run = run
        self._name = name
        self._started_ns = started_ns
        self._notes = Notes(run.state_dir)
        self._log_bytes = log_bytes
        self._sample_seconds = sample_seconds
        self._settle = settle
        self._sampling = asyncio.Lock()
        self._usage: Usage | None = None
        self.task = asyncio.create_task(self._follow(), name=f"follow {run.task_id}")

    async def _follow(self) -> Exit | None:
        company = [asyncio.create_task(self._watch_usage()), asyncio.create_task(self._limit_time())]
        pump = asyncio.create_task(self._pump())
        try:
            await self._ended()
            await asyncio.wait({pump}, timeout=_DRAIN_SECONDS)
        finally:
            for task in (*company, pump):
                task.cancel()
            await asyncio.gather(*company, pump, return_exceptions=True)
        return await self._settle(self._run)

    async def _ended(self) -> None:
        """Sleep until the engine says that the container has ended, or is gone."""
        delay = FIRST_DELAY
        while True:
            try:
                await self._engine.container(self._name).wait(condition="not-running")
                container = await self._engine.inspect(self._name)
                if container is None or has_ended(container):
                    return
            except Exception as error:
                if is_gone(error):
                    return
                if not isinstance(error, (ExecutorError, DockerError)) and not is_outage(error):
                    raise
                if delay == FIRST_DELAY:
                    log.warning("container engine away", task=self._run.task_id, reason=str(error))
                    await asyncio.to_thread(self._notes.mark, OUTAGE)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)

    async def _limit_time(self) -> None:
        """End the run at its time limit, counted from its start, whoever was watching since."""
        seconds = self._run.limits.seconds
        if seconds is None:
            return
        await asyncio.sleep(max(0.0, seconds - (time.time_ns() - self._started_ns) / 1e9))
        delay = FIRST_DELAY
        while True:
            try:
                await kill(self._engine, self._run, self._name, TIMED_OUT)
            except Exception as error:
                # The engine is away, and the container runs on without it: it has to end when the engine is back.
                log.warning("time limit cannot be kept yet", task=self._run.task_id, reason=str(error))
            else:
                return
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)

    async def _pump(self) -> None:
        """Copy the output as it comes, from where it broke off if the engine was away."""
        delay = FIRST_DELAY
        while True:
            try:
                await copy_log(self._engine, self._run, self._name, self._log_bytes, follow=True)
                container = await self._engine.inspect(self._name)
                if container is None or has_ended(container) or await self._log_is_full():
                    return
            except DockerError as error:
                if not is_outage(error):
                    log.warning("output cannot be read", task=self._run.task_id, reason=error.message)
                    return
            except Exception as error:
                if not isinstance(error, ExecutorError) and not is_outage(error):
                    raise
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)

    async def _log_is_full(self) -> bool:
        return len(await asyncio.to_thread(self._notes.read_log, self._log_bytes - 1, 1)) > 0

    async def _watch_usage(self) -> None:
        """Sample often at first, so that short runs are seen, then every `sample_seconds`."""
        delay = min(_FIRST_SAMPLE, self._sample_seconds)
        while True:
            await self.sample()
            await asyncio.sleep(delay)
            delay = min(2 * delay, self._sample_seconds)

    async def sample(self) -> Mapping[str, float]:
        """Look now; what was seen so far."""
        async with self._sampling:
            usage = await asyncio.to_thread(self._notes.usage) if self._usage is None else self._usage
            fresh: Usage = usage
            try:
                stats = await self._read_stats()
                fresh = add_sample(usage, stats, started_ns=self._started_ns, now_ns=time.time_ns())
            except Exception as error:
                if not isinstance(error, (ExecutorError, DockerError)) and not is_outage(error):
                    raise
                # Ended just now, or nobody answers: the next one will tell.
            if fresh is not usage:
                await asyncio.to_thread(self._notes.keep_usage, fresh)
            self._usage = fresh
            return fresh.metrics() if fresh.at_ns else {}

    async def _read_stats(self) -> Mapping[str, Any]:
        params = {"stream": "0", "one-shot": "1"}
        stats = await self._engine.get_json(f"containers/{self._name}/stats", params)
        return stats if isinstance(stats, dict) else {}


async def kill(engine: Engine, run: Run, name: str, reason: str) -> None:
    """End the container's whole process tree now, noting first why; nothing if it has ended already.

    :raises ExecutorError: the engine cannot.
    """
    notes = Notes(run.state_dir)
    await asyncio.to_thread(notes.mark, reason)
    try:
        await engine.call(lambda docker: docker.containers.container(name).kill(signal="SIGKILL"))
    except DockerError as error:
        container = await engine.inspect(name)
        if container is not None and not has_ended(container):
            raise ExecutorError(f"cannot end {name}: {error.message}", fatal=False) from error
