"""Spans from history: names, times, parents and attributes of the reference, and that they tile every possible life."""

from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core import machine
from controller.core.codes import JobState, StatusCode
from controller.core.model import Job, JobId, Progress, ReusableAction
from controller.core.spans import Attempt, Change, JobFacts, RapFacts, Span, SpanKind
from controller.core.traces import LONGEST_TEXT, MOST_SCOPES, job_spans, rap_span
from tests.factories import NOW, later, spec

TRACE = "0af7651916cd43dd8448eb211c80319c"
PORTAL = f"00-{TRACE}-00000000000000aa-01"
ROOT = f"00-{TRACE}-00000000000000bb-01"
RAP = RapFacts(
    id="r" * 16,
    backend="test",
    workspace="study",
    repo_url="https://github.com/opensafely/study",
    branch="main",
    commit="c" * 40,
    requested_actions=("run_all",),
    created_by="researcher",
    project="project",
    orgs=("one", "two"),
    traceparent=ROOT,
    parent_traceparent=PORTAL,
    created_at=NOW,
)
SECOND = 1_000_000_000


def ns(seconds: float) -> int:
    """Seconds after NOW on the spans' scale."""
    return int(NOW.timestamp() * 1_000_000) * 1000 + round(seconds * SECOND)


def lived(*events: tuple[float, machine.Event], attempts: Sequence[Attempt] = (), **changes: Any) -> JobFacts:
    """A job to which these events happened, so many seconds after NOW, as the engine would have recorded it."""
    progress = machine.created(NOW)
    made = [_change(1, progress, progress.message)]
    for seconds, event in events:
        transition = machine.step(progress, event, later(seconds))
        progress = transition.after
        if transition.recorded:
            made.append(_change(len(made) + 1, progress, transition.told))
    numbered = {attempt.attempt: attempt for attempt in attempts}
    return JobFacts(job=Job(spec=spec(**changes), progress=progress), changes=made, attempts=numbered)


def _change(seq: int, progress: Progress, message: str) -> Change:
    return Change(
        seq=seq,
        at=progress.updated_at,
        attempt=progress.attempt,
        state=progress.state,
        code=progress.code,
        message=message,
    )


AGENT = Attempt(attempt=1, agent="agent-1", results={"exit_code": "0", "docker_image_id": "sha256:1"})
ORDINARY = lived(
    (1, machine.Waiting(code=StatusCode.WAITING_ON_WORKERS)),
    (3, machine.Started()),
    (4, machine.Progressed(code=StatusCode.PREPARING, at=later(3.5))),
    (5, machine.Progressed(code=StatusCode.PREPARED)),
    (6, machine.Progressed(code=StatusCode.EXECUTING)),
    (16, machine.Progressed(code=StatusCode.FINALIZING)),
    (18, machine.Succeeded()),
    attempts=[AGENT],
)


def told(spans: Sequence[Span]) -> list[tuple[str, int, int | None]]:
    return [(span.name, span.start_ns - ns(0), None if span.end_ns is None else span.end_ns - ns(0)) for span in spans]


def of(spans: Sequence[Span], *kinds: SpanKind) -> list[Span]:
    return [span for span in spans if span.kind in kinds]


