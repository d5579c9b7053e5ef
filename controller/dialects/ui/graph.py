"""The action graph as a drawing: left to right, dependencies before dependants, few crossings.

Where things go is decided by `grandalf` (Sugiyama's method); what they look like, by the stylesheet.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final

from attrs import frozen
from grandalf.graphs import Edge, Graph, Vertex
from grandalf.layouts import SugiyamaLayout

Point = tuple[float, float]

MOST: Final = 300
"""Actions that a person can still see in one drawing."""
_HEIGHT: Final = 46.0
_LEAST_WIDTH: Final = 116.0
_LETTER: Final = 8.7
"""Width that a letter of a label has at most in the fonts of the stylesheet, on average."""
LONGEST_LABEL: Final = 28
_MARGIN: Final = 10.0
_ROUNDS: Final = 4
"""Passes over the layers to take crossings out."""
_COLUMNS: Final = 4
"""Of actions that are connected with nothing."""


@frozen(kw_only=True)
class Box:
    """Where an action is drawn."""

    name: str
    label: str
    x: float
    y: float
    width: float
    height: float = _HEIGHT


@frozen(kw_only=True)
class Drawing:
    """A graph's boxes and lines, in pixels."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    lines: tuple[str, ...]
    """Paths of SVG."""


class _Size:
    """What the library wants to know of a box: it lays out downwards, so the sides are swapped."""

    def __init__(self, width: float) -> None:
        self.w, self.h = _HEIGHT, width
        self.xy: Point = (0.0, 0.0)


class _Route:
    """Where the library leads a line."""

    def __init__(self) -> None:
        self.points: list[Point] = []

    def setpath(self, points: list[Point]) -> None:
        self.points = [(x, y) for x, y in points]


def draw(needs: Mapping[str, Iterable[str]]) -> Drawing | None:
    """Draw the graph of these actions (name -> names that it needs); None if it is too large to be seen.

    Names that are no action of the graph are left out: they are another RAP's.
    """
    if not needs or len(needs) > MOST:
        return None
    edges = tuple((need, name) for name, needed in needs.items() for need in dict.fromkeys(needed) if need in needs)
    return _draw(tuple(needs), edges)


@lru_cache(maxsize=64)
def _draw(names: tuple[str, ...], edges: tuple[tuple[str, str], ...]) -> Drawing:
    width = max(_LEAST_WIDTH, 44 + _LETTER * max(min(len(name), LONGEST_LABEL) for name in names))
    vertices = {name: Vertex(name) for name in names}
    for vertex in vertices.values():
        vertex.view = _Size(width)
    arrows = [Edge(vertices[source], vertices[target]) for source, target in edges]
    for arrow in arrows:
        arrow.view = _Route()
    parts = Graph(list(vertices.values()), arrows).C
    bottom = _MARGIN
    centres: dict[str, Point] = {}
    lines: list[str] = []
    for part in sorted((part for part in parts if part.order() > 1), key=lambda part: -part.order()):
        found, routes = _lay_out(part)
        points = [*found.values(), *(point for route in routes for point in route)]
        left = min(x for x, _ in found.values())
        top = min(*(y for _, y in points), min(y for _, y in found.values()) - _HEIGHT / 2)
        shift = (_MARGIN + width / 2 - left, bottom - top)
        centres |= {name: _moved(point, shift) for name, point in found.items()}
        lines += [_line([_moved(point, shift) for point in route], width / 2) for route in routes]
        lowest = max(*(y for _, y in points), max(y for _, y in found.values()) + _HEIGHT / 2)
        bottom = lowest + shift[1] + 2 * _MARGIN
    for place, name in enumerate(part.sV[0].data for part in parts if part.order() == 1):
        row, column = divmod(place, _COLUMNS)
        centres[name] = (_MARGIN + width / 2 + column * (width + 24), bottom + _HEIGHT / 2 + row * (_HEIGHT + 16))
    right = max(x for x, _ in centres.values()) + width / 2 + _MARGIN
    low = max(bottom - _MARGIN, max(y for _, y in centres.values()) + _HEIGHT / 2 + _MARGIN)
    boxes = [
        Box(
            name=name, label=_label(name), x=centres[name][0] - width / 2, y=centres[name][1] - _HEIGHT / 2, width=width
        )
        for name in names
    ]
    return Drawing(width=round(right), height=round(low), boxes=tuple(boxes), lines=tuple(lines))


def _lay_out(part: Graph) -> tuple[dict[str, Point], list[list[Point]]]:
    """Centres of boxes, and the ways of lines between centres; x to the right."""
    layout = SugiyamaLayout(part)
    layout.xspace, layout.yspace = 18, 56
    layout.init_all()
    layout.draw(_ROUNDS)
    # Lines run from need to dependant whichever way the library had turned them.
    routes = [_route(edge) for edge in part.sE]
    return {vertex.data: _turned(vertex.view.xy) for vertex in part.sV}, routes


def _route(edge: Edge) -> list[Point]:
    first, last = _turned(edge.v[0].view.xy), _turned(edge.v[1].view.xy)
    between = [_turned(point) for point in edge.view.points[1:-1]]
    return [first, *sorted(between), last]


def _turned(point: Point) -> Point:
    return (point[1], point[0])


def _moved(point: Point, by: Point) -> Point:
    return (point[0] + by[0], point[1] + by[1])


def _line(points: Sequence[Point], half: float) -> str:
    """A smooth path that leaves a box at its right side and reaches the next at its left."""
    (x, y), (end, level) = points[0], points[-1]
    way = [(x + half, y), *points[1:-1], (end - half - 5, level)]
    path = f"M{way[0][0]:.1f} {way[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(way):
        middle = (x0 + x1) / 2
        path += f"C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
    return path


def _label(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"
