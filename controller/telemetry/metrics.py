"""What happens in this process, counted for Prometheus as the observer of engine, store and web layer is told of it.

Labels are bounded: backends are the settings', routes are templates, codes and queries are those of this program, and
whatever else comes counts as `other`. No id is ever a label. Every metric stands in docs/observability/metrics.md.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from platform import python_version
from typing import Concatenate, Final, ParamSpec

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from controller.core.codes import StatusCode
from controller.core.machine import Move, Started, Transition
from controller.core.model import Job, Task
from controller.core.observer import Observer

log = structlog.get_logger(__name__)
P = ParamSpec("P")

OTHER: Final = "other"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_STATEMENTS: Final[Mapping[str, str]] = {"BEGIN;": "begin", "COMMIT;": "commit", "ROLLBACK;": "rollback"}

_LONG: Final = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 72 * 3600)
_DISPATCH: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300)
_HTTP: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_QUERY: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10)
_LAG: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_ATTEMPTS: Final = (1, 2, 3, 5, 10)


def _harmless(
    method: Callable[Concatenate["Metrics", P], None],
) -> Callable[Concatenate["Metrics", P], None]:
    """A measurement that fails is a bug of ours, and nothing that a request or a job could be failed for."""

    @wraps(method)
    def safe(self: "Metrics", /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception:
            log.exception("measurement_failed", measurement=method.__name__)

    return safe


class Metrics(Observer):
    """The registry of one process, and the counters that the observer's calls move.

    :param backends: those that exist; others are not counted by name.
    :param queries: text of a statement -> its name.
    :param version: what this deployment calls itself.
    """

    def __init__(self, *, backends: Sequence[str], queries: Mapping[str, str], version: str) -> None:
        self.registry = CollectorRegistry()
        self._backends = frozenset(backends)
        self._queries = {**_STATEMENTS, **queries}
        self._make_jobs()
        self._make_rest()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        info = Gauge(
            "rap_build_info", "Which program this is; always 1.", ["version", "python"], registry=self.registry
        )
        info.labels(version, python_version()).set(1)
        for backend in backends:
            self._begin(backend)

    def _make_jobs(self) -> None:
        registry = self.registry
        self._raps = Counter("rap_raps_created_total", "RAPs accepted.", ["backend"], registry=registry)
        self._jobs = Counter("rap_jobs_created_total", "Jobs of RAPs accepted.", ["backend"], registry=registry)
        self._transitions = Counter(
            "rap_transitions_total", "Transitions of jobs, by the code reached.", ["backend", "code"], registry=registry
        )
        self._attempts_started = Counter(
            "rap_attempts_started_total", "Attempts begun.", ["backend"], registry=registry
        )
        self._attempts = Histogram(
            "rap_job_attempts",
            "Attempts that finished jobs have taken.",
            ["backend", "state"],
            buckets=_ATTEMPTS,
            registry=registry,
        )
        self._wait = Histogram(
            "rap_job_wait_seconds",
            "From a job's creation to the start of its first attempt.",
            ["backend"],
            buckets=_LONG,
            registry=registry,
        )
        self._run = Histogram(
            "rap_job_run_seconds",
            "From the start of a job's last attempt to its end.",
            ["backend", "state"],
            buckets=_LONG,
            registry=registry,
        )
        self._dispatch = Histogram(
            "rap_task_dispatch_seconds",
            "From the making of a task to the first claim that takes it.",
            ["backend", "type"],
            buckets=_DISPATCH,
            registry=registry,
        )

    def _make_rest(self) -> None:
        registry = self.registry
        self._requests = Counter(
            "rap_http_requests_total", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._latency = Histogram(
            "rap_http_request_seconds",
            "Time to answer; of claims with what they wait for work.",
            ["method", "route"],
            buckets=_HTTP,
            registry=registry,
        )
        self._query = Histogram(
            "rap_database_query_seconds", "Time of a statement.", ["query"], buckets=_QUERY, registry=registry
        )
        self._query_errors = Counter(
            "rap_database_query_errors_total", "Statements that failed.", ["query"], registry=registry
        )
        self._pool_wait = Histogram(
            "rap_database_pool_wait_seconds", "Wait for a connection.", buckets=_QUERY, registry=registry
        )
        self._lag = Histogram(
            "rap_event_loop_lag_seconds",
            "How late the event loop is, looked at twice a second.",
            buckets=_LAG,
            registry=registry,
        )

    def _begin(self, backend: str) -> None:
        """Series that stand at 0 from the start: an alert sees the first event only as a change."""
        for counter in (self._raps, self._jobs, self._attempts_started):
            counter.labels(backend)
        for code in StatusCode:
            self._transitions.labels(backend, code.value)

    def _backend(self, slug: str) -> str:
        return slug if slug in self._backends else OTHER

    @_harmless
    def answered(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """See `Observer.answered`."""
        method = method if method in _METHODS else OTHER
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(method, route).observe(seconds)

    @_harmless
    def created(self, *, backend: str, jobs: int) -> None:
        """See `Observer.created`."""
        self._raps.labels(self._backend(backend)).inc()
        self._jobs.labels(self._backend(backend)).inc(jobs)
        self._transitions.labels(self._backend(backend), StatusCode.CREATED.value).inc(jobs)

    @_harmless
    def moved(self, moves: Sequence[Move]) -> None:
        """See `Observer.moved`."""
        for move in moves:
            for transition in _recorded(move):
                self._count(move.job, self._backend(move.job.spec.backend), transition)

    def _count(self, job: Job, backend: str, transition: Transition) -> None:
        after = transition.after
        self._transitions.labels(backend, after.code.value).inc()
        if isinstance(transition.event, Started):
            self._attempts_started.labels(backend).inc()
            if after.attempt == 1 and after.started_at is not None:
                self._wait.labels(backend).observe(max(0.0, (after.started_at - job.spec.created_at).total_seconds()))
        if transition.ended:
            self._attempts.labels(backend, after.state.value).observe(after.attempt)
            if after.started_at is not None and after.completed_at is not None:
                seconds = (after.completed_at - after.started_at).total_seconds()
                self._run.labels(backend, after.state.value).observe(max(0.0, seconds))

    @_harmless
    def dispatched(self, task: Task, *, seconds: float) -> None:
        """See `Observer.dispatched`."""
        self._dispatch.labels(self._backend(task.backend), task.type.value).observe(max(0.0, seconds))

    @_harmless
    def queried(self, sql: str, *, seconds: float, failed: bool) -> None:
        """See `Observer.queried`."""
        name = self._queries.get(sql, OTHER)
        self._query.labels(name).observe(seconds)
        if failed:
            self._query_errors.labels(name).inc()

    @_harmless
    def connected(self, *, seconds: float) -> None:
        """See `Observer.connected`."""
        self._pool_wait.observe(seconds)

    @_harmless
    def lagged(self, *, seconds: float) -> None:
        """See `Observer.lagged`."""
        self._lag.observe(seconds)


def _recorded(move: Move) -> Iterable[Transition]:
    return (transition for transition in move.transitions if transition.recorded)
