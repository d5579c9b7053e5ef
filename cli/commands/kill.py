"""`rap kill`: jobs must stop."""

from collections.abc import Sequence
from typing import Any

import click

from cli import confirmation, connection, lookup, report
from cli.connection import Connection


@click.command()
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
@confirmation.option
@connection.options
def kill(jobs: tuple[str, ...], yes: bool, **options: Any) -> None:
    """End JOBs: their ids, the beginnings of these, or RAP_ID/ACTION. Needs an operator's token.

    They fail with the code killed_by_admin, what runs is stopped, and jobs that need them fail. Asks first, unless all
    are over already.
    """
    connected = connection.connect(**options)
    found = connection.run(_find(connected, jobs))
    alive = [job for job in found if not report.is_over(job)]
    if alive and not yes:
        confirmation.need_person(yes, danger="killing jobs")
        confirmation.ask(f"Kill {', '.join(report.job_name(job) for job in alive)}?")
    done = connection.run(_kill(connected, [job["id"] for job in found]))
    if connected.json:
        connection.print_json({"jobs": done})
        return
    for each in done:
        job = each["job"]
        said = "killed" if each["changed"] else f"was over already ({job['code']}): nothing changed"
        connection.console().print(f"Job {report.job_name(job)} {said}", soft_wrap=True)


async def _find(connected: Connection, names: Sequence[str]) -> list[dict[str, Any]]:
    """Every job that is meant, once each; before any is touched, so that a name with a slip stops all."""
    async with connected.client() as client:
        ids = [await lookup.job(client, each) for each in names]
        return [await client.read("jobs", each) for each in dict.fromkeys(ids)]


async def _kill(connected: Connection, ids: Sequence[str]) -> list[dict[str, Any]]:
    async with connected.client() as client:
        return [await client.change("jobs", each, "kill") for each in ids]
