"""Sessions of people at a browser: begun with a token, kept in the database so that every controller knows them.

The browser holds a random secret, the database its digest and the digest of the token. Nobody who reads the database
can make a cookie of it, and nobody who has the cookie can make the token of it. A session grants nothing by itself:
its token is looked up at every request, so it ends when the token is revoked, expires, or leaves the settings.
"""

import secrets
from datetime import datetime, timedelta
from typing import Final

from attrs import field, frozen

from common import tokens
from controller.engine.context import Context
from controller.store import sessions

LIFETIME: Final = timedelta(hours=12)
"""However busy it is: a working day. Then the token is asked for again."""


@frozen(kw_only=True)
class NewSession:
    """A session that has begun."""

    secret: str = field(repr=False)
    """For the browser alone; it is kept nowhere."""
    expires_at: datetime


async def begin(ctx: Context, token: bytes) -> NewSession:
    """Begin a session for whoever has shown a token.

    :param token: its digest.
    :raises Unavailable: the database is away.
    """
    secret, now = secrets.token_urlsafe(32), ctx.clock.now()
    async with ctx.db.transaction() as tx:
        await sessions.delete_expired.run(tx, now=now)
        await sessions.insert.run(tx, digest=tokens.digest(secret), token=token, expires_at=now + LIFETIME)
    return NewSession(secret=secret, expires_at=now + LIFETIME)


async def token_of(ctx: Context, secret: str) -> bytes | None:
    """The digest of the token that a session was begun with; None if there is no such session, or it is over.

    :raises Unavailable: the database is away.
    """
    async with ctx.db.connection() as tx:
        return await sessions.find.one(tx, digest=tokens.digest(secret), now=ctx.clock.now())


async def end(ctx: Context, secret: str) -> None:
    """Forget a session, on every controller at once.

    :raises Unavailable: the database is away.
    """
    async with ctx.db.transaction() as tx:
        await sessions.delete.run(tx, digest=tokens.digest(secret))
