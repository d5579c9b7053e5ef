"""`project.yaml`: from loaded YAML data to a `Project`, or one sentence that says what is wrong with it.

Rules: reference/opensafely.md section 4.3. What upstream lets through (version 0, -3, NaN or 4.5, an empty
output level) passes here as well; where it can only say `Unknown error`, we say what is wrong.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import frozen

from controller.core import resources
from controller.core.commands import Command, parse_command
from controller.core.errors import InvalidProject
from controller.core.model import RUN_ALL
from controller.core.outputs import OutputSpec, check_against_command, each_glob, parse_outputs
from controller.core.resources import Resources
from controller.core.shapes import Fault, check_keys, check_mapping, describe

NEWEST_VERSION: Final = 5
LONGEST_NAME: Final = 200
"""Bytes of an action's name: it becomes the name of a file, which has 255 with what is put around it."""
MAX_TEXT: Final = 2_000
"""Characters of an error; a project file can hold names of any length."""


@frozen(kw_only=True)
class Action:
    """One named step of a project."""

    name: str
    run: Command
    needs: tuple[str, ...]
    """As written: repeats are allowed."""
    outputs: OutputSpec
    """Level -> output name -> glob."""
    resources: Resources = resources.NOTHING
    """What the author asks for."""

    @property
    def requires_db(self) -> bool:
        """Whether the action may use the database."""
        return self.run.requires_db


@frozen(kw_only=True)
class Project:
    """A valid project file: no cycle, every need exists."""

    version: float
    """May be NaN: then none of the rules that came with a later version holds."""
    actions: Mapping[str, Action]
    """In the order of the file."""


def invalid(text: str) -> InvalidProject:
    """The error of a project file, in the words in which it goes to the user."""
    shortened = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."
    return InvalidProject(f"Invalid project: \n{shortened}")


def parse(data: object, *, may_ask: bool = False) -> Project:
    """A project from loaded YAML data.

    :param may_ask: whether actions may have `resources`, a key that OpenSAFELY's own tools refuse; so do we without.
    :raises InvalidProject: with the whole text for the user.
    """
    try:
        return _parse(data, may_ask)
    except Fault as fault:
        raise invalid(str(fault)) from fault


def _parse(data: object, may_ask: bool) -> Project:
    if data is None:
        raise Fault("The project file is empty")
    top = check_mapping(data, "The project file")
    version = _parse_version(top)
    _check_expectations(top, version)
    check_keys(top, "project", required=["version", "actions"], optional=["expectations"])
    actions = {}
    for name, body in check_mapping(top["actions"], "`actions`").items():
        actions[name] = _parse_action(name, body, version, may_ask)
    _check_unique_commands(actions)
    if version >= 2:
        _check_unique_outputs(actions)
    _check_needs(actions)
    return Project(version=version, actions=actions)


def _parse_version(top: Mapping[Any, Any]) -> float:
    if "version" not in top:
        raise Fault(f"The project file must have a `version` (the newest is {NEWEST_VERSION})")
    value = top["version"]
    try:
        version = float(value)
    except OverflowError:
        version = float("inf")
    except (TypeError, ValueError) as error:
        raise Fault(f"`version` must be a number between 1 and {NEWEST_VERSION}") from error
    if version > NEWEST_VERSION:
        raise Fault(
            f"`version` must be a number between 1 and {NEWEST_VERSION}: {describe(value)} is newer than "
            f"the newest that is supported"
        )
    return version


def _check_expectations(top: Mapping[Any, Any], version: float) -> None:
    """Exactly version 3 needs the section, 4 and later forbid it, the others do not look at it."""
    if version >= 4:
        if "expectations" in top:
            raise Fault("Project section `expectations` is not supported in version 4 or later")
    elif version == 3:
        if "expectations" not in top:
            raise Fault("Project must include `expectations` section")
        section = check_mapping(top["expectations"], "`expectations`")
        check_keys(section, "`expectations`", required=["population_size"])
        try:
            int(section["population_size"])
        except (TypeError, ValueError, OverflowError) as error:
            raise Fault("Project expectations population size must be a number") from error


