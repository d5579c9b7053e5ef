"""Checks of the database of RAP_DATABASE_URL, from here and without a controller."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

import asyncpg

from cli.doctor import findings
from common.environ import ConfigurationError
from controller.core.diagnosis import Finding, check_database
from controller.engine.diagnosing import database_facts
from controller.settings import database_url
from controller.store import schema

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
else:  # the class takes no parameters at run time
    Connection = asyncpg.Connection

_HERE: Final = frozenset({"", "localhost", "127.0.0.1", "::1"})
_SECONDS: Final = 10.0


async def check(environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Reachable, new enough, durable, of the right schema, with room on its disk if that is here."""
    try:
        url = database_url(environ)
    except ConfigurationError as error:
        return [findings.problem("database", f"{error}.", "correct RAP_DATABASE_URL")]
    try:
        connection = await asyncpg.connect(url, timeout=_SECONDS, command_timeout=_SECONDS)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        # The text of a connection's failure names host and user, never the password.
        why = str(error) or "it does not answer"
        advice = "start PostgreSQL, or correct RAP_DATABASE_URL; then: rap doctor"
        return [findings.problem("database", f"The database of RAP_DATABASE_URL cannot be reached: {why}.", advice)]
    try:
        found = [findings.ok("database", "The database answers.")]
        found += check_database(await database_facts(connection), datetime.now(UTC))
        found.append(await _schema(connection))
        if _is_here(url):
            found += await _disk(connection)
        return found
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        return [findings.problem("database", f"The database stopped answering: {error}.", "look at PostgreSQL's log")]
    finally:
        await connection.close(timeout=_SECONDS)


async def _schema(connection: Connection) -> Finding:
    try:
        await schema.check(connection)
    except schema.SchemaError as error:
        return findings.problem("schema", str(error), "rap migrate")
    return findings.ok("schema", "The schema is the one that this version works with.")


def _is_here(url: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or parse_qs(parts.query).get("host", [""])[0]
    return host in _HERE or host.startswith("/")


async def _disk(connection: Connection) -> list[Finding]:
    """Only a superuser, or whoever may read all settings, learns where the data lies."""
    try:
        folder = await connection.fetchval("SHOW data_directory")
    except asyncpg.InsufficientPrivilegeError:
        return []
    return _disk_of(Path(folder))


def _disk_of(folder: Path) -> list[Finding]:
    """Nothing if it is not there: the server is in a container, say."""
    try:
        there = folder.exists()
    except OSError:
        there = False
    return [findings.disk("database_disk", "the database", folder)] if there else []
