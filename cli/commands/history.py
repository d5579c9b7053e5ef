"""`rap history`: everything that happened to a job, in order."""

from datetime import datetime
from typing import Any

import click
from rich.text import Text

from cli import connection, lookup, report
from cli.connection import Connection


@click.command()
@click.argument("job")
@connection.options
def history(job: str, **options: Any) -> None:
    """Print what happened to JOB: its id, the beginning of its id, or RAP_ID/ACTION."""
    connected = connection.connect(**options)
    detail = connection.run(_read(connected, job))
    if connected.json:
        connection.print_json(detail)
        return
    table = report.table("At", "Attempt", "State", "Code", "Message")
    for change in detail["history"]:
        at = datetime.fromisoformat(change["at"]).astimezone()
        table.add_row(
            Text(at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]),
            Text(str(change["attempt"] or "")),
            report.state_text(change["state"]),
            Text(change["code"]),
            Text(report.safe(change["message"])),
        )
    connection.console().print(table)


async def _read(connected: Connection, name: str) -> dict[str, Any]:
    async with connected.client() as client:
        return await client.read("jobs", await lookup.job(client, name))
