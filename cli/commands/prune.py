"""`rap prune`: forget what finished long ago on a backend."""

import re
from collections.abc import Mapping
from typing import Any, Final

import click

from cli import confirmation, connection, report
from cli.connection import Connection

_UNITS: Final = {"d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_SHORTEST: Final = _UNITS["d"]
_LONGEST: Final = 100 * _UNITS["y"]
"""Seconds, as in the contract."""
_AGE: Final = re.compile(r"([0-9]{1,6})([dwy])")
_COUNTS: Final = ("raps", "jobs", "kept", "outputs", "events", "logs", "tasks")


def _age(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """`90d`, `12w` or `2y`, as seconds."""
    found = _AGE.fullmatch(value)
    if found is None:
        message = f"{value!r} is not a number of days, weeks or years, such as 90d, 12w or 2y"
        raise click.BadParameter(message, ctx=ctx, param=param)
    seconds = int(found[1]) * _UNITS[found[2]]
    if not _SHORTEST <= seconds <= _LONGEST:
        raise click.BadParameter(f"{value!r} is not between 1d and 100y", ctx=ctx, param=param)
    return seconds


@click.command()
@click.argument("backend")
@click.option("--older-than", callback=_age, required=True, metavar="AGE", help="Such as 90d, 12w or 2y; at least 1d.")
@click.option("--dry-run", is_flag=True, help="Count what would go; change nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
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
    would = "would go" if done["dry_run"] else "are gone"
    return (
        f"Backend {slug}, finished before {since}: {done['raps']} RAPs with {done['jobs']} jobs and "
        f"{done['outputs']} outputs {would}; {done['events']} entries of history, {done['logs']} parts of logs and "
        f"{done['tasks']} tasks, too; {done['kept']} RAPs stay because they are needed"
    )
