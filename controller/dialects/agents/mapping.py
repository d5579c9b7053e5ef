"""Bodies of the agent protocol as `common.protocol` values, and what their types alone cannot say. Pure.

A body is refused with every fault at once. What an agent could not help (a metric that is not a number, text
that cannot be stored) is mended instead: an agent repeats a refused report for ever.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from common import convert
from common.protocol import (
    MOST_OF_AGENT_METRICS,
    PROTOCOL_VERSION,
    ClaimRequest,
    Declaration,
    Held,
    LogChunk,
    ReleaseRequest,
    Report,
    ReportsRequest,
)
from controller.core.storable import storable
from controller.web import body
from controller.web.errors import MalformedBody

T = TypeVar("T")
Faults = Iterator[str]

MOST_SLOTS: Final = 10_000
MOST_REPORTS: Final = 1_000
MOST_TASKS: Final = 20_000
"""Tasks in one `holding` or release."""
MOST_FAULTS: Final = 20
"""Faults told in one answer."""
MOST_INTEGER: Final = 2**63 - 1

_AGENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TASK: Final = re.compile(r"[A-Za-z0-9._-]{1,200}")


def declaration(raw: bytes, agent: str) -> Declaration:
    """The body of `PUT agents/{agent}`.

    :raises MalformedBody: with every fault, by its field.
    """

    def check(value: Declaration) -> Faults:
        yield from _agent("the agent's name in the path", agent)
        yield from _text("$.version", value.version, longest=200)
        yield from _text("$.executor", value.executor, longest=100)
        yield from _integer("$.slots", value.slots, 1, MOST_SLOTS)
        if value.protocol != PROTOCOL_VERSION:
            yield f"$.protocol must be {PROTOCOL_VERSION}, the version that this controller speaks"

    return _decode(raw, Declaration, check, mend=_with_levels)


def claim(raw: bytes) -> ClaimRequest:
    """The body of `POST claim`.

    :raises MalformedBody: with every fault, by its field.
    """

    def check(value: ClaimRequest) -> Faults:
        yield from _agent("$.agent", value.agent)
        yield from _integer("$.slots", value.slots, 0, MOST_SLOTS)
        if not (math.isfinite(value.wait) and value.wait >= 0):
            yield "$.wait must be a number of seconds, 0 or more"
        yield from _tasks("$.holding", value.holding)

    return _decode(raw, ClaimRequest, check, mend=_with_sound_metrics)


def reports(raw: bytes) -> ReportsRequest:
    """The body of `POST reports`.

    :raises MalformedBody: with every fault, by its field.
    """

    def check(value: ReportsRequest) -> Faults:
        yield from _agent("$.agent", value.agent)
        if len(value.reports) > MOST_REPORTS:
            yield f"$.reports must have at most {MOST_REPORTS} entries"
            return
        for index, report in enumerate(value.reports):
            yield from _report(f"$.reports[{index}]", report)

    return _decode(raw, ReportsRequest, check, mend=_without_nulls)


def log_chunk(raw: bytes) -> LogChunk:
    """The body of `POST logs`.

    :raises MalformedBody: with every fault, by its field.
    """

    def check(value: LogChunk) -> Faults:
        yield from _agent("$.agent", value.agent)
        yield from _task("$", value.task_id, value.attempt)
        yield from _integer("$.offset", value.offset, 0, MOST_INTEGER)

    return _decode(raw, LogChunk, check)


def release(raw: bytes) -> ReleaseRequest:
    """The body of `POST release`.

    :raises MalformedBody: with every fault, by its field.
    """

    def check(value: ReleaseRequest) -> Faults:
        yield from _agent("$.agent", value.agent)
        yield from _tasks("$.tasks", value.tasks)
        if len(value.reason) > 2000:
            yield "$.reason must have at most 2000 characters"

    return _decode(raw, ReleaseRequest, check)


def _decode(
    raw: bytes, cls: type[T], check: Callable[[T], Faults], mend: Callable[[Any], Any] = lambda data: data
) -> T:
    data = mend(storable(body.parse(raw), keep_integers=True))
    try:
        value = convert.structure(data, cls)
    except convert.Malformed as error:
        raise _malformed(error.faults) from error
    faults = list(check(value))
    if faults:
        raise _malformed(faults)
    return value


def _malformed(faults: list[str]) -> MalformedBody:
    shown = faults[:MOST_FAULTS]
    more = f" (and {len(faults) - len(shown)} more)" if len(faults) > len(shown) else ""
    return MalformedBody(f"Unusable body: {'; '.join(shown)}{more}", faults=shown)


def _with_levels(data: Any) -> Any:
    """An egress policy of the form before levels, whose `outputs` was true for every output of every level.

    Such agents let their metrics out unless they said otherwise.
    """
    egress = data.get("egress") if isinstance(data, dict) else None
    if isinstance(egress, dict) and isinstance(egress.get("outputs"), bool):
        mended = {"metrics": True, **egress, "outputs": "all" if egress["outputs"] else "none", "reviewed": False}
        return {**data, "egress": mended}
    return data


def _with_sound_metrics(data: Any) -> Any:
    """Only those of an agent's metrics that we know and that can be true: for the others no claim is refused."""
    if not isinstance(data, dict) or "metrics" not in data:
        return data
    told = data["metrics"] if isinstance(data["metrics"], dict) else {}
    sound = {name: told[name] for name, most in MOST_OF_AGENT_METRICS.items() if _is_sound(told.get(name), most)}
    return {**data, "metrics": sound}


def _is_sound(number: Any, most: float) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number <= most


def _without_nulls(data: Any) -> Any:
    """Leave out metrics that are null: JSON's only way to write a measurement that was not a number."""
    if isinstance(data, dict) and isinstance(data.get("reports"), list):
        for report in data["reports"]:
            if isinstance(report, dict) and isinstance(report.get("metrics"), dict):
                report["metrics"] = {name: number for name, number in report["metrics"].items() if number is not None}
    return data


def _report(place: str, report: Report) -> Faults:
    yield from _task(place, report.task_id, report.attempt)
    yield from _text(f"{place}.stage", report.stage, longest=100, least=0)
    if report.timestamp_ns is not None:
        yield from _integer(f"{place}.timestamp_ns", report.timestamp_ns, 0, MOST_INTEGER)


def _tasks(place: str, tasks: tuple[Held, ...]) -> Faults:
    if len(tasks) > MOST_TASKS:
        yield f"{place} must have at most {MOST_TASKS} entries"
        return
    for index, held in enumerate(tasks):
        yield from _task(f"{place}[{index}]", held.task_id, held.attempt)


def _task(place: str, task_id: str, attempt: int) -> Faults:
    if not _TASK.fullmatch(task_id):
        yield f"{place}.task_id must be 1 to 200 of the characters a-z, A-Z, 0-9, '.', '_', '-'"
    yield from _integer(f"{place}.attempt", attempt, 0, 2**31 - 1)


def _agent(place: str, name: str) -> Faults:
    if not _AGENT.fullmatch(name):
        yield (
            f"{place} must be 1 to 100 of the characters a-z, A-Z, 0-9, '.', '_', '-' and start with a letter or digit"
        )


def _text(place: str, text: str, *, longest: int, least: int = 1) -> Faults:
    if not least <= len(text) <= longest:
        yield f"{place} must have {least} to {longest} characters"


def _integer(place: str, number: int, least: int, most: int) -> Faults:
    if not least <= number <= most:
        yield f"{place} must be an integer from {least} to {most}"
