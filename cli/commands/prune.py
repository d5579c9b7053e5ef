"""`rap prune`: forget what finished long ago on a backend."""

from collections.abc import Mapping
from typing import Any, Final

import click

from cli import confirmation, connection, report
from cli.connection import Connection
from cli.span import Span

_COUNTS: Final = ("raps", "jobs", "kept", "outputs", "events", "logs", "tasks")


@click.command()
@click.argument("backend")
@click.option("--older-than", type=Span("1d"), required=True, metavar="AGE", help="Such as 90d or 2y; at least 1d.")
@click.option("--dry-run", is_flag=True, help="Count what would go; change nothing.")
@confirmation.option
@connection.options
def prune(backend: str, older_than: int, dry_run: bool, yes: bool, **options: Any) -> None:
    """Forget RAPs on BACKEND whose jobs all ended longer ago than AGE. Needs an operator's token.

    The newest result of every action of a workspace stays, and so does whatever jobs that are not finished need. Asks
    first. What is gone cannot be brought back but from a backup.
    """
    confirmation.need_person(dry_run or yes, danger="forgetting (without --dry-run)")
    connected = connection.connect(**options)
    if not (dry_run or yes):
        counted = connection.run(_prune(connected, backend, older_than, dry_run=True))
        confirmation.ask(f"{_sentence(counted)}. Go on?")
    done = connection.run(_prune(connected, backend, older_than, dry_run=dry_run))
    if connected.json:
        connection.print_json(done)
        return
    connection.console().print(_sentence(done), soft_wrap=True)


async def _prune(connected: Connection, backend: str, older_than: int, *, dry_run: bool) -> dict[str, Any]:
    """Call after call until the end; the sums of all. Repeating it after a failure goes on where it was."""
    total: dict[str, Any] = {}
    async with connected.client() as client:
        body: dict[str, Any] = {"older_than_seconds": older_than, "dry_run": dry_run, "after": 0}
        while True:
            done = await client.change("backends", backend, "prune", body=body)
            following = done.pop("next_after")
            total = {**done, **{name: total.get(name, 0) + done[name] for name in _COUNTS}}
            if following is None:
                return total
            body["after"] = following


def _sentence(done: Mapping[str, Any]) -> str:
    slug, since = report.safe(done["backend"]), done["cutoff"][:10]
    gone = (
        f"{report.count(done['raps'], 'RAP')} with {report.count(done['jobs'], 'job')} and "
        f"{report.count(done['outputs'], 'output')}, {report.count(done['events'], 'entry', 'entries')} of history, "
        f"{report.count(done['logs'], 'part')} of logs and {report.count(done['tasks'], 'task')}"
    )
    would = "would be forgotten" if done["dry_run"] else "forgotten"
    kept = report.count(done["kept"], "RAP")
    return f"Backend {slug}, finished before {since}, {would}: {gone}; kept because it is needed: {kept}"
