"""`rap watch`: what happens on a controller, as it happens."""

import sys
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final

import click
import orjson
from rich.console import Console
from rich.text import Text

from cli import connection, lookup, report, stream
from cli.client import Client
from cli.connection import Connection
from cli.stream import Message

_TOLD: Final = ("rap", "job", "flags", "agent")
"""Events that are about something; others are about the stream."""


@click.command()
@click.argument("rap_id", required=False)
@click.option("--backend", help="Only what happens on this backend.")
@connection.options
def watch(rap_id: str | None, backend: str | None, **options: Any) -> None:
    """Print what happens, as it happens, until Ctrl-C.

    With RAP_ID (or the beginning of an id) only what happens to that RAP, until it has ended: exit code 1 if it failed.
    With --json each event is one JSON document on a line of its own.
    """
    connected = connection.connect(**options)
    try:
        state = connection.run(_watch(connected, rap_id, backend))
    except KeyboardInterrupt:
        sys.exit(130)
    if state == "failed":
        sys.exit(1)


async def _watch(connected: Connection, name: str | None, backend: str | None) -> str | None:
    """The state in which the RAP ended; without a RAP there is no end."""
    console = connection.console()
    async with connected.client() as client:
        rap = None if name is None else await lookup.rap(client, name)
        async with aclosing(stream.follow(client, rap=rap, backend=backend)) as messages:
            async for message in messages:
                if message.event in _TOLD:
                    _print(console, message, connected.json)
                elif message.event == "reset":
                    click.echo("rap: some events are missing: the controller does not keep them any more", err=True)
                if rap is not None and _may_be_the_end(message):
                    state = await _state_at_the_end(client, rap)
                    if state is not None:
                        return state
    return None


def _may_be_the_end(message: Message) -> bool:
    if message.event == "job":
        return report.is_over(message.data["content"])
    return message.event in ("ready", "reset")


async def _state_at_the_end(client: Client, rap: str) -> str | None:
    """None while a job of the RAP has not ended."""
    detail = await client.read("raps", rap)
    return str(detail["rap"]["state"]) if report.is_finished(detail) else None


def _print(console: Console, message: Message, as_json: bool) -> None:
    if as_json:
        click.echo(orjson.dumps(message.data).decode())
        return
    data = message.data
    at = datetime.fromisoformat(data["at"]).astimezone().strftime("%H:%M:%S")
    console.print(Text.assemble(f"{at} {report.safe(data['backend'])} ", _words(data)), soft_wrap=True)


def _words(data: report.Detail) -> Text:
    content = data["content"]
    match data["kind"]:
        case "job":
            what = content["code"] if content["state"] == "running" else content["message"] or content["code"]
            name = f"{data['rap_id']}/{content['action']}"
            return Text.assemble(f"{report.safe(name)}: ", report.state_text(content["state"]), f" ({_one_line(what)})")
        case "rap":
            jobs = report.count(content["jobs"], "job")
            whose = f"workspace {content['workspace']}, for {content['created_by']}"
            return Text(_one_line(f"RAP {data['rap_id']} was accepted: {jobs}, {whose}"))
        case "flags":
            changes = (
                f"{name} is {'null' if value is None else repr(value)}" for name, value in content["changed"].items()
            )
            return Text(_one_line(f"flag {', '.join(changes)}"))
        case "agent":
            return Text(_one_line(f"agent {content['agent']}: {content['news']}"))
        case kind:
            return Text(_one_line(f"{kind}"))


def _one_line(text: str) -> str:
    return report.safe(" ".join(text.split()))
