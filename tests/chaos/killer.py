"""Breaks what the plan says, when it says so, and mends it again."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import structlog
from attrs import define, field

from tests.chaos.cluster import Cluster, Service
from tests.chaos.plan import DATABASE, KILLS, Fault, Kind
from tests.chaos.portal import Portal

_log = structlog.get_logger()


@define
class Killer:
    """Carries out faults."""

    cluster: Cluster
    portal: Portal
    done: Counter[Kind] = field(factory=Counter)
    kills: int = 0
    """How many of them hit somebody who was alive."""

    async def carry_out(self, faults: tuple[Fault, ...], started: float) -> None:
        """All of them; return when the last is mended."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, started + fault.at - time.monotonic()))
                _log.info("fault", kind=fault.kind.value, target=fault.target, seconds=fault.seconds)
                group.create_task(self._commit(fault))

    async def _commit(self, fault: Fault) -> None:
        self.done[fault.kind] += 1
        if fault.target == DATABASE:
            self.kills += 1
            await self.cluster.kill_postgres(fault.seconds)
            return
        operate = self._operating(fault)
        if operate is not None:
            await operate()
            return
        service = self.cluster.services[fault.target]
        if fault.kind is Kind.STOP:
            service.signal(signal.SIGSTOP)
            await asyncio.sleep(fault.seconds)
            service.signal(signal.SIGCONT)
            return
        await self._end(service, fault)

    async def _end(self, service: Service, fault: Fault) -> None:
        service.wanted.clear()
        if "BACKEND" in service.env:
            service.env["RAP_AGENT_EXIT"] = "hand_back" if fault.hand_back else "leave"
        if fault.kind in KILLS:
            self.kills += service.signal(signal.SIGKILL)
        else:
            service.signal(signal.SIGTERM)
        if fault.kind is Kind.REBOOT:
            await asyncio.to_thread(self.cluster.kill_jobs, service.name)
        await asyncio.sleep(fault.seconds)
        service.wanted.set()

    def _operating(self, fault: Fault) -> Callable[[], Awaitable[None]] | None:
        """What an operator (or a user) does in this fault, if anything."""
        portal, backend = self.portal, fault.target

        async def for_a_while(begin: tuple[str, object], end: tuple[str, object]) -> None:
            await portal.operate(backend, *begin)
            await asyncio.sleep(fault.seconds)
            await portal.operate(backend, *end)

        match fault.kind:
            case Kind.PAUSE:
                return lambda: for_a_while(("pause", None), ("unpause", None))
            case Kind.MAINTAIN:
                return lambda: for_a_while(("maintenance", {"on": True}), ("maintenance", {"on": False}))
            case Kind.PREPARE_FOR_REBOOT:
                return lambda: for_a_while(("prepare-for-reboot", None), ("unpause", None))
            case Kind.CANCEL:
                return lambda: portal.cancel_newest(backend)
            case Kind.KILL_JOB:
                return lambda: portal.kill_one(backend)
            case Kind.RETRY_JOB:
                return lambda: portal.retry_one(backend)
            case _:
                return None
