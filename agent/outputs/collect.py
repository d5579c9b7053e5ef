"""Finds what a job wrote and copies it out of its volume: reference section 5.2, "finalize".

Globs are relative to the volume, `*` does not cross `/`, and only files match. A symlink inside the volume is
followed if its end lies in the volume too; one that leaves it is refused, whatever it points to.
"""

import contextlib
import errno
import itertools
import os
import re
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from agent.core.errors import UnsafePath
from agent.outputs.copies import Batch, Copied
from agent.outputs.trees import order, regain, walk
from agent.outputs.workspaces import TIMESTAMP, Stopped, resolve_inside

METADATA: Final = "metadata"
"""The folder of a workspace that holds the manifest and the logs: an output there could forge them."""
UNMATCHED_LIMIT: Final = 1000
"""Most unmatched outputs that are remembered; a job may write millions of files."""
LINKED_LIMIT: Final = 10_000
"""Most folders that are entered through a link: a few links that lead around can make any number of paths."""


@frozen(kw_only=True)
class Findings:
    """What is in a volume after a run."""

    outputs: Mapping[str, str]
    """Path in the volume -> privacy level, sorted by path."""
    unmatched_patterns: tuple[str, ...] = ()
    unmatched_outputs: tuple[str, ...] = ()


def _translate(part: str) -> re.Pattern[str]:
    """What one component of a glob matches, in time linear in the name.

    Each piece is taken where it comes first and never looked for again: with backtracking, a dozen stars and a long
    name would keep the whole agent busy for years.
    """
    first, *middle, last = (re.escape(piece) for piece in part.split("*"))
    return re.compile(first + "".join(f"(?>.*?{piece})" for piece in middle) + f".*{last}", re.DOTALL)


@define
class _Globs:
    """What is looked for in one folder: the rests of all patterns that have led there, with their numbers."""

    literal: dict[str, list[tuple[int, int]]] = field(factory=dict)
    """Name -> pattern's number, and how many of its components are behind it."""
    starred: dict[str, list[tuple[int, int]]] = field(factory=dict)

    def add(self, part: str, wanted: tuple[int, int]) -> None:
        (self.starred if "*" in part else self.literal).setdefault(part, []).append(wanted)


class _Search:
    """One walk through a volume for all patterns together: each folder is read once for each way into it."""

    def __init__(self, volume: Path, patterns: Sequence[str], stop: threading.Event) -> None:
        self._volume = os.fspath(volume)
        self._patterns = [pattern.split("/") for pattern in patterns]
        self._stop = stop
        self._links = 0
        self.matched: set[int] = set()
        """Numbers of the patterns that match something."""
        self.outputs: dict[str, int] = {}
        """Path -> number of the first pattern that matches it."""

    def run(self) -> None:
        """Look everywhere.

        :raises UnsafePath: see `find`.
        :raises Stopped: `stop` was set.
        """
        start = _Globs()
        for number, parts in enumerate(self._patterns):
            start.add(parts[0], (number, 1))
        waiting = [("", self._volume, start)]
        while waiting:
            if self._stop.is_set():
                raise Stopped
            waiting += self._visit(*waiting.pop())

    def _visit(self, done: str, here: str, globs: _Globs) -> Iterator[tuple[str, str, _Globs]]:
        """Note the matches in one folder; the folders in it that are to be visited.

        :param done: the folder's path as the patterns see it, and `here` where it really is.
        """
        starred = [(_translate(part).fullmatch, wanted) for part, wanted in globs.starred.items()]
        for name, kind in self._names(here, globs):
            wanted = list(globs.literal.get(name, ()))
            for fits, more in starred:
                if fits(name):
                    wanted += more
            path = f"{done}/{name}" if done else name
            ends = [number for number, behind in wanted if behind == len(self._patterns[number])]
            if ends and not _is_the_agents(path) and self._is_file(path, kind):
                self.matched.update(ends)
                self.outputs[path] = min(ends)
            below = _Globs()
            for number, behind in wanted:
                if behind < len(self._patterns[number]):
                    below.add(self._patterns[number][behind], (number, behind + 1))
            real = self._enter(path, f"{here}/{name}", kind) if below.literal or below.starred else None
            if real is not None:
                yield path, real, below

    def _names(self, here: str, globs: _Globs) -> Iterator[tuple[str, int]]:
        """The names in a folder that may match, each with its file type."""
        kinds: dict[str, int] = {}
        try:
            if globs.starred:
                with os.scandir(here) as entries:
                    for entry in entries:
                        kinds[entry.name] = _kind(entry)
            else:
                for name in globs.literal:
                    with contextlib.suppress(FileNotFoundError):
                        kinds[name] = stat.S_IFMT(os.lstat(f"{here}/{name}").st_mode)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                raise
        return iter(kinds.items())

    def _is_file(self, path: str, kind: int) -> bool:
        if kind == stat.S_IFLNK:
            return resolve_inside(Path(self._volume), path).is_file()
        return kind == stat.S_IFREG

    def _enter(self, path: str, real: str, kind: int) -> str | None:
        """Where a folder really is; None if it is none.

        :raises UnsafePath: it is a link out of the volume, or there are too many links.
        """
        if kind != stat.S_IFLNK:
            return real if kind == stat.S_IFDIR else None
        # First where it leads: were what is there looked at, a study could ask which folders the machine has.
        inside = resolve_inside(Path(self._volume), path)
        if not inside.is_dir():
            return None
        self._links += 1
        if self._links > LINKED_LIMIT:
            raise UnsafePath(f"More than {LINKED_LIMIT} folders are to be searched that are links, such as {path}")
        return os.fspath(inside)


