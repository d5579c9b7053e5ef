"""Where a task is and what to do next: a pure function of what is on disk and what the executor says.

The agent keeps no memory of its own between two steps: after each one it looks again and asks `next_step`. So a
restart at any point does the same as no restart (reference section 5.1).
"""

import enum

from attrs import frozen

from agent.executors.base import Phase
from common.protocol import Stage


class Intent(enum.Enum):
    """What the agent wants with a task. Only ever changed from RUN to another, or from any other to DROP."""

    RUN = "run"
    CANCEL = "cancel"
    """The controller sent a CANCELJOB task."""
    DROP = "drop"
    """The task is no longer this agent's: stop, and say nothing."""
    HAND_BACK = "hand back"
    """The agent is leaving and gives its tasks to somebody else."""
    LEAVE = "leave"
    """The agent is leaving and its successor on this machine carries on."""


@frozen(kw_only=True)
class Recorded:
    """What `metadata.json` says, as far as steps depend on it."""

    task_id: str
    failed: bool = False
    """Whether it records an error of the agent."""


@frozen(kw_only=True)
class Situation:
    """What is true about one task now, from outside the agent's memory."""

    phase: Phase = Phase.ABSENT
    prepared: bool = False
    """Whether this task's volume is complete."""
    started: bool = False
    """Whether this task's process is known to have been started once."""
    terminated: bool = False
    """Whether the process ended because the agent ended it, though not for anything that the job did."""
    recorded: Recorded | None = None
    cleaned: bool = False
    """Whether neither process, nor volume, nor executor's notes are left."""


class Step(enum.Enum):
    """What to do next."""

    PREPARE = "prepare"
    EXECUTE = "execute"
    WATCH = "watch"
    """Sleep until the process has exited."""
    FINALIZE = "finalize"
    FINALIZE_CANCELLED = "finalize as cancelled"
    TERMINATE = "terminate"
    CLEANUP = "cleanup"
    REPORT = "report"
    """State the recorded end of the task until it is acknowledged."""
    DISCARD = "discard"
    """Remove every trace of the task without a report."""
    FAIL_LOST = "fail as lost"
    """The process was started and is gone."""
    REST = "rest"
    """Leave everything as it is."""


def stage_of(situation: Situation, task_id: str) -> Stage:
    """The executor state that section 5.1 gives to a situation. Metadata of another task counts as none."""
    recorded = situation.recorded
    if recorded is not None and recorded.task_id == task_id:
        return Stage.ERROR if recorded.failed else Stage.FINALIZED
    if situation.phase is Phase.RUNNING:
        return Stage.EXECUTING
    if situation.phase is Phase.EXITED:
        return Stage.EXECUTED
    return Stage.PREPARED if situation.prepared else Stage.UNKNOWN


def _run(situation: Situation, stage: Stage) -> Step:
    if situation.phase is Phase.ABSENT and situation.started:
        return Step.FAIL_LOST
    return {
        Stage.UNKNOWN: Step.PREPARE,
        Stage.PREPARED: Step.EXECUTE,
        Stage.EXECUTING: Step.WATCH,
        Stage.EXECUTED: Step.FINALIZE,
    }[stage]


def next_step(intent: Intent, situation: Situation, task_id: str) -> Step:
    """What to do now with the task `task_id`."""
    stage = stage_of(situation, task_id)
    if intent is Intent.LEAVE:
        return Step.REST
    if intent is Intent.DROP:
        return Step.TERMINATE if situation.phase is Phase.RUNNING else Step.DISCARD
    if intent is Intent.CANCEL and stage is Stage.ERROR:
        return Step.FINALIZE_CANCELLED
    if stage in (Stage.FINALIZED, Stage.ERROR):
        return Step.REPORT if situation.cleaned else Step.CLEANUP
    if intent is Intent.RUN:
        return _run(situation, stage)
    if stage is Stage.EXECUTING:
        return Step.TERMINATE
    if intent is Intent.CANCEL:
        return Step.FINALIZE_CANCELLED
    # HAND_BACK: a job that ended by itself before it could be stopped is worth keeping.
    return Step.FINALIZE if stage is Stage.EXECUTED and not situation.terminated else Step.DISCARD
