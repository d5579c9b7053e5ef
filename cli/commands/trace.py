"""`rap trace`: what a RAP's jobs waited for, where they ran and how long everything took."""

from typing import Any

import click

from cli import connection, lookup, waterfall
from cli.connection import Connection


@click.command()
@click.argument("rap_id")
@connection.options
def trace(rap_id: str, **options: Any) -> None:
    """Draw the RAP with RAP_ID (or whose id is the only one that begins so) as a waterfall.

    It is made from the stored history: no trace collector is needed, and a RAP that still runs is drawn until now.
    """
    connected = connection.connect(**options)
    found = connection.run(_read(connected, rap_id))
    if connected.json:
        connection.print_json(found)
    else:
        waterfall.print_trace(connection.console(), found)


async def _read(connected: Connection, text: str) -> dict[str, Any]:
    async with connected.client() as client:
        return await client.read("raps", await lookup.rap(client, text), "trace")
