"""The image table: which interpreter stands for which image name, where jobs run without images.

The setting RAP_SANDBOX_IMAGES is either a list `python=/opt/py/bin/python3,r=/usr/bin/Rscript` or a JSON
object `{"python:v2": "/opt/py/bin/python3", "ehrql": ["/opt/ehrql/bin/python", "-m", "ehrql"]}`; a value may
also be `{"command": [...], "read": ["/nix/store"]}`, where `read` names what else the job must be able to read.
"""

import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
from attrs import field, frozen

from agent.executors.base import ExecutorError

SETTING = "RAP_SANDBOX_IMAGES"
SYSTEM = tuple(Path(path) for path in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"))
"""What every sandbox sees, read-only."""


class ImageTableError(ValueError):
    """The setting does not describe an image table; the text says which part."""


@frozen(kw_only=True)
class Interpreter:
    """What runs in place of an image."""

    command: tuple[str, ...]
    read: tuple[Path, ...] = ()
    """Paths beyond its own installation that it has to read."""

    def paths(self) -> tuple[Path, ...]:
        """Everything outside the system's directories that the interpreter needs, parents before children.

        An installation (a virtual environment, a Python or R prefix) counts as a whole, the one a virtual
        environment was made from included; of any other program only the file. A symlink stays a symlink.
        """
        found = set(self.read)
        for part in self.command:
            if part.startswith("/"):
                found.update(_needed(Path(part)))
        return tuple(sorted(found, key=lambda path: (len(path.parts), path)))


@frozen
class ImageTable:
    """Image names and their interpreters."""

    entries: Mapping[str, Interpreter] = field(factory=dict)

    @classmethod
    def default(cls) -> "ImageTable":
        """This process's own Python, and Rscript if it is installed."""
        entries = {"python": Interpreter(command=(sys.executable,))}
        if rscript := shutil.which("Rscript"):
            entries["r"] = Interpreter(command=(rscript,))
        return cls(entries)

    def find(self, image: str) -> Interpreter:
        """The interpreter for an image: the most specific entry wins, so `python:v2` beats `python`.

        The registry and the digest of a full name (`ghcr.io/opensafely-core/python:v2@sha256:...`) are left
        out unless an entry names them.

        :raises ExecutorError: the table has no entry for it.
        """
        for name in _names(image):
            if name in self.entries:
                return self.entries[name]
        known = ", ".join(sorted(self.entries)) or "none"
        raise ExecutorError(f"Unknown image '{image}': {SETTING} has no entry for it (it has: {known})", fatal=True)

    def command(self, image: str, args: tuple[str, ...]) -> tuple[str, ...]:
        """The command line for `args` in `image`.

        `python:v2 python a.py` and `python:v2 a.py` are the same: a first argument that only repeats the
        interpreter (by its file's name, or by the image's) is dropped.

        :raises ExecutorError: the table has no entry for the image.
        """
        interpreter = self.find(image)
        own = Path(interpreter.command[0]).name
        # `python3.11` answers to `python3` and `python`, too.
        repeated = {own, own.split(".")[0], own.rstrip("0123456789."), _names(image)[-1]}
        rest = args[1:] if args and args[0] in repeated else args
        return (*interpreter.command, *rest)


def parse_image_table(text: str) -> ImageTable:
    """The table that RAP_SANDBOX_IMAGES describes (see the module); empty means `ImageTable.default()`.

    :raises ImageTableError: naming the entry at fault.
    """
    text = text.strip()
    if not text:
        return ImageTable.default()
    entries: dict[str, Interpreter] = {}
    for name, value in _pairs(text):
        if not name or any(character.isspace() for character in name):
            raise ImageTableError(f"'{name}' is not an image name")
        if name in entries:
            raise ImageTableError(f"'{name}' is there twice")
        entries[name] = _interpreter(name, value)
    return ImageTable(entries)


def _pairs(text: str) -> Iterator[tuple[str, Any]]:
    if text.startswith("{"):
        try:
            yield from orjson.loads(text).items()
        except orjson.JSONDecodeError as error:
            raise ImageTableError(f"not JSON: {error}") from error
        return
    for part in text.split(","):
        if not part.strip():
            continue
        name, equals, path = part.partition("=")
        if not equals:
            raise ImageTableError(f"'{part.strip()}' is not name=path")
        yield name.strip(), path.strip()


def _interpreter(name: str, value: Any) -> Interpreter:
    read: Any = []
    if isinstance(value, dict):
        if unknown := set(value) - {"command", "read"}:
            raise ImageTableError(f"'{name}' has an unknown key '{min(unknown)}'")
        value, read = value.get("command"), value.get("read", [])
    command = [value] if isinstance(value, str) else value
    for what, words in (("command", command), ("read", read)):
        if not isinstance(words, list) or not all(isinstance(word, str) and "\0" not in word for word in words):
            raise ImageTableError(f"the {what} of '{name}' is not a string or a list of strings")
    if not command or not Path(command[0]).is_absolute():
        raise ImageTableError(f"'{name}' needs the absolute path of a program")
    if not all(Path(path).is_absolute() for path in read):
        raise ImageTableError(f"'{name}' may only read absolute paths")
    return Interpreter(command=tuple(command), read=tuple(Path(path) for path in read))


def _names(image: str) -> list[str]:
    """The names under which a table may know an image, the most specific first."""
    plain = image.split("@", 1)[0]
    short = plain.rsplit("/", 1)[-1]
    untagged = plain[: len(plain) - len(short)] + short.split(":", 1)[0]
    return [image, plain, untagged, short, short.split(":", 1)[0]]


def _needed(path: Path) -> set[Path]:
    """The installations of the program at `path`, of every symlink on the way, and what those were made from."""
    found: set[Path] = set()
    pending = [path, path.resolve()]
    seen: set[Path] = set()
    while pending:
        step = pending.pop()
        if step in seen or any(step.is_relative_to(system) for system in SYSTEM):
            continue
        seen.add(step)
        prefix = step.parent.parent
        found.add(prefix if _is_installation(prefix) else step)
        if step.is_symlink():
            pending.append(step.parent / step.readlink())
        if home := _made_from(prefix):
            pending.append(home / path.name)
            pending.append((home / path.name).resolve())
    return found


def _is_installation(prefix: Path) -> bool:
    """Whether a directory holds a whole interpreter and nothing personal (as `~/.local` would)."""
    return prefix != Path("/") and (
        (prefix / "pyvenv.cfg").is_file()
        or any(prefix.glob("lib/python3.*/os.py"))
        or any((prefix / lib / "R" / "bin").is_dir() for lib in ("lib", "lib64"))
    )


def _made_from(prefix: Path) -> Path | None:
    """The `bin` directory of the Python that a virtual environment was made from."""
    try:
        lines = (prefix / "pyvenv.cfg").read_text().splitlines()
    except OSError:
        return None
    values = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    return Path(values["home"]) if values.get("home") else None
