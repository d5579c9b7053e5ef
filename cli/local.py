"""How commands find the `rap up` of the same user: a file in a place that both know.

The file holds tokens, so it is readable by its owner only. It is a hint: it counts only while the process
that wrote it lives, so a machine that lost power, or a process number used again, fools nobody.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import psutil
from attrs import field, frozen

_START_TOLERANCE: Final = 1.0
"""Seconds by which two readings of one process's start may differ (they come from the boot time)."""


@frozen(kw_only=True)
class Local:
    """A `rap up` on this machine: also the content of its ready file."""

    controller_url: str
    client_token: str = field(repr=False)
    agent_token: str = field(repr=False)
    backend: str
    data_dir: str
    pid: int
    executor: str = ""
    """What runs jobs, as RAP_EXECUTOR has it."""
    executor_reason: str = ""
    """Why this one: who asked for it, or what is wrong with those that would have been better."""


def path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the registration lies: `${XDG_STATE_HOME:-~/.local/state}/rap/up.json`."""
    state = environ.get("XDG_STATE_HOME", "")
    # The XDG specification says that a relative path there is to be ignored.
    base = Path(state) if state.startswith("/") else Path(environ.get("HOME") or Path.home()) / ".local" / "state"
    return base / "rap" / "up.json"


def write_registration(info: Local, environ: Mapping[str, str] = os.environ) -> None:
    """Say that `info.pid` serves this user from now on; an older registration is replaced.

    :raises OSError: the place cannot be written.
    """
    target = path(environ)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    document = {**attrs.asdict(info), "pid_started": _start_of(info.pid)}
    # mkstemp makes the file 0600, so the tokens are never readable by others, not even for a moment.
    descriptor, temporary = tempfile.mkstemp(prefix=".up-", suffix=".json", dir=target.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(document, stream, indent=2)
            stream.write("\n")
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_registration(pid: int, environ: Mapping[str, str] = os.environ) -> None:
    """Take the registration of `pid` away; one of another process stays."""
    document = _read(path(environ))
    if document is not None and document.get("pid") == pid:
        with contextlib.suppress(OSError):
            path(environ).unlink(missing_ok=True)


def find(environ: Mapping[str, str] = os.environ) -> Local | None:
    """The `rap up` that runs now, if there is one."""
    document = _read(path(environ))
    if document is None:
        return None
    info = _parse(document)
    if info is None:
        return None
    started = _start_of(info.pid)
    noted = document.get("pid_started")
    if started is None or (isinstance(noted, int | float) and abs(noted - started) > _START_TOLERANCE):
        return None
    return info


def _read(file: Path) -> dict[str, Any] | None:
    """The document, unless it is missing, unreadable, damaged or somebody else's."""
    try:
        with file.open("rb") as stream:
            if os.fstat(stream.fileno()).st_uid != os.getuid():
                return None
            document = json.loads(stream.read(64 * 1024))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _parse(document: Mapping[str, Any]) -> Local | None:
    values = {each.name: document.get(each.name, each.default) for each in attrs.fields(Local)}
    pid = values.pop("pid")
    if type(pid) is not int or pid <= 0 or not all(isinstance(value, str) for value in values.values()):
        return None
    return Local(pid=pid, **{name: str(value) for name, value in values.items()})


def _start_of(pid: int) -> float | None:
    """Unix seconds at which the process began; None if there is no such process (or only its remains)."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
