"""`rap agents`: who serves the backends."""

from datetime import UTC, datetime
from typing import Any

import click
from rich.text import Text

from cli import connection, lookup, report
from cli.connection import Connection


@click.command()
@click.option("--backend", help="Only agents of this backend.")
@connection.options
def agents(backend: str | None, **options: Any) -> None:
    """List the agents of the backends that the token opens: what they run, and when they were last heard of."""
    connected = connection.connect(**options)
    document = connection.run(_read(connected, backend))
    if connected.json:
        connection.print_json(document)
        return
    console = connection.console()
    if not document["agents"]:
        console.print("No agents.")
        return
    now = datetime.now(UTC)
    headers = ("Agent", "Backend", "Version", "Executor", "Jobs/slots", "Lets out", "If lost", "Last seen", "")
    rows = (
        [
            each["id"],
            each["backend"],
            each["version"],
            each["executor"],
            f"{each['load']}/{each['slots']}",
            each.get("policy", "unknown"),
            {"retry": "jobs run again", "fail": "jobs fail"}.get(each["on_loss"], each["on_loss"]),
            report.ago(each["last_seen"], now),
            Text("silent" if each["silent"] else "", style="bold red"),
        ]
        for each in document["agents"]
    )
    report.print_list(console, headers, rows, spare=("Version", "Executor", "If lost", "Backend"))


async def _read(connected: Connection, backend: str | None) -> dict[str, Any]:
    async with connected.client() as client:
        found = (await client.read("agents"))["agents"]
        of_backend = [each for each in found if backend in (None, each["backend"])]
        if backend is not None and not of_backend:
            await lookup.check_backend(client, backend)
    return {"agents": of_backend}
