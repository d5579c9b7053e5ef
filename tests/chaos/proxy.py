"""A bad network: an HTTP proxy that drops, delays, repeats and cuts requests and answers.

It stands between everybody and the controllers, takes one request per connection, and sends it to one controller after
the other. What becomes of a request is drawn from the plan's rates; `mend` makes it a good network.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any, Final

import attrs
from attrs import define, field, frozen

from tests.chaos.plan import Rates

_PATIENCE: Final = 60.0
_LATEST: Final = 4.0
"""Seconds after which a repeated request comes at the latest."""


@frozen
class _Request:
    head: bytes
    body: bytes

    @property
    def whole(self) -> bytes:
        return self.head + self.body


class _Away(Exception):
    """One of the two ends is gone."""


@define
class Proxy:
    """One listener. `port` is known after `start`."""

    upstreams: Sequence[int]
    rates: Rates
    rng: random.Random
    port: int = 0
    met: Counter[str] = field(factory=Counter)
    """What has become of requests so far."""
    _mended: bool = False
    _next: int = 0
    _server: asyncio.Server | None = None
    _work: set[asyncio.Task[None]] = field(factory=set)

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def mend(self) -> None:
        """From now on every request passes untouched."""
        self._mended = True

    async def close(self) -> None:
        """End everything that is under way."""
        if self._server is not None:
            self._server.close()
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._spawn(self._serve(reader, writer))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await _read_request(reader)
            fate = self._draw()
            self.met[fate] += 1
            await self._handle(fate, request, reader, writer)
        except (_Away, OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # whoever it was will try again
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _draw(self) -> str:
        if self._mended:
            return "passed"
        point = self.rng.random()
        for name, rate in attrs.asdict(self.rates).items():
            point -= rate
            if point < 0:
                return str(name)
        return "passed"

    async def _handle(
        self, fate: str, request: _Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if fate == "drop":
            return
        if fate == "delay":
            await asyncio.sleep(self.rng.uniform(0.05, 1.5))
        if fate == "truncate_request":
            await self._send_part(request)
            return
        if fate == "duplicate":
            self._spawn(self._repeat(request, 0.0))
        if fate == "replay_later":
            self._spawn(self._repeat(request, self.rng.uniform(0.2, _LATEST)))
        answer = await self._forward(request, reader)
        if fate == "lose_answer":
            return
        if fate == "truncate_answer":
            answer = answer[: self.rng.randrange(len(answer))]
        writer.write(answer)
        await writer.drain()

    async def _repeat(self, request: _Request, after: float) -> None:
        """Send a request once more; nobody hears the answer."""
        await asyncio.sleep(after)
        with contextlib.suppress(_Away, OSError, TimeoutError):
            await self._forward(request, None)

    async def _send_part(self, request: _Request) -> None:
        whole = request.whole
        _, writer = await self._connect()
        writer.write(whole[: self.rng.randrange(1, len(whole))])
        await writer.drain()
        writer.close()

    async def _forward(self, request: _Request, client: asyncio.StreamReader | None) -> bytes:
        """The whole answer. A client that goes away takes its request along."""
        upstream, writer = await self._connect()
        writer.write(request.whole)
        answering = asyncio.ensure_future(upstream.read(-1))
        leaving = asyncio.ensure_future(_gone(client))
        try:
            await writer.drain()
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED, timeout=_PATIENCE)
            if not answering.done():
                raise _Away
            if not (answer := answering.result()):
                raise _Away
            return answer
        finally:
            for waiting in (answering, leaving):
                waiting.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the controller whose turn it is, or to another one."""
        for _ in self.upstreams:
            self._next += 1
            with contextlib.suppress(OSError, TimeoutError):
                return await asyncio.wait_for(
                    asyncio.open_connection("127.0.0.1", self.upstreams[self._next % len(self.upstreams)]), 2
                )
        raise _Away


async def _gone(client: asyncio.StreamReader | None) -> None:
    """Return when the client has hung up; never, if there is none."""
    if client is None:
        await asyncio.get_running_loop().create_future()
    else:
        await client.read(1)


async def _read_request(reader: asyncio.StreamReader) -> _Request:
    """One request, made one that ends its connection.

    :raises asyncio.IncompleteReadError: the client hung up.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head[:-4].split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith(b"connection:")]
    length = next((line.partition(b":")[2] for line in lines if line.lower().startswith(b"content-length:")), b"0")
    body = await reader.readexactly(int(length))
    return _Request(b"\r\n".join([*kept, b"Connection: close", b"", b""]), body)
