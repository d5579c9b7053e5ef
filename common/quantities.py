"""Sizes of memory and lengths of time, as people write them in settings and project files."""

import re
from typing import Final

_MEMORY: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,15})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS: Final = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_MOST_BYTES: Final = 2**60
_NUMBER: Final = r"([0-9]{1,15}(?:\.[0-9]{1,15})?)"
_TIME: Final = re.compile(rf"(?=.)(?:{_NUMBER}d)?\s*(?:{_NUMBER}h)?\s*(?:{_NUMBER}m)?\s*(?:{_NUMBER}s)?", re.IGNORECASE)
_SECONDS: Final = (86_400, 3_600, 60, 1)
_MOST_SECONDS: Final = 100 * 366 * 86_400


def memory(text: str) -> int:
    """Bytes of a size such as `4G`, `512m` or `1073741824`; units are powers of 1024, as Docker's.

    :raises ValueError: it is none, or not above zero ("is not ...").
    """
    match = _MEMORY.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if not 0 < size <= _MOST_BYTES:
        raise ValueError("is not a size such as 4G or 512m")
    return size


def written_memory(size: int) -> str:
    """Bytes in the largest unit that tells them exactly: `4G`, `1536M`, `1000` (then they are bytes)."""
    for unit in ("T", "G", "M", "K"):
        whole, rest = divmod(size, _UNITS[unit.lower()])
        if not rest:
            return f"{whole}{unit}"
    return str(size)


def seconds(text: str) -> float:
    """Seconds of a time such as `90s`, `30m`, `2h`, `1h30m` or `1d`; a unit is needed.

    :raises ValueError: it is none, or not above zero ("is not ...").
    """
    match = _TIME.fullmatch(text.strip())
    found = sum(float(part or 0) * unit for part, unit in zip(match.groups(), _SECONDS, strict=True)) if match else 0.0
    found = round(found, 6)  # 2.2 days are not a whole number of seconds to a computer
    if not 0 < found <= _MOST_SECONDS:
        raise ValueError("is not a time such as 90s, 30m, 2h or 1h30m")
    return found


def time_limit(text: str) -> float | None:
    """Seconds of a limit in a setting: a time, or a plain number of seconds from 1 on; None for 0, which is no limit.

    :raises ValueError: it is neither ("is ...").
    """
    try:
        number = float(text)
    except ValueError:
        number = seconds(text)
    if number == 0:
        return None
    if not 1 <= number <= _MOST_SECONDS:
        raise ValueError(f"is neither 0 nor a time from 1 s to {_MOST_SECONDS} s")
    return number


def written_seconds(time: float) -> str:
    """Seconds in units from days down: `2h`, `1h30m`, `1.5s`."""
    left, parts = time, []
    for name, unit in zip("dhm", _SECONDS, strict=False):
        whole, left = divmod(left, unit)
        if whole:
            parts.append(f"{whole:.0f}{name}")
    if left or not parts:
        parts.append(f"{left:g}s")
    return "".join(parts)
