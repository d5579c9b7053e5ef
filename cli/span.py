"""Spans of time as people type them: `30m`, `12h`, `90d`, `4w`, `2y`."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    ParamType = click.ParamType[int]
else:  # the class takes no parameters at run time in every version
    ParamType = click.ParamType

_WRITTEN: Final = re.compile(r"([0-9]{1,9})([mhdwy])")
_SECONDS: Final[Mapping[str, int]] = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_LONGEST: Final = 100
"""Years, as in the contract."""


class Span(ParamType):
    """Whole seconds, typed as a number with a unit.

    :param shortest: the least that is taken, typed likewise.
    """

    name = "span"

    def __init__(self, shortest: str) -> None:
        self._shortest = shortest
        self._least = _parse(shortest) or 0

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The seconds.

        :raises click.BadParameter: it is no span, or out of bounds.
        """
        seconds = _parse(str(value))
        if seconds is None or not self._least <= seconds <= _LONGEST * _SECONDS["y"]:
            bounds = f"from {self._shortest} to {_LONGEST}y"
            self.fail(f"{value!r} is not a span of time {bounds}, such as 12h, 90d or 2y", param, ctx)
        return seconds


def _parse(written: str) -> int | None:
    found = _WRITTEN.fullmatch(written)
    return int(found[1]) * _SECONDS[found[2]] if found else None
