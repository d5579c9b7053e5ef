"""`rap doctor`: what is wrong, and what to type."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from attrs import asdict
from rich.text import Text

from cli import connection, local, report
from cli.connection import Connection
from cli.doctor import agent, controller, database, findings
from cli.errors import Problem
from controller.core.diagnosis import Finding, Severity

_PROBLEMS: Final = 1
"""Exit code when something does not work; warnings alone are 0."""
_STYLES: Final[Mapping[Severity, str]] = {
    Severity.OK: "green",
    Severity.WARNING: "yellow",
    Severity.PROBLEM: "bold red",
}

Section = tuple[str, Sequence[Finding]]


@click.command()
@click.option("--all", "everything", is_flag=True, help="Show what is in order, too.")
@connection.options
def doctor(everything: bool, **options: Any) -> None:
    """Check everything that can be checked from here. Exit code 0: no problem, 1: there is one.

    Which checks are made depends on the environment: RAP_DATABASE_URL (the database), RAP_URL and RAP_TOKEN or a
    `rap up` on this machine (a controller and its backends), RAP_CONTROLLER_URL and BACKEND (an agent's machine).
    """
    connected, fault = None, None
    try:
        connected = _controller(**options)
    except Problem as error:  # no token: that does not stop the checks of anything else
        fault = error
    found = connection.run(_check(connected, options["url"], fault))
    if not found:
        raise Problem("nothing to check here: set RAP_DATABASE_URL, RAP_URL and RAP_TOKEN, or an agent's settings")
    if options["as_json"]:
        _print_json(found)
    else:
        _print(found, everything)
    if any(each.level is Severity.PROBLEM for _, section in found for each in section):
        sys.exit(_PROBLEMS)


def _controller(**options: Any) -> Connection | None:
    """The controller to ask, if one is named or runs here."""
    if options["url"] is None and local.find() is None:
        return None
    return connection.connect(**options)


async def _check(connected: Connection | None, url: str | None, fault: Problem | None) -> list[Section]:
    found: list[Section] = []
    if os.environ.get("RAP_DATABASE_URL"):
        workdir = findings.disk("workdir_disk", "WORKDIR", Path(os.environ.get("WORKDIR") or "workdir"))
        found.append(("Database", [*await database.check(), workdir]))
    if connected is not None:
        found.append((f"Controller {connected.url}", [*await controller.check(connected), *_local_disk(connected)]))
    if fault is not None:
        health = await controller.check_health(url) if url is not None else []
        advice = "set RAP_TOKEN to a client's token, or RAP_URL to nothing"
        unasked = findings.problem("diagnosis", f"The controller was not asked: {fault.message}.", advice)
        found.append((f"Controller {url}", [*health, unasked]))
    if agent.is_one(os.environ):
        found.append(("Agent", await agent.check()))
    return found


def _local_disk(connected: Connection) -> list[Finding]:
    """The folder of the `rap up` that is asked, if it is one."""
    here = local.find()
    if here is None or connected.backend is None:
        return []
    return [findings.disk("data_disk", "this `rap up`", Path(here.data_dir))]


def _print_json(found: Sequence[Section]) -> None:
    every = [each for _, section in found for each in section]
    connection.print_json(
        {
            "ok": all(each.level is not Severity.PROBLEM for each in every),
            "findings": [{"section": title, **asdict(each)} for title, section in found for each in section],
        }
    )


def _print(found: Sequence[Section], everything: bool) -> None:
    console = connection.console()
    for title, section in found:
        shown = [each for each in section if everything or each.level is not Severity.OK]
        well = sum(each.level is Severity.OK for each in section)
        console.print(Text(f"{report.safe(title)}: {well} of {len(section)} checks in order", style="bold"))
        for each in shown:
            where = f"{each.backend}: " if each.backend else ""
            line = Text.assemble("  ", (f"{each.level.value:8}", _STYLES[each.level]))
            line.append(report.safe(f"{each.name}  {where}{each.message}"))
            console.print(line, soft_wrap=True)
            if each.advice:
                console.print(Text(f"           -> {report.safe(each.advice)}"), soft_wrap=True)
