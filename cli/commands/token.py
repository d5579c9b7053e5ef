"""`rap token`: let people, portals and agents in, and out again."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from cli import confirmation, connection, report
from cli.errors import Problem
from cli.span import Span
from common import tokens


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
    type=click.Choice(["read", "run", "manage", "review"]),
    help="What it allows there; can be repeated. Otherwise read and run.",
)
@click.option("--agent", is_flag=True, help="For agents of the backends: it opens nothing else.")
@click.option(
    "--expires",
    "lifetime",
    type=Span("1m"),
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
    made = connected.change("tokens", body=body)["token"]
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
    document = connected.read("tokens")
    if connected.json:
        connection.print_json(document)
        return
    rows = []
    for each in document["tokens"]:
        revoked = f" {each['revoked_at']} by {each['revoked_by']}" if each["revoked_at"] else ""
        made = (each["expires_at"] or "never", each["created_at"], each["created_by"])
        rows.append((each["name"], each["kind"], f"{each['state']}{revoked}", _grants(each), *made))
    headers = ("Token", "Kind", "State", "Opens", "Expires", "Created", "By")
    report.print_list(connection.console(), headers, rows, spare=("Created", "Kind", "Expires"))


@token.command()
@click.argument("name")
@confirmation.option
@connection.options
def revoke(name: str, yes: bool, **options: Any) -> None:
    """Let the token called NAME open nothing any more, from now on and for ever. Asks first."""
    confirmation.need_person(yes, danger="revoking a token")
    connected = connection.connect(**options)
    if not yes:
        confirmation.ask(f"Revoke token {report.safe(name)}? Whoever uses it is shut out at once.")
    done = connected.change("tokens", name, "revoke")
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