def _parse_action(name: object, body: object, version: float, may_ask: bool) -> Action:
    name = _check_name(name, version)
    try:
        fields = check_mapping(body, "An action")
        check_keys(
            fields,
            f"action {name}",
            required=["run", "outputs"],
            optional=["needs", "config", "dummy_data_file", *([resources.KEY] if may_ask else [])],
        )
        if "config" in fields:
            check_mapping(fields["config"], "`config`")
        command = parse_command(fields["run"], fields.get("config"))
        _check_image(command, version)
        if not isinstance(fields.get("dummy_data_file", ""), str):
            raise Fault(f"`dummy_data_file` must be a file name, not {describe(fields['dummy_data_file'])}")
        needs = _parse_needs(fields.get("needs", []))
        outputs = parse_outputs(fields["outputs"])
        check_against_command(outputs, command)
        asked = resources.NOTHING
        if resources.KEY in fields:
            asked = resources.parse(fields[resources.KEY], where=f"`{resources.KEY}` of action {name}")
    except Fault as fault:
        raise fault if fault.complete else Fault(f"In action {name}: {fault}") from fault
    return Action(name=name, run=command, needs=needs, outputs=outputs, resources=asked)


def _check_name(name: object, version: float) -> str:
    if not isinstance(name, str):
        raise Fault(f"Action names must be text: put {describe(name)} into quotes")
    if not name or "/" in name or "\\" in name or not name.isprintable():
        # The name becomes the name of the job's log file.
        raise Fault(f"Action name {describe(name)} must be text without slashes and control characters")
    if len(name.encode()) > LONGEST_NAME:
        raise Fault(f"Action name {describe(name)} is too long: at most {LONGEST_NAME} bytes are possible")
    if name == RUN_ALL and version >= 5:
        raise Fault(f"Action name `{RUN_ALL}` is reserved from version 5: it stands for all actions")
    return name


def _check_image(command: Command, version: float) -> None:
    if command.image_name == "cohortextractor" and version >= 4:
        raise Fault("cohortextractor actions are not supported in version 4 or later")
    if command.image_version == "latest" and version >= 5:
        raise Fault(
            f"Action command {command.image} may not use the `:latest` version from version 5: "
            f"name one (e.g. {command.image_name}:v2)"
        )


def _parse_needs(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Fault(f"`needs` must be a list of action names, not {describe(value)}")
    for need in value:
        if not isinstance(need, str):
            raise Fault(f"`needs` must be a list of action names, and {describe(need)} is not text")
        if " " in need:
            raise Fault(f"`needs` must be separated by commas: '{need}' has a space in it")
    return tuple(value)


def _check_unique_commands(actions: Mapping[str, Action]) -> None:
    first: dict[str, str] = {}
    for action in actions.values():
        other = first.setdefault(action.run.raw, action.name)
        if other != action.name:
            raise Fault(f"Actions {other} and {action.name} have the same `run`: {action.run.raw}")


def _check_unique_outputs(actions: Mapping[str, Action]) -> None:
    first: dict[str, str] = {}
    for action in actions.values():
        for _, glob in each_glob(action.outputs):
            if glob in first:
                raise Fault(f"Output path {glob} is not unique: {first[glob]} and {action.name} both make it")
            first[glob] = action.name


def _check_needs(actions: Mapping[str, Action]) -> None:
    for action in actions.values():
        for need in action.needs:
            if need not in actions:
                raise Fault(f"In action {action.name}: `needs` names {need}, which is not an action")
    if cycle := _find_cycle(actions):
        raise Fault(f"Actions need each other in a circle: {' -> '.join(_shortened(cycle))}")


def _find_cycle(actions: Mapping[str, Action]) -> list[str]:
    """The first circle of needs, its first name repeated at its end; empty if there is none.

    Walks depth-first with a stack of its own: a project may be deeper than Python's.
    """
    done: set[str] = set()
    for root in actions:
        path: dict[str, Iterator[str]] = {} if root in done else {root: iter(actions[root].needs)}
        while path:
            name = next(reversed(path))
            need = next(path[name], None)
            if need is None:
                done.add(name)
                del path[name]
            elif need in path:
                names = list(path)
                return [*names[names.index(need) :], need]
            elif need not in done:
                path[need] = iter(actions[need].needs)
    return []


def _shortened(cycle: list[str]) -> list[str]:
    """The circle as a reader can take it in: both ends of a very long one."""
    return cycle if len(cycle) <= 20 else [*cycle[:10], "...", *cycle[-9:]]
