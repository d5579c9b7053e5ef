"""Tokens that operators made: names, rights and digests, never a token itself."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import frozen

from controller.store.queries import command, query, scalar

TOKENS_CHANNEL = "rap_tokens"
"""Notified with a token's name when it was made or revoked."""


@frozen
class TokenRow:
    name: str
    kind: str
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None
    grants: Mapping[str, Any]
    """Backend -> verbs."""


insert = query("tokens", "insert", str, scalar("name"))
grant = command("tokens", "grant")
of_digest = query("tokens", "of_digest", TokenRow)
of_name = query("tokens", "of_name", TokenRow)
of_backends = query("tokens", "of_backends", TokenRow)
revoke = query("tokens", "revoke", str, scalar("name"))
notify = command("tokens", "notify")
