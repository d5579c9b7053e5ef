"""`rap restore`: a backup into an empty database, in one transaction."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from cli import confirmation, connection, report
from cli.backup import archive, database, targets
from cli.backup.archive import Backup
from cli.backup.database import Restored
from cli.errors import Problem


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="A folder for `rap up`, which must not run on it; else RAP_DATABASE_URL is restored into.",
)
@click.option(
    "--blobs",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where the blobs go: a folder that is empty or not there.",
)
@confirmation.option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def restore(*, file: Path, data: Path | None, blobs: Path | None, yes: bool, as_json: bool) -> None:
    """Bring the backup FILE back into an empty database. Asks first.

    Everything is checked before anything is changed. The database gets all of it or nothing.
    """
    confirmation.need_person(yes, danger="restoring")
    folder = targets.chosen(data)
    with archive.opened(file) as backup:
        _check_blobs(backup, blobs)
        with targets.empty_one(folder) as target:
            asyncio.run(database.check_restorable(target, backup.manifest))
            if not yes:
                confirmation.ask(_question(backup, target.name))
            with _blobs_beside(backup, blobs) as put_in_place, backup.dump() as dump:
                done = asyncio.run(database.restore(target, backup.manifest, dump))
                put_in_place()
            _tell(backup, target.name, done, as_json, is_folder=folder is not None)


def _question(backup: Backup, name: str) -> str:
    found = backup.manifest
    counts = f"{report.count(found.raps, 'RAP')}, {report.count(found.jobs, 'job')}"
    return f"Restore the backup of {found.created_at} ({counts}) into {name}?"


def _check_blobs(backup: Backup, folder: Path | None) -> None:
    if backup.manifest.blobs and folder is None:
        raise Problem(f"the backup has {backup.manifest.blobs} blobs: say where they go with --blobs DIR")
    if folder is not None and not backup.manifest.with_blobs:
        raise Problem("the backup was made without blobs: leave --blobs out")
    if folder is not None and (folder.exists() or folder.is_symlink()) and not _is_empty(folder):
        raise Problem(f"{folder} is not an empty folder: nothing was changed. Name a new one with --blobs")


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


@contextmanager
def _blobs_beside(backup: Backup, folder: Path | None) -> Iterator["_Move"]:
    """The blobs beside their place, to be put there once the database has everything; else removed."""
    if folder is None:
        yield _Move(None, None)
        return
    target = folder.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise Problem(f"{target} cannot be made: {error.strerror or error}") from error
    try:
        try:
            backup.extract_blobs(beside)
        except OSError as error:
            raise Problem(f"the blobs cannot be written to {target}: {error.strerror or error}") from error
        yield _Move(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


class _Move:
    """Puts a folder into its place."""

    def __init__(self, source: Path | None, target: Path | None) -> None:
        self._source = source
        self._target = target

    def __call__(self) -> None:
        if self._source is None or self._target is None:
            return
        try:
            # Replaces an empty folder, and no other.
            os.rename(self._source, self._target)
        except OSError as error:
            raise Problem(
                f"the database is restored, but the blobs cannot be put into {self._target} "
                f"({error.strerror or error}): unpack blobs/ of the backup there by hand"
            ) from error


def _tell(backup: Backup, name: str, done: Restored, as_json: bool, *, is_folder: bool) -> None:
    manifest = backup.manifest
    if as_json:
        document = {
            "created_at": manifest.created_at,
            "raps": done.raps,
            "jobs": done.jobs,
            "blobs": manifest.blobs if manifest.with_blobs else None,
            "missing_migrations": list(done.missing),
        }
        connection.print_json(document)
        return
    blobs = [report.count(manifest.blobs, "blob")] if manifest.with_blobs else []
    counts = ", ".join([report.count(done.raps, "RAP"), report.count(done.jobs, "job"), *blobs])
    click.echo(f"Restored the backup of {report.safe(manifest.created_at)} into {name}: {counts}")
    if done.missing and is_folder:
        click.echo(f"It lacks migrations ({', '.join(done.missing)}): `rap up` applies them when it starts")
    elif done.missing:
        click.echo(f"It lacks migrations ({', '.join(done.missing)}): run `rap migrate` before a controller")
    click.echo(
        "What operators did after the backup is undone: tokens revoked since are valid again, pauses, maintenance and "
        f"limits are as they were.\nNext: {'`rap up`' if is_folder else 'start the controllers'}, `rap doctor`, and "
        "`rap token list`: revoke again what was revoked (`rap token revoke NAME`)"
    )
