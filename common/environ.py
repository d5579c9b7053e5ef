"""Reading settings out of environment variables: every fault is collected, and all are reported at once.

A reader never echoes the value of a secret, and it remembers which names it was asked for, so that a test can
pair them with the documentation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


class ConfigurationError(Exception):
    """The environment cannot be used; `faults` has a sentence per variable, beginning with its name."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class Environ:
    """A reader of one environment.

    A variable that is set to nothing counts as missing (compose files pass empty values on), except for `clearable`.

    :param values: the environment, usually `os.environ`.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self._faults: dict[str, str] = {}
        self.asked: dict[str, None] = {}
        """Every name that was asked for, in order."""

    def fault(self, name: str, sentence: str) -> None:
        """Note that `name` cannot be used; the first fault of a name is the one that is told."""
        self._faults.setdefault(name, f"{name} {sentence}")

    def finish(self) -> None:
        """Everything has been read.

        :raises ConfigurationError: something of it cannot be used.
        """
        if self._faults:
            raise ConfigurationError(tuple(self._faults.values()))

    def given(self, name: str) -> str | None:
        """The raw value; None if it is missing or empty."""
        self.asked[name] = None
        return self._values.get(name) or None

    def converted(self, name: str, default: T, convert: Callable[[str], T], *, secret: bool = False) -> T:
        """The value through `convert`, which says what is wrong with it by a ValueError ("is not ...").

        A faulty value is noted, and the default stands in so that reading goes on.
        """
        raw = self.given(name)
        if raw is None:
            return default
        try:
            return convert(raw)
        except ValueError as error:
            shown = "has a value that" if secret else f"is {_brief(raw)}, which"
            self.fault(name, f"{shown} {error}")
            return default

    def text(self, name: str, default: str = "") -> str:
        """A string, as it stands."""
        return self.given(name) or default

    def required(self, name: str, meaning: str) -> str:
        """A string that must be there; `meaning` completes "must be set to ..."."""
        raw = self.given(name)
        if raw is None:
            self.fault(name, f"must be set to {meaning}")
            return ""
        return raw

    def flag(self, name: str, default: bool = False) -> bool:
        """true/false, yes/no, on/off, 1/0, in any case."""
        return self.converted(name, default, _flag)

    def integer(self, name: str, default: int, *, least: int = 0, most: int | None = None) -> int:
        """A whole number from `least` to `most`."""
        return self.converted(name, default, lambda raw: _bounded(int, "a whole number", raw, least, most))

    def number(self, name: str, default: float, *, least: float = 0.0, most: float | None = None) -> float:
        """A finite number from `least` to `most`."""
        return self.converted(name, default, lambda raw: _bounded(float, "a number", raw, least, most))

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        """One of `choices`, in any case."""

        def pick(raw: str) -> str:
            if raw.strip().lower() not in choices:
                raise ValueError(f"is not one of {', '.join(choices)}")
            return raw.strip().lower()

        return self.converted(name, default, pick)

    def words(self, name: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """A list separated by commas, each word trimmed, empty ones left out, doubles once."""
        raw = self.given(name)
        if raw is None:
            return default
        return tuple(dict.fromkeys(word.strip() for word in raw.split(",") if word.strip()))

    def clearable(self, name: str) -> tuple[str, ...] | None:
        """A list as of `words`, for a feature that an empty setting turns off: set to nothing it has no words, and None
        says that it is not set at all."""
        self.asked[name] = None
        return self.words(name) if name in self._values else None

    def folder(self, name: str, default: Path) -> Path:
        """A path, made absolute; `~` is the home folder. Whether it can be used is not looked at."""

        def absolute(raw: str) -> Path:
            if "\0" in raw:
                raise ValueError("is not a path")
            try:
                return Path(raw).expanduser().absolute()
            except RuntimeError as error:
                raise ValueError("has no home folder to begin in") from error

        return self.converted(name, default.absolute(), absolute)


def _flag(raw: str) -> bool:
    word = raw.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("is neither true nor false")


def _bounded(kind: Callable[[str], T], name: str, raw: str, least: float | None, most: float | None) -> T:
    try:
        value = kind(raw.strip())
        order = float(value)  # type: ignore[arg-type]  # `kind` makes an int or a float
    except ValueError as error:
        raise ValueError(f"is not {name}") from error
    if not math.isfinite(order):
        raise ValueError(f"is not {name}")
    if least is not None and order < least:
        raise ValueError(f"is less than {least:g}")
    if most is not None and order > most:
        raise ValueError(f"is more than {most:g}")
    return value


def _brief(raw: str) -> str:
    return repr(raw if len(raw) <= 60 else raw[:57] + "...")
