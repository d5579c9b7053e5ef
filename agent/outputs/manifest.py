"""`manifest.json` of a workspace's medium-privacy area: what a release tool shows (reference section 5.2).

Lists outputs of all levels, with the study's repository and commit even for reusable actions. Written in one
move under the workspace's lock. A manifest that cannot be read is kept aside and started afresh: a broken one
must not stop every later job of the workspace.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import structlog
from attrs import fields, frozen

from agent.outputs.documents import Members
from agent.outputs.workspaces import locked, read_json, sweep, write_json

_log = structlog.get_logger()


@frozen(kw_only=True)
class Entry:
    """One output in the manifest."""

    level: str
    job_id: str
    job_request: str
    action: str
    user: str
    repo: str
    commit: str
    size: int
    timestamp: float
    """mtime of the file in the high-privacy area, Unix seconds."""
    content_hash: str
    excluded: bool = False
    message: str | None = None
    row_count: int | None = None
    col_count: int | None = None


_FIELDS: Final = tuple(field.name for field in fields(Entry))


def _read(path: Path, workspace: str) -> dict[str, Any]:
    fault = "it is not a manifest"
    try:
        manifest = read_json(path)
    except ValueError as error:
        manifest, fault = {}, str(error)
    if manifest is None:
        return {"workspace": workspace, "repo": None, "outputs": {}}
    if isinstance(manifest, dict) and isinstance(manifest.get("outputs"), dict):
        entries = manifest["outputs"]
        if all(isinstance(entry, dict) for entry in entries.values()):
            return manifest
    aside = path.with_name(f"manifest.json.corrupt-{uuid4().hex[:8]}")
    path.replace(aside)
    _log.error("manifest is corrupt: kept aside, a new one is started", path=str(path), aside=str(aside), fault=fault)
    return {"workspace": workspace, "repo": None, "outputs": {}}


def update(
    folder: Path,
    workspace: str,
    action: str,
    entries: Mapping[str, Entry],
    study_actions: Collection[str] | None,
) -> None:
    """Put an action's new outputs into the manifest in `folder`, the workspace's medium-privacy `metadata`.

    :param study_actions: the actions of the study's project file; None if it could not be read, in which case
        `out_of_date_action` stays as it was.
    """
    with locked(folder):
        sweep(folder)
        path = folder / "manifest.json"
        manifest = _read(path, workspace)
        before = manifest["outputs"]
        write_json(path, manifest | {"outputs": Members(_merge(before, action, entries, study_actions))})


def _merge(
    before: Mapping[str, dict[str, Any]],
    action: str,
    entries: Mapping[str, Entry],
    study_actions: Collection[str] | None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries from now on, one by one: those that were there in their order, then the new ones."""
    for name in itertools.chain(before, (name for name in entries if name not in before)):
        entry = before.get(name, {})
        if name in entries:
            entry = {field: getattr(entries[name], field) for field in _FIELDS} | {"out_of_date_output": False}
        elif entry.get("action") == action:
            entry = entry | {"out_of_date_output": True}
        if study_actions is not None:
            entry = entry | {"out_of_date_action": entry.get("action") not in study_actions}
        yield name, entry
