"""The table of steps: every intent in every situation (reference section 5.1)."""

import itertools

import pytest
from attrs import evolve

from agent.core.lifecycle import Intent, Recorded, Situation, Step, next_step, stage_of
from agent.executors.base import Phase
from common.protocol import Stage

TASK = "job-002"
NOTHING = Situation()
PREPARED = Situation(prepared=True)
RUNNING = Situation(prepared=True, started=True, phase=Phase.RUNNING)
EXITED = evolve(RUNNING, phase=Phase.EXITED)
LOST = evolve(RUNNING, phase=Phase.ABSENT)
DONE = evolve(EXITED, recorded=Recorded(task_id=TASK))
DONE_CLEAN = Situation(recorded=Recorded(task_id=TASK), cleaned=True)
FAILED = evolve(EXITED, recorded=Recorded(task_id=TASK, failed=True))
FAILED_CLEAN = Situation(recorded=Recorded(task_id=TASK, failed=True), cleaned=True)
OTHER = evolve(NOTHING, recorded=Recorded(task_id="job-001"))

RUN, CANCEL, DROP, BACK, LEAVE = Intent.RUN, Intent.CANCEL, Intent.DROP, Intent.HAND_BACK, Intent.LEAVE


@pytest.mark.parametrize(
    ("intent", "situation", "step"),
    [
        (RUN, NOTHING, Step.PREPARE),
        (RUN, OTHER, Step.PREPARE),
        (RUN, PREPARED, Step.EXECUTE),
        (RUN, RUNNING, Step.WATCH),
        (RUN, EXITED, Step.FINALIZE),
        (RUN, LOST, Step.FAIL_LOST),
        (RUN, DONE, Step.CLEANUP),
        (RUN, DONE_CLEAN, Step.REPORT),
        (RUN, FAILED, Step.CLEANUP),
        (RUN, FAILED_CLEAN, Step.REPORT),
        (CANCEL, NOTHING, Step.FINALIZE_CANCELLED),
        (CANCEL, OTHER, Step.FINALIZE_CANCELLED),
        (CANCEL, PREPARED, Step.FINALIZE_CANCELLED),
        (CANCEL, RUNNING, Step.TERMINATE),
        (CANCEL, EXITED, Step.FINALIZE_CANCELLED),
        (CANCEL, LOST, Step.FINALIZE_CANCELLED),
        (CANCEL, DONE, Step.CLEANUP),
        (CANCEL, DONE_CLEAN, Step.REPORT),
        (CANCEL, FAILED, Step.FINALIZE_CANCELLED),
        (CANCEL, FAILED_CLEAN, Step.FINALIZE_CANCELLED),
        (DROP, NOTHING, Step.DISCARD),
        (DROP, RUNNING, Step.TERMINATE),
        (DROP, EXITED, Step.DISCARD),
        (DROP, DONE, Step.DISCARD),
        (BACK, NOTHING, Step.DISCARD),
        (BACK, PREPARED, Step.DISCARD),
        (BACK, RUNNING, Step.TERMINATE),
        (BACK, evolve(EXITED, terminated=True), Step.DISCARD),
        (BACK, EXITED, Step.FINALIZE),
        (BACK, DONE, Step.CLEANUP),
        (BACK, DONE_CLEAN, Step.REPORT),
        (LEAVE, RUNNING, Step.REST),
        (LEAVE, DONE_CLEAN, Step.REST),
    ],
)
def test_step(intent: Intent, situation: Situation, step: Step) -> None:
    assert next_step(intent, situation, TASK) is step


@pytest.mark.parametrize(
    ("situation", "stage"),
    [
        (NOTHING, Stage.UNKNOWN),
        (OTHER, Stage.UNKNOWN),
        (PREPARED, Stage.PREPARED),
        (RUNNING, Stage.EXECUTING),
        (EXITED, Stage.EXECUTED),
        (DONE, Stage.FINALIZED),
        (FAILED, Stage.ERROR),
    ],
)
def test_stage(situation: Situation, stage: Stage) -> None:
    assert stage_of(situation, TASK) is stage


def apply(step: Step, situation: Situation) -> Situation | None:
    """What a step makes of a situation; None at the end."""
    match step:
        case Step.PREPARE:
            return evolve(situation, prepared=True)
        case Step.EXECUTE:
            return evolve(situation, phase=Phase.RUNNING, started=True)
        case Step.WATCH:
            return evolve(situation, phase=Phase.EXITED)
        case Step.TERMINATE:
            return evolve(situation, phase=Phase.EXITED, terminated=True)
        case Step.FINALIZE | Step.FINALIZE_CANCELLED:
            return evolve(situation, recorded=Recorded(task_id=TASK))
        case Step.FAIL_LOST:
            return evolve(situation, recorded=Recorded(task_id=TASK, failed=True))
        case Step.CLEANUP:
            return evolve(situation, phase=Phase.ABSENT, prepared=False, cleaned=True)
        case _:
            return None


def test_every_situation_comes_to_an_end() -> None:
    """No intent, from anywhere, walks in circles; and a process is never started once it has been."""
    recorded = (None, Recorded(task_id=TASK), Recorded(task_id=TASK, failed=True), Recorded(task_id="job-001"))
    flags = (False, True)
    for intent, phase, prepared, started, terminated, record, cleaned in itertools.product(
        Intent, Phase, flags, flags, flags, recorded, flags
    ):
        situation: Situation | None = Situation(
            phase=phase, prepared=prepared, started=started, terminated=terminated, recorded=record, cleaned=cleaned
        )
        steps = []
        while situation is not None:
            step = next_step(intent, situation, TASK)
            assert not (step is Step.EXECUTE and situation.started)
            steps.append(step)
            assert len(steps) < 10, steps
            situation = apply(step, situation)
