"""The folder of one `rap up`: who may use it, what lies where, and how others find what runs there."""

import errno
import fcntl
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
from attrs import field, frozen

from cli.errors import Problem
from cli.local import Local

BACKEND: Final = "test"
HOST: Final = "127.0.0.1"
"""Tokens of a laptop are in a file of its owner's; nobody else's machine needs to reach it."""


@frozen(kw_only=True)
class TokenPair:
    """What opens this stack's controller; made once for a folder."""

    client: str = field(repr=False)
    agent: str = field(repr=False)


@frozen
class Place:
    """What lies where in the folder."""

    folder: Path

    @property
    def postgres(self) -> Path:
        return self.folder / "postgres"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def agent(self) -> Path:
        """The agent's WORKDIR."""
        return self.folder / "agent"

    @property
    def executor_note(self) -> Path:
        """Which executor the last agent had."""
        return self.folder / "executor"

    @property
    def ready_file(self) -> Path:
        return self.folder / "ready.json"

    @property
    def storage(self) -> Path:
        """The agent's: `high_privacy` and `medium_privacy`, each with `workspaces`."""
        return self.folder / "storage"

    @property
    def workspaces(self) -> Path:
        """Where outputs of all levels end up, one folder a workspace."""
        return self.storage / "high_privacy" / "workspaces"


class Lock:
    """Keeps a folder ours until `release`, or until we die in whatever way.

    :raises Problem: another process has it, or the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, str(os.getpid()).encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(self._file, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise Problem(f"a `rap up` is already running on {folder} (process {holder})") from error
        except OSError as error:
            os.close(self._file)
            raise _unwritable(folder, error) from error

    def release(self) -> None:
        """Let others have the folder."""
        os.close(self._file)


def prepare(folder: Path) -> Place:
    """Make what a locked folder needs.

    :raises Problem: it cannot be written.
    """
    place = Place(folder)
    try:
        for each in (place.logs, place.storage):
            each.mkdir(exist_ok=True, mode=0o700)
        place.ready_file.unlink(missing_ok=True)
        # Proves that the folder takes data, not only that it is there (full disk, read-only mount).
        write_privately(folder / "lock.probe", "rap\n")
        (folder / "lock.probe").unlink()
    except OSError as error:
        raise _unwritable(folder, error) from error
    return place


def tokens(folder: Path) -> TokenPair:
    """The folder's tokens, made at the first call.

    :raises Problem: their file is damaged.
    """
    file = folder / "tokens.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return TokenPair(client=str(document["client"]), agent=str(document["agent"]))
    except FileNotFoundError:
        made = TokenPair(client=secrets.token_urlsafe(32), agent=secrets.token_urlsafe(32))
        write_privately(file, json.dumps(attrs.asdict(made), indent=2) + "\n")
        return made
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Problem(f"{file} cannot be read ({error}); remove it to have new tokens made") from error


def free_port(port: int) -> int:
    """`port`, if nobody listens there; for 0 any free one.

    :raises Problem: it is taken, or not for us.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Problem(f"port {port} is in use: choose another with --port (0 finds a free one)") from error
            raise Problem(f"port {port} cannot be used: {error.strerror}") from error
        return int(probe.getsockname()[1])


def announce(file: Path, info: Local) -> None:
    """Write `info` to `file` at once or not at all, for its owner only.

    :raises Problem: it cannot be written.
    """
    try:
        write_privately(file, json.dumps(attrs.asdict(info), indent=2) + "\n")
    except OSError as error:
        raise Problem(f"{file} cannot be written: {error.strerror or error}") from error


def write_privately(file: Path, text: str) -> None:
    """Replace a file atomically; it is 0600 from its first moment on."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def default_folder(environ: Mapping[str, str]) -> Path:
    """`${XDG_DATA_HOME:-~/.local/share}/rap`."""
    data = environ.get("XDG_DATA_HOME", "")
    # The XDG specification says that a relative path there is to be ignored.
    return (Path(data) if data.startswith("/") else Path.home() / ".local" / "share") / "rap"


def _unwritable(folder: Path, error: OSError) -> Problem:
    return Problem(f"{folder} cannot be used for data: {error.strerror or error} (choose another with --data)")
