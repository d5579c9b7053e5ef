"""`rap list`: RAPs, newest first."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from cli import connection, report
from cli.connection import Connection

_PAGE = 200


@click.command("list")
@click.option("--backend", help="Only RAPs of this backend.")
@click.option("--workspace", help="Only RAPs of this workspace.")
@click.option("--active", "state", flag_value="active", default=None, help="Only RAPs that have not ended.")
@click.option("--finished", "state", flag_value="finished", help="Only RAPs that have ended.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="At most so many.")
@connection.options
def list_raps(*, backend: str | None, workspace: str | None, state: str | None, limit: int, **options: Any) -> None:
    """List RAPs, newest first."""
    connected = connection.connect(**options)
    filters = {"backend": backend, "workspace": workspace, "state": state}
    document = connection.run(_read(connected, limit, filters))
    if connected.json:
        connection.print_json(document)
        return
    console = connection.console()
    if not document["raps"]:
        console.print("No RAPs.")
        return
    console.print(_table(document["raps"]))
    if document["next_cursor"] is not None:
        console.print("There are more: see --limit.", style="dim")


async def _read(connected: Connection, limit: int, filters: Mapping[str, str | None]) -> dict[str, Any]:
    """Up to `limit` RAPs, and `next_cursor`, null if there are no more."""
    raps: list[dict[str, Any]] = []
    cursor: str | None = None
    async with connected.client() as client:
        while True:
            page = await client.read("raps", limit=min(_PAGE, limit - len(raps)), cursor=cursor, **filters)
            raps += page["raps"]
            cursor = page["next_cursor"]
            if cursor is None or len(raps) >= limit:
                return {"raps": raps, "next_cursor": cursor}


def _table(raps: list[dict[str, Any]]) -> Table:
    table = report.table("RAP", "State", "Jobs", "Created", "Backend", "Workspace", "Commit", "Actions", "By")
    for rap in raps:
        counts = rap["counts"]
        created = datetime.fromisoformat(rap["created_at"]).astimezone()
        table.add_row(
            Text(rap["id"], no_wrap=True),
            report.state_text(rap["state"]),
            Text(f"{counts['succeeded']}/{sum(counts.values())}"),
            Text(f"{created:%Y-%m-%d %H:%M}"),
            Text(report.safe(rap["backend"])),
            Text(report.safe(rap["workspace"])),
            Text(rap["commit"][:10]),
            Text(report.safe(" ".join(rap["requested_actions"]))),
            Text(report.safe(rap["created_by"])),
        )
    return table
