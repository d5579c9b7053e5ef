"""The state machine: every (state, event), the rules of section 3.4, and random walks that keep the invariants."""

from datetime import timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.codes import MESSAGE, RESETS, STAGES, JobState, StatusCode
from controller.core.machine import (
    CODES_ALLOWED,
    TRANSITIONS,
    Cancelled,
    DependencyFailed,
    Event,
    Failed,
    Faulted,
    IllegalTransition,
    Killed,
    Progressed,
    Reset,
    Retried,
    Started,
    Succeeded,
    Waiting,
    created,
    step,
)
from controller.core.model import Progress
from tests.factories import NOW, later, progress

EVENTS: list[Event] = [
    Waiting(code=StatusCode.WAITING_ON_WORKERS),
    Started(),
    Progressed(code=StatusCode.EXECUTING),
    Succeeded(),
    Failed(code=StatusCode.NONZERO_EXIT),
    DependencyFailed(),
    Reset(code=StatusCode.WAITING_ON_REBOOT),
    Faulted(rest=timedelta(seconds=5)),
    Cancelled(),
    Killed(),
    Retried(),
]
AT = {
    JobState.PENDING: progress(StatusCode.WAITING_ON_DEPENDENCIES),
    JobState.RUNNING: progress(StatusCode.INITIATED),
    JobState.SUCCEEDED: progress(StatusCode.SUCCEEDED),
    JobState.FAILED: progress(StatusCode.NONZERO_EXIT),
}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("state", JobState)
def test_every_pair_moves_as_the_table_says_or_is_illegal(state: JobState, event: Event) -> None:
    allowed = TRANSITIONS.get((state, type(event)))
    if allowed is None:
        with pytest.raises(IllegalTransition, match=type(event).__name__):
            step(AT[state], event, NOW)
    else:
        assert step(AT[state], event, NOW).after.state in allowed[1]


@pytest.mark.parametrize("kind", CODES_ALLOWED, ids=lambda kind: kind.__name__)
def test_an_event_with_a_code_of_another_kind_is_illegal(kind: Any) -> None:
    state = JobState.PENDING if kind is Waiting else JobState.RUNNING
    for code in set(StatusCode) - CODES_ALLOWED[kind]:
        with pytest.raises(IllegalTransition):
            step(AT[state], kind(code=code), NOW)


def test_terminal_states_never_change() -> None:
    assert all(targets == {state} for (state, _), (_, targets) in TRANSITIONS.items() if state.is_terminal)


def test_starting_counts_the_attempt_and_sets_started_at() -> None:
    after = step(created(NOW), Started(), later(5)).after
    assert (after.attempt, after.started_at, after.code) == (1, later(5), StatusCode.INITIATED)
    assert after.message == "Job executing on the backend"


@pytest.mark.parametrize("code", sorted(RESETS))
def test_a_reset_clears_started_at_and_keeps_the_attempt(code: StatusCode) -> None:
    after = step(AT[JobState.RUNNING], Reset(code=code), later(5)).after
    assert (after.started_at, after.attempt, after.message) == (None, 1, MESSAGE[code])


def test_a_fault_is_counted_rests_and_tells_its_cause_in_the_history_only() -> None:
    move = step(AT[JobState.RUNNING], Faulted(rest=timedelta(seconds=5), cause="disk full"), later(1))
    assert (move.after.code, move.after.faults, move.after.not_before) == (
        StatusCode.WAITING_ON_NEW_TASK,
        1,
        later(6),
    )
    assert move.after.message == MESSAGE[StatusCode.WAITING_ON_NEW_TASK]
    assert move.told.endswith(" disk full")
    started = step(move.after, Started(), later(6)).after
    assert (started.attempt, started.faults, started.not_before) == (2, 1, None)


@pytest.mark.parametrize("code", sorted(STAGES))
def test_stages_keep_the_message_of_initiated(code: StatusCode) -> None:
    assert step(AT[JobState.RUNNING], Progressed(code=code), NOW).after.message == MESSAGE[StatusCode.INITIATED]


def test_the_agents_time_is_taken_between_the_last_change_and_now() -> None:
    running = AT[JobState.RUNNING]
    assert step(running, Succeeded(at=later(5)), later(9)).after.completed_at == later(5)
    assert step(running, Succeeded(at=later(-5)), later(9)).after.completed_at == NOW
    assert step(running, Succeeded(at=later(99)), later(9)).after.completed_at == later(9)
    assert step(running, Succeeded(), later(9)).after.completed_at == later(9)


def test_time_never_runs_backwards_when_the_controllers_clock_does() -> None:
    after = step(AT[JobState.RUNNING], Succeeded(), later(-60)).after
    assert after.completed_at == NOW


def test_waiting_for_the_same_reason_keeps_its_time() -> None:
    waiting = step(created(NOW), Waiting(code=StatusCode.WAITING_ON_WORKERS), later(1)).after
    again = step(waiting, Waiting(code=StatusCode.WAITING_ON_WORKERS), later(2))
    assert again.after == waiting
    assert not again.recorded


