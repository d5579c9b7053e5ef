"""How an attempt used its machine over time, as a line on a plain."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from attrs import frozen

WIDTH: Final = 600.0
HEIGHT: Final = 80.0
"""Units of the drawing; the page stretches it."""
_AIR: Final = 1.08
"""How much higher than the highest value the plain is."""


@frozen(kw_only=True)
class Plot:
    """One line, as a path of SVG, and the same closed at the bottom."""

    line: str
    area: str
    limit: float | None
    """Height at which the limit lies, from above; None if it is above the plain."""
    top: float
    """The value at the upper edge."""
    seconds: float
    """The time at the right edge, since the left one."""


def draw(values: Sequence[tuple[datetime, float | None]], limit: float | None) -> Plot | None:
    """The plot of what is known of these values, oldest first; None if that is no line.

    :param limit: in the same unit. It is drawn if the values come near it.
    """
    known = [(at, value) for at, value in values if value is not None]
    if len(known) < 2:
        return None
    start, end = known[0][0], known[-1][0]
    seconds = (end - start).total_seconds()
    highest = max(value for _, value in known)
    if seconds <= 0 or highest <= 0:
        return None
    near = limit is not None and highest > limit / 2
    top = (max(highest, limit) if near and limit is not None else highest) * _AIR
    points = [
        (max(0.0, (at - start).total_seconds()) / seconds * WIDTH, HEIGHT * (1 - max(0.0, value) / top))
        for at, value in known
    ]
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return Plot(
        line=line,
        area=f"{line}L{WIDTH:.1f} {HEIGHT:.1f}L0 {HEIGHT:.1f}z",
        limit=HEIGHT * (1 - limit / top) if near and limit is not None else None,
        top=top,
        seconds=seconds,
    )
