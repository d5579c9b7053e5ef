"""`rap list`: RAPs, newest first."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from cli import connection, report
from cli.connection import Connection

_PAGE = 200


@click.command("list")
@click.option("--backend", help="Only RAPs of this backend.")
@click.option("--workspace", help="Only RAPs of this workspace.")
@click.option("--active", "state", flag_value="active", default=None, help="Only RAPs that have not ended.")
@click.option("--finished", "state", flag_value="finished", help="Only RAPs that have ended.")
@click.option("--by", "created_by", metavar="USER", help="Only RAPs that were asked for by this user.")
@click.option("--search", metavar="TEXT", help="Only RAPs with this text in their ids, names or actions.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="At most so many.")
@connection.options
def list_raps(
    *,
    backend: str | None,
    workspace: str | None,
    state: str | None,
    created_by: str | None,
    search: str | None,
    limit: int,
    **options: Any,
) -> None:
    """List RAPs, newest first."""
    connected = connection.connect(**options)
    filters = {
        "backend": backend,
        "workspace": workspace,
        "state": state,
        "created_by": created_by,
        "search": search,
    }
    document = connection.run(_read(connected, limit, filters))
    if connected.json:
        connection.print_json(document)
        return
    console = connection.console()
    if not document["raps"]:
        console.print("No RAPs.")
        return
    _print(console, document["raps"])
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


def _print(console: Console, raps: Sequence[Mapping[str, Any]]) -> None:
    headers = ["RAP", "State", "Jobs", "Created", "Backend", "Workspace", "Commit", "Actions", "By"]
    rows = (
        [
            rap["id"],
            report.state_text(rap["state"]),
            f"{rap['counts']['succeeded']}/{sum(rap['counts'].values())}",
            Text(f"{datetime.fromisoformat(rap['created_at']).astimezone():%Y-%m-%d %H:%M}", no_wrap=True),
            rap["backend"],
            rap["workspace"],
            rap["commit"][:10],
            " ".join(rap["requested_actions"]),
            rap["created_by"],
        ]
        for rap in raps
    )
    report.print_list(console, headers, rows, spare=("Commit", "By", "Backend", "Created"))
