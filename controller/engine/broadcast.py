"""What happened a moment ago, once in memory for everybody in this process who follows it.

There is no queue per reader: the newest events of each backend are kept here, and each reader only knows its place in
them. So a thousand readers cost one read of the database per wake-up, and one who does not read costs nothing: it finds
its place gone.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

from attrs import define, field

from controller.core.happenings import Happened

LATELY: Final = 5_000
"""Events of a backend that are kept in memory at least; a reader further behind is dropped."""


@define
class Recent:
    """The newest events of one backend, numbered without a gap."""

    head: int
    """Number of the newest event that is known; those after it are told to everybody."""
    events: list[Happened] = field(factory=list)

    @property
    def before(self) -> int:
        """Number of the event just before the oldest one here: whoever has seen it can go on from memory."""
        return self.head - len(self.events)

    def after(self, place: int, most: int) -> Sequence[Happened]:
        """Up to `most` events after the one with this number, which must not be older than `before`."""
        start = max(0, place - self.before)
        return self.events[start : start + most]

    def add(self, event: Happened, kept: int) -> None:
        """The next event; after a gap, which only an outage longer than events are kept leaves, it is all there is."""
        if event.seq != self.head + 1:
            self.events.clear()
        self.events.append(event)
        self.head = event.seq
        if len(self.events) >= 2 * kept:
            del self.events[:-kept]


class Broadcast:
    """The newest events of every backend, while anybody reads.

    :param lately: how many of a backend's events a reader may be behind, at least.
    """

    def __init__(self, *, lately: int = LATELY) -> None:
        self._lately = lately
        self._changed = asyncio.Event()
        self.recent: dict[str, Recent] = {}
        """By backend; empty while nobody reads."""
        self.readers = 0
        """How many follow now."""
        self.wanted = asyncio.Event()
        """Set while somebody follows."""

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next news; take it before looking."""
        return self._changed

    def poke(self) -> None:
        """Have every reader look: there is news, or a token may have been revoked, or the process is about to stop."""
        self._changed.set()
        self._changed = asyncio.Event()

    def begin(self, backend: str, head: int) -> None:
        """Tell of a backend from here on: what comes after its event number `head`."""
        self.recent[backend] = Recent(head)

    def add(self, events: Iterable[Happened]) -> None:
        """News, in the order of their numbers per backend; of backends that were begun."""
        for event in events:
            self.recent[event.backend].add(event, self._lately)
        self.poke()

    def join(self) -> None:
        """One reader more."""
        self.readers += 1
        self.wanted.set()

    def leave(self) -> None:
        """One reader less."""
        self.readers -= 1

    def rest(self) -> bool:
        """Forget everything if nobody reads; whether that is so."""
        if not self.readers:
            self.wanted.clear()
            self.recent.clear()
        return not self.readers
