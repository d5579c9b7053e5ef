"""A moment (`metrics_moments`) as Prometheus metrics. Pure: it reads one value and makes families of it."""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from controller.core.codes import STATE_OF
from controller.engine.gauging import AgentsGauge, BackendGauge
from controller.telemetry.metrics import OTHER
from controller.telemetry.metrics_moments import Moment

EXECUTORS: Final = ("sandbox", "sandbox (unisolated)", "docker", "slurm", "fake", "unknown")
"""What agents of ours declare; `unknown` has not declared itself (yet)."""
UNFINISHED: Final = tuple(code for code, state in STATE_OF.items() if not state.is_terminal)

Rows = Iterable[tuple[tuple[str, ...], float]]
"""Values of labels, and the value."""


class MomentCollector(Collector):
    """Tells the moment that it was given last; without one, only which metrics there are."""

    def __init__(self) -> None:
        self.moment: Moment | None = None

    def describe(self) -> Iterable[Metric]:
        """The families without samples."""
        return [make([]) for make, _ in (*OF_PROCESS, *OF_BACKENDS, *OF_AGENTS)]

    def collect(self) -> Iterable[Metric]:
        """The families of the moment."""
        moment = self.moment
        if moment is None:
            return self.describe()
        families = [make(read(moment)) for make, read in OF_PROCESS]
        known = moment.gauges
        if known is not None:
            families += [make(_each(known.backends, partial(_then, known.at, read))) for make, read in OF_BACKENDS]
            families += [make(_each(known.backends, read)) for make, read in OF_AGENTS]
        return families


def _each(backends: Iterable[BackendGauge], read: Callable[[BackendGauge], Rows]) -> Rows:
    return [((backend.slug, *labels), value) for backend in backends for labels, value in read(backend)]


def _then(at: datetime, read: Callable[[BackendGauge, datetime], Rows], backend: BackendGauge) -> Rows:
    return read(backend, at)


Make = Callable[[Rows], Metric]


def _gauge(name: str, told: str, *labels: str) -> Make:
    def make(rows: Rows) -> Metric:
        family = GaugeMetricFamily(name, told, labels=labels)
        for values, value in rows:
            family.add_metric(values, value)
        return family

    return make


def _counter(name: str, told: str, *labels: str) -> Make:
    def make(rows: Rows) -> Metric:
        family = CounterMetricFamily(name, told, labels=labels)
        for values, value in rows:
            family.add_metric(values, value)
        return family

    return make


def _one(value: float) -> Rows:
    return [((), value)]


OF_PROCESS: Final[tuple[tuple[Make, Callable[[Moment], Rows]], ...]] = (
    (
        _gauge("rap_database_up", "Whether the database gave its numbers in time: 1 or 0."),
        lambda m: _one(m.gauges is not None),
    ),
    (
        _gauge("rap_database_pool_limit", "The most connections that the pool holds."),
        lambda m: _one(m.pool.limit),
    ),
    (
        _gauge("rap_database_pool_connections", "Connections of the pool.", "state"),
        lambda m: [(("idle",), m.pool.idle), (("used",), m.pool.size - m.pool.idle)],
    ),
    (
        _gauge("rap_database_pool_waiting", "Callers that wait for a connection."),
        lambda m: _one(m.pool.waiting),
    ),
    (
        _gauge("rap_long_polls", "Claims of agents that wait for work.", "backend"),
        lambda m: [((backend,), count) for backend, count in m.waiting.items()],
    ),
    (
        _gauge("rap_listener_connected", "Whether notifications of the database come: 1 or 0."),
        lambda m: _one(m.listening),
    ),
    (
        _counter("rap_notifications_received_total", "Notifications of the database, by channel.", "channel"),
        lambda m: [((channel,), count) for channel, count in m.heard.items()],
    ),
    (
        _counter("rap_wakeups_total", "Waiters that were woken, by channel.", "channel"),
        lambda m: [((channel,), count) for channel, count in m.woken.items()],
    ),
    (
        _counter("rap_telemetry_spans_exported_total", "Spans that a collector has taken."),
        lambda m: _one(m.exported),
    ),
    (
        _counter("rap_telemetry_spans_dropped_total", "Spans that were given up."),
        lambda m: _one(m.dropped),
    ),
)


def _queue(backend: BackendGauge, at: datetime) -> Rows:
    del at
    for code in UNFINISHED:
        found = backend.queue.get(code)
        yield (code.state.value, code.value), found.jobs if found else 0


