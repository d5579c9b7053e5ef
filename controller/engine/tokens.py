"""Tokens besides those of the settings: operators make and revoke them, every request is recognised by one.

A row holds a token's digest only; whoever asks for a token has made it, so it never travels but in `Authorization`.
What a request asks is remembered for seconds (`known_tokens`); a revoke is notified, so every controller forgets at
once what it remembers.
"""

import enum
from collections.abc import Mapping, Sequence
from datetime import datetime

import structlog
from attrs import frozen

from controller.core.errors import Conflict, Forbidden, NotFound
from controller.core.model import Principal, Verb
from controller.core.tokens import NewToken, TokenKind, holder, kind_of
from controller.engine.admission import admit_operator, managed
from controller.engine.context import Context
from controller.store import tokens
from controller.store.queries import Tx
from controller.store.tokens import TokenRow

log = structlog.get_logger(__name__)


class TokenState(enum.StrEnum):
    """Whether a token opens anything."""

    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"


@frozen(kw_only=True)
class TokenView:
    """A token as an operator sees it; the token itself is nowhere."""

    name: str
    kind: TokenKind
    state: TokenState
    grants: Mapping[str, frozenset[Verb]]
    """Backend -> what it allows there; only backends that the operator manages."""
    elsewhere: bool
    """Whether it opens others, too."""
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None


@frozen(kw_only=True)
class TokenChange:
    """What an operator's command did to a token."""

    changed: bool
    """False if everything was so already."""
    token: TokenView


async def recognise(ctx: Context, digest: bytes, kind: TokenKind) -> Principal | None:
    """Who holds the token of this digest; None if nobody does, or not any more, or not at this door.

    :param kind: at which door.
    :raises Unavailable: the database does not answer, and what it said last is too old.
    """
    row = await _look_up(ctx, digest)
    if row is None:
        return None
    state = _state(row, ctx.clock.now())
    if state is not TokenState.VALID:
        log.info("token_refused", name=row.name, reason=state.value)
        return None
    if row.kind != kind:
        return None
    grants = _grants(row, ctx.backends)
    return Principal(name=holder(row.name), grants=grants) if grants else None


async def create(ctx: Context, principal: Principal, new: NewToken) -> TokenChange:
    """Make a token that opens backends which the caller manages. The same again, as after a lost answer, is no error.

    :raises NotFound: one of the backends is none for this caller.
    :raises Forbidden: the caller does not manage one of them.
    :raises Rejected: the grants make no sense.
    :raises Conflict: the name or the token is in use, or was; nothing changes.
    """
    for backend in new.grants:
        admit_operator(principal, backend)
    kind, now = kind_of(new.grants), ctx.clock.now()
    async with ctx.db.transaction() as tx:
        made = await tokens.insert.one(
            tx,
            name=new.name,
            kind=kind,
            digest=new.digest,
            now=now,
            created_by=principal.name,
            expires_at=None if new.lifetime is None else now + new.lifetime,
        )
        if made is None:
            row = await _same(tx, new, now)
        else:
            for backend, verbs in new.grants.items():
                await tokens.grant.run(tx, token=new.name, backend=backend, verbs=sorted(verbs))
            await tokens.notify.run(tx, channel=tokens.TOKENS_CHANNEL, name=new.name)
            row = await _named(tx, new.name)
    if made is not None:
        ctx.known_tokens.forget()
        opened = sorted(new.grants)
        log.info("token_created", name=new.name, kind=kind.value, backends=opened, principal=principal.name)
    return TokenChange(changed=made is not None, token=_view(ctx, principal, row, now))


async def visible(ctx: Context, principal: Principal) -> Sequence[TokenView]:
    """Tokens that open, or opened, a backend which the caller manages, by name.

    :raises Forbidden: the caller manages none.
    """
    slugs = list(managed(principal))
    now = ctx.clock.now()
    async with ctx.db.connection() as tx:
        rows = await tokens.of_backends.all(tx, backends=slugs)
    return [_view(ctx, principal, row, now) for row in rows]


