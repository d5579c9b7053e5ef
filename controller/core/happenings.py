"""What can happen that somebody may want to see at once, and what is told of it."""

import enum
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from attrs import frozen

from controller.core.machine import Move
from controller.core.model import RapId, RapRequest


class Kind(enum.StrEnum):
    """What an event is about."""

    RAP = "rap"
    """A RAP was accepted. Its jobs were created with it, and are not told of one by one."""
    JOB = "job"
    """A job made a transition that is part of its history."""
    FLAGS = "flags"
    """Switches of the backend have another value."""
    AGENT = "agent"
    """An agent came, or came back, or declares something else; fell silent while it held jobs; or was forgotten."""


class AgentNews(enum.StrEnum):
    """What happened to an agent."""

    DECLARED = "declared"
    SILENT = "silent"
    FORGOTTEN = "forgotten"


@frozen(kw_only=True)
class Happening:
    """One event before it has a number."""

    kind: Kind
    at: datetime
    rap_id: RapId | None = None
    content: Mapping[str, Any]


@frozen(eq=False)
class Happened:
    """One event as it is told; two are equal only if they are the same object, which makes them cheap to tell apart."""

    backend: str
    seq: int
    """Counts a backend's events without a gap."""
    at: datetime
    kind: str
    rap_id: str | None
    content: Mapping[str, Any]


def of_rap(request: RapRequest, jobs: int, now: datetime) -> Happening:
    """A RAP with so many jobs was accepted."""
    content = {
        "workspace": request.workspace,
        "created_by": request.created_by,
        "requested_actions": list(request.requested_actions),
        "jobs": jobs,
    }
    return Happening(kind=Kind.RAP, at=now, rap_id=request.rap_id, content=content)


def of_moves(moves: Iterable[Move]) -> list[Happening]:
    """What is recorded of these moves, in their order."""
    return [
        Happening(
            kind=Kind.JOB,
            at=transition.after.updated_at,
            rap_id=move.job.spec.rap_id,
            content={
                "job_id": move.job.id,
                "workspace": move.job.spec.workspace,
                "action": move.job.spec.action,
                "attempt": transition.after.attempt,
                "state": transition.after.state.value,
                "code": transition.after.code.value,
                "message": transition.told,
            },
        )
        for move in moves
        for transition in move.transitions
        if transition.recorded
    ]


def of_flags(changed: Mapping[str, str | None], now: datetime) -> Happening:
    """These switches have these values from now on."""
    plain = {str(name): value for name, value in changed.items()}  # a `Flag` is no key that JSON is written with
    return Happening(kind=Kind.FLAGS, at=now, content={"changed": plain})


def of_agent(agent: str, news: AgentNews, now: datetime) -> Happening:
    """Something happened to an agent."""
    return Happening(kind=Kind.AGENT, at=now, content={"agent": agent, "news": news.value})
