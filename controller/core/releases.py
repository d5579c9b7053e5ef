"""Outputs that leave once a person has released them: what was asked of an agent, and what its answer comes to.

The controller decides nothing about a file: it asks, and believes what the agents of the backend answer.
"""

import enum
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from attrs import frozen

from common.convert import Malformed, structure
from common.protocol import Egress, Refusal, RefusedOutput, ReleasedOutput, ReleaseResults, Unable

REFUSALS: Final[Mapping[Refusal, str]] = {
    Refusal.NOT_PERMITTED: "This is no output of the job that the policy of the backend lets out.",
    Refusal.CHANGED: "Its file is gone, or is not the one that the job left.",
}
_FAILURES: Final[Mapping[Unable, str]] = {
    Unable.ABSENT: "No agent of the backend that is alive and may release outputs has the files of this job.",
    Unable.POLICY: "The agents of the backend no longer have a policy with a review: nothing was released.",
    Unable.FAILED: "The agent could not do it; its log says why. Ask again once that is mended.",
}
_UNKNOWN: Final = "unknown"
_SENSELESS: Final = "The agent's answer could not be understood; nothing is known to be released."


class SenselessAnswer(ValueError):
    """The results of a release cannot be understood."""


class ReleaseState(enum.StrEnum):
    """How far a release is."""

    WAITING = "waiting"
    """No agent has answered yet."""
    DONE = "done"
    """An agent has looked; what it let out is named."""
    FAILED = "failed"
    """No agent could look."""


@frozen(kw_only=True)
class Asked:
    """One question to the agents of a backend. A release is a chain of them: the next one if an agent has no files."""

    task_id: str
    attempt: int
    """Counts the questions about a job."""
    release: int
    """The number of the first question of the chain: what the release is called."""
    by: str
    paths: tuple[str, ...] | None
    """None: all that the policy lets out."""
    absent: tuple[str, ...]
    """Agents that were asked before and could not look."""
    agent: str | None
    active: bool
    results: Mapping[str, Any]
    created_at: datetime
    finished_at: datetime | None


@frozen(kw_only=True)
class Release:
    """A release: what was asked for, and what came of it."""

    number: int
    by: str
    paths: tuple[str, ...] | None
    at: datetime
    state: ReleaseState
    message: str
    agent: str | None = None
    finished_at: datetime | None = None
    released: tuple[ReleasedOutput, ...] = ()
    refused: tuple[RefusedOutput, ...] = ()
    withheld: int = 0
    left_out: int = 0


def wants_review(egress: Mapping[str, Any]) -> bool:
    """Whether an agent that declared this policy lets outputs out after a review."""
    return egress.get("reviewed") is True and egress.get("outputs") not in (None, "none")


def words(egress: Mapping[str, Any]) -> str:
    """A declared policy as its operator wrote it; `unknown` if it was forgotten, or is none of ours."""
    if not egress:
        return _UNKNOWN
    try:
        return structure(dict(egress), Egress).words
    except Malformed:
        return _UNKNOWN


def read_answer(results: Mapping[str, Any]) -> ReleaseResults:
    """What an agent answers.

    :raises SenselessAnswer: it cannot be understood.
    """
    try:
        answer = structure(dict(results), ReleaseResults)
    except Malformed as error:
        raise SenselessAnswer(f"the results of a release: {error}") from error
    counts = (answer.withheld, answer.left_out, *(output.size for output in answer.released))
    if not all(0 <= count < 2**63 for count in counts):
        raise SenselessAnswer("the results of a release have a number that no size or count can be")
    return answer


def fault(results: Mapping[str, Any]) -> str | None:
    """Why an answer makes no sense; None if it does."""
    try:
        read_answer(results)
    except SenselessAnswer as error:
        return str(error)
    return None


def may_ask_another(answer: ReleaseResults) -> bool:
    """Whether another agent may be able to do what this one was not."""
    return answer.unable in (Unable.ABSENT, Unable.POLICY)


def released_of(asked: Asked, answer: ReleaseResults) -> tuple[ReleasedOutput, ...]:
    """What was released, as far as it was asked for, each path once."""
    named = None if asked.paths is None else frozenset(asked.paths)
    found = {output.path: output for output in answer.released if named is None or output.path in named}
    return tuple(found.values())


def summarise(asked: Sequence[Asked]) -> list[Release]:
    """The releases of a job, oldest first, from all that was asked about it, in the order of `attempt`."""
    chains: dict[int, list[Asked]] = {}
    for each in asked:
        chains.setdefault(each.release, []).append(each)
    return [_summarise(number, chain) for number, chain in chains.items()]


def _summarise(number: int, chain: Sequence[Asked]) -> Release:
    first, last = chain[0], chain[-1]
    given: dict[str, Any] = {"number": number, "by": first.by, "paths": first.paths, "at": first.created_at}
    if last.active:
        taken = f"Agent {last.agent} looks at the files." if last.agent else "Waiting for an agent of the backend."
        return Release(state=ReleaseState.WAITING, message=taken, agent=last.agent, **given)
    given |= {"agent": last.agent, "finished_at": last.finished_at}
    try:
        answer = read_answer(last.results)
    except SenselessAnswer:
        return Release(state=ReleaseState.FAILED, message=_SENSELESS, **given)
    if answer.unable is not None:
        return Release(state=ReleaseState.FAILED, message=_FAILURES[answer.unable], **given)
    released = released_of(last, answer)
    return Release(
        state=ReleaseState.DONE,
        message=_sentence(len(released), answer),
        released=released,
        refused=tuple(each for each in answer.refused if first.paths is not None and each.path in first.paths),
        withheld=answer.withheld,
        left_out=answer.left_out,
        **given,
    )


def _sentence(released: int, answer: ReleaseResults) -> str:
    parts = [f"{released} {'output is' if released == 1 else 'outputs are'} released."]
    if answer.refused:
        parts.append(f"{len(answer.refused)} {'was' if len(answer.refused) == 1 else 'were'} refused.")
    if answer.withheld:
        parts.append(f"{answer.withheld} more stay inside: not as the job left them (the agent's log names them).")
    if answer.left_out:
        parts.append(f"There are {answer.left_out} more than one answer can hold: ask again.")
    return " ".join(parts)
