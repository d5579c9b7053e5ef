"""What happened lately, as rows: written with what it tells of, in one transaction, and read by whoever follows it.

Events of one backend are numbered without a gap, in the order of the commits, so "everything after number n" loses
nothing and repeats nothing, however transactions are interleaved.
"""

from collections.abc import Sequence
from typing import Final

import attrs
from attrs import frozen

from controller.core.happenings import Happened, Happening
from controller.store.queries import Tx, command, query

EVENTS_CHANNEL: Final = "rap_events"
"""Notified, without a name, when something has happened on any backend."""
KEPT: Final = 100_000
"""Events of a backend that a reader who was away finds again, at least."""


@frozen
class BoundsRow:
    backend: str
    last: int
    first: int


_record = command("events", "record")
bounds = query("events", "bounds", BoundsRow)
after = query("events", "after", Happened)


async def record(tx: Tx, backend: str, happened: Sequence[Happening], *, kept: int = KEPT) -> None:
    """Tell what this transaction does, once it is committed; others who tell of the backend wait until then.

    :param tx: holds the backend's lock, or does nothing more after this.
    :param kept: how many of the backend's events are there to be read again.
    """
    if happened:
        rows = [attrs.asdict(each) for each in happened]
        await _record.run(tx, backend=backend, events=rows, kept=kept, channel=EVENTS_CHANNEL)
