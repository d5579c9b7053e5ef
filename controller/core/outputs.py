"""The `outputs` of an action: which patterns are allowed at which level (reference section 4.3)."""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from posixpath import normpath
from typing import Any, Final

from controller.core.commands import Command
from controller.core.model import Level
from controller.core.shapes import Fault, check_keys, check_mapping, describe

LEVEL4_FILE_TYPES: Final = (
    ".csv",
    ".html",
    ".jpeg",
    ".jpg",
    ".json",
    ".log",
    ".md",
    ".png",
    ".svg",
    ".svgz",
    ".txt",
)
"""What may become `moderately_sensitive`; compared with the last suffix, case-sensitively (section 2.4)."""

OutputSpec = Mapping[str, Mapping[str, str]]
"""Level -> output name -> glob."""


def parse_outputs(data: object) -> OutputSpec:
    """The `outputs` section of one action.

    :raises Fault: no level, an unknown level, or a pattern that is not allowed.
    """
    levels = check_mapping(data, "`outputs`")
    check_keys(levels, "`outputs`", optional=list(Level))
    if not levels:
        raise Fault(f"`outputs` must have at least one of: {', '.join(Level)}")
    return {str(level): _parse_level(Level(level), files) for level, files in levels.items()}


def each_glob(outputs: OutputSpec) -> Iterator[tuple[str, str]]:
    """Every (level, glob) of an action."""
    for level, files in outputs.items():
        for glob in files.values():
            yield level, glob


def check_against_command(outputs: OutputSpec, command: Command) -> None:
    """Rules that tie an extraction's outputs to its command line.

    :raises Fault: the outputs are not where, or not as sensitive as, the command makes them.
    """
    if command.generates_dataset:
        _check_dataset(outputs, command)
    elif command.image_name == "cohortextractor" and command.subcommand == "generate_cohort":
        _check_cohort(outputs, command)


def _parse_level(level: Level, data: object) -> dict[str, str]:
    files: dict[str, str] = {}
    for key, glob in check_mapping(data, f"`{level}`").items():
        name = str(key)
        if name in files:
            raise Fault(f"`{level}` names the output `{name}` twice")
        if not isinstance(glob, str):
            raise Fault(f"Output `{name}` must be a file name or pattern, not {describe(glob)}")
        if problem := next(_problems_of(glob), None) or _problem_at(level, glob):
            raise Fault(f"Output path {glob} is not permitted: {problem}")
        files[name] = glob
    return files


def _problems_of(glob: str) -> Iterator[str]:
    """Why a pattern is not allowed at any level."""
    path = PurePosixPath(glob)
    if "\\" in glob:
        yield "contains a back slash (use forward slashes)"
    for pattern in ("**", "?", "["):
        if pattern in glob:
            yield f"contains '{pattern}' (only the * wildcard is supported)"
    if path.is_absolute() or PureWindowsPath(glob).is_absolute():
        yield "must be relative to the project's folder"
    if not path.suffix or path.suffix.endswith("*"):
        yield "must end in a file type extension, such as .csv"
    if normpath(glob) != glob:
        yield f"must be written in its shortest form, {normpath(glob)}"
    if path.parts[:1] == ("..",):
        yield "must be inside the project's folder"
    if path.parts[:1] == ("metadata",):
        yield "the metadata folder is the system's"


def _problem_at(level: Level, glob: str) -> str | None:
    """Why a pattern is not allowed at `level`."""
    suffix = PurePosixPath(glob).suffix
    if level is not Level.MODERATELY_SENSITIVE or suffix in LEVEL4_FILE_TYPES:
        return None
    allowed = ", ".join(LEVEL4_FILE_TYPES)
    return f"{suffix} is not a file type that moderately_sensitive outputs may have ({allowed})"


def _check_dataset(outputs: OutputSpec, command: Command) -> None:
    where = f"{command.image_name} {command.subcommand}"
    target = command.option("--output")
    if not target:
        raise Fault(f"`run` of {where} must say `--output` with the name of its output")
    for level, glob in each_glob(outputs):
        if level != Level.HIGHLY_SENSITIVE:
            raise Fault(f"All outputs of {where} must be highly_sensitive, but {glob} is {level}")
        if not _is_made_by(target, glob):
            raise Fault(f"`--output {target}` of {where} does not match the output {glob}")


def _is_made_by(target: str, glob: str) -> bool:
    """Whether `--output target` writes `glob`; `dir:ext` and `dir/:ext` write one file per table."""
    if target == glob:
        return True
    folder, colon, extension = target.rpartition(":")
    if not colon:
        return False
    made = re.escape(folder.rstrip("/")) + r"/[^/]*\." + re.escape(extension)
    return re.fullmatch(made, glob) is not None


def _check_cohort(outputs: Mapping[str, Mapping[str, Any]], command: Command) -> None:
    where = "cohortextractor generate_cohort"
    if len(outputs) != 1:
        raise Fault(f"All outputs of {where} must have one privacy level, not {', '.join(outputs)}")
    folders = {str(PurePosixPath(glob).parent) for _, glob in each_glob(outputs)}
    if len(folders) > 1 and command.option("--output-dir") is None:
        raise Fault(
            f"Outputs of {where} must be in one folder, or `run` must say `--output-dir`; "
            f"they are in {', '.join(sorted(folders))}"
        )
