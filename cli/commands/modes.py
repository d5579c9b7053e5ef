"""`rap pause`, `rap unpause`, `rap db-maintenance`: the modes of a backend."""

from collections.abc import Mapping
from typing import Any

import click

from cli import connection, report
from cli.connection import Connection


@click.command()
@click.argument("backend")
@connection.options
def pause(backend: str, **options: Any) -> None:
    """Start no more jobs on BACKEND; those that run, run on. Needs an operator's token."""
    connected = connection.connect(**options)
    done = connected.change("backends", backend, "pause")
    _tell(connected, done, "paused: no job starts until `rap unpause`; running jobs run on")


@click.command()
@click.argument("backend")
@connection.options
def unpause(backend: str, **options: Any) -> None:
    """Start jobs on BACKEND again. Needs an operator's token."""
    connected = connection.connect(**options)
    done = connected.change("backends", backend, "unpause")
    _tell(connected, done, "not paused: jobs start again")


@click.command()
@click.argument("state", metavar="on|off", type=click.Choice(["on", "off"]))
@click.argument("backend")
@click.option(
    "--disable-checks", is_flag=True, help="With `on`: do not even ask the database for its status meanwhile."
)
@connection.options
def db_maintenance(state: str, backend: str, disable_checks: bool, **options: Any) -> None:
    """Keep database jobs off BACKEND's database, or let them in again. Needs an operator's token.

    With `on`, database jobs that run are stopped and queued again; other jobs carry on.
    """
    if disable_checks and state == "off":
        raise click.UsageError("--disable-checks goes with `on`")
    connected = connection.connect(**options)
    body = {"on": state == "on", "disable_checks": disable_checks}
    done = connected.change("backends", backend, "maintenance", body=body)
    checks = "not asked for its status" if disable_checks else "asked for its status as usual"
    sentences = {
        "on": f"in database maintenance: database jobs wait, the database is {checks}",
        "off": "not in database maintenance: database jobs start again",
    }
    _tell(connected, done, sentences[state])


def _tell(connected: Connection, done: Mapping[str, Any], sentence: str) -> None:
    """What is so now, and whether it was so before."""
    if connected.json:
        connection.print_json(done)
        return
    already = "" if done["changed"] else " (it was so already: nothing changed)"
    connection.console().print(f"Backend {report.safe(done['backend'])} is {sentence}{already}", soft_wrap=True)