def test_an_ordinary_job() -> None:
    spans = job_spans(RAP, ORDINARY)
    assert told(spans) == [
        ("JOB", -1000, 18 * SECOND),
        ("CREATED", 0, 1 * SECOND),
        ("WAITING_ON_WORKERS", 1 * SECOND, 3 * SECOND),
        ("INITIATED", 3 * SECOND, int(3.5 * SECOND)),
        ("PREPARING", int(3.5 * SECOND), 5 * SECOND),
        ("PREPARED", 5 * SECOND, 6 * SECOND),
        ("EXECUTING", 6 * SECOND, 16 * SECOND),
        ("FINALIZING", 16 * SECOND, 18 * SECOND),
        ("SUCCEEDED", 18 * SECOND, 19 * SECOND),
        ("prepare", int(3.5 * SECOND), 6 * SECOND),
        ("execute", 6 * SECOND, 16 * SECOND),
        ("finalize", 16 * SECOND, 18 * SECOND),
    ]
    root, job = rap_span(RAP, [ORDINARY]), spans[0]
    assert (job.span_id, job.trace_id) == ("b7ad6b7169203331", TRACE)
    assert {span.parent_id for span in spans[1:]} == {job.span_id}
    assert (root.span_id, root.parent_id, job.parent_id) == ("00000000000000bb", "00000000000000aa", root.span_id)
    assert (root.start_ns, root.end_ns) == (ns(0) - 2000, ns(18))
    assert {name: root.attributes[name] for name in ("rap.orgs", "rap.succeeded", "rap.jobs")} == {
        "rap.orgs": "one,two",
        "rap.succeeded": True,
        "rap.jobs": 1,
    }


def test_a_code_tells_the_new_state_and_the_old_message() -> None:
    """Reference section 6."""
    spans = {span.name: span.attributes for span in job_spans(RAP, ORDINARY)}
    waiting = spans["WAITING_ON_WORKERS"]
    assert waiting["job.state"] == "RUNNING"
    assert waiting["job.message"] == "Waiting on available workers"
    assert waiting["job.started_at"] == "None"
    assert waiting["job.status_code_updated_at"] == ns(1)
    assert waiting["job.agent"] == "None"
    assert (spans["EXECUTING"]["job.started_at"], spans["EXECUTING"]["job.agent"]) == (ns(3), "agent-1")
    assert "job.exit_code" not in spans["EXECUTING"]
    for name in ("SUCCEEDED", "JOB"):
        assert spans[name]["job.state"] == "SUCCEEDED"
        assert spans[name]["job.message"] == "Completed successfully"
        assert spans[name]["job.exit_code"] == "0"
        assert spans[name]["job.image_id"] == "sha256:1"
        assert spans[name]["job.base_created"] == "None"
    assert spans["SUCCEEDED"]["job.succeeded"] is True
    step = spans["execute"]
    assert (step["agent"], step["task"], step["job_request"], step["orgs"]) == (
        "agent-1",
        "aaaaaaaaaaaaaaaa-001",
        "r" * 16,
        "one,two",
    )


def test_what_every_span_of_a_job_says() -> None:
    facts = lived(
        requires_db=True,
        reusable_action=ReusableAction(repo_url="https://github.com/opensafely-actions/x", commit="d" * 40),
        analysis_scope={"component_access": ["a", "b"], "odd": {"deep": 1}, **{f"k{n}": ["v"] for n in range(100)}},
        run_command="x" * 10_000,
        needs=("extract", "count"),
    )
    for span in job_spans(RAP, facts):
        said = span.attributes
        assert said["job.request"] == said["rap.id"] == "r" * 16
        assert said["job.backend"] == said["rap.backend"] == "test"
        assert said["job.user"] == "researcher"
        assert said["job.orgs"] == "one,two"
        assert said["job.requires_db"] is True
        assert said["job.created_at"] == ns(0)
        assert said["job.reusable_action"] == f"https://github.com/opensafely-actions/x:{'d' * 40}"
        assert said["job.analysis_scope.component_access"] == "a,b"
        assert said["job.analysis_scope.odd"] == "{'deep': 1}"
        assert said["job.needs"] == "extract,count"
        assert sum(name.startswith("job.analysis_scope.") for name in said) == MOST_SCOPES
        assert len(str(said["job.run_command"])) < LONGEST_TEXT + 10


@pytest.mark.parametrize("value", [None, {"a": [1]}, [1, 2], 2**70, b"x", "x" * 100_000, 1.5, True])
def test_an_attribute_is_primitive_whatever_an_agent_says(value: Any) -> None:
    attempt = Attempt(attempt=1, agent="a", results={"exit_code": value})
    spans = job_spans(RAP, attrs.evolve(ORDINARY, attempts={1: attempt}))
    said = spans[0].attributes["job.exit_code"]
    assert isinstance(said, str | int | float | bool)
    assert said == value if isinstance(value, float) else str(said)[:50] == str(value)[:50]


