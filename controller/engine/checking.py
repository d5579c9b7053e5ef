"""Checks of a backend's database that come round, as the last part of its scheduling pass (reference section 3.7).

They are asked for under the backend's lock, so that several controllers ask for one of each kind together; an index
of the database is the last guard.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from common.ids import check_task_id
from controller.core.checks import Decision, Round, Situation, decide
from controller.core.model import TaskId, TaskType
from controller.core.modes import Modes
from controller.engine.context import Context
from controller.store import backends, tasks
from controller.store.queries import Tx

log = structlog.get_logger(__name__)

_AGAIN: Final = timedelta(seconds=1)
"""When to look again for what another process was about to tell us."""
_BELIEVABLE: Final = timedelta(minutes=1)
"""How far the clocks of controllers may be apart."""
_KEPT: Final = timedelta(days=7)
"""How long finished checks are kept; there are hundreds a day."""


async def check(ctx: Context, tx: Tx, backend: str, modes: Modes, now: datetime) -> datetime | None:
    """Ask for the checks that are due, call off those that are not wanted; when to look again.

    A backend without checks costs nothing.

    :param tx: holds the backend's lock.
    """
    kinds = ctx.backends[backend].checks
    if not kinds:
        return None
    # A kind that the settings no longer name may still have a task: that one is called off.
    rounds = await tasks.rounds.all(
        tx, backend=backend, types=[TaskType.DBSTATUS, TaskType.DBDATACHECK], believable=now + _BELIEVABLE
    )
    known = {TaskType(row.type): _round(row) for row in rounds}
    decision = decide(Situation(now=now, enabled=kinds.keys(), modes=modes, rounds=known))
    looks = [] if decision.next_at is None else [decision.next_at]
    if not await _take_back(tx, decision, now):
        looks.append(now + _AGAIN)
    issued, put_off = _make(ctx, backend, decision.issue, now)
    if put_off:
        looks.append(now + _AGAIN)
    if issued:
        await tasks.insert.run(tx, tasks=issued)
        await tasks.drop_old_checks.run(tx, backend=backend, before=now - _KEPT)
    if issued or decision.void or decision.hand_over:
        await backends.notify.run(tx, channel=backends.TASKS_CHANNEL, backend=backend)
        log.info(
            "database_checks",
            backend=backend,
            issued=[task["id"] for task in issued],
            called_off=decision.void,
            handed_over=decision.hand_over,
        )
    return min(looks, default=None)


def _round(row: tasks.RoundRow) -> Round:
    active = None if row.active is None else TaskId(row.active)
    return Round(active=active, held_until=row.lease_expires_at, finished_at=row.finished_at)


async def _take_back(tx: Tx, decision: Decision, now: datetime) -> bool:
    """Call off, and hand over; False if some could not be had because their agent was just renewing its lease."""
    taken: list[str] = []
    if decision.void:
        taken += await tasks.void_checks.all(tx, ids=list(decision.void), now=now)
    if decision.hand_over:
        taken += await tasks.hand_over_checks.all(tx, ids=list(decision.hand_over), now=now)
    return len(taken) == len(decision.void) + len(decision.hand_over)


def _make(ctx: Context, backend: str, due: Sequence[TaskType], now: datetime) -> tuple[list[dict[str, Any]], bool]:
    """Rows of new tasks; and whether one has to wait until the registry has said which image it is to use.

    A registry that does not answer is not waited for: agents then go by the image's name.
    """
    made: list[dict[str, Any]] = []
    put_off = False
    images: dict[str, str | None] = {}
    for kind in due:
        definition = ctx.backends[backend].checks[kind]
        image = definition["image"]
        if ctx.sources.digests is not None and image not in images:
            glance = ctx.sources.digests.glance(image)
            if glance.pending:
                put_off = True
                break
            images[image] = glance.digest
        made.append(
            {
                "id": check_task_id(kind, now.date()),
                "backend": backend,
                "type": kind,
                "job_id": None,
                "attempt": 1,
                "definition": {**definition, "image_sha": images.get(image)},
                "attributes": {},
                "traceparent": None,
                "for_agent": None,
                "created_at": now,
            }
        )
    return made, put_off