def test_a_late_cancel_keeps_the_state_moves_completed_at_and_is_recorded() -> None:
    move = step(AT[JobState.SUCCEEDED], Cancelled(), later(60))
    assert (move.after.state, move.after.code) == (JobState.SUCCEEDED, StatusCode.SUCCEEDED)
    assert (move.after.cancelled, move.after.completed_at) == (True, later(60))
    assert move.recorded
    assert not move.ended


def test_a_cancel_ends_a_running_job() -> None:
    move = step(AT[JobState.RUNNING], Cancelled(), later(1))
    assert move.ended
    assert (move.after.code, move.after.cancelled, move.after.completed_at) == (
        StatusCode.CANCELLED_BY_USER,
        True,
        later(1),
    )


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.RUNNING])
def test_a_kill_ends_a_job_that_stays_in_its_workspaces_memory(state: JobState) -> None:
    move = step(AT[state], Killed(), later(1))
    assert move.ended
    assert move.recorded
    assert (move.after.code, move.after.message) == (StatusCode.KILLED_BY_ADMIN, "Killed by an administrator")
    assert (move.after.cancelled, move.after.completed_at) == (False, later(1))


@pytest.mark.parametrize("event", [Killed(), Retried()])
@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED])
def test_what_is_over_is_neither_killed_nor_retried(state: JobState, event: Event) -> None:
    with pytest.raises(IllegalTransition):
        step(AT[state], event, NOW)


def test_a_retry_of_a_running_job_is_another_attempt_without_a_past() -> None:
    move = step(attrs.evolve(AT[JobState.RUNNING], faults=2), Retried(), later(1))
    after = move.after
    assert (after.code, after.faults, after.not_before) == (StatusCode.WAITING_ON_NEW_TASK, 0, None)
    assert (after.started_at, after.attempt) == (None, 1)
    assert after.message == move.told == "An administrator asked for another attempt"


def test_a_retry_of_a_resting_job_ends_its_rest_and_is_recorded() -> None:
    resting = step(AT[JobState.RUNNING], Faulted(rest=timedelta(seconds=60), cause="disk full"), later(1)).after
    move = step(resting, Retried(), later(2))
    after = move.after
    assert (after.code, after.message) == (resting.code, resting.message)
    assert (after.faults, after.not_before, after.code_changed_at) == (0, None, resting.code_changed_at)
    assert (move.recorded, move.told) == (True, "An administrator asked for another attempt")


def _events() -> st.SearchStrategy[Event]:
    times = st.none() | st.floats(-1000, 1000).map(later)
    return st.one_of(
        st.sampled_from(sorted(CODES_ALLOWED[Waiting])).map(lambda code: Waiting(code=code)),
        st.just(Started()),
        st.builds(Progressed, code=st.sampled_from(sorted(STAGES)), at=times),
        st.builds(Succeeded, at=times),
        st.builds(Failed, code=st.sampled_from(sorted(CODES_ALLOWED[Failed])), at=times),
        st.just(DependencyFailed()),
        st.sampled_from(sorted(RESETS)).map(lambda code: Reset(code=code)),
        st.integers(0, 100).map(lambda seconds: Faulted(rest=timedelta(seconds=seconds))),
        st.sampled_from([Cancelled(), Killed(), Retried()]),
    )


def check_invariants(now: Progress, before: Progress, event: Event) -> None:
    """What must hold of every job after every step; the database's constraints say the same."""
    assert now.state is now.code.state
    assert (now.completed_at is not None) == now.state.is_terminal
    assert now.state is not JobState.RUNNING or (now.started_at is not None and now.attempt > 0)
    assert now.state is not JobState.PENDING or now.started_at is None
    assert now.not_before is None or now.state is JobState.PENDING
    assert now.attempt - before.attempt in (0, 1)
    assert now.faults == 0 if isinstance(event, Retried) else now.faults - before.faults in (0, 1)
    assert now.code_changed_at >= before.code_changed_at or now.state is before.state is JobState.PENDING
    assert not before.state.is_terminal or now.state is before.state
    assert not before.cancelled or now.cancelled


@given(st.lists(st.tuples(_events(), st.floats(0, 100)), max_size=40))
def test_random_walks_keep_the_invariants(walk: list[tuple[Event, float]]) -> None:
    now, job = NOW, created(NOW)
    for event, seconds in walk:
        now += timedelta(seconds=seconds)
        try:
            moved = step(job, event, now).after
        except IllegalTransition:
            assert (job.state, type(event)) not in TRANSITIONS
            continue
        check_invariants(moved, job, event)
        job = moved


def test_an_illegal_transition_carries_its_story() -> None:
    with pytest.raises(IllegalTransition) as caught:
        step(AT[JobState.SUCCEEDED], Started(), NOW)
    assert caught.value.progress == AT[JobState.SUCCEEDED]
    assert caught.value.event == Started()


def test_progress_is_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        created(NOW).state = JobState.FAILED  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize("state", JobState)
def test_time_never_goes_back_within_a_job(state: JobState) -> None:
    before = AT[state]
    for event in EVENTS:
        if (state, type(event)) in TRANSITIONS:
            after = step(before, event, later(-60)).after
            assert after.updated_at >= before.updated_at
            assert after.code_changed_at >= before.code_changed_at
            assert after.started_at is None or after.started_at >= NOW
            assert after.completed_at is None or after.completed_at >= NOW
