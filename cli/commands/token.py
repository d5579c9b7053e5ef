"""`rap token`: let people, portals and agents in, and out again."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from rich.text import Text

from cli import confirmation, connection, report
from cli.connection import Connection
from cli.errors import Problem
from common import tokens

_SPAN: Final = re.compile(r"([0-9]{1,9})([mhdw])")
_SECONDS: Final[Mapping[str, int]] = {"m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_LONGEST: Final = 100 * 365 * 24 * 3600
"""Seconds, as in the contract."""


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """A span such as `90d`."""
    if value is None:
        return None
    found = _SPAN.fullmatch(value)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 0 < seconds <= _LONGEST:
        raise click.BadParameter("must be such as 30m, 12h, 90d or 4w, and not more than 100 years")
    return seconds


@click.group()
def token() -> None:
    """Let people, portals and agents in, and out again. Needs an operator's token (RAP_TOKEN)."""


@token.command()
@click.argument("name")
@click.option("--backend", "-b", "backends", multiple=True, help="What it opens; can be repeated.")
@click.option(
    "--verb",
    "verbs",
    multiple=True,
    type=click.Choice(["read", "run", "manage"]),
    help="What it allows there; can be repeated. Otherwise read and run.",
)
@click.option("--agent", is_flag=True, help="For agents of the backends: it opens nothing else.")
@click.option(
    "--expires",
    "lifetime",
    callback=_seconds,
    metavar="SPAN",
    help="Such as 90d. Otherwise it is valid until it is revoked.",
)
@connection.options
def create(
    name: str, backends: Sequence[str], verbs: Sequence[str], agent: bool, lifetime: int | None, **options: Any
) -> None:
    """Make a token called NAME and print it: once, and nothing else on standard output.

    NAME tells in logs and lists who it is, for ever: it cannot be used again.
    """
    if agent and verbs:
        raise click.UsageError("--verb does not go with --agent: an agent's token lets agents work, and nothing else")
    connected = connection.connect(**options)
    opened = backends or ([connected.backend] if connected.backend else [])
    if not opened:
        raise Problem("which backend shall the token open? Name it with --backend")
    granted = ["agent"] if agent else list(dict.fromkeys(verbs)) or ["read", "run"]
    secret = tokens.make()  # here: only its digest leaves this machine
    body = {
        "name": name,
        "digest": tokens.digest(secret).hex(),
        "grants": dict.fromkeys(opened, granted),
        "lifetime_seconds": lifetime,
    }
    made = connection.run(_change(connected, "tokens", body=body))["token"]
    try:
        if connected.json:
            connection.print_json({**made, "secret": secret})
            return
        click.echo(secret)
    except OSError as error:
        raise Problem(
            f"token {name} was made but cannot be printed ({error.strerror or error}), so nobody has it: "
            f"rap token revoke {name}, and make one with another name"
        ) from error
    until = f"until {made['expires_at']}" if made["expires_at"] else "until it is revoked"
    connection.console(stderr=True).print(
        f"This is token {report.safe(made['name'])}: {_grants(made)}, {until}. It is shown only now.", soft_wrap=True
    )


@token.command("list")
@connection.options
def list_tokens(**options: Any) -> None:
    """List the tokens that open a backend which your token manages, but for those of the controller's settings."""
    connected = connection.connect(**options)
    document = connection.run(_read(connected))
    if connected.json:
        connection.print_json(document)
        return
    table = report.table("Token", "Kind", "State", "Opens", "Expires", "Created", "By")
    for each in document["tokens"]:
        revoked = f" {each['revoked_at']} by {each['revoked_by']}" if each["revoked_at"] else ""
        made = (each["expires_at"] or "never", each["created_at"], each["created_by"])
        cells = (each["name"], each["kind"], f"{each['state']}{revoked}", _grants(each), *made)
        table.add_row(*(Text(report.safe(cell)) for cell in cells))
    connection.console().print(table)


@token.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@connection.options
def revoke(name: str, yes: bool, **options: Any) -> None:
    """Let the token called NAME open nothing any more, from now on and for ever. Asks first."""
    confirmation.need_person(yes, danger="revoking a token")
    connected = connection.connect(**options)
    if not yes:
        confirmation.ask(f"Revoke token {report.safe(name)}? Whoever uses it is shut out at once.")
    done = connection.run(_change(connected, "tokens", name, "revoke"))
    if connected.json:
        connection.print_json(done)
        return
    made = done["token"]
    already = "" if done["changed"] else " already: nothing changed"
    said = f"Token {report.safe(made['name'])} was revoked{already} ({made['revoked_at']}, by {made['revoked_by']})"
    connection.console().print(report.safe(said), soft_wrap=True)


def _grants(made: Mapping[str, Any]) -> str:
    """What it opens, such as `test (read, run)`."""
    parts = [f"{backend} ({', '.join(verbs)})" for backend, verbs in made["grants"].items()]
    return report.safe(", ".join([*parts, "and others"] if made["elsewhere"] else parts))


async def _read(connected: Connection) -> dict[str, Any]:
    async with connected.client() as client:
        return await client.read("tokens")


async def _change(connected: Connection, *path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    async with connected.client() as client:
        return await client.change(*path, body=body)
