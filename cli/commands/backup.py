"""`rap backup`: the database, and a folder of blobs if there is one, in one file; controllers may go on working."""

import asyncio
import tempfile
from pathlib import Path

import click

from cli import connection, report
from cli.backup import archive, database, targets
from cli.backup.archive import Manifest
from cli.errors import Problem


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The folder of a `rap up`, running or not; else RAP_DATABASE_URL is backed up.",
)
@click.option("--blobs", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="A folder of blobs.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def backup(*, file: Path, data: Path | None, blobs: Path | None, force: bool, as_json: bool) -> None:
    """Write a backup of the database to FILE, readable by you alone.

    It is of one moment, while everything goes on working. FILE is there when it is complete, or not at all.
    """
    if blobs is not None and not blobs.is_dir():
        raise Problem(f"{blobs} is no folder: check --blobs")
    folder = targets.chosen(data)
    file = file.absolute()
    with archive.new_file(file, force=force) as stream:
        writer = archive.Writer(stream)
        with targets.existing(folder) as target, tempfile.TemporaryFile(dir=file.parent) as dumped:
            manifest = asyncio.run(database.dump(target, dumped, with_blobs=blobs is not None))
            name = target.name
            dumped.seek(0)
            writer.add(archive.DUMP, dumped)
        if blobs is not None:
            archive.add_blobs(writer, blobs)
        manifest = database.with_hashes(manifest, writer.sha256)
        writer.finish(manifest)
    _tell(file, name, manifest, as_json)


def _tell(file: Path, name: str, manifest: Manifest, as_json: bool) -> None:
    size = file.stat().st_size
    if as_json:
        document = {
            "file": str(file),
            "bytes": size,
            "created_at": manifest.created_at,
            "migrations": [step.name for step in manifest.migrations],
            "raps": manifest.raps,
            "jobs": manifest.jobs,
            "blobs": manifest.blobs if manifest.with_blobs else None,
        }
        connection.print_json(document)
        return
    blobs = [report.count(manifest.blobs, "blob")] if manifest.with_blobs else []
    counts = [report.count(manifest.raps, "RAP"), report.count(manifest.jobs, "job"), *blobs, report.size(size)]
    click.echo(f"Backed up {name} to {report.safe(str(file))}: {', '.join(counts)}")
