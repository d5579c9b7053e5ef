"""The pool, transactions, and the one place where a lost database becomes `Unavailable`."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import orjson
from asyncpg.connection import LoggedQuery
from attrs import frozen

from controller.core.errors import Unavailable
from controller.core.observer import UNOBSERVED, Observer
from controller.store.queries import Tx

_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.QueryCanceledError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InternalClientError,  # what it makes of a connection that ends in the middle of a statement
)
"""What says "not now" rather than "never": the same call may succeed later."""


def _encode_jsonb(value: Any) -> bytes:
    return b"\x01" + orjson.dumps(value)


def _decode_jsonb(data: bytes) -> Any:
    return orjson.loads(data[1:])


async def prepare_connection(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """What every connection of ours needs: jsonb as Python data."""
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", format="binary", encoder=_encode_jsonb, decoder=_decode_jsonb
    )


_ACQUIRE_SECONDS = 10.0
"""How long a request waits for a free connection before it is told to come back."""


@frozen(kw_only=True)
class PoolState:
    """Connections of a pool."""

    limit: int
    """The most that it holds."""
    size: int
    """Open ones."""
    idle: int
    """Open ones that nobody uses."""
    waiting: int
    """Callers that wait for one."""


class TakenBack(Exception):
    """Raised in a transaction to leave it without its effect, carrying the answer out of it."""

    def __init__(self, answer: Any) -> None:
        super().__init__("a transaction was taken back on purpose")
        self.answer = answer


class Database:
    """A pool of connections to one PostgreSQL database.

    :param dsn: a libpq URL.
    :param pool_size: the most connections held at once.
    :param observer: told of every statement and of every wait for a connection.
    """

    def __init__(self, dsn: str, *, pool_size: int = 10, observer: Observer = UNOBSERVED) -> None:
        self.dsn = dsn
        self._observer = observer
        self._pool = asyncpg.create_pool(
            dsn, min_size=1, max_size=pool_size, init=self._prepare, command_timeout=60, timeout=10
        )
        self._waiting = 0

    @property
    def pool(self) -> PoolState:
        """How the pool is doing at this moment."""
        return PoolState(
            limit=self._pool.get_max_size(),
            size=self._pool.get_size(),
            idle=self._pool.get_idle_size(),
            waiting=self._waiting,
        )

    async def _prepare(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        await prepare_connection(connection)
        if self._observer is not UNOBSERVED:
            connection.add_query_logger(self._tell)

    def _tell(self, query: LoggedQuery) -> None:
        self._observer.queried(query.query, seconds=query.elapsed, failed=query.exception is not None)

    async def open(self) -> None:
        """Connect.

        :raises Unavailable: nobody answers.
        """
        with _translated():
            try:
                await self._pool
            except (asyncpg.PostgresError, ValueError, OverflowError) as error:
                # No such database or user, no permission, a URL that makes no sense: only before the first use.
                raise Unavailable(f"The database cannot be used: {error}") from error

    async def close(self) -> None:
        """Let every connection go; those in use get a moment to finish."""
        try:
            async with asyncio.timeout(5):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        """A connection in a transaction: committed on leaving, rolled back on any exception.

        :raises Unavailable: the database is away, or went away before it confirmed the commit. What was done may
            then be there or not, so every caller's operation is idempotent.
        """
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Tx]:
        """A connection whose every statement is its own transaction: for reads and single statements."""
        with _translated():
            self._waiting += 1
            began = time.monotonic()
            try:
                connection = await self._pool.acquire(timeout=_ACQUIRE_SECONDS)
            except asyncpg.PostgresError as error:
                # Whatever keeps the server from letting us in, it is no fault of the request.
                raise Unavailable("The database is not available; try again.") from error
            finally:
                self._waiting -= 1
                self._observer.connected(seconds=time.monotonic() - began)
            try:
                yield connection
            finally:
                await self._pool.release(connection)


@contextmanager
def _translated() -> Iterator[None]:
    """Raise `Unavailable` for what the database's absence raises; everything else passes."""
    try:
        yield
    except asyncpg.InterfaceError as error:
        if isinstance(error, ValueError):
            raise  # a value that cannot be sent is a bug of ours: trying again would not help
        # asyncpg says so when a connection or the pool was closed under a caller.
        raise Unavailable("The database connection was lost; try again.") from error
    except _AWAY as error:
        raise Unavailable("The database is not available; try again.") from error
