"""`GET tokens`, `POST tokens`, `POST tokens/{token}/revoke`: who else may use the caller's backends.

A token never comes by here: who wants one makes it (`rap_` and 32 random bytes in base64url, without padding) and
sends its digest. So none can get into a log on its way, and asking again after a lost answer is no error.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

from aiohttp import web
from attrs import field, frozen

from controller.core.errors import NotFound
from controller.core.model import Verb
from controller.core.tokens import NewToken
from controller.dialects.native import query, times
from controller.engine import tokens
from controller.web import body, json_api
from controller.web.keys import ENGINE

BODY: Final = query.CONTRACT.shape("newToken")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@frozen(kw_only=True)
class Asked:
    """Body of `POST tokens`."""

    name: str
    digest: str = field(repr=False)
    """SHA-256 of the token, in hexadecimal."""
    grants: Mapping[str, Sequence[str]]
    """Backend -> verbs."""
    lifetime_seconds: int | None = None
    """Null: until it is revoked."""


@frozen(kw_only=True)
class Token:
    """A token, without itself."""

    name: str
    kind: str
    """`client` or `agent`."""
    state: str
    """`valid`, `expired` or `revoked`."""
    grants: Mapping[str, tuple[str, ...]]
    elsewhere: bool
    """Whether it opens backends, too, that the caller does not manage."""
    created_at: str
    created_by: str
    expires_at: str | None
    revoked_at: str | None
    revoked_by: str | None


@frozen(kw_only=True)
class Tokens:
    """Answer to `GET tokens`."""

    tokens: tuple[Token, ...]


@frozen(kw_only=True)
class Changed:
    """Answer to `POST tokens` and `POST tokens/{token}/revoke`: `changed` is false if everything was so already."""

    changed: bool
    token: Token


def add_to(app: web.Application) -> None:
    """Serve it."""
    app.router.add_get("/tokens", show)
    app.router.add_post("/tokens", create)
    app.router.add_post("/tokens/{token}/revoke", revoke)


async def show(request: web.Request) -> web.Response:
    """The tokens of the backends that the caller manages."""
    principal = await query.caller(request)
    found = await request.config_dict[ENGINE].tokens(principal)
    return json_api.send(Tokens(tokens=tuple(token(each) for each in found)))


async def create(request: web.Request) -> web.Response:
    """Let a new token in."""
    principal = await query.caller(request)
    new = new_token(await body.read(request, query.MAX_BODY))
    return json_api.send(changed(await request.config_dict[ENGINE].create_token(principal, new)))


async def revoke(request: web.Request) -> web.Response:
    """Let a token in no more."""
    principal = await query.caller(request)
    name = request.match_info["token"]
    if not _NAME.fullmatch(name):
        raise NotFound("There is no token with this name.")
    return json_api.send(changed(await request.config_dict[ENGINE].revoke_token(principal, name)))


def new_token(raw: bytes) -> NewToken:
    """The body of `POST tokens`.

    :raises MalformedBody: it is not what the contract says; an unknown key is a fault, as a misspelt one would be.
    """
    found = body.parse_unicode(raw)
    BODY.check(found)
    asked = Asked(**found)
    return NewToken(
        name=asked.name,
        digest=bytes.fromhex(asked.digest),
        grants={backend: frozenset(Verb(verb) for verb in verbs) for backend, verbs in asked.grants.items()},
        lifetime=None if asked.lifetime_seconds is None else timedelta(seconds=asked.lifetime_seconds),
    )


def token(value: tokens.TokenView) -> Token:
    """A token in this API's words; verbs in the order of the contract."""
    return Token(
        name=value.name,
        kind=value.kind.value,
        state=value.state.value,
        grants={
            backend: tuple(verb.value for verb in Verb if verb in verbs) for backend, verbs in value.grants.items()
        },
        elsewhere=value.elsewhere,
        created_at=times.timestamp(value.created_at),
        created_by=value.created_by,
        expires_at=times.maybe(value.expires_at),
        revoked_at=times.maybe(value.revoked_at),
        revoked_by=value.revoked_by,
    )


def changed(value: tokens.TokenChange) -> Changed:
    """What a command did to a token."""
    return Changed(changed=value.changed, token=token(value.token))
