"""What a scripted engine answers when it is asked for a trace, as in the examples of schemas/native."""

from datetime import datetime, timedelta

from controller.core.model import Job
from controller.core.spans import Attempt, Change, JobFacts, RapFacts
from controller.core.traces import job_spans, rap_span
from controller.engine.results import JobDetail, RapSummary
from controller.engine.traces import RapTrace

ROOT = "00f067aa0ba90000"


def rap_trace(rap: RapSummary, detail: JobDetail, at: datetime) -> RapTrace:
    """A RAP of one job that did what its history says."""
    job: Job = detail.job
    _, trace, _, flags = rap.traceparent.split("-")
    known = RapFacts(
        id=rap.id,
        backend=rap.backend,
        workspace=rap.workspace,
        repo_url=rap.repo_url,
        branch=rap.branch,
        commit=rap.commit,
        requested_actions=rap.requested_actions,
        created_by=rap.created_by,
        project=rap.project,
        orgs=("example",),
        traceparent=f"00-{trace}-{ROOT}-{flags}",
        parent_traceparent=None,
        created_at=rap.created_at,
    )
    changes = [
        Change(
            seq=place,
            at=entry.at,
            attempt=entry.attempt,
            state=entry.state,
            code=entry.code,
            message=entry.message,
        )
        for place, entry in enumerate(detail.history, 1)
    ]
    attempt = Attempt(attempt=1, agent=detail.agent, results={"exit_code": detail.exit_code})
    facts = JobFacts(job=job, changes=changes, attempts={1: attempt})
    spans = (rap_span(known, [facts]), *job_spans(known, facts))
    return RapTrace(rap_id=rap.id, at=at + timedelta(minutes=1), spans=spans)
