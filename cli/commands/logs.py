"""`rap logs`: what a job has printed, as far as its backend lets that out."""

import sys
from collections.abc import Callable
from typing import Any

import click

from cli import connection, lookup, report
from cli.client import Client
from cli.connection import Connection

_LOOK_EVERY = 0.5
"""Seconds between two looks while following."""
_PAGE = 262_144
"""Characters of one page."""


@click.command()
@click.argument("job")
@click.option("--attempt", type=click.IntRange(min=1), help="Which attempt at the job; default: the newest.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@connection.options
def logs(job: str, attempt: int | None, follow: bool, **options: Any) -> None:
    """Print the log of JOB: its id, the beginning of its id, or RAP_ID/ACTION."""
    connected = connection.connect(**options)
    parts: list[str] = []
    try:
        last = connection.run(_read(connected, job, attempt, follow, parts.append if connected.json else _write))
    except KeyboardInterrupt:
        sys.exit(130)
    if connected.json:
        connection.print_json({**last, "offset": 0, "text": "".join(parts)})
        return
    if not last["next_offset"]:
        click.echo("rap: no log: nothing was printed yet, or the backend does not let logs out", err=True)
    elif last["truncated"]:
        click.echo("rap: the controller keeps no more of this log", err=True)


def _write(text: str) -> None:
    # A file or pipe gets what the job wrote; a terminal must not be steered by it.
    click.echo(report.safe(text) if sys.stdout.isatty() else text, nl=False)


async def _read(
    connected: Connection, name: str, attempt: int | None, follow: bool, write: Callable[[str], None]
) -> dict[str, Any]:
    """Hand the log to `write`, page by page.

    :returns: the last page.
    """
    async with connected.client() as client:
        job = await lookup.job(client, name)
        offset = 0
        page = await _page(client, job, attempt, offset)
        while True:
            write(page["text"])
            ended = page["next_offset"] <= offset
            if page["complete"] or (ended and not follow):
                return page
            if ended:
                await client.clock.sleep(_LOOK_EVERY)
            offset = page["next_offset"]
            following = await _page(client, job, attempt, offset)
            if following["attempt"] != page["attempt"]:
                click.echo(f"rap: attempt {following['attempt']} begins", err=True)
                offset = 0
                following = await _page(client, job, attempt, offset)
            page = following


async def _page(client: Client, job: str, attempt: int | None, offset: int) -> dict[str, Any]:
    return await client.read("jobs", job, "log", offset=offset, limit=_PAGE, attempt=attempt)
