"""Times in the native API's words."""

from datetime import UTC, datetime


def timestamp(at: datetime) -> str:
    """ISO 8601 in UTC, always with six digits of the second: equal lengths sort as times do."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def maybe(at: datetime | None) -> str | None:
    """The same; None for None."""
    return None if at is None else timestamp(at)
