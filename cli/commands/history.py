"""`rap history`: everything that happened to a job, in order; what it may use, and what it uses."""

from datetime import datetime
from typing import Any

import click
from rich.text import Text

from cli import connection, lookup, report, usage
from cli.connection import Connection


@click.command()
@click.argument("job")
@connection.options
def history(job: str, **options: Any) -> None:
    """Print what happened to JOB: its id, the beginning of its id, or RAP_ID/ACTION.

    Below that stands what its newest attempt may use, and what it uses or used, as far as its backend lets that out.
    """
    connected = connection.connect(**options)
    detail = connection.run(_read(connected, job))
    if connected.json:
        connection.print_json(detail)
        return
    running = not report.is_over(detail)
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
    console = connection.console()
    console.print(table)
    for title, words in (("May use", usage.limits(detail)), ("Uses" if running else "Used", usage.used(detail))):
        if words:
            console.print(Text(f"{title}: {report.safe(words)}"), soft_wrap=True)


async def _read(connected: Connection, name: str) -> dict[str, Any]:
    async with connected.client() as client:
        return await client.read("jobs", await lookup.job(client, name))
