"""What measuring wants to be told of.

The engine, the store and the web layer call an `Observer` that the composition root hands to them; none of them knows
what becomes of it. Every method returns at once and never raises.
"""

from collections.abc import Sequence

from controller.core.machine import Move
from controller.core.model import Task


class Observer:
    """Is told, and does nothing about it: whoever wants to measure overrides what it needs."""

    def answered(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """A request is over. `route` is a template, never what the client sent."""

    def created(self, *, backend: str, jobs: int) -> None:
        """A RAP with so many jobs was stored."""

    def moved(self, moves: Sequence[Move]) -> None:
        """A transaction that did this to jobs was committed."""

    def dispatched(self, task: Task, *, seconds: float) -> None:
        """An agent has taken a task for the first time, so many seconds after it was made."""

    def queried(self, sql: str, *, seconds: float, failed: bool) -> None:
        """The database has answered a statement, or not."""

    def connected(self, *, seconds: float) -> None:
        """Somebody got a connection of the pool after waiting for it."""

    def lagged(self, *, seconds: float) -> None:
        """The event loop was so much later than it should have been."""


UNOBSERVED = Observer()
"""For whoever does not measure."""
