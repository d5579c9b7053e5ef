"""`rap flags`: the switches of backends, and since when they are so."""

from typing import Any

import click
from rich.text import Text

from cli import connection, report
from cli.connection import Connection


@click.command()
@click.argument("backend", required=False)
@connection.options
def flags(backend: str | None, **options: Any) -> None:
    """Show the switches of BACKEND, or of every backend that the token manages."""
    connected = connection.connect(**options)
    document = connection.run(_read(connected, backend))
    if connected.json:
        connection.print_json(document)
        return
    table = report.table("Backend", "Flag", "Value", "Since")
    for each in document["flags"]:
        cells = (each["backend"], each["id"], _value(each["value"]), each["changed_at"] or "never set")
        table.add_row(*(Text(report.safe(cell)) for cell in cells))
    connection.console().print(table)


def _value(value: str | None) -> str:
    """Null and an empty text are two values (reference section 3.6)."""
    if value is None:
        return "null"
    return value or '""'


async def _read(connected: Connection, backend: str | None) -> dict[str, Any]:
    async with connected.client() as client:
        return await client.read("flags", backend=backend)
