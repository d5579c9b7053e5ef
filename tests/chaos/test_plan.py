"""The plan is a pure function of its seed, and asks for what it was told to."""

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core import project as projects
from tests.chaos.plan import (
    AGENTS,
    BACKENDS,
    CONTROLLERS,
    DATABASE,
    KILLS,
    LEASE_SECONDS,
    Kind,
    make_claim_plan,
    make_fencing_plan,
    make_plan,
)

seeds = st.integers(0, 2**32)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_the_same_seed_gives_the_same_plan(seed: int) -> None:
    assert make_plan(seed, jobs=100, kills=20) == make_plan(seed, jobs=100, kills=20)


def test_another_seed_gives_another_plan() -> None:
    one, other = make_plan(1, jobs=100, kills=20), make_plan(2, jobs=100, kills=20)
    assert one.requests != other.requests
    assert one.faults != other.faults


@given(seeds, st.integers(1, 400), st.integers(0, 60))
@settings(max_examples=20, deadline=None)
def test_a_plan_has_what_was_asked_for(seed: int, jobs: int, kills: int) -> None:
    plan = make_plan(seed, jobs=jobs, kills=kills)
    assert plan.kills == kills
    planned = 0
    for request in plan.requests:
        study = plan.studies[request.study]
        wanted = tuple(study.actions) if request.actions == ("run_all",) else request.actions
        planned += 0 if request.force else len(study.closure(wanted))
        assert request.backend in BACKENDS
        assert set(request.cancel.actions if request.cancel else ()) <= set(study.actions)
    assert planned >= jobs
    assert len({request.rap_id for request in plan.requests}) == len(plan.requests)
    assert all(0 <= request.at <= plan.seconds for request in plan.requests)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_faults_hit_what_is_there_and_a_stop_outlasts_a_lease(seed: int) -> None:
    plan = make_plan(seed, jobs=1, kills=40)
    for fault in plan.faults:
        assert 0 <= fault.at <= plan.seconds
        if fault.kind in KILLS | {Kind.STOP, Kind.TERM}:
            assert fault.target in (*CONTROLLERS, *AGENTS, DATABASE)
        else:
            assert fault.target in BACKENDS
        if fault.kind is Kind.STOP:
            assert fault.seconds > LEASE_SECONDS


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_every_study_is_a_project_that_is_accepted(seed: int) -> None:
    for study in make_plan(seed, jobs=1, kills=0).studies.values():
        project = projects.parse(study.project())
        assert {name: action.needs for name, action in project.actions.items()} == {
            name: action.needs for name, action in study.actions.items()
        }


def test_the_scenarios_do_not_change() -> None:
    assert make_fencing_plan() == make_fencing_plan()
    assert make_claim_plan() == make_claim_plan()
