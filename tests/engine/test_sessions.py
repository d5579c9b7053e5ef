"""Sessions of the dashboard in the database: known to every controller, by digest only, and over in time."""

from datetime import timedelta
from pathlib import Path

from common import tokens
from controller.engine.facade import Engine
from controller.engine.sessions import LIFETIME
from tests.engine.conftest import Harness, make_context

TOKEN = tokens.digest("a token")


async def test_a_session_is_known_to_every_controller(harness: Harness, tmp_path: Path) -> None:
    begun = await harness.engine.begin_session(TOKEN)
    assert begun.expires_at == harness.clock.now() + LIFETIME
    other = Engine(make_context(harness.context.db, harness.clock, tmp_path / "other"))
    assert await other.session_token(begun.secret) == TOKEN
    await other.end_session(begun.secret)
    assert await harness.engine.session_token(begun.secret) is None


async def test_a_session_ends_in_time_and_is_forgotten(harness: Harness) -> None:
    begun = await harness.engine.begin_session(TOKEN)
    harness.clock.advance((LIFETIME - timedelta(seconds=1)).total_seconds())
    assert await harness.engine.session_token(begun.secret) == TOKEN
    harness.clock.advance(1)
    assert await harness.engine.session_token(begun.secret) is None
    await harness.engine.begin_session(TOKEN)
    assert await rows(harness) == 1


async def test_nothing_in_the_database_opens_anything(harness: Harness) -> None:
    begun = await harness.engine.begin_session(TOKEN)
    async with harness.context.db.connection() as tx:
        (row,) = await tx.fetch("SELECT * FROM session")
    assert begun.secret not in str(dict(row))
    assert begun.secret not in repr(begun)
    for value in (row["digest"], row["token"]):
        assert await harness.engine.session_token(value.hex()) is None
    for guess in ("x", "'", "\udcff"):
        assert await harness.engine.session_token(guess) is None


async def test_two_sessions_are_two(harness: Harness) -> None:
    first, second = [await harness.engine.begin_session(TOKEN) for _ in range(2)]
    assert first.secret != second.secret
    await harness.engine.end_session(first.secret)
    assert await harness.engine.session_token(second.secret) == TOKEN


async def rows(harness: Harness) -> int:
    async with harness.context.db.connection() as tx:
        found: int = await tx.fetchval("SELECT count(*) FROM session")
    return found
