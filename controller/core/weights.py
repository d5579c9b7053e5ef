"""Job weights: how much of its pool a job takes, by workspace, action and command (reference section 3.5).

A weights file is TOML. Rules are regular expressions that must match the whole text; the first that matches wins,
in the order of the file; case counts, and no character is special beyond what a regular expression makes of it:

    [workspace.big-study]       # rules for one workspace match the action's name
    'extract_.*' = 4

    [default]                   # rules for all match the run command
    '.*--large.*' = 2
    '.*--huge.*' = {weight = 4, memory = "64G", cpus = 8, time = "12h"}
    '.*' = 1

A rule may also say what such a job may use (`core.resources`), beside its weight or instead of it.

A job that no rule matches weighs 1. Unlike upstream's format, keys keep their case and `%` is a character like any
other; a weight must be a positive number.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import field, frozen

from controller.core import resources
from controller.core.resources import NOTHING, Resources
from controller.core.shapes import Fault

DEFAULT_WEIGHT: Final = 1.0
_MOST: Final = 1e6


class InvalidWeights(ValueError):
    """A weights file has mistakes; `faults` has one sentence for each, with its line number."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


@frozen
class Rule:
    """One line of a weights file."""

    pattern: re.Pattern[str]
    weight: float
    resources: Resources = NOTHING


@frozen(kw_only=True)
class Weights:
    """All rules of one backend."""

    workspaces: Mapping[str, Sequence[Rule]] = field(factory=dict)
    default: Sequence[Rule] = ()

    def weigh(self, workspace: str, action: str, run_command: str) -> float:
        """The weight of a job: by its action's name in its workspace, else by its command, else 1."""
        rule = self._find(workspace, action, run_command)
        return rule.weight if rule else DEFAULT_WEIGHT

    def grant(self, workspace: str, action: str, run_command: str) -> Resources:
        """What the same rule says that the job may use."""
        rule = self._find(workspace, action, run_command)
        return rule.resources if rule else NOTHING

    def _find(self, workspace: str, action: str, run_command: str) -> Rule | None:
        for rule in self.workspaces.get(workspace, ()):
            if rule.pattern.fullmatch(action):
                return rule
        for rule in self.default:
            if rule.pattern.fullmatch(run_command):
                return rule
        return None


def parse(text: str) -> Weights:
    """The rules of a weights file.

    :raises InvalidWeights: with every mistake in it.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidWeights([str(error)]) from error
    faults = [
        f"line {_line(text, key)}: unknown table [{key}], expected [default] or [workspace.NAME]"
        for key in document
        if key not in ("default", "workspace")
    ]
    tables = dict(_tables(text, document, faults))
    rules = {name: tuple(_rules(text, table, faults)) for name, table in tables.items()}
    if faults:
        raise InvalidWeights(faults)
    return Weights(
        workspaces={name: found for name, found in rules.items() if name is not None}, default=rules.get(None, ())
    )


def _tables(
    text: str, document: Mapping[str, Any], faults: list[str]
) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
    """(workspace or None for the default, its rules as written)."""
    workspaces = document.get("workspace", {})
    if not isinstance(workspaces, dict):
        faults.append(f"line {_line(text, 'workspace')}: workspace must be tables such as [workspace.my-study]")
        workspaces = {}
    named: list[tuple[str | None, Any]] = [*workspaces.items(), (None, document.get("default", {}))]
    for name, table in named:
        if isinstance(table, dict):
            yield name, table
        else:
            faults.append(f"line {_line(text, name or 'default')}: {name or 'default'} must be a table of rules")


def _rules(text: str, table: Mapping[str, Any], faults: list[str]) -> Iterator[Rule]:
    for pattern, said in table.items():
        where = f"line {_line(text, pattern)}: rule {pattern!r}"
        weight, granted = said, NOTHING
        if isinstance(said, dict):
            weight = said.get("weight", DEFAULT_WEIGHT)
            try:
                granted = resources.parse({key: said[key] for key in said if key != "weight"}, where)
            except Fault as fault:
                faults.append(str(fault))
                continue
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= _MOST:
            faults.append(f"{where} needs a weight between 0 and {_MOST:g}, not {weight!r}")
            continue
        try:
            yield Rule(re.compile(pattern), float(weight), granted)
        except re.error as error:
            faults.append(f"{where} is no regular expression: {error}")


def _line(text: str, key: str) -> int:
    """The line that a key or a table begins with: TOML's parser does not keep where a value stood."""
    written = rf"""^[ \t]*(?:\[(?:workspace[ \t]*\.[ \t]*)?)?(['"]?){re.escape(key)}\1[ \t]*[=\].]"""
    found = re.search(written, text, re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else 1
