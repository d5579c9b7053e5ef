"""The loop that reads what happens, once for everybody in this process who follows it, at every wake-up."""

import structlog

from common.clock import Clock
from controller.core.errors import Unavailable
from controller.engine.facade import Engine
from controller.store.events import EVENTS_CHANNEL
from controller.store.listen import Wakeups

log = structlog.get_logger(__name__)

_FAILED_SECONDS = 1.0
"""Pause after a look that could not be made, because the database is away or we have a bug."""


class Broadcaster:
    """Looks when it is woken, and only while somebody follows. After a lost connection everything is woken anyway."""

    def __init__(self, engine: Engine, wakeups: Wakeups, *, clock: Clock) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._clock = clock

    async def run(self) -> None:
        """Broadcast until cancelled. A look that fails is logged and made again; it never ends the loop."""
        with self._wakeups.waiter(EVENTS_CHANNEL, "") as woken:
            while True:
                await self._engine.followed()
                woken.clear()
                if await self._look():
                    await woken.wait()

    async def _look(self) -> bool:
        """Whether the next look has time until there is news."""
        try:
            return await self._engine.broadcast()
        except Unavailable as error:
            log.warning("broadcast_unavailable", error=str(error))
        except Exception:
            log.exception("broadcast_failed")
        await self._clock.sleep(_FAILED_SECONDS)
        return False
