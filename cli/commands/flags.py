"""`rap flags`: the switches of backends, and since when they are so."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from rich.text import Text

from cli import connection, report
from cli.connection import Connection
from cli.errors import Problem

_EMPTY: Final = '""'
"""How an empty text is shown and given: null and empty are two values (reference section 3.6)."""


@click.command()
@click.argument("backend", required=False)
@click.argument("wanted", metavar="[FLAG[=VALUE]]...", nargs=-1)
@connection.options
def flags(backend: str | None, wanted: tuple[str, ...], **options: Any) -> None:
    """Show the switches of BACKEND, or of every backend that the token manages; or set some of them.

    FLAG shows only that one. FLAG=VALUE sets it, FLAG= to null, FLAG=\'""\' to an empty text. Commands such as
    `rap pause` set what belongs together: use them where they do what you need.
    """
    connected = connection.connect(**options)
    values = dict(part.split("=", 1) for part in wanted if "=" in part)
    if values and backend is not None:
        _print_set(connected, _set(connected, backend, values))
        return
    document = connected.read("flags", backend=backend)
    found = _choose(document["flags"], wanted)
    if connected.json:
        connection.print_json({**document, "flags": found})
        return
    _print(found)


def _choose(found: Sequence[Mapping[str, Any]], wanted: Sequence[str]) -> list[Mapping[str, Any]]:
    known = {each["id"] for each in found}
    for name in wanted:
        if name not in known:
            raise Problem(f"there is no flag {name!r}; there are {', '.join(sorted(known))}")
    return [each for each in found if not wanted or each["id"] in wanted]


def _print_set(connected: Connection, done: Mapping[str, Any]) -> None:
    if connected.json:
        connection.print_json(done)
        return
    changed = ", ".join(done["changed"]) or "nothing: it was so already"
    connection.console().print(f"Backend {report.safe(done['backend'])}, changed: {changed}", soft_wrap=True)
    _print(done["flags"])


def _print(found: Sequence[Mapping[str, Any]]) -> None:
    table = report.table("Backend", "Flag", "Value", "Since")
    for each in found:
        cells = (each["backend"], each["id"], _shown(each["value"]), each["changed_at"] or "never set")
        table.add_row(*(Text(report.safe(cell)) for cell in cells))
    connection.console().print(table)


def _shown(value: str | None) -> str:
    if value is None:
        return "null"
    return value or _EMPTY


def _set(connected: Connection, backend: str, values: Mapping[str, str]) -> dict[str, Any]:
    body = {name: "" if value == _EMPTY else value or None for name, value in values.items()}
    return connected.change("backends", backend, "flags", body=body)
