"""What a token that an operator makes may be."""

import enum
from collections.abc import Mapping
from datetime import timedelta

from attrs import field, frozen

from controller.core.errors import Rejected
from controller.core.model import Verb


class TokenKind(enum.StrEnum):
    """Whose door a token opens: the clients' (portals, people) or the agents'."""

    CLIENT = "client"
    AGENT = "agent"


@frozen(kw_only=True)
class NewToken:
    """A token to be made, after its dialect has checked the shape."""

    name: str
    digest: bytes = field(repr=False)
    """SHA-256 of the token, which whoever asks has made and keeps to themselves."""
    grants: Mapping[str, frozenset[Verb]]
    """Backend -> what it shall allow there; never empty."""
    lifetime: timedelta | None
    """None: until it is revoked."""


def kind_of(grants: Mapping[str, frozenset[Verb]]) -> TokenKind:
    """The kind of a token with these grants.

    :raises Rejected: it would open both doors, or a backend for nothing, or let somebody act without seeing.
    """
    if not grants or not all(grants.values()):
        raise Rejected("A token opens at least one backend, for at least one thing.", field="grants")
    if all(verbs == {Verb.AGENT} for verbs in grants.values()):
        return TokenKind.AGENT
    if any(Verb.AGENT in verbs for verbs in grants.values()):
        raise Rejected("A token is either an agent's or a client's: `agent` goes with no other verb.", field="grants")
    if not all(Verb.READ in verbs for verbs in grants.values()):
        raise Rejected("Other verbs go with `read`: a portal that cannot read its RAPs takes them for lost.")
    return TokenKind.CLIENT


def holder(name: str) -> str:
    """What whoever shows the token called `name` is called in logs and histories."""
    return f"token {name}"
