"""Finds what a job wrote and copies it out of its volume: reference section 5.2, "finalize".

Globs are relative to the volume, `*` does not cross `/`, and only files match. A symlink inside the volume is
followed if its end lies in the volume too; one that leaves it is refused, whatever it points to.
"""

import os
import re
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from attrs import frozen

from agent.outputs.workspaces import TIMESTAMP, Copied, Stopped, copy, regain, resolve_inside

METADATA: Final = "metadata"
"""The folder of a workspace that holds the manifest and the logs: an output there could forge them."""
UNMATCHED_LIMIT: Final = 1000
"""Most unmatched outputs that are remembered; a job may write millions of files."""


@frozen(kw_only=True)
class Findings:
    """What is in a volume after a run."""

    outputs: Mapping[str, str]
    """Path in the volume -> privacy level, sorted by path."""
    unmatched_patterns: tuple[str, ...] = ()
    unmatched_outputs: tuple[str, ...] = ()


def _children(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _translate(part: str) -> re.Pattern[str]:
    """What one component of a glob matches, in time linear in the name.

    Each piece is taken where it comes first and never looked for again: with backtracking, a dozen stars and a long
    name would keep the whole agent busy for years.
    """
    first, *middle, last = (re.escape(piece) for piece in part.split("*"))
    return re.compile(first + "".join(f"(?>.*?{piece})" for piece in middle) + f".*{last}", re.DOTALL)


def _walk_pattern(volume: Path, done: str, parts: list[str]) -> Iterator[str]:
    """Paths below `done` (relative, resolved step by step) that match the remaining parts."""
    here = resolve_inside(volume, done) if done else volume
    part, rest = parts[0], parts[1:]
    if "*" in part:
        regex = _translate(part)
        names = [name for name in _children(here) if regex.fullmatch(name)]
    else:
        names = [part] if os.path.lexists(here / part) else []
    for name in names:
        path = f"{done}/{name}" if done else name
        if rest:
            if (here / name).is_dir():
                yield from _walk_pattern(volume, path, rest)
        elif _is_file(volume, here, path, name):
            yield path


def _is_file(volume: Path, here: Path, path: str, name: str) -> bool:
    if (here / name).is_symlink():
        return resolve_inside(volume, path).is_file()
    return stat.S_ISREG(os.lstat(here / name).st_mode)


def match(volume: Path, pattern: str) -> list[str]:
    """The files that a glob matches, relative to the volume, sorted; never what the agent itself keeps there.

    :raises UnsafePath: a match is, or lies behind, a symlink that leaves the volume.
    """
    paths = _walk_pattern(volume, "", pattern.split("/"))
    return [path for path in paths if path != TIMESTAMP and not path.startswith(f"{METADATA}/")]


def _newer_files(volume: Path, matched: Mapping[str, str], stop: threading.Event) -> Iterator[str]:
    """Files that the job wrote (newer than the timestamp file) and no pattern matched. Links are not followed."""
    try:
        since = os.lstat(volume / TIMESTAMP).st_mtime_ns
    except FileNotFoundError:
        return
    for folder, folders, names in os.walk(volume):
        if stop.is_set():
            raise Stopped
        folders.sort()
        for name in sorted(names):
            path = os.path.relpath(os.path.join(folder, name), volume)
            status = os.lstat(os.path.join(folder, name))
            if path not in matched and path != TIMESTAMP and status.st_mtime_ns > since:
                yield path


def find(volume: Path, output_spec: Mapping[str, str], stop: threading.Event) -> Findings:
    """Match every pattern. A file that several patterns match has the level of the first.

    :raises UnsafePath: see `match`.
    :raises Stopped: `stop` was set.
    """
    regain(volume)
    outputs: dict[str, str] = {}
    unmatched_patterns = []
    for pattern, level in output_spec.items():
        paths = match(volume, pattern)
        if not paths:
            unmatched_patterns.append(pattern)
        for path in paths:
            outputs.setdefault(path, level)
    unmatched: list[str] = []
    for path in _newer_files(volume, outputs, stop):
        unmatched.append(path)
        if len(unmatched) == UNMATCHED_LIMIT:
            break
    return Findings(
        outputs=dict(sorted(outputs.items())),
        unmatched_patterns=tuple(unmatched_patterns),
        unmatched_outputs=tuple(sorted(unmatched)),
    )


def persist(volume: Path, workspace: Path, outputs: Mapping[str, str], stop: threading.Event) -> dict[str, Copied]:
    """Copy every output into the high-privacy workspace. Repeating it after a crash gives the same.

    :raises OutputClash: an output has the name of a folder there, or the reverse.
    :raises Stopped: `stop` was set.
    """
    return {path: copy(resolve_inside(volume, path), workspace / path, stop) for path in outputs}
