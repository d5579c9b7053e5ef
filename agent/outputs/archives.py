"""Workspaces that are put away: one compressed file in the archive folder instead of a folder of outputs.

What is in the archive is compared with the disk before anything is removed, and every step can be made again after a
kill: an archive that is there already is only finished. While an archive exists, jobs of its workspace are refused
(`agent.outputs.preparation`).
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final
from uuid import uuid4

from attrs import frozen

from agent.core.definition import check_workspace
from agent.core.errors import BadDefinition, OutputClash
from agent.outputs.copies import force
from agent.outputs.trees import remove_tree, walk
from agent.outputs.workspaces import Places, read_json, replacing, sync_folder
from common.unpacking import unpack

_SUFFIX: Final = ".tar.gz"


class NotPossible(Exception):
    """A workspace cannot be put away or brought back; the text says why. Nothing was removed."""


@frozen(kw_only=True)
class Workspace:
    """What lies on the disks of one workspace."""

    name: str
    files: int
    """In the high-privacy area."""
    bytes: int
    changed_at: datetime | None
    """The newest file's time; None without files."""
    archive: Path | None
    """Where it is put away, if it is."""


def find_all(places: Places) -> list[Workspace]:
    """Every workspace, archived ones included, by name."""
    names = {path.name for path in _folders(places.high / "workspaces")}
    if places.archive.is_dir():
        for path in places.archive.iterdir():
            stem, dot, _ = path.name.partition(".tar.")
            if dot and not path.name.startswith("."):
                names.add(stem)
    return [describe(places, name) for name in sorted(names) if _is_name(name)]


def describe(places: Places, name: str) -> Workspace:
    """One workspace.

    :raises NotPossible: there is none of that name.
    """
    folder, archive = places.high_workspace(_checked(name)), places.archived(name)
    if archive is None and not folder.is_dir():
        raise NotPossible(f"There is no workspace {name!r} in {folder.parent}.")
    files, size, newest = 0, 0, None
    for path in walk(folder):
        state = os.lstat(f"{folder}/{path}")
        files, size, newest = files + 1, size + state.st_size, max(state.st_mtime, newest or 0)
    return Workspace(
        name=name,
        files=files,
        bytes=size,
        changed_at=None if newest is None else datetime.fromtimestamp(newest, UTC),
        archive=archive,
    )


def list_outputs(places: Places, name: str) -> dict[str, Any]:
    """The entries of the workspace's manifest, by path (reference section 5.2); empty if it has none."""
    try:
        manifest = read_json(places.medium_workspace(_checked(name)) / "metadata" / "manifest.json")
    except ValueError:
        return {}
    outputs = manifest.get("outputs") if isinstance(manifest, dict) else None
    return dict(outputs) if isinstance(outputs, dict) else {}


def put_away(places: Places, name: str) -> Path:
    """Replace the workspace's high-privacy folder by an archive; the archive's path.

    What may be released stays where reviewers look for it, in the medium-privacy area.

    :raises NotPossible: no such workspace, one of its jobs is here, it is archived already, or it changes meanwhile.
    """
    folder = places.high_workspace(_checked(name))
    archive = places.archived(name)
    leaving = _leaving(folder)
    if leaving.is_dir() and not folder.exists():
        leaving.replace(folder)  # a kill came before the last step, which begins anew
    _clear(leaving, archive, name)
    if not folder.is_dir():
        raise NotPossible(
            f"There is no workspace {name!r} in {folder.parent}."
            if archive is None
            else f"Workspace {name!r} is archived already, as {archive}."
        )
    _refuse_if_busy(places, name)
    before = _fingerprint(folder)
    made = archive is None
    if archive is None:
        archive = _write(places.archive / f"{name}{_SUFFIX}", folder, name)
    try:
        _compare(archive, folder, name)
        _refuse_if_busy(places, name)
        # Out of the way of agents that cannot be seen from here: what they store from now on lies in a new folder.
        folder.replace(leaving)
        if _fingerprint(leaving) != before:
            leaving.replace(folder)
            raise NotPossible(f"Workspace {name!r} changed while it was archived: wait for its jobs, and try again.")
    except NotPossible:
        if made:
            archive.unlink()
        raise
    remove_tree(leaving)
    return archive


def bring_back(places: Places, name: str) -> Path:
    """Make an archived workspace a folder again, and remove the archive; the folder.

    :raises NotPossible: it is not archived, a folder is in the way, or the archive cannot be read.
    """
    folder, archive = places.high_workspace(_checked(name)), places.archived(name)
    if archive is None:
        raise NotPossible(f"Workspace {name!r} is not archived in {places.archive}.")
    if folder.exists():
        try:
            _compare(archive, folder, name)  # a kill came between the last two steps
        except NotPossible as error:
            raise NotPossible(f"{folder} is there as well, and is not what {archive} holds.") from error
    else:
        _extract(archive, folder, name)
    _clear(_leaving(folder), archive, name)
    archive.unlink()
    return folder


