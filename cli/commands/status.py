"""`rap status`: a RAP and its jobs, now."""

from typing import Any

import click

from cli import connection, lookup, report
from cli.connection import Connection


@click.command()
@click.argument("rap_id")
@connection.options
def status(rap_id: str, **options: Any) -> None:
    """Show the RAP with RAP_ID (or whose id is the only one that begins so) and its jobs."""
    connected = connection.connect(**options)
    detail = connection.run(_read(connected, rap_id))
    if connected.json:
        connection.print_json(detail)
    else:
        report.print_rap(connection.console(), detail)


async def _read(connected: Connection, text: str) -> dict[str, Any]:
    async with connected.client() as client:
        return await client.read("raps", await lookup.rap(client, text))
