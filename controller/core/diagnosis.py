"""What is wrong, told from facts: a table of small pure checks, each with what to do about it.

The facts come from the engine (`engine/diagnosing.py`), which alone sees the database; `rap doctor` adds what can only
be seen from where it is run.
"""

import enum
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from attrs import frozen


class Severity(enum.StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    """Somebody should look at it; work goes on."""
    PROBLEM = "problem"
    """Work does not go on, or may be lost."""


@frozen(kw_only=True)
class Finding:
    """One check's outcome."""

    name: str
    level: Severity
    message: str
    """A sentence for the operator; nothing secret."""
    advice: str = ""
    """What to type or do; empty if nothing is to be done."""
    backend: str | None = None
    """The backend that it is about; None for what all share."""


@frozen(kw_only=True)
class DatabaseFacts:
    """The database as its server tells of itself."""

    now: datetime
    version: int
    """As `server_version_num`: 150004 is 15.4."""
    fsync: bool
    synchronous_commit: bool
    full_page_writes: bool


@frozen(kw_only=True)
class AgentFacts:
    """One agent."""

    id: str
    last_seen_at: datetime
    slots: int
    holding: int
    """Run tasks that are leased to it."""


@frozen(kw_only=True)
class Oldest:
    """How many of a kind there are, and since when the oldest has been waiting."""

    count: int
    since: datetime | None


@frozen(kw_only=True)
class BackendFacts:
    """One backend."""

    slug: str
    last_seen_at: datetime | None
    agents: Sequence[AgentFacts]
    active_jobs: int
    unclaimed: Oldest
    """Run tasks that no agent has taken, by their creation."""
    expired: Oldest
    """Run tasks whose lease is over, by its end."""
    cancels: Oldest
    """Stops that no agent has confirmed."""
    created: Oldest
    """Jobs that no scheduling pass has looked at yet."""
    without_task: Sequence[str]
    """Running jobs for which there is no active task."""
    too_heavy: Sequence[str]
    """Pending jobs that weigh more than their whole pool."""
    paused_since: datetime | None = None


MIN_VERSION: Final = 150_000
SKEW: Final = timedelta(seconds=2)
BAD_SKEW: Final = timedelta(seconds=10)
"""Clocks that differ by more make times in answers misleading, and leases end at the wrong moment."""
UNCLAIMED: Final = timedelta(seconds=60)
UNSCHEDULED: Final = timedelta(seconds=60)
UNCONFIRMED: Final = timedelta(minutes=10)
PAUSED: Final = timedelta(days=1)
RETIRED: Final = timedelta(days=7)
"""An agent that was silent for as long and holds nothing is not missed."""
_SHOWN: Final = 5
"""Ids that a sentence names."""


def check_database(facts: DatabaseFacts, now: datetime) -> list[Finding]:
    """Version, durability, clock."""
    return [_version(facts), _durability(facts), skew("database_clock", "the database", facts.now, "here", now)]


def skew(name: str, there: str, theirs: datetime, here: str, ours: datetime) -> Finding:
    """Whether two clocks agree; `there` and `here` name their places."""
    difference = abs(theirs - ours)
    level = Severity.PROBLEM if difference > BAD_SKEW else Severity.WARNING if difference > SKEW else Severity.OK
    if level is Severity.OK:
        return Finding(name=name, level=level, message=f"The clocks of {there} and {here} agree.")
    ahead = "ahead of" if theirs > ours else "behind"
    return Finding(
        name=name,
        level=level,
        message=f"The clock of {there} is {difference.total_seconds():.1f} s {ahead} the one {here}.",
        advice="let both machines keep time by NTP (timedatectl set-ntp true)",
    )


def check_backend(facts: BackendFacts, now: datetime, lease: timedelta) -> list[Finding]:
    """Every check of a backend, in the order of the table; one that finds nothing says ok once."""
    found = []
    for name, in_order, check in CHECKS:
        faults = list(check(facts, now, lease))
        found += [_finding(name, facts, *fault) for fault in faults]
        if not faults:
            found.append(Finding(name=name, level=Severity.OK, message=in_order, backend=facts.slug))
    return found


Fault = tuple[Severity, str, str]
"""Level, sentence, advice."""
Check = Callable[[BackendFacts, datetime, timedelta], Iterator[Fault]]


def _finding(name: str, facts: BackendFacts, level: Severity, message: str, advice: str) -> Finding:
    return Finding(name=name, level=level, message=message, advice=advice, backend=facts.slug)


def _version(facts: DatabaseFacts) -> Finding:
    told = f"{facts.version // 10_000}.{facts.version % 10_000}"
    if facts.version >= MIN_VERSION:
        return Finding(name="database_version", level=Severity.OK, message=f"PostgreSQL is {told}.")
    least = MIN_VERSION // 10_000
    message = f"PostgreSQL is {told}, and {least} is the oldest that works."
    return Finding(
        name="database_version", level=Severity.PROBLEM, message=message, advice="upgrade PostgreSQL (pg_upgrade)"
    )


def _durability(facts: DatabaseFacts) -> Finding:
    off = [name for name in ("fsync", "full_page_writes", "synchronous_commit") if not getattr(facts, name)]
    if not off:
        message = "What the database confirms is on its disk."
        return Finding(name="database_durability", level=Severity.OK, message=message)
    return Finding(
        name="database_durability",
        level=Severity.PROBLEM,
        message=f"{', '.join(off)} is off: accepted work may be lost in a crash of the database.",
        advice=f"psql -c 'ALTER SYSTEM SET {off[0]} = on' -c 'SELECT pg_reload_conf()'",
    )


def _alive(facts: BackendFacts, now: datetime, lease: timedelta) -> list[AgentFacts]:
    return [agent for agent in facts.agents if now - agent.last_seen_at <= lease]


def _agents(facts: BackendFacts, now: datetime, lease: timedelta) -> Iterator[Fault]:
    start = f"start an agent on a machine of {facts.slug}: rap agent"
    if facts.last_seen_at is None and not facts.agents:
        level = Severity.PROBLEM if facts.active_jobs else Severity.WARNING
        yield level, f"No agent of {facts.slug} was ever heard of.", start
        return
    alive = _alive(facts, now, lease)
    # Agents of the Task API have no name: only the backend's heartbeat tells of them.
    heard = facts.last_seen_at is not None and now - facts.last_seen_at <= lease
    if not alive and not heard:
        level = Severity.PROBLEM if facts.active_jobs else Severity.WARNING
        times = [*(agent.last_seen_at for agent in facts.agents), facts.last_seen_at]
        seen = max(at for at in times if at is not None)
        message = f"No agent of {facts.slug} was heard of for {_duration(now - seen)}; {facts.active_jobs} jobs wait."
        yield level, message, start
        return
    for agent in facts.agents:
        silence = now - agent.last_seen_at
        if silence > lease and (silence < RETIRED or agent.holding):
            holds = f" and holds {agent.holding} jobs" if agent.holding else ""
            message = f"Agent {agent.id} has been silent for {_duration(silence)}{holds}."
            yield Severity.WARNING, message, "start it again on its machine: rap agent"


def _unclaimed(facts: BackendFacts, now: datetime, lease: timedelta) -> Iterator[Fault]:
    free = [agent.id for agent in _alive(facts, now, lease) if agent.slots > agent.holding]
    waited = _waited(facts.unclaimed, now)
    if waited > UNCLAIMED and free:
        message = (
            f"{facts.unclaimed.count} tasks wait to be taken, the oldest for {_duration(waited)}, while agents have "
            f"free slots ({_named(free)})."
        )
        yield Severity.PROBLEM, message, f"look at the log of agent {free[0]}; then restart it: rap agent"


def _leases(facts: BackendFacts, now: datetime, lease: timedelta) -> Iterator[Fault]:
    over = _waited(facts.expired, now)
    if over > 5 * lease:
        message = f"{facts.expired.count} jobs run on agents whose lease ended, the first {_duration(over)} ago."
        advice = f"start the agent again, or another one of {facts.slug}, which takes the jobs over: rap agent"
        yield Severity.PROBLEM, message, advice


def _running(facts: BackendFacts, now: datetime, lease: timedelta) -> Iterator[Fault]:
    del now, lease
    if facts.without_task:
        message = f"Running jobs have no task, so no agent works on them: {_named(facts.without_task)}."
        yield Severity.PROBLEM, message, f"look at how it came to that: rap history {facts.without_task[0]}"


def _heavy(facts: BackendFacts, now: datetime, lease: timedelta) -> Iterator[Fault]:
    del now, lease
    if facts.too_heavy:
        message = f"Pending jobs weigh more than their whole pool and cannot start: {_named(facts.too_heavy)}."
        yield Severity.PROBLEM, message, f"raise the limit (rap limits {facts.slug} --workers N), or cancel the jobs"


def _cancels(facts: BackendFacts, now: datetime, lease: timedelta) -> Iterator[Fault]:
    del lease
    waited = _waited(facts.cancels, now)
    if waited > UNCONFIRMED:
        message = f"{facts.cancels.count} stops are not confirmed by an agent, the oldest for {_duration(waited)}."
        yield (
            Severity.WARNING,
            message,
            f"see who is silent (rap agents), or what still runs: rap jobs --backend {facts.slug}",
        )


def _scheduler(facts: BackendFacts, now: datetime, lease: timedelta) -> Iterator[Fault]:
    del lease
    waited = _waited(facts.created, now)
    if waited > UNSCHEDULED:
        count = facts.created.count
        message = f"{count} jobs were looked at by no scheduling pass, the oldest for {_duration(waited)}."
        yield Severity.PROBLEM, message, "look for schedule_failed in the log of the controllers, and restart them"


def _paused(facts: BackendFacts, now: datetime, lease: timedelta) -> Iterator[Fault]:
    del lease
    if facts.paused_since is not None and now - facts.paused_since > PAUSED:
        message = f"{facts.slug} has been paused for {_duration(now - facts.paused_since)}."
        yield Severity.WARNING, message, f"rap unpause {facts.slug}"


CHECKS: Final[Sequence[tuple[str, str, Check]]] = (
    ("agents", "Its agents are alive.", _agents),
    ("scheduler", "New jobs are looked at.", _scheduler),
    ("tasks_taken", "Tasks are taken.", _unclaimed),
    ("leases", "Running jobs have an agent.", _leases),
    ("running_jobs", "Running jobs have a task.", _running),
    ("weights", "Every pending job fits into its pool.", _heavy),
    ("stops", "Stops are confirmed.", _cancels),
    ("pause", "It is not forgotten in a pause.", _paused),
)
"""Name, the sentence when nothing is wrong, the check."""


def _waited(oldest: Oldest, now: datetime) -> timedelta:
    return now - oldest.since if oldest.since is not None else timedelta(0)


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more


def _duration(span: timedelta) -> str:
    seconds = int(span.total_seconds())
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} seconds"