@pytest.mark.parametrize("code", sorted(code for code in StatusCode if code.state is JobState.FAILED))
def test_only_the_platforms_fault_is_an_error(code: StatusCode) -> None:
    """User failures are none (reference section 6)."""
    at_end = machine.step(ORDINARY.job.progress, machine.Cancelled(), later(30)).after
    progress = attrs.evolve(at_end, state=JobState.FAILED, code=code)
    end = attrs.evolve(ORDINARY.changes[-1], state=JobState.FAILED, code=code)
    facts = attrs.evolve(
        ORDINARY, job=attrs.evolve(ORDINARY.job, progress=progress), changes=(*ORDINARY.changes[:-1], end)
    )
    spans = (rap_span(RAP, [facts]), *job_spans(RAP, facts))
    names = {span.name for span in spans if span.is_error}
    assert names == ({"RAP", "JOB", "INTERNAL_ERROR"} if code is StatusCode.INTERNAL_ERROR else set())


def test_each_attempt_has_steps_of_its_own_agent() -> None:
    facts = lived(
        (1, machine.Started()),
        (2, machine.Progressed(code=StatusCode.EXECUTING)),
        (5, machine.Faulted(rest=timedelta(seconds=1), cause="disk full")),
        (7, machine.Started()),
        (8, machine.Progressed(code=StatusCode.EXECUTING)),
        (9, machine.Failed(code=StatusCode.NONZERO_EXIT)),
        attempts=[Attempt(attempt=1, agent="one", results=None), Attempt(attempt=2, agent="two", results={})],
    )
    spans = job_spans(RAP, facts)
    steps = of(spans, SpanKind.STEP)
    assert [(each.attributes["agent"], each.attributes["attempt"]) for each in steps] == [("one", 1), ("two", 2)]
    assert told(steps) == [("execute", 2 * SECOND, 5 * SECOND), ("execute", 8 * SECOND, 9 * SECOND)]
    (again,) = [span for span in spans if span.name == "WAITING_ON_NEW_TASK"]
    assert str(again.attributes["job.message"]).endswith("disk full")
    assert again.attributes["job.started_at"] == "None"
    assert len({span.span_id for span in spans}) == len(spans)


def test_a_cancel_after_the_end_does_not_move_the_end() -> None:
    facts = lived((1, machine.Started()), (2, machine.Succeeded()), (90, machine.Cancelled()))
    assert facts.job.progress.completed_at == later(90)
    assert told(job_spans(RAP, facts))[0] == ("JOB", -1000, 2 * SECOND)
    assert rap_span(RAP, [facts]).end_ns == ns(2)


def test_an_operators_retry_of_a_waiting_job_is_no_gap() -> None:
    facts = lived((1, machine.Waiting(code=StatusCode.WAITING_ON_WORKERS)), (5, machine.Retried()))
    assert told(job_spans(RAP, facts))[1:] == [("CREATED", 0, SECOND), ("WAITING_ON_WORKERS", SECOND, None)]


def test_a_job_whose_history_was_pruned_still_has_its_span() -> None:
    facts = attrs.evolve(ORDINARY, changes=(), attempts={})
    assert told(job_spans(RAP, facts)) == [("JOB", -1000, 18 * SECOND)]
    assert rap_span(RAP, [facts]).end_ns == ns(18)


def test_a_rap_is_over_with_the_last_of_its_jobs() -> None:
    waiting = lived(id=JobId("b" * 16))
    root = rap_span(RAP, [ORDINARY, waiting])
    assert (root.end_ns, root.attributes["rap.succeeded"], root.attributes["rap.jobs_succeeded"]) == (None, False, 1)


