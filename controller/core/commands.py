"""The `run` line of an action: an image with a version, and arguments (reference section 4.3)."""

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from controller.core.shapes import Fault, check_mapping, describe

OWN_IMAGES: Final = frozenset({"ehrql", "stata-mp", "r", "jupyter", "python", "sqlrunner"})
"""Images that the platform builds. Any other name is a reusable action's repository (section 4.7)."""

_DATABASE_SUBCOMMANDS: Final[Mapping[str, frozenset[str] | None]] = {
    "ehrql": frozenset({"generate-dataset", "generate-measures"}),
    "sqlrunner": None,
    "cohortextractor": frozenset({"generate_cohort", "generate_codelist_report"}),
    "databuilder": frozenset({"generate-dataset"}),
}
"""Image name -> the subcommands that need the database; None for every use of the image."""

_VERSION: Final = re.compile(r"v[0-9.]+(-pre)?|dev|latest")


@frozen(kw_only=True)
class Command:
    """A `run` line, taken apart."""

    raw: str
    """As the author wrote it."""
    image_name: str
    image_version: str
    args: tuple[str, ...]
    """What the image is given, `--config` included."""
    run_command: str
    """`raw`, with the action's `config` appended as `--config '<json>'`."""

    @property
    def image(self) -> str:
        """`name:version`."""
        return f"{self.image_name}:{self.image_version}"

    @property
    def subcommand(self) -> str | None:
        """The first argument, if there is one."""
        return self.args[0] if self.args else None

    @property
    def is_reusable_action(self) -> bool:
        """Whether the image stands for somebody's repository rather than for one of ours."""
        return self.image_name not in OWN_IMAGES

    @property
    def requires_db(self) -> bool:
        """Whether the command may use the database."""
        if self.image_name not in _DATABASE_SUBCOMMANDS:
            return False
        subcommands = _DATABASE_SUBCOMMANDS[self.image_name]
        return subcommands is None or self.subcommand in subcommands

    @property
    def generates_dataset(self) -> bool:
        """Whether its outputs are patient-level files that the command line names."""
        return self.image_name in ("ehrql", "databuilder") and self.subcommand == "generate-dataset"

    def option(self, name: str) -> str | None:
        """The value of `--name value` or `--name=value`; the last one counts, and none after a bare `--`."""
        found = None
        for place, arg in enumerate(self.args):
            if arg == "--":
                break
            if arg == name and place + 1 < len(self.args):
                found = self.args[place + 1]
            elif arg.startswith(f"{name}="):
                found = arg[len(name) + 1 :]
        return found


def parse_command(raw: object, config: object = None) -> Command:
    """A `run` line, and the action's `config` if it has one.

    :raises Fault: not text, empty, unbalanced quotes, no version, or a config that JSON cannot say.
    """
    if not isinstance(raw, str):
        raise Fault(f"`run` must be a command line, not {describe(raw)}")
    try:
        words = shlex.split(raw)
    except ValueError as error:
        raise Fault(f"`run` cannot be split into words ({str(error).lower()}): {raw}") from error
    if not words:
        raise Fault("`run` must not be empty")
    name, _, version = words[0].partition(":")
    if not name:
        raise Fault(f"`run` must begin with the name of an action command, not {describe(words[0])}")
    if not _VERSION.fullmatch(version):
        raise Fault(
            f"Action command {name} must have a version specified in the form :vN (e.g. {name}:v2)",
            complete=True,
        )
    args, run_command = words[1:], raw
    if config is not None:
        text = _config_text(check_mapping(config, "`config`"))
        args += ["--config", text]
        run_command = f"{raw} --config '{text}'"
    return Command(raw=raw, image_name=name, image_version=version, args=tuple(args), run_command=run_command)


def _config_text(config: Mapping[Any, Any]) -> str:
    """The config as JSON without a single quote, so that it can stand between two on a command line."""
    try:
        return json.dumps(config).replace("'", r"\u0027")
    except (TypeError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise Fault(f"`config` cannot be written as JSON: {reason}") from error
