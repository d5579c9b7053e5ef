"""What operators do to a backend as a whole: pause, database maintenance, reboot (reference sections 3.6, 3.8, 7).

The switches are flags in the database. A command sets them under the backend's lock and wakes the scheduler, which
does the rest; only a reboot sends running jobs back by itself, since a paused backend leaves them alone. Every command
can be repeated: what is so already stays as it is, its time included.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import structlog
from attrs import frozen

from controller.core import happenings
from controller.core.codes import StatusCode
from controller.core.errors import Rejected
from controller.core.machine import Reset
from controller.core.model import DB_MAINTENANCE, FLAG_VALUES, Flag, JobId, Principal
from controller.engine import moves
from controller.engine.admission import admit_operator, managed
from controller.engine.context import Context
from controller.store import backends, events, jobs
from controller.store.queries import Tx

log = structlog.get_logger(__name__)

FLAGS: Final = tuple(Flag)
"""The switches, in the order in which they are shown."""


@frozen(kw_only=True)
class FlagView:
    """One switch of one backend (reference section 3.6)."""

    backend: str
    id: str
    value: str | None
    changed_at: datetime | None
    """When the value last changed; None if it was never set."""


@frozen(kw_only=True)
class FlagsSet:
    """What an operator's command did to a backend's switches."""

    backend: str
    changed: tuple[str, ...]
    """Names of the flags whose value is another one now; empty if everything was so already."""
    flags: tuple[FlagView, ...]
    """All of the backend's flags as they are now."""


@frozen(kw_only=True)
class RebootStatus:
    """Whether a backend's machines can be switched off without cutting a job short."""

    backend: str
    paused: bool
    running: int
    """Jobs."""
    cancelling: int
    """Stops that were asked for and that no agent has confirmed yet."""
    unconfirmed: tuple[str, ...] = ()
    """The agents that have to confirm them."""

    @property
    def safe(self) -> bool:
        """Nothing runs, and nothing can start."""
        return self.paused and not self.running and not self.cancelling


@frozen(kw_only=True)
class RebootPrepared:
    """What preparing for a reboot did, and what is left to wait for."""

    changed: tuple[str, ...]
    """As of `FlagsSet`."""
    jobs: tuple[JobId, ...]
    """The running jobs that were sent back to the queue."""
    status: RebootStatus


async def pause(ctx: Context, principal: Principal, backend: str) -> FlagsSet:
    """Start no more jobs; those that run, run on, and requests are accepted as before.

    :raises NotFound: no such backend for this caller.
    :raises Forbidden: the caller does not manage it.
    """
    return await _set(ctx, principal, backend, {Flag.PAUSED: "true"})


async def unpause(ctx: Context, principal: Principal, backend: str) -> FlagsSet:
    """Start jobs again, those that a reboot sent back included (flag `paused`: null).

    :raises NotFound: no such backend for this caller.
    :raises Forbidden: the caller does not manage it.
    """
    return await _set(ctx, principal, backend, {Flag.PAUSED: None})


async def start_maintenance(ctx: Context, principal: Principal, backend: str, *, disable_checks: bool) -> FlagsSet:
    """Keep database jobs out by hand: the next pass sends running ones back; all other jobs carry on.

    :param disable_checks: whether the database is not even asked for its status meanwhile; False takes an earlier
        True back (reference section 7).
    :raises NotFound: no such backend for this caller.
    :raises Forbidden: the caller does not manage it.
    """
    wanted: dict[str, str | None] = {
        Flag.MODE: DB_MAINTENANCE,
        Flag.MANUAL_DB_MAINTENANCE: "on",
        Flag.CHECKS_DISABLED: "true" if disable_checks else None,
    }
    return await _set(ctx, principal, backend, wanted)


async def end_maintenance(ctx: Context, principal: Principal, backend: str) -> FlagsSet:
    """Let database jobs in again, whoever had kept them out.

    All three flags become null. For `mode` that is what leaving manual mode means in reference section 3.6 (so a
    DBSTATUS result, which writes an empty text, moves `since` once more). For disabled checks the reference is silent;
    they have no effect outside of manual maintenance, and left behind they would only puzzle whoever lists flags.

    :raises NotFound: no such backend for this caller.
    :raises Forbidden: the caller does not manage it.
    """
    wanted: dict[str, str | None] = {Flag.MODE: None, Flag.MANUAL_DB_MAINTENANCE: None, Flag.CHECKS_DISABLED: None}
    return await _set(ctx, principal, backend, wanted)


async def set_flags(ctx: Context, principal: Principal, backend: str, wanted: Mapping[str, str | None]) -> FlagsSet:
    """Set single switches to any values that they can have, where no command does what is needed.

    :raises NotFound: no such backend for this caller.
    :raises Forbidden: the caller does not manage it.
    :raises Rejected: a flag that does not exist, or a value that it cannot have; then nothing changes.
    """
    admit_operator(principal, backend)
    for name, value in wanted.items():
        if name not in FLAGS:
            raise Rejected(f"There is no flag {name!r}; there are {', '.join(FLAGS)}.", flag=name)
        if value not in (allowed := FLAG_VALUES[Flag(name)]):
            shown = ", ".join("null" if each is None else repr(each) for each in allowed)
            raise Rejected(f"Flag {name!r} can be {shown}, and nothing else.", flag=name)
    return await _set(ctx, principal, backend, wanted)


