"""What single jobs may use: CPUs, memory, time.

Three voices decide, the nearest first: the author of the project, where the operator lets authors speak
(`resources` of an action, up to the backend's ceilings); the operator's rule for such jobs (`core.weights`); the
backend's limits for every job. It is decided when a job is planned and never changed, as its weight is; what nobody
spoke of is the backend's limit of the moment at which an attempt is made.
"""

from collections.abc import Callable
from typing import Any, Final

import attrs
from attrs import frozen

from common import quantities
from controller.core.errors import Rejected
from controller.core.shapes import Fault, check_keys, check_mapping, describe

KEY: Final = "resources"
"""The key of an action that asks for them."""
LEAST_CPUS: Final = 0.01
LEAST_MEMORY: Final = 16 * 1024**2
"""Bytes; with less, no interpreter starts."""
LEAST_SECONDS: Final = 1.0
_MOST_CPUS: Final = 10_000.0


@frozen(kw_only=True)
class Resources:
    """What is said of one job; None where nothing is."""

    cpus: float | None = None
    memory: str | None = None
    """Such as `8G`, as Docker reads it; `common.quantities.written_memory` wrote it."""
    seconds: float | None = None
    """Wall-clock time of an attempt."""

    def over(self, other: "Resources") -> "Resources":
        """These, and where they say nothing, `other`."""
        said = {name: value for name, value in attrs.asdict(self).items() if value is not None}
        return attrs.evolve(other, **said)


NOTHING: Final = Resources()

Grant = Callable[[str, str, str], Resources]
"""(workspace, action, run command) -> what an operator's rule says of such jobs."""


def grant_nothing(workspace: str, action: str, run_command: str) -> Resources:
    """The `Grant` of a backend without rules."""
    return NOTHING


@frozen(kw_only=True)
class JobLimits:
    """What one job may use, in full."""

    cpu_count: float
    memory_limit: str
    """As written in a setting: `4G`."""
    time_limit: float | None = None
    """Seconds; None for no limit."""

    def adapted(self, said: Resources) -> "JobLimits":
        """These, but for what is said of a job."""
        return JobLimits(
            cpu_count=self.cpu_count if said.cpus is None else said.cpus,
            memory_limit=self.memory_limit if said.memory is None else said.memory,
            time_limit=self.time_limit if said.seconds is None else said.seconds,
        )


def parse(value: object, name: str = f"`{KEY}`", *, where: str | None = None) -> Resources:
    """What a mapping `{cpus, memory, time}` says; each may be left out.

    :param name: what to call the mapping.
    :param where: the same for a fault that stands by itself.
    :raises Fault: naming the field.
    """
    fields = check_mapping(value, name)
    check_keys(fields, where or name, optional=["cpus", "memory", "time"])
    found: dict[str, Any] = {}
    if "cpus" in fields:
        found["cpus"] = _cpus(fields["cpus"], name)
    if "memory" in fields:
        found["memory"] = _memory(fields["memory"], name)
    if "time" in fields:
        found["seconds"] = _seconds(fields["time"], name)
    return Resources(**found)


def check(action: str, asked: Resources, granted: Resources, *, ordinary: JobLimits, most: JobLimits) -> None:
    """Whether an author may ask for that much.

    Nobody is refused what the job would get without asking.

    :param asked: by the project file.
    :param granted: by an operator's rule.
    :param ordinary: what the backend gives to every job.
    :param most: the backend's ceilings; a time of None is no ceiling.
    :raises Rejected: naming the action and the field.
    """
    given = ordinary.adapted(granted)
    if asked.cpus is not None and asked.cpus > (limit := max(most.cpu_count, given.cpu_count)):
        raise _too_much(action, "cpus", f"{asked.cpus:g}", f"{limit:g}")
    if asked.memory is not None:
        size = max(quantities.memory(most.memory_limit), quantities.memory(given.memory_limit))
        if quantities.memory(asked.memory) > size:
            raise _too_much(action, "memory", asked.memory, quantities.written_memory(size))
    if asked.seconds is not None and most.time_limit is not None and given.time_limit is not None:
        time = max(most.time_limit, given.time_limit)
        if asked.seconds > time:
            words = quantities.written_seconds
            raise _too_much(action, "time", words(asked.seconds), words(time))


def _too_much(action: str, name: str, asked: str, limit: str) -> Rejected:
    return Rejected(
        f"Action {action} asks for {asked} (`{KEY}.{name}`), and the backend allows {limit} at most",
        action=action,
        field=f"{KEY}.{name}",
    )


def _cpus(value: object, name: str) -> float:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
    if not LEAST_CPUS <= number <= _MOST_CPUS:
        raise Fault(f"{name} `cpus` must be a number of at least {LEAST_CPUS:g}, not {describe(value)}")
    return number


def _memory(value: object, name: str) -> str:
    """A unit is asked for: whoever writes `memory: 8` hardly means bytes."""
    try:
        size = quantities.memory(value) if isinstance(value, str) and value.strip()[-1:].isalpha() else 0
    except ValueError:
        size = 0
    if size < LEAST_MEMORY:
        least = quantities.written_memory(LEAST_MEMORY)
        raise Fault(f"{name} `memory` must be a size such as 8G or 512M, at least {least}, not {describe(value)}")
    return quantities.written_memory(size)


def _seconds(value: object, name: str) -> float:
    try:
        time = quantities.seconds(value) if isinstance(value, str) else 0.0
    except ValueError:
        time = 0.0
    if time < LEAST_SECONDS:
        raise Fault(f"{name} `time` must be a time such as 90s, 30m, 2h or 1h30m, at least 1s, not {describe(value)}")
    return time
