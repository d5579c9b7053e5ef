"""The observer's counters: bounded labels, and never a reason for anything else to fail."""

from collections.abc import Mapping
from datetime import timedelta

import attrs
import pytest
import structlog

from controller.core.codes import StatusCode
from controller.core.machine import Cancelled, Event, Failed, Faulted, Move, Reset, Started, Succeeded, step
from controller.core.model import Job, TaskType
from controller.telemetry.metrics import Metrics
from tests.dialects.values import NOW, make_job, make_task


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(backends=["test"], queries={"SELECT 1": "tasks.claim"}, version="7")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def told(metrics: Metrics, name: str, label: str) -> set[str]:
    """The values of one label."""
    families: Mapping[str, set[str]] = {
        sample.name: set()  # every name is there, even if it has no sample
        for family in metrics.registry.collect()
        for sample in family.samples
    }
    for family in metrics.registry.collect():
        for sample in family.samples:
            if label in sample.labels:
                families[sample.name].add(sample.labels[label])
    return families.get(name, set())


def lives(job: Job, *events: tuple[float, Event]) -> Move:
    """What becomes of a job by these events, each so many seconds after its creation."""
    transitions = []
    progress = job.progress
    for seconds, event in events:
        transitions.append(step(progress, event, job.spec.created_at + timedelta(seconds=seconds)))
        progress = transitions[-1].after
    return Move(job=job, transitions=transitions, metrics={})


def new_job(backend: str = "test") -> Job:
    job = make_job("analyse", code=StatusCode.CREATED)
    spec = attrs.evolve(job.spec, backend=backend, created_at=NOW)
    progress = attrs.evolve(job.progress, attempt=0, started_at=None, updated_at=NOW, code_changed_at=NOW)
    return attrs.evolve(job, spec=spec, progress=progress)


def test_a_job_with_two_attempts(metrics: Metrics) -> None:
    fault = Faulted(rest=timedelta(seconds=3), cause="the disk")
    metrics.moved([lives(new_job(), (40, Started()), (50, fault), (60, Started()), (360, Succeeded()))])
    assert value(metrics, "rap_job_wait_seconds_sum", backend="test") == 40
    assert value(metrics, "rap_job_wait_seconds_count", backend="test") == 1, "the first attempt alone is waited for"
    assert value(metrics, "rap_job_run_seconds_sum", backend="test", state="succeeded") == 300
    assert value(metrics, "rap_job_attempts_sum", backend="test", state="succeeded") == 2
    assert value(metrics, "rap_attempts_started_total", backend="test") == 2
    codes = {"initiated": 2, "waiting_on_new_task": 1, "succeeded": 1, "created": 0}
    for code, count in codes.items():
        assert value(metrics, "rap_transitions_total", backend="test", code=code) == count


def test_a_job_that_never_ran_has_no_run_time(metrics: Metrics) -> None:
    metrics.moved([lives(new_job(), (5, Cancelled()))])
    assert value(metrics, "rap_job_attempts_sum", backend="test", state="failed") == 0
    assert value(metrics, "rap_job_run_seconds_count", backend="test", state="failed") is None


def test_a_reset_starts_the_run_time_anew(metrics: Metrics) -> None:
    reset = Reset(code=StatusCode.WAITING_ON_REBOOT)
    events = [(10, Started()), (1000, reset), (2000, Started()), (2004, Failed(code=StatusCode.NONZERO_EXIT))]
    metrics.moved([lives(new_job(), *events)])
    assert value(metrics, "rap_job_run_seconds_sum", backend="test", state="failed") == 4


def test_clocks_that_disagree_give_no_negative_times(metrics: Metrics) -> None:
    metrics.moved([lives(new_job(), (-500, Started()))])
    metrics.dispatched(make_task(), seconds=-3)
    assert value(metrics, "rap_job_wait_seconds_sum", backend="test") == 0
    assert value(metrics, "rap_task_dispatch_seconds_sum", backend="test", type=TaskType.RUNJOB.value) == 0


def test_labels_are_bounded_whatever_comes(metrics: Metrics) -> None:
    for number in range(100):
        metrics.answered(method=f"METHOD{number}", route="unmatched", status=404, seconds=0)
        metrics.queried(f"SELECT {number + 2}", seconds=0, failed=number % 2 == 0)
        metrics.created(backend=f"backend-{number}", jobs=1)
        metrics.moved([lives(new_job(f"backend-{number}"), (1, Started()))])
    metrics.queried("SELECT 1", seconds=0, failed=False)
    assert told(metrics, "rap_http_requests_total", "method") == {"other"}
    assert told(metrics, "rap_database_query_seconds_count", "query") == {"other", "tasks.claim"}
    assert told(metrics, "rap_jobs_created_total", "backend") == {"test", "other"}
    assert told(metrics, "rap_transitions_total", "backend") == {"test", "other"}
    assert value(metrics, "rap_database_query_errors_total", query="other") == 50


def test_two_registries_know_nothing_of_each_other(metrics: Metrics) -> None:
    another = Metrics(backends=["test"], queries={}, version="7")
    metrics.created(backend="test", jobs=3)
    assert value(another, "rap_jobs_created_total", backend="test") == 0


def test_a_measurement_that_fails_is_told_to_the_log_only(metrics: Metrics) -> None:
    with structlog.testing.capture_logs() as logs:
        metrics.dispatched(None, seconds=1)  # type: ignore[arg-type]  # what a bug would do
    assert [(line["event"], line["measurement"]) for line in logs] == [("measurement_failed", "dispatched")]
