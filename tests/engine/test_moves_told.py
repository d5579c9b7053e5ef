"""The canonical line of a transition: one for each row of the history, with what is needed to find it."""

from structlog.testing import capture_logs

from common import tracing
from common.protocol import Verdict
from controller.core.model import JobId
from tests.engine.conftest import Harness, Study
from tests.factories import principal


async def test_every_row_of_the_history_has_its_line(harness: Harness, study: Study) -> None:
    request = study.request()
    with capture_logs() as logs:
        created = await harness.create(request)
        await harness.settle()
        first, *rest = await harness.claim()
        await harness.report(first, "executing")
        await harness.finish(first)
        for task in rest:
            assert await harness.finish(task, exit_code=3) is Verdict.APPLIED
        await harness.settle()
        await harness.engine.cancel(principal("test"), created.rap_id, ["report"])
    told = [line for line in logs if line["event"] == "job_moved"]
    rows = []
    for job in (await harness.jobs(created.rap_id)).values():
        detail = await harness.engine.job_detail(principal("test"), JobId(job.id))
        rows += [(job.id, event.code) for event in detail.history if event.code != "created"]
        for line in told:
            if line["job_id"] == job.id:
                assert line["rap_id"] == created.rap_id
                assert line["backend"] == "test"
                assert line["trace_id"] == tracing.trace_id(job.spec.traceparent)
    assert sorted((line["job_id"], line["code"]) for line in told) == sorted(rows)
    assert len({line["trace_id"] for line in told}) == 1
    (accepted,) = [line for line in logs if line["event"] == "rap_created"]
    assert (accepted["rap_id"], accepted["backend"], accepted["jobs"]) == (created.rap_id, "test", created.count)
    assert accepted["trace_id"] == told[0]["trace_id"]
