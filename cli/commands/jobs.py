"""`rap jobs`: the jobs of all RAPs."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click
from rich.table import Table
from rich.text import Text

from cli import connection, lookup, report
from cli.connection import Connection

_PAGE: Final = 200
_STATES: Final = ("active", "pending", "running", "succeeded", "failed")


@click.command()
@click.option("--state", type=click.Choice(_STATES), help="Only jobs in this state; active: pending or running.")
@click.option("--backend", help="Only jobs of this backend.")
@click.option("--workspace", help="Only jobs of this workspace.")
@click.option("--code", help="Only jobs with this status code, such as waiting_on_workers.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most so many.")
@connection.options
def jobs(
    *, state: str | None, backend: str | None, workspace: str | None, code: str | None, limit: int, **options: Any
) -> None:
    """List jobs: those that are not finished oldest first, as they queue; else newest first."""
    connected = connection.connect(**options)
    filters = {"state": state, "backend": backend, "workspace": workspace, "code": code}
    document = connection.run(_read(connected, limit, filters))
    if connected.json:
        connection.print_json(document)
        return
    console = connection.console()
    if not document["jobs"]:
        console.print("No jobs.")
        return
    console.print(_table(document["jobs"], datetime.now(UTC)))
    if document["next_cursor"] is not None:
        console.print("There are more: see --limit.", style="dim")


async def _read(connected: Connection, limit: int, filters: Mapping[str, str | None]) -> dict[str, Any]:
    """Up to `limit` jobs, and `next_cursor`, null if there are no more. A page may be empty and not the last."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    async with connected.client() as client:
        while True:
            page = await client.read("jobs", limit=min(_PAGE, limit - len(found)), cursor=cursor, **filters)
            found += page["jobs"]
            cursor = page["next_cursor"]
            if cursor is None or len(found) >= limit:
                if not found and (backend := filters["backend"]) is not None:
                    await lookup.check_backend(client, backend)
                return {"jobs": found, "next_cursor": cursor}


def _table(found: list[dict[str, Any]], now: datetime) -> Table:
    """Weights only if some job has one that is not 1."""
    weighted = any(job["weight"] != 1 for job in found)
    headers = ["Job", "Backend", "Workspace", "Action", "State: code", "For", "Attempt", "Agent"]
    table = report.table(*headers, *(["Weight"] if weighted else []), "By", "RAP")
    table.columns[0].min_width = 16  # on a narrow terminal other columns give way: an id is there to be typed
    for job in found:
        since = (now - datetime.fromisoformat(job["code_changed_at"])).total_seconds()
        cells = [
            Text(job["id"], no_wrap=True),
            Text(report.safe(job["backend"])),
            Text(report.safe(job["workspace"])),
            Text(report.safe(job["action"])),
            report.state_text(job["state"], _words(job)),
            Text(report.duration(since), no_wrap=True),
            Text(str(job["attempt"] or "")),
            Text(report.safe(job["agent"] or "")),
        ]
        if weighted:
            cells.append(Text(f"{job['weight']:g}"))
        table.add_row(*cells, Text(report.safe(job["created_by"])), Text(job["rap_id"], no_wrap=True))
    return table


def _words(job: Mapping[str, Any]) -> str:
    """The state, and the code unless it says the same."""
    return str(job["state"] if job["code"] == job["state"] else f"{job['state']}: {job['code']}")
