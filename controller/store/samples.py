"""How attempts used their machine while they ran, as rows: a bounded series per attempt, the newest part finest."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from attrs import frozen

from controller.core.model import Job
from controller.store.queries import Tx, command, query, scalar

MOST: Final = 500
"""Samples of an attempt; half of them go when there are as many."""
MOST_NAMES: Final = 20
"""Numbers in a sample: ours have four, upstream's nine."""


@frozen
class SampleRow:
    at: datetime
    metrics: Mapping[str, Any]


@frozen
class AttemptRow:
    job_id: str
    attempt: int


_add = command("samples", "add")
_full = query("samples", "full", AttemptRow)
_thin = command("samples", "thin")
series = query("samples", "series", SampleRow)
executing_since = query("samples", "executing_since", datetime, scalar("at"))


async def add(tx: Tx, measured: Sequence[Job], at: datetime, *, most: int = MOST) -> None:
    """Keep what these jobs' newest attempts are said to have used so far, in bounded space.

    :param tx: holds the backend's lock, so that nobody else adds to the same series.
    """
    if not measured:
        return
    samples = [
        {
            "job_id": job.id,
            "attempt": job.progress.attempt,
            "metrics": dict(sorted(job.metrics.items())[:MOST_NAMES]),
        }
        for job in measured
    ]
    await _add.run(tx, samples=samples, at=at)
    job_ids, attempts = [job.id for job in measured], [job.progress.attempt for job in measured]
    for row in await _full.all(tx, job_ids=job_ids, attempts=attempts, most=most):
        await _thin.run(tx, job_id=row.job_id, attempt=row.attempt)
