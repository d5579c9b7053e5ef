"""A database to protect: a PostgreSQL that opens to a password only, behind a door that notes who comes.

It listens at one address, which only those reach who are let into its network.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
from attrs import define, field

from cli.stack.postgres import Postgres
from tests.e2e.processes import eventually

PASSWORD = "canary-password-0815"


@define
class Door:
    """The one way to the database."""

    host: str
    """How those call it who may come in."""
    address: str
    """Where it is, by whatever name."""
    port: int = 0
    peers: list[str] = field(factory=list)
    """Addresses of those who came."""
    dsn: str = field(default="", repr=False)
    """For the tests themselves, which have another way."""

    @property
    def url(self) -> str:
        """What the agent has as DEFAULT_DATABASE_URL."""
        return f"postgresql://reader:{PASSWORD}@{self.host}:{self.port}/patients"

    async def execute(self, statement: str) -> None:
        """Change something inside, as its owner."""
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, socket: str) -> None:
        """Carry to and fro what one comer and PostgreSQL have to say to each other."""
        self.peers.append(writer.get_extra_info("peername")[0])
        inner, outer = await asyncio.open_unix_connection(socket)
        await asyncio.gather(_pump(reader, outer), _pump(inner, writer))


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while piece := await source.read(1 << 16):
            target.write(piece)
            await target.drain()
    except ConnectionError:
        pass  # who is killed says no goodbye
    finally:
        target.close()


@asynccontextmanager
async def patients(server: Postgres, host: str, address: str) -> AsyncIterator[Door]:
    """The database `patients` of a server, and its door, open."""
    admin = await asyncpg.connect(server.dsn("postgres"))
    try:
        await admin.execute("CREATE DATABASE patients")
        await admin.execute(f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'")
        door = Door(host=host, address=address, dsn=server.dsn("patients"))
        await door.execute("CREATE TABLE patients AS SELECT 7 AS id, 'a patient' AS name")
        await door.execute("CREATE TABLE state AS SELECT 'none;1' AS mode, '202311' AS newest")
        await door.execute("GRANT SELECT ON patients, state TO reader")
        await _ask_for_passwords(server, admin)
        folder = parse_qs(urlsplit(door.dsn).query)["host"][0]

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await door.carry(reader, writer, f"{folder}/.s.PGSQL.5432")

        async with await asyncio.start_server(carry, address, 0) as listening:
            door.port = listening.sockets[0].getsockname()[1]
            yield door
    finally:
        await admin.execute("DROP DATABASE IF EXISTS patients WITH (FORCE)")
        await admin.execute("DROP ROLE IF EXISTS reader")
        await admin.close()


async def _ask_for_passwords(server: Postgres, admin: Any) -> None:
    """The tests' server trusts whoever reaches its socket, but not this role."""
    rules = server.folder / "pg_hba.conf"
    line = "local all reader scram-sha-256\n"
    text = await asyncio.to_thread(rules.read_text)
    if not text.startswith(line):
        await asyncio.to_thread(rules.write_text, line + text)
        await admin.execute("SELECT pg_reload_conf()")

    async def refused() -> bool | None:
        try:
            stranger = await asyncpg.connect(server.dsn("patients").replace("postgres@", "reader:wrong@"))
        except asyncpg.InvalidPasswordError:
            return True
        await stranger.close()
        return None

    await eventually(refused)
