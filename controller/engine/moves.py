"""What use cases do to jobs: moves, what goes with writing them, and the canonical line once they are committed."""

from collections.abc import Sequence
from datetime import datetime

import structlog

from common import tracing
from controller.core.codes import JobState
from controller.core.machine import Event, Move, Started, step
from controller.core.model import Job
from controller.engine.context import Context
from controller.engine.starting import stop_runs
from controller.store import backends, jobs
from controller.store.queries import Tx

log = structlog.get_logger(__name__)


def of(job: Job, event: Event, now: datetime, *, agent_lost: bool = False) -> Move:
    """The move that one event makes.

    A job's metrics are those of its newest attempt. They stay when the attempt ends or is stopped, as the last that is
    known of it; they go when another begins, and when an attempt has lost its agent.

    :param agent_lost: the agent gave the attempt back or fell silent, so nobody vouches for what it measured.
    :raises IllegalTransition: the job's state does not allow the event.
    """
    forgotten = agent_lost or isinstance(event, Started)
    return Move(job=job, transitions=(step(job.progress, event, now),), metrics={} if forgotten else job.metrics)


async def intervene(tx: Tx, backend: str, made: Sequence[Move], now: datetime) -> None:
    """Write what somebody wants with jobs of a backend: attempts that run are stopped, and the scheduler looks at once.

    :param tx: holds the backend's lock.
    """
    running = [move.job.id for move in made if move.job.progress.state is JobState.RUNNING]
    if running:
        await stop_runs(tx, backend, running, now)
    await jobs.write(tx, made)
    await backends.notify.run(tx, channel=backends.SCHEDULE_CHANNEL, backend=backend)


def announce(ctx: Context, made: Sequence[Move]) -> None:
    """Tell what was recorded of these jobs, to the log and to the observer; after the transaction, never in it."""
    ctx.observer.moved(made)
    for move in made:
        spec = move.job.spec
        for transition in move.transitions:
            if transition.recorded:
                log.info(
                    "job_moved",
                    job_id=spec.id,
                    rap_id=spec.rap_id,
                    backend=spec.backend,
                    action=spec.action,
                    state=transition.after.state.value,
                    code=transition.after.code.value,
                    was=transition.before.code.value,
                    attempt=transition.after.attempt,
                    trace_id=tracing.trace_id(spec.traceparent),
                )
