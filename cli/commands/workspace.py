"""`rap workspace`: what lies on a backend's disks. Works beside an agent, on its folders, and asks no controller."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
from rich.text import Text

from agent.outputs import archives
from agent.outputs.archives import NotPossible, Workspace
from agent.outputs.workspaces import Places
from agent.settings import folders
from cli import confirmation, connection, local, report
from cli.errors import Problem
from cli.stack.place import Place
from common.environ import ConfigurationError

_DATA: Final = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The folder of a `rap up`; else the agent's settings in the environment (HIGH_PRIVACY_STORAGE_BASE, ...).",
)
_JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group()
def workspace() -> None:
    """Look at a backend's workspaces, put them away, bring them back. Run it where the agent runs, as its user."""


@workspace.command("ls")
@_DATA
@_JSON
def list_all(data: Path | None, as_json: bool) -> None:
    """List workspaces: how large, how old, and which are archived."""
    found = archives.find_all(_places(data))
    if as_json:
        connection.print_json({"workspaces": [_document(each) for each in found]})
        return
    table = report.table("Workspace", "Files", "Bytes", "Changed", "Archived as")
    for each in found:
        changed = each.changed_at.isoformat(timespec="seconds") if each.changed_at else ""
        cells = (each.name, str(each.files), str(each.bytes), changed, str(each.archive or ""))
        table.add_row(*(Text(report.safe(cell)) for cell in cells))
    connection.console().print(table if found else "No workspaces.")


@workspace.command()
@click.argument("name")
@_DATA
@_JSON
def show(name: str, data: Path | None, as_json: bool) -> None:
    """Show the outputs of workspace NAME, as its manifest lists them."""
    places = _places(data)
    found, outputs = _tried(lambda: archives.describe(places, name)), archives.list_outputs(places, name)
    if as_json:
        connection.print_json({**_document(found), "outputs": outputs})
        return
    where = f"archived as {found.archive}" if found.archive else f"{found.files} files, {found.bytes} bytes"
    connection.console().print(f"Workspace {found.name}: {report.safe(where)}", soft_wrap=True)
    table = report.table("Path", "Level", "Action", "Job", "Bytes", "Remarks")
    for path, entry in sorted(outputs.items()):
        cells = (path, *(str(entry.get(key, "")) for key in ("level", "action", "job_id", "size")), _remarks(entry))
        table.add_row(*(Text(report.safe(cell)) for cell in cells))
    if outputs:
        connection.console().print(table)


@workspace.command()
@click.argument("name")
@confirmation.option
@_DATA
@_JSON
def archive(name: str, yes: bool, data: Path | None, as_json: bool) -> None:
    """Put workspace NAME away: one compressed file instead of its folder in the high-privacy area. Asks first.

    Jobs of an archived workspace fail with that message. Pause the backend if other agents work on the same storage.
    """
    confirmation.need_person(yes, danger="archiving a workspace")
    places = _places(data)
    found = _tried(lambda: archives.describe(places, name))
    if not yes:
        confirmation.ask(f"Put the {found.files} files of workspace {name} away?")
    _tell(name, _tried(lambda: archives.put_away(places, name)), "archived as", as_json)


@workspace.command()
@click.argument("name")
@_DATA
@_JSON
def unarchive(name: str, data: Path | None, as_json: bool) -> None:
    """Bring workspace NAME back from its archive, which is removed."""
    places = _places(data)
    _tell(name, _tried(lambda: archives.bring_back(places, name)), "back in", as_json)


def _tell(name: str, path: Path, how: str, as_json: bool) -> None:
    if as_json:
        connection.print_json({"workspace": name, "path": str(path)})
        return
    connection.console().print(f"Workspace {name} is {how} {report.safe(str(path))}", soft_wrap=True)


def _tried(work: Any) -> Any:
    try:
        return work()
    except NotPossible as error:
        raise Problem(str(error)) from error


def _places(data: Path | None, environ: Mapping[str, str] = os.environ) -> Places:
    """The folders that are meant: those named, else the environment's, else those of the `rap up` that runs.

    :raises Problem: nothing is named, or a setting cannot be used.
    """
    running = local.find(environ)
    if data is None and not environ.get("HIGH_PRIVACY_STORAGE_BASE") and not environ.get("WORKDIR"):
        if running is None:
            raise Problem("which storage? Set HIGH_PRIVACY_STORAGE_BASE as the agent has it, or name --data DIR")
        data = Path(running.data_dir)
    if data is not None:
        storage = Place(data.absolute()).storage
        return Places(
            high=storage / "high_privacy",
            medium=storage / "medium_privacy",
            archive=storage / "archives",
            work=data.absolute() / "agent",
        )
    try:
        found = folders(environ)
    except ConfigurationError as error:
        raise Problem("; ".join(error.faults)) from error
    return Places(high=found.high, medium=found.medium, archive=found.archive, work=found.work)


def _document(found: Workspace) -> dict[str, Any]:
    return {
        "name": found.name,
        "files": found.files,
        "bytes": found.bytes,
        "changed_at": found.changed_at.isoformat() if found.changed_at else None,
        "archive": str(found.archive) if found.archive else None,
    }


def _remarks(entry: Mapping[str, Any]) -> str:
    said = [str(entry["message"])] if entry.get("message") else []
    said += ["excluded"] if entry.get("excluded") else []
    said += ["out of date"] if entry.get("out_of_date_output") or entry.get("out_of_date_action") else []
    return ", ".join(said)
