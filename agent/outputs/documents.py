"""Large JSON documents, written and read without standing in anybody's way.

A job may have a hundred thousand outputs, and its metadata and its workspace's manifest list each of them. Encoded in
one piece, such a document is in memory three times over; and the quick encoders and decoders do not let go of the
interpreter before they have finished, so that the event loop waits although a thread does the work.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

import orjson
from attrs import frozen

_DEPTH: Final = 2
"""Values deeper than this are encoded in one piece each: `outputs` is taken apart, an output is not."""
_SHARED: Final = frozenset({"level", "job_id", "job_request", "action", "user", "repo", "commit", "message"})
"""Members whose text many objects of a document have in common."""


@frozen
class Members:
    """The members of an object, which are made while they are written."""

    pairs: Iterator[tuple[str, Any]]


def encode(value: Any, depth: int = 0) -> Iterator[bytes]:
    """`value` as JSON, indented by two, in pieces; what JSON has no word for becomes its `str`."""
    if depth == _DEPTH or not isinstance(value, (dict, list, Members)) or value in ({}, []):
        yield _dump(value).replace(b"\n", b"\n" + b"  " * depth)
        return
    inner, separator = b"\n" + b"  " * (depth + 1), b""
    if isinstance(value, list):
        yield b"["
        for item in value:
            yield separator + inner
            yield from encode(item, depth + 1)
            separator = b","
        yield b"\n" + b"  " * depth + b"]"
        return
    yield b"{"
    for key, item in value.pairs if isinstance(value, Members) else value.items():
        yield separator + inner + _dump(str(key)) + b": "
        yield from encode(item, depth + 1)
        separator = b","
    yield b"\n" + b"  " * depth + b"}" if separator else b"}"


def _dump(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2)
    except TypeError:
        # File names may be no valid UTF-8, and engines describe runs with numbers and keys that JSON does not have.
        return json.dumps(value, indent=2, default=str).encode()


def decode(body: bytes) -> Any:
    """What `encode` wrote, or any other JSON. Texts that many objects share, such as a commit, are held once.

    :raises ValueError: it is not JSON.
    """
    known: dict[str, str] = {}

    # Called for each object; that it is Python lets other threads have their turn.
    def share(found: dict[str, Any]) -> dict[str, Any]:
        for key in _SHARED & found.keys():
            if isinstance(text := found[key], str):
                found[key] = known.setdefault(text, text)
        return found

    return json.loads(body, object_hook=share)