async def prepare_for_reboot(ctx: Context, principal: Principal, backend: str) -> RebootPrepared:
    """Pause, and stop every running job: it waits for the reboot and starts anew, as another attempt, after `unpause`.

    Agents stop the processes when they are told; `reboot_status` says when all have.

    :raises NotFound: no such backend for this caller.
    :raises Forbidden: the caller does not manage it.
    """
    admit_operator(principal, backend)
    now = ctx.clock.now()
    wanted: dict[str, str | None] = {Flag.PAUSED: "true"}
    async with ctx.db.transaction() as tx:
        await backends.lock.run(tx, backend=backend)
        changed = await _write(tx, backend, wanted, now)
        running = await jobs.lock.all(tx, ids=await backends.running_jobs.all(tx, backend=backend))
        reset = Reset(code=StatusCode.WAITING_ON_REBOOT)
        made = [moves.of(job, reset, now) for job in running]
        if made:
            await moves.intervene(tx, backend, made, now)
        elif changed:
            await backends.notify.run(tx, channel=backends.SCHEDULE_CHANNEL, backend=backend)
        status = await _reboot_status(tx, backend)
    _log_change(principal, backend, changed, wanted)
    moves.announce(ctx, made)
    return RebootPrepared(changed=changed, jobs=tuple(job.id for job in running), status=status)


async def reboot_status(ctx: Context, principal: Principal, backend: str) -> RebootStatus:
    """What a reboot now would cut short.

    :raises NotFound: no such backend for this caller.
    :raises Forbidden: the caller does not manage it.
    """
    admit_operator(principal, backend)
    async with ctx.db.connection() as tx:
        return await _reboot_status(tx, backend)


async def flags(ctx: Context, principal: Principal, wanted: Sequence[str] | None = None) -> Sequence[FlagView]:
    """Every switch of these backends (None: of all that the caller manages), those never set included.

    :raises NotFound: one of them is no backend for this caller.
    :raises Forbidden: the caller does not manage them.
    """
    slugs = managed(principal, wanted)
    async with ctx.db.connection() as tx:
        return await _read(tx, slugs)


async def _set(ctx: Context, principal: Principal, backend: str, wanted: Mapping[str, str | None]) -> FlagsSet:
    admit_operator(principal, backend)
    async with ctx.db.transaction() as tx:
        await backends.lock.run(tx, backend=backend)
        changed = await _write(tx, backend, wanted, ctx.clock.now())
        if changed:
            await backends.notify.run(tx, channel=backends.SCHEDULE_CHANNEL, backend=backend)
        found = tuple(await _read(tx, [backend]))
    _log_change(principal, backend, changed, wanted)
    return FlagsSet(backend=backend, changed=changed, flags=found)


def _log_change(principal: Principal, backend: str, changed: Sequence[str], wanted: Mapping[str, str | None]) -> None:
    """Who changed what, once it is committed."""
    for name in changed:
        log.info("flag_changed", backend=backend, flag=name, value=wanted[name], principal=principal.name)


async def _write(tx: Tx, backend: str, wanted: Mapping[str, str | None], now: datetime) -> tuple[str, ...]:
    """Set flags; the names of those that had another value."""
    written = [
        await backends.set_flag.one(tx, backend=backend, id=name, value=value, now=now)
        for name, value in wanted.items()
    ]
    changed = tuple(name for name in written if name is not None)
    if changed:
        await events.record(tx, backend, [happenings.of_flags({name: wanted[name] for name in changed}, now)])
    return changed


async def _read(tx: Tx, slugs: Sequence[str]) -> list[FlagView]:
    rows = {(row.backend, row.id): row for row in await backends.flags.all(tx, backends=list(slugs))}

    def view(slug: str, name: str) -> FlagView:
        row = rows.get((slug, name))
        if row is None:
            return FlagView(backend=slug, id=name, value=None, changed_at=None)
        return FlagView(backend=slug, id=name, value=row.value, changed_at=row.changed_at)

    return [view(slug, name) for slug in slugs for name in FLAGS]


async def _reboot_status(tx: Tx, backend: str) -> RebootStatus:
    # The flag is read first: what is counted afterwards was there while nothing could start any more.
    modes = await backends.modes(tx, backend)
    left = await backends.unfinished.one(tx, backend=backend)
    if left is None:
        raise RuntimeError("counting gave no row")
    return RebootStatus(
        backend=backend,
        paused=modes.paused,
        running=left.running,
        cancelling=left.cancelling,
        unconfirmed=tuple(left.unconfirmed),
    )