def test_a_rap_without_a_portals_span_is_a_root_and_links_name_what_was_awaited() -> None:
    assert rap_span(attrs.evolve(RAP, parent_traceparent=None), [ORDINARY]).parent_id is None
    foreign = attrs.evolve(RAP, parent_traceparent=f"00-{'1' * 32}-00000000000000aa-01")
    assert rap_span(foreign, [ORDINARY]).parent_id is None
    (link,) = job_spans(RAP, attrs.evolve(ORDINARY, awaited=(PORTAL,)))[0].links
    assert (link.trace_id, link.span_id) == (TRACE, "00000000000000aa")


EVENTS = st.one_of(
    st.sampled_from([StatusCode.WAITING_ON_WORKERS, StatusCode.WAITING_ON_DEPENDENCIES, StatusCode.WAITING_PAUSED]).map(
        lambda code: machine.Waiting(code=code)
    ),
    st.builds(
        machine.Progressed,
        code=st.sampled_from([c for c in StatusCode if c in machine.STAGES]),
        at=st.none() | st.integers(-100, 100).map(later),
    ),
    st.sampled_from(
        [
            machine.Started(),
            machine.Started(),
            machine.Succeeded(),
            machine.Failed(code=StatusCode.INTERNAL_ERROR),
            machine.Reset(code=StatusCode.WAITING_ON_REBOOT),
            machine.Faulted(rest=timedelta(seconds=5), cause="why"),
            machine.Cancelled(),
            machine.Retried(),
        ]
    ),
)


@given(st.lists(st.tuples(st.integers(-10, 100), EVENTS), max_size=25))
def test_spans_tile_every_life(walk: list[tuple[int, machine.Event]]) -> None:
    """Whatever happens, and whatever clocks say: no gap, no overlap, one parent, ids of their own; always the same."""
    legal: list[tuple[float, machine.Event]] = []
    progress = machine.created(NOW)
    for seconds, event in walk:
        if (progress.state, type(event)) in machine.TRANSITIONS:
            progress = machine.step(progress, event, later(seconds)).after
            legal.append((seconds, event))
    facts = lived(*legal)
    spans = job_spans(RAP, facts)
    job, *children = spans
    codes = of(children, SpanKind.STATE, SpanKind.FINAL)
    assert codes[0].start_ns == ns(0) == job.start_ns + 1000
    for one, next_one in pairwise(codes):
        assert one.end_ns == next_one.start_ns
        assert one.end_ns >= one.start_ns
        assert one.kind is SpanKind.STATE
    over = facts.job.progress.state.is_terminal
    assert (codes[-1].kind is SpanKind.FINAL) == over == (job.end_ns is not None)
    assert job.end_ns == (codes[-1].start_ns if over else codes[-1].end_ns)
    assert {span.parent_id for span in children} == {job.span_id}
    assert len({span.span_id for span in spans}) == len(spans)
    steps = of(children, SpanKind.STEP)
    for one, next_one in pairwise(steps):
        assert one.end_ns is not None
        assert one.end_ns <= next_one.start_ns
    assert job_spans(RAP, facts) == spans


@given(st.lists(st.integers(-100, 100), min_size=len(ORDINARY.changes), max_size=len(ORDINARY.changes)))
def test_clocks_that_disagree_leave_no_gap_and_no_overlap(times: list[int]) -> None:
    """Each controller writes by its own clock; the order is the database's."""
    changes = [attrs.evolve(change, at=later(seconds)) for change, seconds in zip(ORDINARY.changes, times, strict=True)]
    facts = attrs.evolve(ORDINARY, changes=changes)
    job, *children = job_spans(RAP, facts)
    codes = of(children, SpanKind.STATE, SpanKind.FINAL)
    assert codes[0].start_ns == ns(0)
    for one, following in pairwise(codes):
        assert one.start_ns <= following.start_ns == one.end_ns
    assert job.end_ns == codes[-1].start_ns == rap_span(RAP, [facts]).end_ns