def _kind(entry: os.DirEntry[str]) -> int:
    """The file type; only what is neither folder, nor file, nor link needs a look at the disk."""
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0


def _is_the_agents(path: str) -> bool:
    return path in (TIMESTAMP, METADATA) or path.startswith(f"{METADATA}/")


def match(volume: Path, pattern: str) -> list[str]:
    """The files that a glob matches, relative to the volume, sorted; never what the agent itself keeps there.

    :raises UnsafePath: see `find`.
    """
    search = _Search(volume, [pattern], threading.Event())
    search.run()
    return list(order(list(search.outputs)))


def _newer_files(volume: Path, matched: Mapping[str, str], stop: threading.Event) -> Iterator[str]:
    """Files that the job wrote (newer than the timestamp file) and no pattern matched. Links are not followed."""
    try:
        since = os.lstat(volume / TIMESTAMP).st_mtime_ns
    except FileNotFoundError:
        return
    for path in walk(volume):
        if stop.is_set():
            raise Stopped
        if path not in matched and path != TIMESTAMP:
            with contextlib.suppress(OSError):  # a path may be too long to be looked at
                if os.lstat(f"{volume}/{path}").st_mtime_ns > since:
                    yield path


def find(volume: Path, output_spec: Mapping[str, str], stop: threading.Event) -> Findings:
    """Match every pattern. A file that several patterns match has the level of the first.

    :raises UnsafePath: a match is, or lies behind, a symlink that leaves the volume; or links lead to so many folders
        that a job must have meant to keep us busy.
    :raises Stopped: `stop` was set.
    """
    regain(volume)
    patterns, levels = list(output_spec), list(output_spec.values())
    search = _Search(volume, patterns, stop)
    search.run()
    outputs = {path: levels[search.outputs[path]] for path in order(list(search.outputs))}
    return Findings(
        outputs=outputs,
        unmatched_patterns=tuple(pattern for number, pattern in enumerate(patterns) if number not in search.matched),
        unmatched_outputs=tuple(sorted(itertools.islice(_newer_files(volume, outputs, stop), UNMATCHED_LIMIT))),
    )


class Origins:
    """Where the outputs in a volume really are; quick if they are asked for folder by folder, nearly."""

    def __init__(self, volume: Path) -> None:
        self._volume = volume
        self._parent: str | None = None
        self._folder = volume

    def find(self, output: str) -> Path:
        """The file itself, with no link on the way to it.

        :raises UnsafePath: a link on the way leaves the volume.
        """
        parent, _, name = output.rpartition("/")
        if parent != self._parent:
            self._parent, self._folder = parent, resolve_inside(self._volume, parent)
        found = self._folder / name
        return resolve_inside(self._volume, output) if found.is_symlink() else found


def persist(volume: Path, workspace: Path, outputs: Mapping[str, str], batch: Batch) -> dict[str, Copied]:
    """Copy every output into the high-privacy workspace. Repeating it after a crash gives the same.

    :raises UnsafePath: see `find`.
    :raises OutputClash: an output has the name of a folder there, or the reverse.
    :raises Stopped: the batch was stopped.
    """
    origins = Origins(volume)
    return {path: batch.copy(origins.find(path), workspace / path) for path in outputs}
