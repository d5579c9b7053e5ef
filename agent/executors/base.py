"""The contract of an executor: what actually runs a job's process, and nothing else.

The agent's loop owns the volume (checkout, inputs, outputs); an executor owns one process tree per task attempt.
Every method is idempotent, and everything an executor knows is re-read from outside the agent's memory (its
`state_dir`, the engine), so an agent that was killed finds its jobs again.

One contract suite (tests/agent/executors) runs on every executor.
"""

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from attrs import field, frozen

from common.protocol import OnLoss

HOME: Final = {"HOME": "/tmp"}  # noqa: S108  the run's own /tmp, which nobody else sees (reference section 5.5)
"""What every run's environment begins with."""
PROCESSES: Final = 1024
"""How many processes and threads one job may have; of a bare one only processes are counted."""
OPEN_FILES: Final = 4096
"""How many files each of them may have open."""


class ExecutorError(Exception):
    """The executor cannot do what it was asked; the text is for the researcher or operator who reads it.

    :param fatal: True if trying again cannot help (unknown image, malformed limit): the job fails with the text.
        False for the machine's troubles (disk, engine away): worth another attempt.
    """

    def __init__(self, message: str, *, fatal: bool) -> None:
        super().__init__(message)
        self.fatal = fatal


class Unusable(Exception):
    """The executor cannot work on this machine; the text says why and names the setting to change."""


@frozen(kw_only=True)
class Limits:
    """What one job may use."""

    cpu_count: float
    memory_bytes: int
    seconds: float | None = None
    """Wall-clock limit; None for no limit."""
    disk_bytes: int | None = None
    """Most bytes the job may write into its volume; None for no limit."""


@frozen(kw_only=True)
class Run:
    """One attempt at one job, as an executor needs to know it."""

    task_id: str
    job_id: str
    workspace: str
    action: str
    image: str
    """As the task names it, e.g. `ghcr.io/opensafely-core/python:v2` or `python:v2`."""
    image_sha: str | None
    args: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    """The job's whole environment, secrets and TRACEPARENT included; never on a command line, never in a log."""
    volume: Path
    """The job's own copy of its files: its working directory, seen inside as /workspace where that is possible."""
    state_dir: Path
    """The executor's own notes on this attempt (log, pid, exit); outlives the agent, removed by `cleanup`."""
    limits: Limits
    network: bool = False
    """Whether the job may reach the database network."""
    errors: Path | None = None
    """A file that takes the standard error, which then is no part of the log; None: the log has both in their order.
    An executor that cannot tell them apart leaves it alone."""


class Phase(enum.StrEnum):
    """Where a run is."""

    ABSENT = "absent"
    """Never started, or cleaned up."""
    RUNNING = "running"
    EXITED = "exited"


@frozen(kw_only=True)
class Exit:
    """How a run ended."""

    code: int
    """The exit code; 128 + signal number if a signal ended it."""
    started_at_ns: int
    finished_at_ns: int
    oom_killed: bool = False
    timed_out: bool = False
    terminated: bool = False
    """Whether `terminate` ended it."""
    lost: str | None = None
    """Set if this was no end of the job's own making: why the engine or the machine failed it. Worth a new attempt."""
    image_id: str | None = None
    labels: Mapping[str, str] = field(factory=dict)
    """The image's labels, if it has any (reference section 5.2)."""
    metrics: Mapping[str, float] = field(factory=dict)
    """`cpu_mean`, `cpu_peak` (percent of one CPU), `mem_mb_mean`, `mem_mb_peak` (MiB) over the whole run."""
    metadata: Mapping[str, object] = field(factory=dict)
    """What the engine says about the run, environment redacted (reference section 5.5)."""


@frozen(kw_only=True)
class Status:
    """What is true now."""

    phase: Phase
    started_at_ns: int | None = None
    exit: Exit | None = None
    """Set if and only if `phase` is EXITED."""


class Executor(Protocol):
    """What every executor does."""

    name: str
    on_loss: OnLoss
    """Whether a job may run elsewhere once the agent that ran it here is lost."""

    async def check(self) -> None:
        """Whether this executor works on this machine.

        :raises Unusable: why not.
        """
        ...

    async def prepare(self, run: Run) -> None:
        """Make everything ready that can be slow (find or pull the image), so that `execute` is quick.

        :raises ExecutorError: the image is unknown, or cannot be had now.
        """
        ...

    async def execute(self, run: Run) -> None:
        """Start the process; return as soon as it is under way. Started or exited already: do nothing.

        :raises ExecutorError: it could not be started.
        """
        ...

    async def status(self, run: Run) -> Status:
        """The run's phase, from outside the agent's memory."""
        ...

    async def wait(self, run: Run) -> Exit:
        """Sleep until the run has exited (woken by the engine or the kernel, not by polling).

        :raises ExecutorError: the run is absent.
        """
        ...

    async def terminate(self, run: Run) -> None:
        """End the whole process tree now. Exited or absent already: do nothing."""
        ...

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes of the combined output from byte `offset`; empty if there is no more (yet)."""
        ...

    async def sample(self, run: Run) -> Mapping[str, float]:
        """The four metrics of `Exit.metrics` so far; empty if nothing is known (yet)."""
        ...

    async def cleanup(self, run: Run) -> None:
        """Forget the run: no process, no state_dir. Absent already: do nothing."""
        ...

    async def close(self) -> None:
        """Let go of what the executor itself holds; running jobs carry on."""
        ...


@runtime_checkable
class Isolating(Protocol):
    """An executor that may have to do without isolation where the operator allows that."""

    @property
    def isolated(self) -> bool:
        """Whether jobs are isolated; known after `check`."""
        ...


@runtime_checkable
class Layered(Protocol):
    """An executor whose runs can write to a disk of the engine's, outside volume and state directory."""

    async def layer_bytes(self, run: Run) -> int:
        """Bytes that the run has written there; 0 if that cannot be told.

        :raises ExecutorError: the engine cannot be asked now.
        """
        ...
