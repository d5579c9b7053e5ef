"""Scheduling decisions: the table of section 3.3, the pools and the fairness of section 3.5."""

from collections import Counter

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.codes import MESSAGE, JobState, StatusCode
from controller.core.model import JobId
from controller.core.modes import Modes
from controller.core.schedule import (
    ActiveJob,
    Decision,
    FailDependency,
    Limits,
    SendBack,
    Snapshot,
    Start,
    Wait,
    decide,
    next_look,
)
from tests.factories import NOW, active, later


def snapshot(*jobs: ActiveJob, workers: float = 2, db_workers: float = 2, modes: Modes | None = None) -> Snapshot:
    return Snapshot(
        now=NOW,
        limits=Limits(workers=workers, db_workers=db_workers),
        modes=modes or Modes(),
        jobs=jobs,
    )


def running(name: str, **changes: object) -> ActiveJob:
    return active(name, state=JobState.RUNNING, code=StatusCode.EXECUTING, message="", **changes)


def started(decisions: list[Decision]) -> list[str]:
    return [d.job_id for d in decisions if isinstance(d, Start)]


def code_of(decisions: list[Decision], name: str) -> StatusCode:
    (wait,) = [d for d in decisions if isinstance(d, Wait) and d.job_id == name]
    return wait.code


def test_jobs_start_up_to_the_limit_oldest_first() -> None:
    decisions = decide(snapshot(active("a"), active("b"), active("c")))
    assert started(decisions) == ["a", "b"]
    assert code_of(decisions, "c") is StatusCode.WAITING_ON_WORKERS


def test_running_jobs_use_capacity() -> None:
    assert started(decide(snapshot(running("r"), active("a"), active("b")))) == ["a"]


def test_pools_are_separate() -> None:
    jobs = [active("d1", requires_db=True), active("d2", requires_db=True), active("a")]
    decisions = decide(snapshot(*jobs, workers=1, db_workers=1))
    assert started(decisions) == ["d1", "a"]
    assert code_of(decisions, "d2") is StatusCode.WAITING_ON_DB_WORKERS


def test_capacity_is_shared_between_workspaces_within_one_pass() -> None:
    jobs = [active(f"a{i}", workspace="big") for i in range(5)] + [active("b", workspace="small")]
    assert started(decide(snapshot(*jobs, workers=2))) == ["a0", "b"]


def test_a_workspace_with_running_jobs_stands_back() -> None:
    jobs = [running("r", workspace="big"), active("a", workspace="big"), active("b", workspace="small")]
    assert started(decide(snapshot(*jobs, workers=2))) == ["b"]


def test_database_jobs_go_before_others_of_equal_standing() -> None:
    jobs = [active("old"), active("db", requires_db=True, workspace="other")]
    assert started(decide(snapshot(*jobs))) == ["db", "old"]


def test_a_heavy_job_says_that_it_is_heavy_and_lets_light_ones_pass() -> None:
    decisions = decide(snapshot(running("r"), active("heavy", weight=2), active("light"), workers=2))
    assert started(decisions) == ["light"]
    (wait,) = [d for d in decisions if isinstance(d, Wait)]
    assert wait.message == "Waiting on available workers for resource intensive job"


def test_dependencies() -> None:
    decisions = decide(snapshot(active("waits", unmet=1), active("doomed", unmet=1, need_failed=True)))
    assert code_of(decisions, "waits") is StatusCode.WAITING_ON_DEPENDENCIES
    assert FailDependency(job_id=JobId("doomed")) in decisions


def test_pause_holds_pending_jobs_only_and_does_not_look_at_dependencies() -> None:
    jobs = [running("r"), active("a"), active("doomed", need_failed=True)]
    decisions = decide(snapshot(*jobs, modes=Modes(paused=True)))
    assert {d.job_id for d in decisions} == {"a", "doomed"}
    assert {d.code for d in decisions if isinstance(d, Wait)} == {StatusCode.WAITING_PAUSED}


def test_a_job_waiting_for_a_reboot_keeps_saying_so_under_pause() -> None:
    rebooting = active("a", code=StatusCode.WAITING_ON_REBOOT, message=MESSAGE[StatusCode.WAITING_ON_REBOOT])
    assert decide(snapshot(rebooting, modes=Modes(paused=True))) == []


