"""Tokens of our making: what they look like, so that they are found where they should not be, and how they are kept.

A token is 32 random bytes, so its plain SHA-256 digest tells nothing about it: the slow hashes that protect passwords
would only make every request slow.
"""

import hashlib
import re
import secrets
from typing import Final

PREFIX: Final = "rap_"
FORM: Final = re.compile(r"rap_[A-Za-z0-9_-]{43}")


def make() -> str:
    """A fresh token."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(token: str) -> bytes:
    """What is kept of a token, whatever its form: 32 bytes.

    :raises ValueError: it is empty.
    """
    if not token:
        raise ValueError("a token must not be empty")
    # surrogatepass: headers may carry bytes that are no UTF-8, and a wrong token is never a crash.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
