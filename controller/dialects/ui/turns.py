"""Why a job is where it is, in a sentence, and whose turn it is."""

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import frozen

from controller.core.codes import JobState, StatusCode
from controller.core.model import Job
from controller.dialects.ui import words
from controller.engine.results import AgentView, BackendView


@frozen(kw_only=True)
class Turn:
    """What a job waits for, or has come to."""

    sentence: str
    whose: str
    """Who moves it next, such as `An operator`; empty if nothing moves it any more."""


@frozen(kw_only=True)
class Surroundings:
    """What has to be known beside the job itself."""

    siblings: Mapping[str, Job]
    """The jobs of the same RAP, by action."""
    backend: BackendView | None
    agents: Sequence[AgentView]
    """Of that backend."""
    holder: str | None
    """The agent that holds, or last held, the job."""


NEEDED: Final = "The actions that it needs"
ITSELF: Final = "Nobody: it goes on by itself"
_AUTHOR: Final = "Whoever wrote the study"
_OPERATOR: Final = "An operator"

_ENDED: Final[Mapping[StatusCode, Turn]] = {
    StatusCode.SUCCEEDED: Turn(sentence="It has succeeded.", whose=""),
    StatusCode.NONZERO_EXIT: Turn(
        sentence="The study's program ended with an error; the end of its log says which.", whose=_AUTHOR
    ),
    StatusCode.UNMATCHED_PATTERNS: Turn(
        sentence="The program ended well, but did not write the outputs that project.yaml promises.", whose=_AUTHOR
    ),
    StatusCode.STALE_CODELISTS: Turn(
        sentence="Its codelists are out of date: they have to be updated in the study's repository.", whose=_AUTHOR
    ),
    StatusCode.CANCELLED_BY_USER: Turn(sentence="It was cancelled.", whose=""),
    StatusCode.KILLED_BY_ADMIN: Turn(sentence="An operator has ended it.", whose=""),
    StatusCode.INTERNAL_ERROR: Turn(
        sentence="The platform failed, and not for the first time; it is not tried again by itself.", whose=_OPERATOR
    ),
    StatusCode.JOB_ERROR: Turn(
        sentence="The platform failed in a way that another try would not mend.", whose=_OPERATOR
    ),
}


def of_job(job: Job, around: Surroundings) -> Turn:
    """Why a job is where it is, and who moves it next."""
    code = job.progress.code
    if code is StatusCode.DEPENDENCY_FAILED:
        return _doomed(job, around)
    if code in _ENDED:
        return _ENDED[code]
    if job.progress.state is JobState.RUNNING:
        return _running(job, around)
    return _waiting(job, around)


def _doomed(job: Job, around: Surroundings) -> Turn:
    failed = [
        name
        for name in job.spec.needs
        if name in around.siblings and around.siblings[name].progress.state is JobState.FAILED
    ]
    what = words.names(failed) if failed else "an action that it needs"
    return Turn(sentence=f"It was not started, because {what} failed.", whose="")


def _running(job: Job, around: Surroundings) -> Turn:
    alive = [agent for agent in around.agents if not agent.silent]
    holder = next((agent for agent in around.agents if agent.id == around.holder), None)
    if holder is not None and holder.silent:
        return Turn(
            sentence=f"Agent {holder.id}, which runs it, has not been heard of for a while.",
            whose=f"Agent {holder.id}, and an operator if it stays away",
        )
    if around.holder is not None:
        return Turn(sentence=f"It runs on agent {around.holder}.", whose=f"Agent {around.holder}")
    if not alive:
        return Turn(sentence="No agent of the backend is there to take it.", whose=_OPERATOR)
    return Turn(sentence="It waits for an agent of the backend to take it.", whose="An agent of the backend")


def _waiting(job: Job, around: Surroundings) -> Turn:
    backend = job.spec.backend
    match job.progress.code:
        case StatusCode.WAITING_ON_DEPENDENCIES:
            return _dependent(job, around)
        case StatusCode.WAITING_ON_WORKERS:
            return Turn(
                sentence=f"All workers of backend {backend} are in use; it starts when one is free.", whose=ITSELF
            )
        case StatusCode.WAITING_ON_DB_WORKERS:
            return Turn(
                sentence=f"As many jobs as may use the database of backend {backend} do; it starts when one ends.",
                whose=ITSELF,
            )
        case StatusCode.WAITING_PAUSED:
            return Turn(sentence=f"Backend {backend} is paused; it starts once that is over.", whose=_OPERATOR)
        case StatusCode.WAITING_DB_MAINTENANCE:
            return _maintenance(around)
        case StatusCode.WAITING_ON_REBOOT:
            return Turn(
                sentence="It was stopped for a reboot of the backend, and starts anew when the backend is unpaused.",
                whose=_OPERATOR,
            )
        case StatusCode.WAITING_ON_NEW_TASK if job.progress.not_before is not None:
            return Turn(
                sentence=f"The platform failed; it is tried again at {words.when(job.progress.not_before)}.",
                whose=ITSELF,
            )
        case StatusCode.WAITING_ON_NEW_TASK:
            return Turn(sentence="The platform failed; it is tried again as soon as there is room.", whose=ITSELF)
        case _:
            return Turn(sentence="It was just asked for; the scheduler looks at it in a moment.", whose=ITSELF)


def _dependent(job: Job, around: Surroundings) -> Turn:
    needed = [around.siblings[name] for name in job.spec.needs if name in around.siblings]
    running = [each.spec.action for each in needed if each.progress.state is JobState.RUNNING]
    waiting = [each.spec.action for each in needed if each.progress.state is JobState.PENDING]
    elsewhere = [name for name in job.spec.needs if name not in around.siblings]
    parts = []
    if running:
        parts.append(f"{words.names(running)} to finish")
    if waiting:
        parts.append(f"{words.names(waiting)}, which {'waits' if len(waiting) == 1 else 'wait'} as well")
    if not parts and elsewhere:
        parts.append(f"{words.names(elsewhere)}, which another request runs")
    if not parts:
        return Turn(sentence="What it needs is there; the scheduler starts it in a moment.", whose=ITSELF)
    return Turn(sentence=f"It waits for {' and for '.join(parts)}.", whose=NEEDED)


def _maintenance(around: Surroundings) -> Turn:
    manual = around.backend is not None and around.backend.db_maintenance_type == "manual"
    if manual:
        return Turn(sentence="An operator keeps jobs off the database while it is maintained.", whose=_OPERATOR)
    return Turn(sentence="The database is being maintained; it starts once that is over.", whose="The database")