def test_database_maintenance_sends_running_database_jobs_back_and_leaves_others_alone() -> None:
    jobs = [running("rdb", requires_db=True), running("r"), active("db", requires_db=True), active("a")]
    decisions = decide(snapshot(*jobs, modes=Modes(db_maintenance=True)))
    assert SendBack(job_id=JobId("rdb"), code=StatusCode.WAITING_DB_MAINTENANCE) in decisions
    assert code_of(decisions, "db") is StatusCode.WAITING_DB_MAINTENANCE
    assert started(decisions) == ["a"]


def test_a_job_rests_after_a_fault_and_the_pass_says_when_to_look_again() -> None:
    resting = active(
        "r",
        code=StatusCode.WAITING_ON_NEW_TASK,
        message=MESSAGE[StatusCode.WAITING_ON_NEW_TASK],
        not_before=later(5),
    )
    before = snapshot(resting, active("a", not_before=later(9)))
    assert [type(decision) for decision in decide(before)] == [Wait]
    assert next_look(before) == later(5)
    after = attrs.evolve(before, now=later(5))
    assert started(decide(after)) == ["r"]
    assert next_look(after) == later(9)


@pytest.mark.parametrize(
    ("modes", "unmet", "need_failed", "expected"),
    [
        (Modes(paused=True, db_maintenance=True), 1, True, StatusCode.WAITING_PAUSED),
        (Modes(db_maintenance=True), 1, True, StatusCode.WAITING_DB_MAINTENANCE),
        (Modes(), 1, True, StatusCode.DEPENDENCY_FAILED),
        (Modes(), 1, False, StatusCode.WAITING_ON_DEPENDENCIES),
    ],
)
def test_precedence(modes: Modes, unmet: int, need_failed: bool, expected: StatusCode) -> None:
    job = active("j", requires_db=True, unmet=unmet, need_failed=need_failed)
    (decision,) = decide(snapshot(job, modes=modes))
    found = decision.code if isinstance(decision, Wait) else StatusCode.DEPENDENCY_FAILED
    assert found is expected


jobs_strategy = st.lists(
    st.builds(
        active,
        name=st.uuids().map(str),
        workspace=st.sampled_from("abc"),
        state=st.sampled_from([JobState.PENDING, JobState.RUNNING]),
        requires_db=st.booleans(),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
        unmet=st.sampled_from([0, 0, 1]),
        need_failed=st.sampled_from([False, False, True]),
    ),
    max_size=30,
)
modes_strategy = st.builds(Modes, paused=st.booleans(), db_maintenance=st.booleans())


def applied(jobs: list[ActiveJob], decisions: list[Decision]) -> list[ActiveJob]:
    """The jobs after the decisions were carried out."""
    by_id = {d.job_id: d for d in decisions}
    moved = (_moved(job, by_id.get(job.id)) for job in jobs)
    return [job for job in moved if job is not None]


def _moved(job: ActiveJob, decision: Decision | None) -> ActiveJob | None:
    match decision:
        case Start():
            return attrs.evolve(job, state=JobState.RUNNING, code=StatusCode.INITIATED)
        case Wait(code=code, message=message):
            return attrs.evolve(job, code=code, message=message)
        case SendBack(code=code):
            return attrs.evolve(job, state=JobState.PENDING, code=code, message=MESSAGE[code])
        case FailDependency():
            return None
        case None:
            return job


@given(jobs_strategy, modes_strategy, st.sampled_from([0, 1, 2.5, 8]), st.sampled_from([0, 1, 4]))
def test_limits_hold_and_deciding_again_changes_nothing(
    jobs: list[ActiveJob], modes: Modes, workers: float, db_workers: float
) -> None:
    before = snapshot(*jobs, modes=modes, workers=workers, db_workers=db_workers)
    decisions = decide(before)
    assert max(Counter(d.job_id for d in decisions).values(), default=1) == 1
    after = applied(jobs, decisions)
    new = {d.job_id for d in decisions if isinstance(d, Start)}
    for pool, limit in ((False, workers), (True, db_workers)):
        used = sum(j.weight for j in after if j.state is JobState.RUNNING and j.requires_db is pool)
        assert used <= limit or not any(j.id in new and j.requires_db is pool for j in after)
    assert not new & {j.id for j in jobs if j.unmet or j.need_failed}
    assert not (new and modes.paused)
    again = decide(attrs.evolve(before, jobs=after))
    assert {d.job_id for d in again} <= {d.job_id for d in decisions if isinstance(d, SendBack)}
    assert decide(attrs.evolve(before, jobs=applied(after, again))) == []
