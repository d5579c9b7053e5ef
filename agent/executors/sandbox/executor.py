"""Jobs as processes of this machine: in a bubblewrap sandbox, or bare where the operator allows that.

Every run has a supervisor of its own (`supervisor`) that is nobody's child and outlives the agent, and a directory of
notes (`notes`). This class holds nothing that it could not read again.

What a job may use: memory, CPU and processes by a control group of its own where this machine lets the agent have
one (`cgroups`). Elsewhere memory by RLIMIT_DATA for each process at once and by the supervisor's look at the whole
tree every `sample_seconds`, which also bounds the number of processes. With both: affinity to `ceil(cpu_count)` CPUs,
by which programs choose how many threads to start, a lower priority, and RLIMIT_FSIZE.

The log keeps the first `log_bytes` of the output; what comes after is dropped as the supervisor notices.
"""

import asyncio
import contextlib
import marshal
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from agent.executors.base import ExecutorError, Exit, Phase, Run, Status, Unusable
from agent.executors.sandbox import bubblewrap, cgroups, seccomp
from agent.executors.sandbox.bubblewrap import Bubblewrap
from agent.executors.sandbox.cgroups import Cgroups
from agent.executors.sandbox.notes import Notes
from agent.executors.sandbox.spec import Setup, specify
from agent.images import ImageTable
from common.protocol import OnLoss

ALLOW_SETTING = "RAP_ALLOW_UNISOLATED"
ROOT = Path(__file__).parents[3]
BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[1]); from agent.executors.sandbox import supervisor; supervisor.launch()"
)
TERMINATE_SECONDS = 10.0
"""How long the supervisor may take to end its run before it is ended itself."""

log = structlog.get_logger()


