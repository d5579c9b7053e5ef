"""Which executor the agent of a `rap up` gets: the one that was asked for, or the best that works here.

Jobs of an agent that was killed carry on, and only the executor that started them knows them. So where the last
`rap up` on a folder left some, the next one keeps its executor, and refuses to be given another.
"""

from collections.abc import Mapping

from agent.executors.choice import Choice, choose, explain
from agent.executors.survey import survey
from cli.errors import Problem
from cli.stack import defaults
from cli.stack.place import Place, write_privately


async def decide(place: Place, environ: Mapping[str, str], asked: Choice | None) -> Choice:
    """The executor of the next agent on this folder, noted there.

    :param environ: of the agent.
    :param asked: what the user wants; None to have one chosen.
    :raises Problem: none can be used, or another one still has jobs.
    """
    choice = await _choose(place, environ, asked, _holder(place))
    write_privately(place.executor_note, choice.name)
    return choice


async def _choose(place: Place, environ: Mapping[str, str], asked: Choice | None, holder: str | None) -> Choice:
    if asked is not None:
        if holder not in {None, asked.name}:
            raise Problem(
                f"jobs of the last `rap up` on {place.folder} are still with the executor {holder}: "
                f"run `rap up --executor {holder}` once and end it with Ctrl-C, then ask for {asked.name} "
                f"(if {holder} is gone for good: remove {place.agent / 'tasks'})"
            )
        return asked
    if holder is not None:
        return Choice(name=holder, reason="jobs of the last `rap up` on this folder are still with it")
    prospects = await survey({**defaults.AGENT, **environ}, (place.folder, place.storage))
    chosen = choose(prospects)
    if chosen is None:
        raise Problem(f"no executor can be used: {explain(prospects)} (details: rap doctor)")
    return chosen


def _holder(place: Place) -> str | None:
    """The executor that may still have jobs of an agent that did not end in order; None if there are none."""
    try:
        left = any((place.agent / "tasks").iterdir())
        return place.executor_note.read_text(encoding="utf-8").strip() or None if left else None
    except OSError:
        return None
