"""`rap release`: outputs that somebody has reviewed may leave."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from cli import confirmation, connection, lookup, report
from cli.client import Client
from cli.connection import Connection
from cli.errors import Problem

_SHORTEST: Final = 0.1
_LONGEST: Final = 2.0
"""Seconds between two looks."""


@click.command()
@click.argument("job")
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option(
    "--wait",
    type=click.FloatRange(min=0, max=86_400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the backend's answer.",
)
@confirmation.option
@connection.options
def release(job: str, paths: Sequence[str], wait: float, yes: bool, **options: Any) -> None:
    """Let outputs of JOB out that you have reviewed: these, or all that the policy of the backend lets out.

    JOB is an id, the beginning of one, or RAP_ID/ACTION. The agent checks that each file is still the one that the job
    left. Needs a token with the verb `review`. Asks first: what has left cannot be called back.
    """
    confirmation.need_person(yes, danger="letting outputs out of a backend")
    connected = connection.connect(**options)
    found = connection.run(_find(connected, job))
    if not yes:
        what = report.count(len(paths), "output") if paths else "all outputs that its policy lets out"
        confirmation.ask(f"Have you reviewed them, and may {what} of job {report.job_name(found)} leave?")
    done = connection.run(_release(connected, found["id"], paths, wait))
    if connected.json:
        connection.print_json(done)
    else:
        _print(done)
    if done["state"] == "waiting":
        raise Problem(
            f"no answer within {wait:g} s; the release is not lost: the same command waits for it again"
            " (`rap agents` says whether an agent is there)"
        )
    if done["state"] == "failed" or done["refused"] or done["withheld"]:
        raise click.exceptions.Exit(1)


async def _find(connected: Connection, text: str) -> dict[str, Any]:
    async with connected.client() as client:
        return await client.read("jobs", await lookup.job(client, text))


async def _release(connected: Connection, job_id: str, paths: Sequence[str], wait: float) -> dict[str, Any]:
    """Ask, and wait for what came of it: the release, still `waiting` if there was no answer in time."""
    async with connected.client() as client:
        body = {"paths": list(paths)} if paths else None
        asked: dict[str, Any] = (await client.change("jobs", job_id, "release", body=body))["release"]
        deadline = client.clock.monotonic() + wait
        pause = _SHORTEST
        while asked["state"] == "waiting" and client.clock.monotonic() < deadline:
            await client.clock.sleep(min(pause, max(0.0, deadline - client.clock.monotonic())))
            pause = min(pause * 1.5, _LONGEST)
            asked = await _look(client, job_id, asked)
        return asked


async def _look(client: Client, job_id: str, asked: dict[str, Any]) -> dict[str, Any]:
    releases = (await client.read("jobs", job_id, "releases"))["releases"]
    return next((each for each in releases if each["number"] == asked["number"]), asked)


def _print(done: Mapping[str, Any]) -> None:
    console = connection.console()
    console.print(report.safe(done["message"]), soft_wrap=True)
    rows = [
        (output["path"], output["level"], report.size(output["size"]), "released") for output in done["released"]
    ] + [(refused["path"], "", "", refused["message"]) for refused in done["refused"]]
    if rows:
        report.print_list(console, ("Output", "Privacy level", "Size", ""), rows)
