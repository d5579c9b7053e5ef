"""A short memory of tokens, so that not every request asks the database: what is known is forgotten at every
notification about tokens, and by age, because a notification may get lost.
"""

from collections import OrderedDict
from typing import Final

from attrs import field, frozen

from controller.store.tokens import TokenRow

FRESH_SECONDS: Final = 10.0
"""How long something is believed without another look."""
MOST_UNKNOWN: Final = 1000
"""Digests of tokens that do not exist: guesses must not fill the memory."""


@frozen
class _Entry:
    asked_at: float
    row: TokenRow | None = field(repr=False)


class KnownTokens:
    """What the database said of a digest, and when. Tokens that exist are as many as operators made."""

    def __init__(self) -> None:
        self.generation = 0
        """Grows whenever all is forgotten; an answer that was asked for before is out of date."""
        self._known: dict[bytes, _Entry] = {}
        self._unknown: OrderedDict[bytes, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known) + len(self._unknown)

    def find(self, digest: bytes, *, now: float) -> tuple[TokenRow | None] | None:
        """A tuple of what is known (None: there is no such token), or None if the database must be asked.

        :param now: seconds on a clock that never goes back.
        """
        entry = self._known.get(digest) or self._unknown.get(digest)
        if entry is None or now - entry.asked_at >= FRESH_SECONDS:
            return None
        return (entry.row,)

    def remember(self, digest: bytes, row: TokenRow | None, *, asked_at: float, generation: int) -> None:
        """Keep an answer, unless all was forgotten since it was asked for."""
        if generation != self.generation:
            return
        entry = _Entry(asked_at, row)
        if row is not None:
            self._unknown.pop(digest, None)
            self._known[digest] = entry
            return
        self._known.pop(digest, None)
        self._unknown[digest] = entry
        self._unknown.move_to_end(digest)
        if len(self._unknown) > MOST_UNKNOWN:
            self._unknown.popitem(last=False)

    def forget(self) -> None:
        """Believe nothing any more: a token was made or revoked, or notifications may have been missed."""
        self.generation += 1
        self._known.clear()
        self._unknown.clear()
