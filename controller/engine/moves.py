"""The canonical line of each transition, once it is committed."""

from collections.abc import Iterable

import structlog

from common import tracing
from controller.core.machine import Move

log = structlog.get_logger(__name__)


def log_moves(moves: Iterable[Move]) -> None:
    """Tell what was recorded of these jobs; call it after the transaction, never in it."""
    for move in moves:
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