async def revoke(ctx: Context, principal: Principal, name: str) -> TokenChange:
    """Let a token open nothing any more, on any controller, from the moment that this is committed. Its name stays.

    :raises NotFound: there is no such token on the backends that the caller manages.
    :raises Forbidden: the caller manages no backend, or not all of those that the token opens.
    """
    slugs = set(managed(principal))
    now = ctx.clock.now()
    async with ctx.db.transaction() as tx:
        row = await tokens.of_name.one(tx, name=name)
        if row is None or not slugs & row.grants.keys():
            raise NotFound(f"There is no token {name!r} on the backends that this token manages.", name=name)
        # Backends that left the settings are nobody's: they keep no token alive.
        if not {backend for backend in row.grants if backend in ctx.backends} <= slugs:
            message = f"Token {name!r} opens backends, too, that this token does not manage."
            raise Forbidden(message, name=name)
        done = await tokens.revoke.one(tx, name=name, now=now, revoked_by=principal.name)
        if done is not None:
            await tokens.notify.run(tx, channel=tokens.TOKENS_CHANNEL, name=name)
        row = await _named(tx, name)
    if done is not None:
        ctx.known_tokens.forget()
        log.info("token_revoked", name=name, principal=principal.name)
    return TokenChange(changed=done is not None, token=_view(ctx, principal, row, now))


async def _look_up(ctx: Context, digest: bytes) -> TokenRow | None:
    asked_at, generation = ctx.clock.monotonic(), ctx.known_tokens.generation
    known = ctx.known_tokens.find(digest, now=asked_at)
    if known is not None:
        return known[0]
    async with ctx.db.connection() as tx:
        row = await tokens.of_digest.one(tx, digest=digest)
    ctx.known_tokens.remember(digest, row, asked_at=asked_at, generation=generation)
    return row


async def _same(tx: Tx, new: NewToken, now: datetime) -> TokenRow:
    """The token that exists already, if it is the one that is asked for.

    :raises Conflict: it is another one.
    """
    row = await tokens.of_digest.one(tx, digest=new.digest)
    if row is None:
        message = f"The name {new.name!r} is taken, be it by a token that was revoked: choose another one."
        raise Conflict(message, name=new.name)
    granted = {backend: frozenset(verbs) for backend, verbs in row.grants.items()}
    lifetime = None if row.expires_at is None else row.expires_at - row.created_at
    if (row.name, granted, lifetime) != (new.name, dict(new.grants), new.lifetime):
        raise Conflict("This token exists already, with another name or other rights: make a new one.", name=new.name)
    if _state(row, now) is not TokenState.VALID:
        raise Conflict(f"Token {new.name!r} was made before, and is {_state(row, now)}: make a new one.", name=new.name)
    return row


async def _named(tx: Tx, name: str) -> TokenRow:
    row = await tokens.of_name.one(tx, name=name)
    if row is None:
        raise RuntimeError("a token that was just written is not there")
    return row


def _state(row: TokenRow, now: datetime) -> TokenState:
    if row.revoked_at is not None:
        return TokenState.REVOKED
    expired = row.expires_at is not None and row.expires_at <= now
    return TokenState.EXPIRED if expired else TokenState.VALID


def _grants(row: TokenRow, backends: Mapping[str, object]) -> dict[str, frozenset[Verb]]:
    """The row's grants in the order of `backends`, and on no other; a verb of a newer version means nothing here."""
    return {
        backend: frozenset(verb for verb in Verb if verb in row.grants[backend])
        for backend in backends
        if backend in row.grants
    }


def _view(ctx: Context, principal: Principal, row: TokenRow, now: datetime) -> TokenView:
    """The token as an operator may see it: other operators' backends are none of theirs."""
    granted = _grants(row, ctx.backends)
    shown = {backend: verbs for backend, verbs in granted.items() if principal.may(Verb.MANAGE, backend)}
    return TokenView(
        name=row.name,
        kind=TokenKind(row.kind),
        state=_state(row, now),
        grants=shown,
        elsewhere=len(shown) < len(granted),
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        revoked_by=row.revoked_by,
    )
