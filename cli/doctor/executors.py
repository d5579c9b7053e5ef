"""What can run jobs on this machine, which of it is taken, and why not the rest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import asdict, frozen

from agent import settings
from agent.executors.choice import Prospect, Standing, choose, explain
from agent.executors.survey import survey
from cli.doctor import findings
from cli.local import Local
from cli.stack import defaults
from cli.stack.place import default_folder
from common.environ import ConfigurationError, Environ
from controller.core.diagnosis import Finding

SECONDS: Final = 8.0
"""How long each executor may take to answer: somebody who asks a doctor is in less of a hurry than `rap up`."""
_SETTING: Final = defaults.EXECUTOR


@frozen(kw_only=True)
class Table:
    """The executors of this machine."""

    taken: str | None
    """The one that jobs get; None if there is none."""
    why: str
    """Who takes it, as half a sentence."""
    prospects: tuple[Prospect, ...]
    finding: Finding
    """What is to be said of the one that is taken."""

    def document(self) -> list[dict[str, Any]]:
        """As JSON has it."""
        return [{**asdict(each), "taken": each.name == self.taken} for each in self.prospects]


async def of_agent(environ: Mapping[str, str]) -> Table:
    """Of an agent's machine: its RAP_EXECUTOR decides."""
    reader = Environ(environ)
    name = reader.choice(_SETTING, "sandbox", settings.EXECUTORS)
    found = settings.read(Environ(environ))  # whose faults are told with all others of the agent
    prospects = await survey(
        environ, [findings.nearest(found.work_dir), findings.nearest(found.high_privacy_dir)], seconds=SECONDS
    )
    return _table(reader, name, f"the agent takes {name}", prospects)


async def of_laptop(environ: Mapping[str, str], running: Local | None) -> Table:
    """Of the machine of a `rap up`, or of one that there could be.

    :param running: the one that runs now.
    """
    values = {**defaults.AGENT, **environ}
    folder = Path(running.data_dir) if running is not None else default_folder(environ)
    prospects = await survey(values, [findings.nearest(folder)], seconds=SECONDS)
    reader = Environ(environ)
    if running is not None and running.executor:
        name: str | None = running.executor
    elif reader.given(_SETTING) is not None:
        name = reader.choice(_SETTING, "sandbox", settings.EXECUTORS)
    else:
        chosen = choose(prospects)
        name = None if chosen is None else chosen.name
    verb = "would take" if running is None else "takes"
    return _table(reader, name, f"`rap up` {verb} {name or 'none'}", prospects)


def _table(reader: Environ, name: str | None, why: str, prospects: tuple[Prospect, ...]) -> Table:
    try:
        reader.finish()
    except ConfigurationError as error:
        finding = findings.problem("executor", f"{error}.", "correct the setting")
        return Table(taken=None, why="none is taken", prospects=prospects, finding=finding)
    return Table(taken=name, why=why, prospects=prospects, finding=_judge(name, prospects))


def _judge(name: str | None, prospects: tuple[Prospect, ...]) -> Finding:
    """What to say of the executor that is taken."""
    if name is None:
        return findings.problem("executor", f"No executor can be used: {explain(prospects)}.", "see each below")
    taken = next((each for each in prospects if each.name == name), None)
    if taken is None:
        advice = f"for jobs in a sandbox: {_SETTING}=sandbox"
        return findings.warning("executor", f"{_SETTING} is {name}, which runs nothing.", advice)
    if taken.standing is Standing.UNUSABLE:
        return findings.problem("executor", f"{name} cannot be used: {taken.finding}.", taken.advice)
    if not taken.isolated or taken.standing is Standing.ON_REQUEST:
        return findings.warning("executor", f"{name}: {taken.finding}.", taken.advice)
    return findings.ok("executor", f"{name} works here: {taken.finding}.")
