"""What a scripted engine answers to operators' commands, as in the examples of schemas/native."""

from datetime import UTC, datetime, timedelta
from typing import Any

from attrs import evolve

from controller.core.codes import JobState, StatusCode
from controller.core.diagnosis import Finding, Severity
from controller.core.errors import Conflict, Forbidden, NotFound
from controller.core.model import Job, JobId, RapId, Verb
from controller.core.releases import Asked, summarise
from controller.core.tokens import NewToken, TokenKind
from controller.engine import (
    abandoning,
    capacity,
    diagnosing,
    killing,
    listing,
    operating,
    pruning,
    releasing,
    retrying,
    tokens,
)
from controller.engine.operating import FLAGS
from tests.factories import progress, spec

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def flags(**given: str | None) -> list[operating.FlagView]:
    """All of a backend's flags, `-` written as `_`; those that are not named were never set."""

    def view(name: str) -> operating.FlagView:
        key = name.replace("-", "_")
        return operating.FlagView(
            backend="test", id=str(name), value=given.get(key), changed_at=T0 if key in given else None
        )

    return [view(name) for name in FLAGS]


def _set(changed: tuple[str, ...], **given: str | None) -> operating.FlagsSet:
    return operating.FlagsSet(backend="test", changed=changed, flags=tuple(flags(**given)))


def _pause(_: object, backend: str) -> Any:
    if backend == "other":
        return Forbidden(f"This token may use backend {backend!r}, but not manage it.", backend=backend)
    if backend != "test":
        return NotFound(f"There is no backend {backend!r} for this token.", backend=backend)
    return _set(("paused",), paused="true")


def token(**changes: Any) -> tokens.TokenView:
    values: dict[str, Any] = {
        "name": "laptop",
        "kind": TokenKind.CLIENT,
        "state": tokens.TokenState.VALID,
        "grants": {"test": frozenset({Verb.RUN, Verb.READ})},
        "elsewhere": False,
        "created_at": T0,
        "created_by": "portal",
        "expires_at": T0 + timedelta(days=90),
        "revoked_at": None,
        "revoked_by": None,
    }
    return tokens.TokenView(**values | changes)


REVOKED = {"state": tokens.TokenState.REVOKED, "revoked_at": T0, "revoked_by": "portal"}


def _create_token(_: object, new: NewToken) -> Any:
    if new.name == "taken":
        message = "The name 'taken' is taken, be it by a token that was revoked: choose another one."
        return Conflict(message, name=new.name)
    return tokens.TokenChange(changed=True, token=token())


ANSWERS: dict[str, Any] = {
    "tokens": [
        token(),
        token(
            name="node-1",
            kind=TokenKind.AGENT,
            grants={"test": frozenset({Verb.AGENT})},
            elsewhere=True,
            expires_at=None,
            **REVOKED,
        ),
    ],
    "create_token": _create_token,
    "revoke_token": tokens.TokenChange(changed=True, token=token(**REVOKED)),
    "pause": _pause,
    "unpause": _set((), paused=None),
    "set_flags": _set((), paused=None),
    "start_maintenance": _set(
        ("mode", "manual-db-maintenance", "db-maintenance-checks-disabled"),
        mode="db-maintenance",
        manual_db_maintenance="on",
        db_maintenance_checks_disabled="true",
    ),
    "end_maintenance": _set(("mode", "manual-db-maintenance"), mode=None, manual_db_maintenance=None),
    "prepare_for_reboot": operating.RebootPrepared(
        changed=("paused",),
        jobs=(JobId("mzxw6ytboi2dgnbu"),),
        status=operating.RebootStatus(
            backend="test", paused=True, running=0, cancelling=1, unconfirmed=("backend-node-1",)
        ),
    ),
    "forget_agent": abandoning.Forgotten(
        backend="test", agent="backend-node-1", jobs=(JobId("mzxw6ytboi2dgnbu"),), stops=1
    ),
}
ANSWERS |= {
    "prune": pruning.Pruned(
        backend="test",
        cutoff=T0,
        dry_run=False,
        counts=pruning.Counts(raps=120, jobs=1440, kept=3, outputs=4100, events=8800, logs=950, tasks=1490),
        next_after=4711,
    ),
    "diagnose": diagnosing.Diagnosis(
        at=T0,
        findings=(
            Finding(
                name="database_durability", level=Severity.OK, message="What the database confirms is on its disk."
            ),
            Finding(
                name="scheduler",
                level=Severity.PROBLEM,
                backend="test",
                message="3 jobs were looked at by no scheduling pass, the oldest for 12 minutes.",
                advice="look for schedule_failed in the log of the controllers, and restart them",
            ),
        ),
    ),
}


