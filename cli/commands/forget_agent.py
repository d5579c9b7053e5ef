"""`rap forget-agent`: an agent's machine is gone for good."""

from typing import Any

import click

from cli import confirmation, connection, report
from cli.connection import Connection


@click.command()
@click.argument("backend")
@click.argument("agent")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
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
    done = connection.run(_forget(connected, backend, agent))
    if connected.json:
        connection.print_json(done)
        return
    jobs, stops = len(done["jobs"]), done["stops"]
    connection.console().print(
        f"Agent {report.safe(done['agent'])} of backend {report.safe(done['backend'])} is forgotten:"
        f" {jobs} of its jobs moved on, {stops} unconfirmed stops count as done",
        soft_wrap=True,
    )


async def _forget(connected: Connection, backend: str, agent: str) -> dict[str, Any]:
    async with connected.client() as client:
        return await client.change("backends", backend, "agents", agent, "forget")
