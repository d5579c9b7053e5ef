"""The file of a backup: a tar with `database.dump`, `blobs/...`, and last a `manifest.json` that vouches for them.

The manifest comes last because only then every hash is known; so a file that was cut short has none. A half-made file
has no name: it gets one when it is complete and on the disk, and a kill at any moment leaves nothing behind.
"""

import contextlib
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Final

from attrs import asdict, field, frozen

from cli.errors import Problem
from common.convert import structure
from common.unpacking import unpack

FORMAT: Final = 1
DUMP: Final = "database.dump"
MANIFEST: Final = "manifest.json"
BLOBS: Final = "blobs/"
_CHUNK: Final = 1 << 20
_LONGEST_MANIFEST: Final = 1 << 30


@frozen(kw_only=True)
class Migration:
    """An applied step of the schema, as the backed-up database recorded it."""

    number: int
    name: str
    digest: str


@frozen(kw_only=True)
class Manifest:
    """What a backup says of itself."""

    format: int = FORMAT
    version: str
    """Of the program that made it."""
    created_at: str
    server: int
    """PostgreSQL's major version, of the server and of `pg_dump`."""
    pg_dump: int
    migrations: tuple[Migration, ...]
    raps: int
    jobs: int
    with_blobs: bool
    """Whether a folder of blobs was given, be it an empty one."""
    sha256: Mapping[str, str] = field(factory=dict)
    """Member of the tar -> hash of its content."""

    @property
    def blobs(self) -> int:
        """How many there are."""
        return sum(name.startswith(BLOBS) for name in self.sha256)


class Writer:
    """Puts members into a backup one after the other; `finish` adds the manifest."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  see `finish`
        self.sha256: dict[str, str] = {}

    def add(self, name: str, stream: IO[bytes]) -> None:
        """Copy a file, as long as it is now.

        :raises OSError: it cannot be read, became shorter meanwhile, or the disk is full.
        """
        member = _member(name, os.fstat(stream.fileno()).st_size)
        reader = _Hashing(stream)
        self._tar.addfile(member, reader)
        self.sha256[name] = reader.hexdigest()

    def finish(self, manifest: Manifest) -> None:
        """The last member; nothing can be added any more."""
        text = (json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n").encode()
        self._tar.addfile(_member(MANIFEST, len(text)), io.BytesIO(text))
        self._tar.close()


class _Hashing:
    """A reader that hashes what goes through it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._hash.update(data)
        return data

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(datetime.now(UTC).timestamp())
    return member


@contextmanager
def new_file(target: Path, *, force: bool) -> Iterator[IO[bytes]]:
    """A file without a name, 0600, that becomes `target` on leaving without an exception.

    :raises Problem: there is such a file and `force` was not given, or it cannot be written.
    """
    if not force and (target.exists() or target.is_symlink()):
        raise Problem(f"{target} is there already: choose another name, or replace it with --force")
    try:
        with _nameless(target.parent) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            _name(stream, target, force=force)
    except FileExistsError as error:
        raise Problem(f"{target} came to be meanwhile: nothing was replaced") from error
    except OSError as error:
        raise Problem(f"{target} cannot be written: {error.strerror or error}") from error


def _nameless(folder: Path) -> IO[bytes]:
    """An open file in `folder` that vanishes with us."""
    with contextlib.suppress(OSError, AttributeError):
        return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600), "w+b")
    # Not every file system knows files without names: then a kill -9 leaves one that begins with a dot.
    return tempfile.NamedTemporaryFile(dir=folder, prefix=".rap-backup-")


