"""`rap cancel`: a RAP's jobs are no longer wanted."""

from typing import Any

import click

from cli import connection, lookup, report
from cli.client import Client
from cli.connection import Connection


@click.command()
@click.argument("rap_id")
@click.argument("actions", metavar="[ACTION]...", nargs=-1)
@connection.options
def cancel(rap_id: str, actions: tuple[str, ...], **options: Any) -> None:
    """Cancel ACTIONs of the RAP with RAP_ID; without ACTION, all that have not ended."""
    connected = connection.connect(**options)
    document = connection.run(_cancel(connected, rap_id, actions))
    if connected.json:
        connection.print_json(document)
    elif document["actions"]:
        names = ", ".join(report.safe(action) for action in document["actions"])
        connection.console().print(f"RAP {document['rap_id']}: cancelled {names}", soft_wrap=True)
    else:
        connection.console().print(f"RAP {document['rap_id']}: every job has ended already", soft_wrap=True)


async def _cancel(connected: Connection, text: str, actions: tuple[str, ...]) -> dict[str, Any]:
    async with connected.client() as client:
        rap_id = await lookup.rap(client, text)
        # Once each: a name that is given twice is still one job.
        wanted = list(dict.fromkeys(actions)) or await _active(client, rap_id)
        if wanted:
            await client.cancel(rap_id, wanted)
        return {"rap_id": rap_id, "actions": wanted, "count": len(wanted)}


async def _active(client: Client, rap_id: str) -> list[str]:
    detail = await client.read("raps", rap_id)
    return [str(job["action"]) for job in detail["jobs"] if job["state"] in ("pending", "running")]