POOL = capacity.PoolView(configured=10.0, override=2.0, limit=2.0, in_use=4.0, running=3, pending=200, too_heavy=1)
EMPTY = capacity.PoolView(configured=10.0, override=None, limit=10.0, in_use=0.0, running=0, pending=0, too_heavy=0)
CAPACITY = capacity.CapacityView(backend="test", workers=POOL, db_workers=EMPTY)
KILLED = Job(
    spec=spec(
        id=JobId("mzxw6ytboi2dgnbu"), rap_id=RapId("abcdefgh23456777"), workspace="study-main", action="describe"
    ),
    progress=progress(StatusCode.KILLED_BY_ADMIN),
)
ANSWERS |= {
    "list_jobs": listing.JobPage(
        jobs=(
            listing.JobSummary(
                id=KILLED.id,
                rap_id=RapId("abcdefgh23456777"),
                backend="test",
                workspace="study-main",
                action="describe",
                created_by="alice",
                state=JobState.PENDING,
                code=StatusCode.WAITING_ON_WORKERS,
                message="Waiting on available workers for resource intensive job",
                requires_db=False,
                weight=2.0,
                attempt=1,
                cancelled=False,
                faults=1,
                not_before=T0,
                agent="backend-node-1",
                created_at=T0,
                started_at=None,
                completed_at=None,
                code_changed_at=T0 + timedelta(seconds=2),
            ),
        ),
        next_cursor="NDI",
    ),
    "kill": killing.JobKilled(job=KILLED, changed=True),
    "retry": retrying.JobRetried(
        job=KILLED,
        outcome=retrying.RetryOutcome.RESUBMITTED,
        message="The job is finished and stays so; RAP abcdefgh23456722 asks for its action again.",
        rap_id=RapId("abcdefgh23456722"),
        new_job=JobId("mzxw6ytboi2dgnbx"),
    ),
    "limits": [CAPACITY],
    "set_limits": capacity.CapacitySet(changed=("workers",), capacity=CAPACITY),
}


ASKED = Asked(
    task_id="mzxw6ytboi2dgnbu-release-001",
    attempt=1,
    release=1,
    by="token carol",
    paths=("output/table.csv", "output/rows.csv"),
    absent=(),
    agent=None,
    active=True,
    results={},
    created_at=T0,
    finished_at=None,
)
TABLE = {
    "path": "output/table.csv",
    "level": "moderately_sensitive",
    "size": 1234,
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
}
ANSWERED = evolve(
    ASKED,
    active=False,
    agent="backend-node-1",
    finished_at=T0 + timedelta(seconds=2),
    results={"released": [TABLE], "refused": [{"path": "output/rows.csv", "reason": "not_permitted"}]},
)


def _release(_: object, job_id: JobId, paths: object) -> Any:
    if paths is None:
        message = (
            "No agent of backend 'test' has a policy with a review (RAP_EGRESS with +outputs:<level>:reviewed):"
            " there is nothing that a release could let out."
        )
        return Conflict(message, backend="test")
    return releasing.ReleaseAsked(job_id=job_id, changed=True, release=summarise([ASKED])[0])


ANSWERS |= {"release_outputs": _release, "releases": summarise([ANSWERED])}
