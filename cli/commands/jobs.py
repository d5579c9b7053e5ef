"""`rap jobs`: the jobs of all RAPs."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click
from rich.console import Console
from rich.text import Text

from cli import connection, lookup, report
from cli.connection import Connection

_PAGE: Final = 200
_SPARE: Final = ("RAP", "By", "Attempt", "Weight", "Agent", "Backend")
"""Columns that a narrow terminal does without."""
_STATES: Final = ("active", "pending", "running", "succeeded", "failed")


@click.command()
@click.option("--state", type=click.Choice(_STATES), help="Only jobs in this state; active: pending or running.")
@click.option("--backend", help="Only jobs of this backend.")
@click.option("--workspace", help="Only jobs of this workspace.")
@click.option("--code", help="Only jobs with this status code, such as waiting_on_workers.")
@click.option("--by", "created_by", metavar="USER", help="Only jobs that were asked for by this user.")
@click.option("--search", metavar="TEXT", help="Only jobs with this text in their ids, workspace or action.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most so many.")
@connection.options
def jobs(
    *,
    state: str | None,
    backend: str | None,
    workspace: str | None,
    code: str | None,
    created_by: str | None,
    search: str | None,
    limit: int,
    **options: Any,
) -> None:
    """List jobs: those that are not finished oldest first, as they queue; else newest first."""
    connected = connection.connect(**options)
    filters = {
        "state": state,
        "backend": backend,
        "workspace": workspace,
        "code": code,
        "created_by": created_by,
        "search": search,
    }
    document = connection.run(_read(connected, limit, filters))
    if connected.json:
        connection.print_json(document)
        return
    console = connection.console()
    if not document["jobs"]:
        console.print("No jobs.")
        return
    _print(console, document["jobs"], datetime.now(UTC))
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


def _print(console: Console, found: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """Weights only if some job has one that is not 1."""
    weight = ["Weight"] if any(job["weight"] != 1 for job in found) else []
    headers = ["Job", "Backend", "Workspace", "Action", "State: code", "For", "Attempt", "Agent", *weight, "By", "RAP"]
    rows = (
        [
            job["id"],
            job["backend"],
            job["workspace"],
            job["action"],
            report.state_text(job["state"], _words(job)),
            Text(report.duration((now - datetime.fromisoformat(job["code_changed_at"])).total_seconds()), no_wrap=True),
            str(job["attempt"] or ""),
            job["agent"] or "",
            *([f"{job['weight']:g}"] if weight else []),
            job["created_by"],
            job["rap_id"],
        ]
        for job in found
    )
    report.print_list(console, headers, rows, spare=_SPARE)


def _words(job: Mapping[str, Any]) -> str:
    """The state, and the code unless it says the same."""
    return str(job["state"] if job["code"] == job["state"] else f"{job['state']}: {job['code']}")
