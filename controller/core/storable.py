"""What the database can hold of text and JSON from outside, and what is done about the rest."""

import math
import re
from collections.abc import Mapping
from typing import Any, Final

_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
"""NUL, which a PostgreSQL text cannot hold, and one half of a pair: no character, so UTF-8 cannot hold it."""
_MOST_FLOAT: Final = 10**308


def is_storable(text: str) -> bool:
    """Whether the text can be stored as it is."""
    return _UNSTORABLE.search(text) is None


def storable_text(text: str) -> str:
    """The text with U+FFFD for each character that cannot be stored; never longer or shorter."""
    return _UNSTORABLE.sub("\ufffd", text)


def storable(value: Any, *, keep_integers: bool = False) -> Any:
    """JSON data with its texts made storable, and numbers rounded to 64 bits; None for what is no number then.

    For statements of agents: losing a character is better than an agent that repeats itself for ever.

    :param value: of a bounded depth.
    :param keep_integers: whether integers stay whatever their size, for a caller that checks fields afterwards.
    """
    match value:
        case str():
            return storable_text(value)
        case Mapping():
            return {storable_text(str(key)): storable(item, keep_integers=keep_integers) for key, item in value.items()}
        case list() | tuple():
            return [storable(child, keep_integers=keep_integers) for child in value]
        case float() if not math.isfinite(value):
            return None
        case int() if not keep_integers and not -(2**63) <= value < 2**63:
            return float(value) if abs(value) < _MOST_FLOAT else None
        case _:
            return value
