"""What the span of a status request tells besides: maintainers alert on these attributes (reference section 1.7).

Nothing is asked or measured unless somebody records the span, and what cannot be told fails no request.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from opentelemetry import trace

from common.clock import Clock
from controller.core.errors import Unavailable
from controller.core.model import Principal, RapId
from controller.engine.results import StatusReport

if TYPE_CHECKING:
    from controller.engine.facade import Engine

_LONGEST: Final = 16_384
"""Characters of a list of ids."""


async def tell(
    engine: "Engine", clock: Clock, principal: Principal, asked: Sequence[RapId], report: StatusReport, seconds: float
) -> None:
    """Put into the request's span what was asked for and found, and what the caller did not ask about.

    :param seconds: how long the report took.
    """
    span = trace.get_current_span()
    if not span.is_recording():
        return
    span.set_attributes(
        {
            "valid_rap_ids": _joined({job.spec.rap_id for job in report.jobs}),
            "unrecognised_rap_ids": _joined(report.unrecognised),
            "find_matching_jobs.duration_ms": _milliseconds(seconds),
        }
    )
    began = clock.monotonic()
    try:
        others = await engine.active_others(principal, asked)
    except Unavailable:
        return
    span.set_attributes(
        {
            "extra_rap_ids": _joined(others),
            "find_extra_rap_ids.duration_ms": _milliseconds(clock.monotonic() - began),
        }
    )


def _joined(ids: Iterable[str]) -> str:
    return ",".join(sorted(ids))[:_LONGEST]


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
