"""The last part of a job's log: what people look at first."""

from attrs import frozen

from controller.core.errors import NotFound
from controller.core.model import JobId, Principal, Verb
from controller.engine.context import Context
from controller.store import jobs


@frozen(kw_only=True)
class LogTail:
    """The end of what the controller has of one attempt's log."""

    attempt: int
    text: str
    omitted: int
    """Characters before it."""
    truncated: bool
    """Whether the controller's bound cut the log."""


async def log_tail(
    ctx: Context, principal: Principal, job_id: JobId, *, attempt: int | None, characters: int
) -> LogTail:
    """At most so many characters from the end of a log: of one attempt, or of the newest.

    :raises NotFound: no such job for this caller.
    :raises Unavailable: the database is away.
    """
    async with ctx.db.connection() as tx:
        job = await jobs.find.one(tx, id=job_id, backends=list(principal.backends_for(Verb.READ)))
        if job is None:
            raise NotFound(f"No job {job_id}", job_id=job_id)
        chosen = job.progress.attempt if attempt is None else attempt
        length = await jobs.log_length.one(tx, job_id=job_id, attempt=chosen) or 0
        start = max(0, length - characters)
        chunks = await jobs.read_log.all(tx, job_id=job_id, attempt=chosen, start=start, stop=length)
    text = "".join(chunk.text[max(0, start - chunk.start) :] for chunk in chunks)
    return LogTail(attempt=chosen, text=text, omitted=length - len(text), truncated=length >= ctx.log_bytes)
