"""Checks of a backend's database, which come round: when one is asked for, and when not (reference section 3.7).

A check is a task without a job, and there is one of each kind at a time. DBSTATUS asks whether the database is in
maintenance, and so decides about `mode`; DBDATACHECK asks whether its data are as recent as expected, and decides
nothing.
"""

from collections.abc import Mapping, Set
from datetime import datetime, timedelta
from typing import Any, Final

from attrs import field, frozen

from controller.core.model import DB_MAINTENANCE, TaskId, TaskType
from controller.core.modes import Modes

INTERVALS: Final[Mapping[TaskType, timedelta]] = {
    TaskType.DBSTATUS: timedelta(minutes=5),
    TaskType.DBDATACHECK: timedelta(hours=24),
}
"""From the end of one check, however it ended, to the next of its kind."""

DBSTATUS_VALUES: Final = frozenset(
    {"", DB_MAINTENANCE} | {f"{mode};{builds}" for mode in (DB_MAINTENANCE, "none") for builds in range(3)}
)
"""What a DBSTATUS task may answer (reference section 2.5)."""
DATA_CHECK_FAILED: Final = "FAILED"
DBDATACHECK_VALUES: Final = frozenset({"OK", DATA_CHECK_FAILED})
"""What a DBDATACHECK task may answer."""
ALLOWED_ANSWERS: Final = {TaskType.DBSTATUS: DBSTATUS_VALUES, TaskType.DBDATACHECK: DBDATACHECK_VALUES}
_CALLED: Final = {TaskType.DBSTATUS: "database status", TaskType.DBDATACHECK: "result of the data check"}

_IMAGE: Final = "tpp-database-utils:latest"


@frozen(kw_only=True)
class Round:
    """Where a backend is with one kind of check."""

    active: TaskId | None = None
    """The check that was asked for and is not answered yet."""
    held_until: datetime | None = None
    """When the lease of the agent that works on it ends; None if nobody does, or who does holds no leases."""
    finished_at: datetime | None = None
    """When the last one was over; None if there never was one."""


@frozen(kw_only=True)
class Situation:
    """One backend at one moment."""

    now: datetime
    enabled: Set[TaskType]
    modes: Modes
    rounds: Mapping[TaskType, Round] = field(factory=dict)
    """A kind that is missing has never been asked for."""


@frozen(kw_only=True)
class Decision:
    """What to do now. Deciding again after that gives nothing."""

    issue: tuple[TaskType, ...] = ()
    void: tuple[TaskId, ...] = ()
    """Active checks that nobody wants any more; whoever holds one is told to stop."""
    hand_over: tuple[TaskId, ...] = ()
    """Active checks whose agent fell silent: anybody may take them."""
    next_at: datetime | None = None
    """When time alone may change the decision."""


def decide(situation: Situation) -> Decision:
    """Which checks to ask for, to call off, and to give to somebody else."""
    issue: list[TaskType] = []
    void: list[TaskId] = []
    hand_over: list[TaskId] = []
    looks: list[datetime] = []
    for kind, interval in INTERVALS.items():
        current = situation.rounds.get(kind, Round())
        if not _wanted(kind, situation):
            if current.active is not None:
                void.append(current.active)
            continue
        if current.active is None:
            due = situation.now if current.finished_at is None else current.finished_at + interval
            if due <= situation.now:
                issue.append(kind)
            else:
                looks.append(due)
        elif current.held_until is not None:
            if current.held_until <= situation.now:
                hand_over.append(current.active)
            else:
                looks.append(current.held_until)
    return Decision(issue=tuple(issue), void=tuple(void), hand_over=tuple(hand_over), next_at=min(looks, default=None))


def _wanted(kind: TaskType, situation: Situation) -> bool:
    if kind not in situation.enabled:
        return False
    if kind is TaskType.DBSTATUS:
        return not (situation.modes.manual and situation.modes.checks_disabled)
    return not situation.modes.db_maintenance


def definitions(registry: str, *, status: bool, expected_month: str | None) -> dict[TaskType, dict[str, Any]]:
    """The definitions of the checks that a backend has, key for key as agents expect them (reference section 2.4).

    `image_sha` is filled in when a check is asked for.

    :param status: whether the database is asked for its status.
    :param expected_month: `YYYYMM`; None for no check of the data.
    """
    image = {"image": f"{registry}/{_IMAGE}", "image_sha": None}
    made: dict[TaskType, dict[str, Any]] = {}
    if status:
        made[TaskType.DBSTATUS] = {"database_name": "default", **image}
    if expected_month is not None:
        made[TaskType.DBDATACHECK] = {"hes_expected_activity_month": expected_month, **image}
    return made


def answer(results: Mapping[str, Any]) -> str | None:
    """What a finished check says; None if the agent could not carry it out (its `results.results` is null)."""
    found = results.get("results")
    status = found.get("status") if isinstance(found, Mapping) else None
    return status if isinstance(status, str) else None


def fault(kind: TaskType, results: Mapping[str, Any]) -> str | None:
    """Why the answer of a finished check cannot be believed, without repeating it; None if it can."""
    status = answer(results)
    if status is None or kind not in ALLOWED_ANSWERS or status in ALLOWED_ANSWERS[kind]:
        return None
    return f"the {_CALLED[kind]} is none of the allowed values"
