"""Who may operate a backend. A backend that a caller's token does not open looks like one that is not there."""

from collections.abc import Sequence

from controller.core.errors import Forbidden, NotFound
from controller.core.model import Job, JobId, Principal, Verb
from controller.store import backends, jobs
from controller.store.queries import Tx


def admit_operator(principal: Principal, backend: str) -> None:
    """Let only those through who manage `backend`.

    :raises NotFound: no such backend for this caller.
    :raises Forbidden: the caller does not manage it.
    """
    if backend not in principal.backends:
        raise NotFound(f"There is no backend {backend!r} for this token.", backend=backend)
    if not principal.may(Verb.MANAGE, backend):
        raise Forbidden(f"This token may use backend {backend!r}, but not manage it.", backend=backend)


def managed(principal: Principal, wanted: Sequence[str] | None = None) -> Sequence[str]:
    """The backends that an operator asks about: these (None: all that the caller manages).

    :raises NotFound: one of them is no backend for this caller.
    :raises Forbidden: the caller does not manage one of them, or (None) manages none at all.
    """
    if wanted is None:
        found = principal.backends_for(Verb.MANAGE)
        if not found:
            raise Forbidden("This token manages no backend.")
        return found
    for backend in wanted:
        admit_operator(principal, backend)
    return wanted


async def lock_job(tx: Tx, principal: Principal, job_id: JobId) -> Job:
    """The job that an operator is about to change, as it is until the transaction ends.

    :raises NotFound: no such job for this caller.
    :raises Forbidden: the caller does not manage its backend.
    """
    # A job's backend never changes, so it may be read without the lock.
    found = await jobs.find.one(tx, id=job_id, backends=list(principal.backends))
    if found is None:
        raise NotFound(f"No job {job_id}", job_id=job_id)
    admit_operator(principal, found.spec.backend)
    await backends.lock.run(tx, backend=found.spec.backend)
    locked = await jobs.lock.all(tx, ids=[job_id])
    if not locked:
        raise NotFound(f"No job {job_id}", job_id=job_id)  # pruned in between
    return locked[0]
