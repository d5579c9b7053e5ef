"""`rap doctor`: what is wrong, and what to type."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from attrs import asdict
from rich.text import Text

from agent.executors.choice import Standing
from cli import connection, local, report
from cli.connection import Connection
from cli.doctor import agent, controller, database, executors, findings
from cli.errors import Problem
from controller.core.diagnosis import Finding, Severity

_PROBLEMS: Final = 1
"""Exit code when something does not work; warnings alone are 0."""
_STYLES: Final[Mapping[Severity, str]] = {
    Severity.OK: "green",
    Severity.WARNING: "yellow",
    Severity.PROBLEM: "bold red",
}

_STANDINGS: Final[Mapping[Standing, tuple[str, str]]] = {
    Standing.READY: ("ready", "green"),
    Standing.ON_REQUEST: ("on request", ""),
    Standing.UNUSABLE: ("not usable", "dim"),
}

Section = tuple[str, Sequence[Finding]]


@click.command()
@click.option("--all", "everything", is_flag=True, help="Show what is in order, too.")
@connection.options
def doctor(everything: bool, **options: Any) -> None:
    """Check everything that can be checked from here. Exit code 0: no problem, 1: there is one.

    Which checks are made depends on the environment: RAP_DATABASE_URL (the database), RAP_URL and RAP_TOKEN or a
    `rap up` on this machine (a controller and its backends), RAP_CONTROLLER_URL and BACKEND (an agent's machine).
    Where jobs run, or with none of these, it says of docker, slurm and sandbox whether they can be used.
    """
    connected, fault = None, None
    try:
        connected = _controller(**options)
    except Problem as error:  # no token: that does not stop the checks of anything else
        fault = error
    found, table = connection.run(_check(connected, options["url"], fault))
    if options["as_json"]:
        _print_json(found, table)
    else:
        _print(found, everything)
        if table is not None:
            _print_table(table)
    if any(each.level is Severity.PROBLEM for _, section in found for each in section):
        sys.exit(_PROBLEMS)


def _controller(**options: Any) -> Connection | None:
    """The controller to ask, if one is named or runs here."""
    if options["url"] is None and local.find() is None:
        return None
    return connection.connect(**options)


async def _check(
    connected: Connection | None, url: str | None, fault: Problem | None
) -> tuple[list[Section], executors.Table | None]:
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
    table = await _executors(connected, alone=not found)
    if table is not None:
        found.append((f"Executors ({table.why})", [table.finding]))
    return found, table


async def _executors(connected: Connection | None, *, alone: bool) -> executors.Table | None:
    """Where jobs run, or might: beside an agent, beside a `rap up`, and where nothing else is to be checked."""
    if agent.is_one(os.environ):
        return await executors.of_agent(os.environ)
    here = _running(connected)
    if here is not None or alone:
        return await executors.of_laptop(os.environ, here)
    return None


def _running(connected: Connection | None) -> local.Local | None:
    """The `rap up` that is asked, if it is one."""
    return local.find() if connected is not None and connected.backend is not None else None


def _local_disk(connected: Connection) -> list[Finding]:
    here = _running(connected)
    return [] if here is None else [findings.disk("data_disk", "this `rap up`", Path(here.data_dir))]


def _print_json(found: Sequence[Section], table: executors.Table | None) -> None:
    every = [each for _, section in found for each in section]
    connection.print_json(
        {
            "ok": all(each.level is not Severity.PROBLEM for each in every),
            "findings": [{"section": title, **asdict(each)} for title, section in found for each in section],
            "executors": [] if table is None else table.document(),
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


def _print_table(table: executors.Table) -> None:
    """Every executor in a line, whatever is asked for: why one is not usable is asked as often as what is wrong."""
    console = connection.console()
    for each in table.prospects:
        word, style = _STANDINGS[each.standing]
        if each.name == table.taken and each.standing is not Standing.UNUSABLE:
            word, style = "taken", "bold"
        told = f"{each.version}: {each.finding}" if each.version else each.finding
        line = Text.assemble("  ", (f"{word:11}", style))
        line.append(report.safe(f"{each.name:8} {told}"))
        console.print(line, soft_wrap=True)
        if each.advice:
            console.print(Text(f"              -> {report.safe(each.advice)}"), soft_wrap=True)