def _name(stream: IO[bytes], target: Path, *, force: bool) -> None:
    """Make the open file `target`, at once."""
    own = getattr(stream, "name", None)
    source = own if isinstance(own, str) else f"/proc/self/fd/{stream.fileno()}"
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # dir_fd makes this linkat(2), which follows the link in /proc to the file.
        if force:
            beside = f".{target.name}.new"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=folder)
            os.link(source, beside, dst_dir_fd=folder)
            os.replace(beside, target.name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            os.link(source, target.name, dst_dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(folder)


def add_blobs(writer: Writer, folder: Path) -> None:
    """Every file below `folder`.

    Blobs are never changed, and the dump was made before: whatever it names is there.

    :raises Problem: something in it is neither a file nor a folder, or cannot be copied.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        if path.is_symlink() or not path.is_file():
            raise Problem(f"{path} is no plain file: a blob folder has nothing else")
        try:
            with path.open("rb") as stream:
                writer.add(BLOBS + path.relative_to(folder).as_posix(), stream)
        except OSError as error:
            raise Problem(f"{path} cannot be backed up: {error.strerror or error}") from error


class Backup:
    """A backup that was found to be whole."""

    def __init__(self, tar: tarfile.TarFile, manifest: Manifest) -> None:
        self._tar = tar
        self.manifest = manifest

    def dump(self) -> IO[bytes]:
        """The database's."""
        return self._open(self._tar.getmember(DUMP))

    def extract_blobs(self, folder: Path) -> None:
        """Write the blobs into an empty folder.

        :raises OSError: it cannot be written.
        """
        for member in self._tar:
            if member.name.startswith(BLOBS):
                unpack(self._tar, member, folder, member.name.removeprefix(BLOBS))

    def _open(self, member: tarfile.TarInfo) -> IO[bytes]:
        stream = self._tar.extractfile(member)
        if stream is None:
            raise Problem(f"{member.name} of the backup is no file")
        return stream


@contextmanager
def opened(file: Path) -> Iterator[Backup]:
    """A backup whose every member was read and compared with the manifest.

    :raises Problem: it is none of ours, cut short, changed, or of a newer format.
    """
    try:
        with file.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            yield Backup(tar, _verified(file, tar))
    except (tarfile.TarError, EOFError) as error:
        raise Problem(f"{file} is no backup of ours, or was cut short: {error}") from error
    except OSError as error:
        raise Problem(f"{file} cannot be read: {error.strerror or error}") from error


def _verified(file: Path, tar: tarfile.TarFile) -> Manifest:
    found: dict[str, str] = {}
    text: bytes | None = None
    for member in tar:
        if text is not None or not member.isfile() or not _expected(member.name) or member.name in found:
            raise Problem(f"{file} is no backup of ours: it has {member.name[:200]!r}")
        stream = tar.extractfile(member)
        if stream is None:
            raise Problem(f"{file} is no backup of ours: {member.name[:200]!r} is no file")
        if member.name == MANIFEST:
            text = stream.read(_LONGEST_MANIFEST)
        else:
            found[member.name] = _hash(stream, member)
    if text is None:
        raise Problem(f"{file} is no backup of ours, or was cut short: it has no {MANIFEST}")
    manifest = _manifest(file, text)
    if manifest.sha256 != found:
        wrong = sorted(name for name, _ in manifest.sha256.items() ^ found.items())
        raise Problem(f"{file} is damaged: {wrong[0]!r} is not what was backed up")
    if DUMP not in found:
        raise Problem(f"{file} is damaged: it has no {DUMP}")
    return manifest


def _hash(stream: IO[bytes], member: tarfile.TarInfo) -> str:
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    if size != member.size:
        raise EOFError(f"{member.name} ends too soon")
    return digest.hexdigest()


def _expected(name: str) -> bool:
    """Ours are two names, and paths below `blobs/` that lead nowhere else."""
    if name in (DUMP, MANIFEST):
        return True
    path = PurePosixPath(name)
    return name.startswith(BLOBS) and str(path) == name and ".." not in path.parts and "\0" not in name


def _manifest(file: Path, text: bytes) -> Manifest:
    try:
        # Not orjson: names of blobs may hold bytes that are no UTF-8.
        document = json.loads(text)
        number = document["format"]
        if type(number) is not int or number < 1:
            raise ValueError("its format is no number")
        if number > FORMAT:
            raise Problem(f"{file} has format {number} and this program knows {FORMAT}: use a newer program")
        return structure(document, Manifest)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Problem(f"{file} is no backup of ours: its {MANIFEST} cannot be read ({error})") from error