class SandboxExecutor:
    """The executor `sandbox`.

    :param images: which interpreter stands for which image.
    :param allow_unisolated: run jobs as plain processes where bubblewrap is missing or does not work.
    :param bubblewrap_path: the program; None to do without on purpose (needs `allow_unisolated`).
    :param share_network: give jobs with `Run.network` the machine's network. Without it they have none either.
    :param groups: limits by control groups: `auto`, `off`, or the group that shall hold those of the runs.
    :param filter_calls: a filter of system calls: `auto`, `required` or `off`.
    :param sample_seconds: how often a supervisor looks at its run.
    :param log_bytes: how much output is kept.
    """

    name = "sandbox"
    on_loss = OnLoss.RETRY

    def __init__(
        self,
        images: ImageTable,
        *,
        allow_unisolated: bool = False,
        bubblewrap_path: str | None = "bwrap",
        share_network: bool = False,
        groups: str = cgroups.AUTO,
        filter_calls: str = seccomp.AUTO,
        sample_seconds: float = 1.0,
        log_bytes: int = 1 << 30,
    ) -> None:
        self._images = images
        self._allow_unisolated = allow_unisolated
        self._bubblewrap_path = bubblewrap_path
        self._share_network = share_network
        self._groups_setting = groups
        self._filter_setting = filter_calls
        self._sample_seconds = sample_seconds
        self._log_bytes = log_bytes
        self._checked = False
        self._checking = asyncio.Lock()
        self._bubblewrap: Bubblewrap | None = None
        self._groups: Cgroups | None = None
        self._filter = b""
        self._lacks: dict[str, str] = {}
        # Who was given which CPUs: a hint for spreading, not a reservation, so losing it costs nothing.
        self._cpus: dict[str, set[int]] = {}

    @property
    def bubblewrap(self) -> Bubblewrap | None:
        """The bubblewrap that makes the sandboxes; known after `check`."""
        return self._bubblewrap

    @property
    def isolated(self) -> bool:
        """Whether jobs run in a sandbox; known after `check`."""
        return self._bubblewrap is not None

    def describe(self) -> str:
        """How jobs are kept apart and limited here, in a line for operators; known after `check`."""
        shell = "a bubblewrap sandbox" if self.isolated else "no isolation"
        lacks = {name: f"none ({reason})" for name, reason in self._lacks.items()}
        calls = "libseccomp" if self._filter else lacks.get("filter", "none")
        limits = str(self._groups) if self._groups else f"rlimits ({self._lacks.get('groups', 'no cgroups')})"
        return f"{shell}; filter of system calls: {calls}; limits: {limits}"

    async def check(self) -> None:
        """Make a sandbox for real, with the filter and the limits that jobs get.

        :raises Unusable: there cannot be one, and bare processes are not allowed; or a setting cannot be kept.
        """
        async with self._checking:
            if self._checked:
                return
            try:
                self._bubblewrap = await self._probe()
            except Unusable as reason:
                if not self._allow_unisolated:
                    raise
                log.warning("jobs run without isolation", reason=str(reason), setting=ALLOW_SETTING)
            await asyncio.to_thread(self._find_filter)
            await asyncio.to_thread(self._find_groups)
            log.info("sandbox_checked", description=self.describe())
            self._checked = True

    def _find_filter(self) -> None:
        """Make the filter of system calls (blocking).

        :raises Unusable: there is none, and there has to be.
        """
        if self._bubblewrap is None:
            if self._filter_setting == seccomp.REQUIRED:
                raise Unusable(f"{seccomp.SETTING} is {seccomp.REQUIRED}, but jobs run without a sandbox to filter in")
            return
        self._filter, lack = self._bubblewrap.find_filter(self._filter_setting)
        if lack:
            self._lacks["filter"] = lack
            if self._filter_setting != seccomp.OFF:
                log.warning("jobs run without a filter of system calls", reason=lack, setting=seccomp.SETTING)

    def _find_groups(self) -> None:
        """Find where runs get control groups, and remove those of runs that are no more (blocking).

        :raises Unusable: the group that an operator chose cannot hold them.
        """
        if self._groups_setting == cgroups.OFF:
            self._lacks["groups"] = f"{cgroups.SETTING} is {cgroups.OFF}"
            return
        try:
            self._groups = cgroups.find(self._groups_setting)
        except Unusable as reason:
            if self._groups_setting != cgroups.AUTO:
                raise Unusable(f"{reason} ({cgroups.SETTING} is {self._groups_setting})") from reason
            self._lacks["groups"] = str(reason)
        else:
            for name in self._groups.sweep():
                log.warning("removed the control group of a run that is no more", group=name)

    async def _probe(self) -> Bubblewrap:
        try:
            return await asyncio.to_thread(bubblewrap.find, self._bubblewrap_path)
        except Unusable as reason:
            advice = f"set {ALLOW_SETTING}=true to run jobs as plain processes, with no isolation at all"
            raise Unusable(f"{reason}; or {advice}") from reason

    async def prepare(self, run: Run) -> None:
        """Find the interpreter.

        :raises ExecutorError: the image is unknown, its program is missing, or the environment is malformed.
        """
        program = self._images.find(run.image).command[0]
        if not await asyncio.to_thread(os.access, program, os.X_OK):
            raise ExecutorError(f"The program for image '{run.image}', {program}, cannot be run", fatal=False)
        for name, value in run.env.items():
            if not name or "=" in name or "\0" in name + value:
                raise ExecutorError(f"Environment variable {name!r} has a malformed name or value", fatal=True)
        if any("\0" in argument for argument in run.args):
            raise ExecutorError("An argument of the command contains a NUL character", fatal=True)

    async def execute(self, run: Run) -> None:
        """Start the supervisor; return when the job is under way.

        :raises ExecutorError: it could not be started.
        """
        await self.check()
        await self.prepare(run)
        if (await self.status(run)).phase is not Phase.ABSENT:
            return
        cpus = self._choose_cpus(run)
        await asyncio.to_thread(self._launch, run, cpus)

    def _launch(self, run: Run, cpus: set[int]) -> None:
        """Start the supervisor and wait until it says that the job is started (blocking)."""
        try:
            spec_fd = self._write_spec(run, cpus)
            try:
                launcher = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", BOOTSTRAP, str(ROOT), str(run.state_dir)],
                    stdin=spec_fd,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env={"LC_CTYPE": "C.UTF-8"},
                    start_new_session=True,
                )
            finally:
                os.close(spec_fd)
        except OSError as error:
            raise ExecutorError(f"cannot start a job: {error}", fatal=False) from error
        if self._groups is not None:
            self._groups.hurry()
        said = launcher.communicate()[1].decode(errors="replace").strip()
        if launcher.returncode != 0:
            raise ExecutorError(f"cannot start a job: {said or f'exit code {launcher.returncode}'}", fatal=False)

    def _write_spec(self, run: Run, cpus: set[int]) -> int:
        """The supervisor's specification, as an anonymous file at its start."""
        spec = self.specify(run, cpus, self._groups)
        fd = os.memfd_create("run")
        with open(fd, "wb", closefd=False) as file:
            marshal.dump(spec, file)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def specify(self, run: Run, cpus: set[int], groups: Cgroups | None = None) -> dict[str, Any]:
        """What a supervisor has to know, in the types that `marshal` takes; makes the state directory (blocking).

        :param cpus: the only CPUs that the run may use; empty for all.
        :param groups: where the run gets a control group; None to limit it without one.
        """
        setup = Setup(
            images=self._images,
            bubblewrap=self._bubblewrap,
            filter=self._filter,
            share_network=self._share_network,
            sample_seconds=self._sample_seconds,
            log_bytes=self._log_bytes,
        )
        return specify(setup, run, cpus, groups)

    def _choose_cpus(self, run: Run) -> set[int]:
        """The CPUs that fewest of our runs were given; empty for all there are."""
        there = os.sched_getaffinity(0)
        wanted = max(1, math.ceil(run.limits.cpu_count))
        if wanted >= len(there):
            return set()
        load = Counter(cpu for cpus in self._cpus.values() for cpu in cpus)
        chosen = set(sorted(there, key=lambda cpu: (load[cpu], cpu))[:wanted])
        self._cpus[run.task_id] = chosen
        return chosen

    async def status(self, run: Run) -> Status:
        """The run's phase, from its notes and the kernel."""
        return await asyncio.to_thread(Notes(run.state_dir).status)

    async def wait(self, run: Run) -> Exit:
        """Sleep until the supervisor has ended: the kernel says so through a pidfd, to any process.

        :raises ExecutorError: the run is absent.
        """
        notes = Notes(run.state_dir)
        status = await asyncio.to_thread(notes.status)
        if status.phase is Phase.RUNNING:
            if (fd := await asyncio.to_thread(_open_supervisor, notes)) is not None:
                await _readable(fd)
            status = await asyncio.to_thread(notes.status)
        if status.exit is None:
            raise ExecutorError(f"Task {run.task_id} is not there to wait for", fatal=False)
        self._cpus.pop(run.task_id, None)
        return status.exit

    async def terminate(self, run: Run) -> None:
        """Tell the supervisor to end everything, and return when it has."""
        notes = Notes(run.state_dir)
        fd = await asyncio.to_thread(_request_end, notes)
        if fd is None:
            return
        try:
            await asyncio.wait_for(_readable(os.dup(fd)), TERMINATE_SECONDS)
        except TimeoutError:
            # Stopped, or worse. Its sandbox dies with it; of a bare run the next line ends what is left.
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            await _readable(os.dup(fd))
        finally:
            os.close(fd)
        await asyncio.to_thread(notes.status)

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes of the combined output from byte `offset`."""
        limit = min(limit, self._log_bytes - offset)
        return await asyncio.to_thread(Notes(run.state_dir).log, offset, limit) if limit > 0 else b""

    async def sample(self, run: Run) -> Mapping[str, float]:
        """The four metrics, as the supervisor saw them last."""
        return await asyncio.to_thread(Notes(run.state_dir).metrics)

    async def cleanup(self, run: Run) -> None:
        """End the run if need be, and remove its notes."""
        await self.terminate(run)
        await asyncio.to_thread(Notes(run.state_dir).forget)
        self._cpus.pop(run.task_id, None)

    async def close(self) -> None:
        """Nothing to let go of: supervisors are on their own."""


def _request_end(notes: Notes) -> int | None:
    """Ask the supervisor to end its run; its pidfd, or None if nothing runs (blocking)."""
    with notes.locked():  # a launcher on its way has either written `started` or will never start
        fd = _open_supervisor(notes)
    if fd is None or (notes.directory / "exit.json").exists():
        if fd is not None:
            os.close(fd)
        return None
    (notes.directory / "terminate").touch()
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(fd, signal.SIGTERM)
    return fd


def _open_supervisor(notes: Notes) -> int | None:
    """A pidfd of the living supervisor, if there is one (blocking)."""
    started = notes.started()
    return None if started is None else started.open_supervisor()


async def _readable(fd: int) -> None:
    """Sleep until `fd` can be read, then close it."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