def _leaving(folder: Path) -> Path:
    """Where a workspace's folder is while it is removed."""
    return folder.with_name(f".{folder.name}.leaving")


def _clear(leaving: Path, archive: Path | None, name: str) -> None:
    """Remove what a kill has left of a removal.

    :raises NotPossible: it holds what no archive does.
    """
    if not leaving.is_dir():
        return
    if archive is None:
        raise NotPossible(f"{leaving} is left of workspace {name!r}, and nothing else has what is in it.")
    _compare(archive, leaving, name)
    remove_tree(leaving)


def _checked(name: str) -> str:
    if not _is_name(name):
        raise NotPossible(f"{name!r} is no name of a workspace.")
    return name


def _is_name(name: str) -> bool:
    try:
        check_workspace(name)
    except BadDefinition:
        return False
    return True


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []


def _fingerprint(folder: Path) -> bytes:
    """Changes when a file below `folder` does."""
    digest = hashlib.sha256()
    for path in walk(folder):
        state = os.lstat(f"{folder}/{path}")
        digest.update(f"{path!r} {state.st_size} {state.st_mtime_ns}\n".encode(errors="surrogatepass"))
    return digest.digest()


def _refuse_if_busy(places: Places, name: str) -> None:
    """Keep off a workspace that a job of this agent belongs to; other agents' jobs cannot be seen from here."""
    for path in (places.work / "tasks").glob("*/offer.json"):
        with contextlib.suppress(ValueError):
            offer = read_json(path)
            if isinstance(offer, dict) and offer.get("definition", {}).get("workspace") == name:
                raise NotPossible(f"Job {offer.get('job_id')} of workspace {name!r} is at work here: wait, or kill it.")


def _write(target: Path, folder: Path, name: str) -> Path:
    try:
        with (
            replacing(target, mode=0o600) as file,
            tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as archive,
        ):
            for path in walk(folder):
                archive.add(folder / path, arcname=f"{name}/{path}", recursive=False)
    except (OSError, OutputClash) as error:
        raise NotPossible(f"{target} cannot be written: {error}") from error
    return target


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    """An archive of any of the three kinds, to be read from its beginning to its end.

    :raises NotPossible: it is damaged, or of a kind that needs a program that is not there.
    """
    try:
        if archive.suffix == ".zstd":
            program = shutil.which("zstd")
            if program is None:
                raise NotPossible(f"{archive} needs the program zstd, which is not installed.")
            with subprocess.Popen([program, "-dc", "--", str(archive)], stdout=subprocess.PIPE) as child:
                with tarfile.open(fileobj=child.stdout, mode="r|") as tar:
                    yield tar
                if child.wait() != 0:
                    raise NotPossible(f"{archive} is damaged: zstd cannot read it to its end.")
        else:
            with tarfile.open(archive, mode="r|*") as tar:
                yield tar
    except (tarfile.TarError, EOFError, OSError) as error:
        raise NotPossible(f"{archive} cannot be read: {error}") from error


def _compare(archive: Path, folder: Path, name: str) -> None:
    """Return if the archive holds exactly the files of the folder.

    :raises NotPossible: it does not.
    """
    expected = set(walk(folder))
    with _opened(archive) as tar:
        for member in tar:
            path = member.name.partition("/")[2]
            content = tar.extractfile(member) if member.isfile() else None
            if member.name != f"{name}/{path}" or path not in expected or not _same(content, folder / path):
                raise NotPossible(f"{archive} is not what {folder} holds: {member.name} differs.")
            expected.discard(path)
    if expected:
        raise NotPossible(f"{archive} is not what {folder} holds: {min(expected)} is missing.")


def _same(content: IO[bytes] | None, path: Path) -> bool:
    if content is None or path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return _digest(content) == _digest(file)


def _digest(stream: IO[bytes]) -> bytes:
    return hashlib.file_digest(stream, "sha256").digest()  # type: ignore[arg-type]  # IO has no readinto, files have


def _extract(archive: Path, folder: Path, name: str) -> None:
    """Unpack beside the folder, then move it there in one step."""
    beside = folder.with_name(f".{name}.{uuid4().hex[:8]}.part")
    try:
        beside.mkdir(parents=True)
        with _opened(archive) as tar:
            for member in tar:
                unpack(tar, member, beside, member.name)
        if [path.name for path in beside.iterdir()] not in ([name], []):
            raise NotPossible(f"{archive} is no archive of workspace {name!r}.")
        (beside / name).mkdir(exist_ok=True)
        force(beside / name)  # the archive, which has all of it on disk, is about to go
        (beside / name).replace(folder)
        sync_folder(folder.parent)
    finally:
        remove_tree(beside)
