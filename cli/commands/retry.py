"""`rap retry`: a job gets another chance."""

from typing import Any

import click

from cli import confirmation, connection, lookup, report
from cli.connection import Connection


@click.command()
@click.argument("job")
@confirmation.option
@connection.options
def retry(job: str, yes: bool, **options: Any) -> None:
    """Try JOB again: its id, the beginning of its id, or RAP_ID/ACTION. Needs an operator's token.

    One that runs is stopped and queued for another attempt; one that rests after an error of the platform rests no
    longer; for one that failed, a new RAP asks for its action. Asks before it stops something.
    """
    connected = connection.connect(**options)
    found = connection.run(_find(connected, job))
    if found["state"] == "running":
        confirmation.need_person(yes, danger="stopping a running job")
        if not yes:
            confirmation.ask(f"Stop {report.job_name(found)} and begin another attempt?")
    # With the attempt that we know of: after a lost answer, asking again stops no newer one.
    done = connected.change("jobs", found["id"], "retry", body={"attempt": found["attempt"]})
    if connected.json:
        connection.print_json(done)
        return
    console = connection.console()
    console.print(f"Job {report.job_name(done['job'])}: {report.safe(done['message'])}", soft_wrap=True)
    if done["rap_id"] is not None:
        console.print(f"See: rap status {done['rap_id']} (job {done['new_job']})", soft_wrap=True)


async def _find(connected: Connection, text: str) -> dict[str, Any]:
    async with connected.client() as client:
        return await client.read("jobs", await lookup.job(client, text))
