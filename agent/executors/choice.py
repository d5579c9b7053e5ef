"""Which executor runs jobs where nobody has said it: pure, from what `agent.executors.survey` has seen.

Only `rap up` chooses. It asks: what will run a study's jobs here and now? An agent in a backend does what its
RAP_EXECUTOR says, always the same, whatever else is installed on its machine.
"""

import enum
from collections.abc import Sequence
from typing import Final

from attrs import frozen

ORDER: Final = ("docker", "slurm", "sandbox")
"""The best first: real images; a cluster that somebody set up for such work; programs of this machine."""


class Standing(enum.StrEnum):
    """What an executor is good for here."""

    READY = "ready"
    """It would run a study's jobs now."""
    ON_REQUEST = "on_request"
    """It works, and something that jobs need is not there or could not be seen: it is taken if somebody asks for it."""
    UNUSABLE = "unusable"


@frozen(kw_only=True)
class Prospect:
    """One executor, as it was found on this machine."""

    name: str
    """As RAP_EXECUTOR has it."""
    standing: Standing
    finding: str
    """Half a sentence: what makes it ready, what is missing, or why it cannot be used, with the setting at fault."""
    advice: str = ""
    """What to type or to set to have it; empty if it is ready."""
    version: str = ""
    """Of the engine, of Slurm or of bubblewrap, by its name; empty if it did not get that far."""
    isolated: bool = True
    """Whether jobs are kept away from the machine and from each other."""


@frozen(kw_only=True)
class Choice:
    """An executor, and why this one."""

    name: str
    reason: str


def choose(prospects: Sequence[Prospect]) -> Choice | None:
    """The first of `ORDER` that is ready, else the first that at least works; None if none does.

    The reason has what is wrong with each that would have been better; of the best, what it has.
    """
    ordered = sorted(prospects, key=lambda each: ORDER.index(each.name))
    ready = next((each for each in ordered if each.standing is Standing.READY), None)
    if ready is not None:
        return Choice(name=ready.name, reason=_tell(ordered[: ordered.index(ready)]) or ready.finding)
    working = next((each for each in ordered if each.standing is Standing.ON_REQUEST), None)
    if working is not None:
        return Choice(name=working.name, reason=_tell(ordered))
    return None


def explain(prospects: Sequence[Prospect]) -> str:
    """Why no executor can be used, each with its reason."""
    return _tell(sorted(prospects, key=lambda each: ORDER.index(each.name)))


def _tell(prospects: Sequence[Prospect]) -> str:
    return "; ".join(f"{each.name}: {each.finding}" for each in prospects)
