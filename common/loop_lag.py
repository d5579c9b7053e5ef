"""How late the event loop is: what a callback waits for because another one does not give the loop back."""

from collections.abc import Callable
from typing import Final

from common.clock import Clock

INTERVAL: Final = 0.5
"""Seconds between two looks."""


class LoopLag:
    """Sleeps, looks by how much it was too long, and tells; for ever.

    :param tell: called with the seconds of each look; must not raise.
    """

    def __init__(self, clock: Clock, tell: Callable[[float], None]) -> None:
        self._clock = clock
        self._tell = tell

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            began = self._clock.monotonic()
            await self._clock.sleep(INTERVAL)
            self._tell(max(0.0, self._clock.monotonic() - began - INTERVAL))
