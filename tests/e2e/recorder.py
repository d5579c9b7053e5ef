"""A wire-tap between agent and controller: passes everything on, and keeps every byte that the agent sent."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from attrs import define, field


@define
class Recorder:
    """What the agent has sent so far, in pieces as they came."""

    pieces: list[bytes] = field(factory=list)

    @property
    def sent(self) -> bytes:
        """All of it."""
        return b"".join(self.pieces)

    def between(self) -> Callable[[str], AbstractAsyncContextManager[str]]:
        """Given the controller's `host:port`, a context in which another `host:port` leads there."""

        @asynccontextmanager
        async def listening(target: str) -> AsyncIterator[str]:
            host, _, port = target.rpartition(":")

            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(ConnectionError):
                    upstream, onward = await asyncio.open_connection(host, int(port))
                    await asyncio.gather(
                        _pass_on(reader, onward, self.pieces.append), _pass_on(upstream, writer, lambda _: None)
                    )

            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            async with server:
                yield "{}:{}".format(*server.sockets[0].getsockname()[:2])

        return listening


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keep: Callable[[bytes], object]) -> None:
    try:
        while piece := await reader.read(1 << 16):
            keep(piece)
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
