"""When each job waited and ran, as bars on one scale."""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final

from attrs import evolve, frozen

from controller.core.codes import JobState, StatusCode
from controller.engine.results import JobDetail

SCALE: Final = 1000.0
"""Units from the left to the right end."""
_THINNEST: Final = 3.0
"""Units that the shortest piece of running gets: what happened is seen."""


@frozen(kw_only=True)
class Piece:
    """A part of a bar."""

    kind: str
    """`needs` (waits for other actions), `wait`, `run`."""
    start: float
    length: float
    title: str


@frozen(kw_only=True)
class Bar:
    """One job's line."""

    job: JobDetail
    pieces: tuple[Piece, ...]
    waited: float
    """Seconds until the last start; until now, or the end, if it never started."""
    ran: float | None
    """Seconds from the last start; None if it has not started."""


@frozen(kw_only=True)
class Timeline:
    """Every job's line."""

    start: datetime
    end: datetime
    bars: tuple[Bar, ...]

    @property
    def seconds(self) -> float:
        """The whole length."""
        return (self.end - self.start).total_seconds()


def of_jobs(jobs: Sequence[JobDetail], now: datetime, titles: dict[StatusCode, str]) -> Timeline | None:
    """The lines of these jobs; None without any.

    :param titles: what codes are called.
    """
    if not jobs:
        return None
    start = min(each.job.spec.created_at for each in jobs)
    over = all(each.job.progress.state.is_terminal for each in jobs)
    ends = [each.job.progress.completed_at for each in jobs if each.job.progress.completed_at is not None]
    end = max(ends) if over and ends else max(now, *ends, start)
    length = max((end - start).total_seconds(), 1e-6)
    return Timeline(start=start, end=end, bars=tuple(_bar(each, start, end, length, titles) for each in jobs))


def _bar(detail: JobDetail, start: datetime, end: datetime, length: float, titles: dict[StatusCode, str]) -> Bar:
    progress = detail.job.progress
    stop = progress.completed_at or end
    points = [(each.at, each.code) for each in detail.history] or [(detail.job.spec.created_at, progress.code)]
    pieces = [
        _piece(code, (at - start).total_seconds() / length, (until - at).total_seconds() / length, titles)
        for (at, code), (until, _) in pairwise([*points, (stop, progress.code)])
        if not code.state.is_terminal
    ]
    began = progress.started_at
    return Bar(
        job=detail,
        pieces=tuple(_merged(pieces)),
        waited=((began or stop) - detail.job.spec.created_at).total_seconds(),
        ran=None if began is None else (stop - began).total_seconds(),
    )


def _piece(code: StatusCode, start: float, length: float, titles: dict[StatusCode, str]) -> Piece:
    if code.state is JobState.RUNNING:
        kind = "run"
    else:
        kind = "needs" if code is StatusCode.WAITING_ON_DEPENDENCIES else "wait"
    left = min(max(0.0, start), 1.0) * SCALE
    wide = max(0.0, min(length * SCALE, SCALE - left))
    return Piece(kind=kind, start=left, length=wide, title=titles[code])


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours of one kind as one piece, none of what ran too thin to be seen."""
    merged: list[Piece] = []
    for piece in pieces:
        if merged and merged[-1].kind == piece.kind:
            merged[-1] = evolve(merged[-1], length=merged[-1].length + piece.length)
        else:
            merged.append(piece)
    return [_visible(piece) for piece in merged if piece.kind == "run" or piece.length > 0]


def _visible(piece: Piece) -> Piece:
    if piece.kind != "run" or piece.length >= _THINNEST:
        return piece
    start = min(piece.start, SCALE - _THINNEST)
    return evolve(piece, start=start, length=_THINNEST)
