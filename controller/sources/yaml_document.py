"""One YAML document from outside to plain data, without trusting a byte of it.

Text is parsed by libyaml (through PyYAML) as a stream of events, and built here: in YAML 1.2's core schema
(`on`, `yes` and `2020-01-01` are text), without recursion, and within limits that are checked before anything is
built, so that an alias bomb or a million brackets cost milliseconds. Duplicate keys, unknown tags and recursive
aliases are errors that name their line. `<<` merges, as in the files that studies have today.
"""

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final

import yaml
from attrs import define, field, frozen
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

_LOADER: Final[Any] = getattr(yaml, "CLoader", yaml.Loader)
"""libyaml is about 20 times as fast as the parser in Python, the stand-in where a wheel has none."""

_TAG: Final = "tag:yaml.org,2002:"
_MERGE: Final = "<<"

_NULL: Final = re.compile(r"null|Null|NULL|~|")
_BOOL: Final = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class MalformedYaml(ValueError):
    """The text is not a YAML document that we read; the message says where and why."""


@frozen(kw_only=True)
class Bounds:
    """How much a document may hold, aliases counted as what they stand for."""

    nodes: int = 250_000
    depth: int = 50


@define
class _Node:
    """A value and what it weighs."""

    value: Any
    nodes: int = 1
    height: int = 0


@define
class _Open:
    """A collection whose end has not been read yet."""

    node: _Node
    mark: Any
    anchor: str | None
    key: Any = None
    has_key: bool = False
    merging: bool = False
    lines: dict[Hashable, int] = field(factory=dict)
    """Key -> line of a mapping's own keys, to tell a duplicate from an override of what was merged."""


def load(body: bytes, bounds: Bounds | None = None) -> Any:
    """The document as dicts, lists, text, numbers, booleans and None; None for an empty one.

    Takes milliseconds per 100 kB of CPU: call it in a thread.

    :raises MalformedYaml: not UTF-8, not YAML, more than one document, or out of bounds.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise MalformedYaml(f"not UTF-8 text: byte 0x{body[error.start]:02x} in line {line}") from error
    builder = _Builder(bounds or Bounds())
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        raise MalformedYaml(_explain(error)) from error
    except yaml.YAMLError as error:
        raise MalformedYaml(str(error).replace("<unicode string>", "the file")) from error
    return builder.result


class _Builder:
    """Puts events together; the open collections are a list, not Python's stack."""

    def __init__(self, bounds: Bounds) -> None:
        self.result: Any = None
        self._bounds = bounds
        self._total = 0
        self._documents = 0
        self._open: list[_Open] = []
        self._anchors: dict[str, _Node | None] = {}

    def take(self, event: Event) -> None:
        """Add one event of the stream."""
        match event:
            case DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise _fault("expected a single document, but found another", event.start_mark)
            case ScalarEvent():
                self._add_scalar(event)
            case SequenceStartEvent():
                self._enter(event, [], "seq")
            case MappingStartEvent():
                self._enter(event, {}, "map")
            case SequenceEndEvent() | MappingEndEvent():
                self._leave()
            case AliasEvent():
                self._add_alias(event)

    def _add_scalar(self, event: Any) -> None:
        self._spend(1, event.start_mark)
        if self._awaits_key() and event.implicit[0] and event.value == _MERGE:
            self._open[-1].has_key = self._open[-1].merging = True
            return
        node = _Node(_scalar(event))
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        self._add(node, event.start_mark)

    def _enter(self, event: Any, empty: Any, kind: str) -> None:
        self._spend(1, event.start_mark)
        if event.tag not in (None, "!", _TAG + kind):
            raise _fault(f"the tag {event.tag} is not supported here", event.start_mark)
        if self._awaits_key():
            raise _fault("keys of a mapping must be plain values", event.start_mark)
        if len(self._open) >= self._bounds.depth:
            raise _fault(f"nested more than {self._bounds.depth} levels deep", event.start_mark)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._open.append(_Open(_Node(empty), event.start_mark, event.anchor))

    def _leave(self) -> None:
        done = self._open.pop()
        if done.anchor is not None:
            self._anchors[done.anchor] = done.node
        self._add(done.node, done.mark)

    def _add_alias(self, event: Any) -> None:
        if event.anchor not in self._anchors:
            raise _fault(f"found undefined alias '{event.anchor}'", event.start_mark)
        node = self._anchors[event.anchor]
        if node is None:
            raise _fault(f"the alias '{event.anchor}' contains itself", event.start_mark)
        self._spend(node.nodes, event.start_mark)
        if len(self._open) + node.height > self._bounds.depth:
            raise _fault(f"nested more than {self._bounds.depth} levels deep", event.start_mark)
        self._add(node, event.start_mark)

    def _awaits_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].node.value, dict) and not self._open[-1].has_key

    def _spend(self, nodes: int, mark: Any) -> None:
        self._total += nodes
        if self._total > self._bounds.nodes:
            raise _fault(f"more than {self._bounds.nodes} values, counting what aliases stand for", mark)

    def _add(self, node: _Node, mark: Any) -> None:
        """Put a finished value where it belongs."""
        if not self._open:
            self.result = node.value
            return
        parent = self._open[-1]
        parent.node.nodes += node.nodes
        parent.node.height = max(parent.node.height, node.height + 1)
        if isinstance(parent.node.value, list):
            parent.node.value.append(node.value)
        elif not parent.has_key:
            _set_key(parent, node.value, mark)
        elif parent.merging:
            _merge(parent, node.value, mark)
            parent.has_key = parent.merging = False
        else:
            parent.node.value[parent.key] = node.value
            parent.has_key = False


