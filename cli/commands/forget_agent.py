"""`rap forget-agent`: an agent's machine is gone for good."""

from typing import Any

import click

from cli import confirmation, connection, report


@click.command()
@click.argument("backend")
@click.argument("agent")
@confirmation.option
@connection.options
def forget_agent(backend: str, agent: str, yes: bool, **options: Any) -> None:
    """Take all work from AGENT of BACKEND, whose machine is gone for good. Needs an operator's token.

    Its jobs run again elsewhere, or fail if its executor has declared that they must not run twice. Do not use it for
    a machine that only lost its network: what runs there runs on. Asks first.
    """
    confirmation.need_person(yes, danger="taking an agent's work away")
    connected = connection.connect(**options)
    if not yes:
        confirmation.ask(f"Is the machine of agent {report.safe(agent)} gone for good, with all that ran on it?")
    done = connected.change("backends", backend, "agents", agent, "forget")
    if connected.json:
        connection.print_json(done)
        return
    jobs, stops = report.count(len(done["jobs"]), "job"), report.count(done["stops"], "unconfirmed stop")
    connection.console().print(
        f"Agent {report.safe(done['agent'])} of backend {report.safe(done['backend'])} is forgotten:"
        f" {jobs} moved on, {stops} taken as done",
        soft_wrap=True,
    )
