"""Shapes that every part of a project file (and of an `action.yaml`) is held to, and the exception for what is wrong.

The rules of a project stand with its parts: `commands`, `outputs` and `project` (reference/opensafely.md section 4.3).
"""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any


class Fault(ValueError):
    """A rule of section 4.3 is broken; the text is the sentence for the author of the project file.

    :param complete: the text says where by itself (or is promised word by word): put nothing before it.
    """

    def __init__(self, text: str, *, complete: bool = False) -> None:
        super().__init__(text)
        self.complete = complete


def check_mapping(value: object, what: str) -> Mapping[Any, Any]:
    """`value`, which must be a mapping.

    :raises Fault: it is something else.
    """
    if not isinstance(value, Mapping):
        raise Fault(f"{what} must be a mapping of names to values, not {describe(value)}")
    return value


def check_keys(
    value: Mapping[Any, Any], where: str, *, required: Iterable[str] = (), optional: Iterable[str] = ()
) -> None:
    """Exactly the keys that are known, and at least the required ones.

    :raises Fault: naming the missing or unexpected keys in the order of the file.
    """
    required = tuple(required)
    known = {*required, *optional}
    if unexpected := [str(key) for key in value if key not in known]:
        raise Fault(f"Unexpected parameters ({', '.join(unexpected)}) in {where}", complete=True)
    if missing := [key for key in required if key not in value]:
        raise Fault(f"Missing parameters ({', '.join(missing)}) in {where}", complete=True)


def describe(value: object) -> str:
    """`value` in a few words, however large or deep it is."""
    match value:
        case None:
            return "empty"
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
    return reprlib.repr(value)
