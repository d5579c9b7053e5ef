"""Statistical disclosure control: the two rules that every table of this study goes through."""

SMALLEST_SHOWN = 8
"""Groups of fewer patients are not shown at all: neither their count nor anything computed from it."""

ROUND_TO = 5
"""Counts are shown to the nearest multiple of this, so that two tables cannot be subtracted."""


def may_be_shown(count: int) -> bool:
    """Whether a group of `count` patients is large enough to be shown."""
    return count >= SMALLEST_SHOWN


def rounded_count(count: int) -> int:
    """The count as it may be shown.

    :raises ValueError: the group is too small to be shown.
    """
    if not may_be_shown(count):
        raise ValueError(f"a group of fewer than {SMALLEST_SHOWN} patients must not be shown")
    return ROUND_TO * round(count / ROUND_TO)