def _set_key(parent: _Open, key: Any, mark: Any) -> None:
    if not isinstance(key, Hashable):
        raise _fault("keys of a mapping must be plain values", mark)
    line = mark.line + 1
    if key in parent.lines:
        raise _fault(f"found duplicate key {key!r} (first in line {parent.lines[key]})", mark)
    parent.lines[key] = line
    parent.key, parent.has_key = key, True


def _merge(parent: _Open, value: Any, mark: Any) -> None:
    """What the mapping has itself, before or after, wins over what is merged; so does the first of a list."""
    for source in value if isinstance(value, list) else [value]:
        if not isinstance(source, Mapping):
            raise _fault("`<<` needs a mapping, or a list of mappings, to merge", mark)
        for key, merged in source.items():
            parent.node.value.setdefault(key, merged)


def _scalar(event: Any) -> Any:
    text: str = event.value
    if "\0" in text:
        raise _fault("null characters are not allowed", event.start_mark)
    if event.tag in (None, "!"):
        is_plain = event.tag is None and event.implicit[0]
        return _resolve(text, event.start_mark) if is_plain else text
    rule = _TAGGED.get(event.tag)
    if rule is None:
        raise _fault(f"the tag {event.tag} is not supported here", event.start_mark)
    pattern, make = rule
    if pattern is not None and not pattern.fullmatch(text):
        raise _fault(f"{text!r} is not what the tag {event.tag} says", event.start_mark)
    return _number(make, text, event.start_mark)


def _resolve(text: str, mark: Any) -> Any:
    """A plain scalar by the core schema."""
    # Nearly all scalars of a project file are words: one look at the first character settles those.
    if text and text[0] not in "nN~tTfF.+-0123456789":
        return text
    for pattern, make in _TAGGED.values():
        if pattern is not None and pattern.fullmatch(text):
            return _number(make, text, mark)
    return text


def _number(make: Callable[[str], Any], text: str, mark: Any) -> Any:
    try:
        return make(text)
    except ValueError as error:
        # Python refuses numbers of thousands of digits, which take quadratic time to read.
        raise _fault("the number is too long", mark) from error


def _int(text: str) -> int:
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _float(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_TAGGED: Final[Mapping[str, tuple[re.Pattern[str] | None, Callable[[str], Any]]]] = {
    _TAG + "null": (_NULL, lambda _: None),
    _TAG + "bool": (_BOOL, lambda text: text.lower() == "true"),
    _TAG + "int": (_INT, _int),
    _TAG + "float": (_FLOAT, lambda text: _float(text.lower())),
    _TAG + "str": (None, str),
}
"""Tag -> (what its text looks like, how it is read); in the order in which plain scalars are tried."""


def _fault(problem: str, mark: Any) -> MalformedYaml:
    return MalformedYaml(f"{problem} {_place(mark)}")


def _place(mark: Any) -> str:
    return f"(line {mark.line + 1}, column {mark.column + 1})"


def _explain(error: yaml.MarkedYAMLError) -> str:
    """The parser's words, each with its place."""
    parts = [(error.context, error.context_mark), (error.problem, error.problem_mark)]
    return "\n".join(f"{text} {_place(mark)}" if mark else text for text, mark in parts if text)
