"""Traces out of a real history: what the database remembers is all that a trace needs."""

import pytest

from common import tracing
from controller.core.errors import NotFound
from controller.core.model import RapId
from controller.core.spans import Span, SpanKind
from tests.engine.conftest import Harness, Study
from tests.factories import TRACEPARENT, principal

Tree = dict[str, list[tuple[str, float, float | None]]]


def tree(spans: tuple[Span, ...]) -> Tree:
    """Action -> (name, seconds after the RAP's begin, length) of each of its spans."""
    begin = spans[0].start_ns
    actions = {span.span_id: str(span.attributes["job.action"]) for span in spans if span.kind is SpanKind.JOB}
    found: Tree = {action: [] for action in actions.values()}
    for span in spans[1:]:
        action = actions[span.span_id if span.kind is SpanKind.JOB else span.parent_id or ""]
        length = None if span.end_ns is None else round((span.end_ns - span.start_ns) / 1e9, 3)
        found[action].append((span.name, round((span.start_ns - begin) / 1e9, 3), length))
    return found


async def test_the_trace_of_a_rap_that_still_runs(harness: Harness, study: Study) -> None:
    created = await harness.create(study.request("analyse", traceparent=TRACEPARENT))
    harness.clock.advance(2)
    await harness.settle()
    (extract,) = await harness.claim()
    for stage in ("preparing", "prepared", "executing", "finalizing"):
        harness.clock.advance(1)
        await harness.report(extract, stage)
    harness.clock.advance(1)
    await harness.finish(extract)
    harness.clock.advance(1)
    await harness.settle()
    trace = await harness.engine.rap_trace(principal(), created.rap_id)
    assert tree(trace.spans) == {
        "extract": [
            ("JOB", 0.0, 7.0),
            ("CREATED", 0.0, 2.0),
            ("INITIATED", 2.0, 1.0),
            ("PREPARING", 3.0, 1.0),
            ("PREPARED", 4.0, 1.0),
            ("EXECUTING", 5.0, 1.0),
            ("FINALIZING", 6.0, 1.0),
            ("SUCCEEDED", 7.0, 1.0),
            ("prepare", 3.0, 2.0),
            ("execute", 5.0, 1.0),
            ("finalize", 6.0, 1.0),
        ],
        "analyse": [
            ("JOB", 0.0, None),
            ("CREATED", 0.0, 2.0),
            ("WAITING_ON_DEPENDENCIES", 2.0, 6.0),
            ("INITIATED", 8.0, None),
        ],
    }
    root, jobs = trace.spans[0], [span for span in trace.spans if span.kind is SpanKind.JOB]
    assert (root.trace_id, root.parent_id) == (TRACEPARENT[3:35], TRACEPARENT[36:52])
    assert {job.parent_id for job in jobs} == {root.span_id}
    rows = await harness.jobs(created.rap_id)
    ids = {job.attributes["job.action"]: f"00-{job.trace_id}-{job.span_id}-01" for job in jobs}
    assert ids == {action: job.spec.traceparent for action, job in rows.items()}
    assert all(tracing.parse(traceparent) == traceparent for traceparent in ids.values())
    ((waited_for,),) = [job.links for job in jobs if job.links]
    assert waited_for.span_id == next(job.span_id for job in jobs if job.attributes["job.action"] == "extract")
    said = next(job.attributes for job in jobs if job.attributes["job.action"] == "extract")
    assert (said["job.agent"], said["job.exit_code"]) == ("agent-1", "0")


async def test_a_foreign_raps_trace_is_nobodys_business(harness: Harness, study: Study) -> None:
    created = await harness.create(study.request("extract"))
    for asked, who in ((created.rap_id, principal("other")), (RapId("z" * 16), principal())):
        with pytest.raises(NotFound):
            await harness.engine.rap_trace(who, asked)


async def test_a_job_is_told_its_own_span(harness: Harness, study: Study) -> None:
    """What becomes `TRACEPARENT` in its environment."""
    created = await harness.create(study.request("extract", traceparent=TRACEPARENT))
    await harness.settle()
    (task,) = await harness.claim()
    trace = await harness.engine.rap_trace(principal(), created.rap_id)
    assert task.traceparent == f"00-{trace.spans[1].trace_id}-{trace.spans[1].span_id}-01"