def _queue_age(backend: BackendGauge, at: datetime) -> Rows:
    for code in UNFINISHED:
        found = backend.queue.get(code)
        if found is not None:
            yield (code.state.value, code.value), _age(found.since, at)


def _age(since: datetime | None, at: datetime) -> float:
    return 0.0 if since is None else max(0.0, (at - since).total_seconds())


OF_BACKENDS: Final[tuple[tuple[Make, Callable[[BackendGauge, datetime], Rows]], ...]] = (
    (_gauge("rap_queue_jobs", "Unfinished jobs.", "backend", "state", "code"), _queue),
    (
        _gauge("rap_queue_oldest_seconds", "For how long the longest has had its code.", "backend", "state", "code"),
        _queue_age,
    ),
    (
        _gauge("rap_tasks_unclaimed", "Run tasks that no agent has taken.", "backend"),
        lambda b, _: _one(b.unclaimed),
    ),
    (
        _gauge("rap_tasks_unclaimed_oldest_seconds", "Age of the oldest of them; 0 without any.", "backend"),
        lambda b, at: _one(_age(b.unclaimed_since, at)),
    ),
    (
        _gauge("rap_tasks_lease_expired", "Run tasks whose agent has let its lease end.", "backend"),
        lambda b, _: _one(b.expired),
    ),
    (
        _gauge("rap_backend_last_seen_seconds", "Since any agent of the backend was heard of.", "backend"),
        lambda b, at: _one(_age(b.seen_at, at)) if b.seen_at else [],
    ),
    (_gauge("rap_backend_paused", "Whether the backend is paused: 1 or 0.", "backend"), lambda b, _: _one(b.paused)),
    (
        _gauge("rap_backend_db_maintenance", "Whether its database is in maintenance: 1 or 0.", "backend"),
        lambda b, _: _one(b.db_maintenance),
    ),
)


def _by_executor(count: Callable[[AgentsGauge], int]) -> Callable[[BackendGauge], Rows]:
    """Agents by executor; those whose executor is none of ours together, as agents may declare any text."""

    def read(backend: BackendGauge) -> Iterator[tuple[tuple[str, ...], float]]:
        counts: dict[str, int] = {}
        for agents in backend.agents:
            executor = agents.executor if agents.executor in EXECUTORS else OTHER
            counts[executor] = counts.get(executor, 0) + count(agents)
        for executor, number in counts.items():
            yield (executor,), number

    return read


def _together(
    tell: Callable[[AgentsGauge], float | None], combine: Callable[[list[float]], float]
) -> Callable[[BackendGauge], Rows]:
    """One number of all agents of a backend; nothing if none of them tells it."""

    def read(backend: BackendGauge) -> Rows:
        told = [value for agents in backend.agents if (value := tell(agents)) is not None]
        return _one(combine(told)) if told else []

    return read


OF_AGENTS: Final[tuple[tuple[Make, Callable[[BackendGauge], Rows]], ...]] = (
    (
        _gauge("rap_agents", "Agents heard of within a lease.", "backend", "executor"),
        _by_executor(lambda agents: agents.alive),
    ),
    (
        _gauge("rap_agents_silent", "Agents not heard of within a lease, and still missed.", "backend", "executor"),
        _by_executor(lambda agents: agents.silent),
    ),
    (
        _gauge("rap_agents_telling", "Living agents that let their numbers out.", "backend", "executor"),
        _by_executor(lambda agents: agents.telling),
    ),
    (
        _gauge("rap_agent_slots", "Slots of the living agents, together.", "backend"),
        _together(lambda agents: agents.slots, sum),
    ),
    (
        _gauge("rap_agent_slots_used", "Slots in use.", "backend"),
        _together(lambda agents: agents.slots_used, sum),
    ),
    (
        _gauge("rap_agent_jobs_running", "Jobs whose process runs.", "backend"),
        _together(lambda agents: agents.jobs_running, sum),
    ),
    (
        _gauge("rap_agent_reports_queued", "Reports that the controller has not taken yet.", "backend"),
        _together(lambda agents: agents.reports_queued, sum),
    ),
    (
        _gauge("rap_agent_disk_free_ratio", "Free share of the fullest disk with volumes, 0 to 1.", "backend"),
        _together(lambda agents: agents.disk_free_ratio, min),
    ),
    (
        _gauge("rap_agent_event_loop_lag_seconds", "How late the slowest agent's event loop was.", "backend"),
        _together(lambda agents: agents.loop_lag_seconds, max),
    ),
)
