"""How a job used its machine over time, as far as its backend lets metrics out.

Agents tell means and peaks since the attempt began to execute; between two of these lies what was used meanwhile.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from attrs import frozen

from controller.core.errors import NotFound
from controller.core.model import JobId, Principal, Verb
from controller.engine.context import Context
from controller.store import jobs, samples
from controller.store.samples import SampleRow


@frozen(kw_only=True)
class Point:
    """One sample of a series."""

    at: datetime
    metrics: Mapping[str, float]
    """As they were told: since the attempt began."""
    cpu: float | None
    """Percent of one CPU since the point before; None where it is not known."""
    mem_mb: float | None
    """MiB, mean since the point before; None where it is not known."""


@frozen(kw_only=True)
class Series:
    """What is known of one attempt."""

    job_id: JobId
    attempt: int
    complete: bool
    """Whether nothing more will come."""
    points: tuple[Point, ...]


async def job_metrics(ctx: Context, principal: Principal, job_id: JobId, *, attempt: int | None) -> Series:
    """The series of one attempt at a job, or of the newest.

    :raises NotFound: no such job for this caller.
    """
    async with ctx.db.connection() as tx:
        job = await jobs.find.one(tx, id=job_id, backends=list(principal.backends_for(Verb.READ)))
        if job is None:
            raise NotFound(f"No job {job_id}", job_id=job_id)
        chosen = job.progress.attempt if attempt is None else attempt
        began = await samples.executing_since.one(tx, job_id=job_id, attempt=chosen)
        rows = await samples.series.all(tx, job_id=job_id, attempt=chosen)
    final = job.progress.state.is_terminal or chosen != job.progress.attempt
    return Series(job_id=job_id, attempt=chosen, complete=final, points=points(rows, began))


def points(rows: Sequence[SampleRow], began: datetime | None) -> tuple[Point, ...]:
    """Each sample with what was used since the one before.

    :param began: when the attempt began to execute; None: not known, so neither is what was used until the first.
    """
    found: list[Point] = []
    before, known = began, {"cpu_mean": 0.0, "mem_mb_mean": 0.0}
    for row in rows:
        found.append(
            Point(
                at=row.at,
                metrics=row.metrics,
                cpu=_between("cpu_mean", known, row, began, before),
                mem_mb=_between("mem_mb_mean", known, row, began, before),
            )
        )
        before, known = row.at, {name: _number(row.metrics.get(name)) or 0.0 for name in known}
    return tuple(found)


def _between(
    name: str, known: Mapping[str, float], row: SampleRow, began: datetime | None, before: datetime | None
) -> float | None:
    """The mean of the time between, out of two means since the beginning."""
    mean = _number(row.metrics.get(name))
    if mean is None or began is None or before is None or row.at <= before or before < began:
        return None
    whole, earlier = (row.at - began).total_seconds(), (before - began).total_seconds()
    used = mean * whole - known[name] * earlier
    return round(max(0.0, used / (whole - earlier)), 3)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
