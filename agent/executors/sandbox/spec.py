"""What the supervisor of a run is told: command, environment, limits, and the sandbox around them."""

import os
import resource
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from agent.executors.base import OPEN_FILES, PROCESSES, Run
from agent.executors.sandbox import bubblewrap
from agent.executors.sandbox.bubblewrap import Bubblewrap
from agent.executors.sandbox.cgroups import Cgroups
from agent.executors.sandbox.notes import home_of
from agent.executors.sandbox.supervisor import ARGS_FD
from agent.images import ImageTable

NICENESS: Final = 5


@frozen(kw_only=True)
class Setup:
    """How an executor runs jobs: what is the same for all of them."""

    images: ImageTable
    bubblewrap: Bubblewrap | None
    """What makes the sandboxes; None to run plain processes."""
    filter: bytes
    """Of system calls; empty for none."""
    share_network: bool
    """Whether jobs with `Run.network` get the machine's network."""
    sample_seconds: float
    log_bytes: int
    """How much output is kept."""


def specify(setup: Setup, run: Run, cpus: set[int], groups: Cgroups | None) -> dict[str, Any]:
    """What a supervisor has to know, in the types that `marshal` takes; makes the state directory (blocking).

    :param cpus: the only CPUs that the run may use; empty for all.
    :param groups: where the run gets a control group; None to limit it without one.
    """
    run.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (run.state_dir / "lock").open("ab"):
        pass
    command = list(setup.images.command(run.image, run.args))
    spec: dict[str, Any] = {
        "agent": os.getpid(),
        "state_dir": str(run.state_dir.absolute()),
        "isolated": setup.bubblewrap is not None,
        "seconds": run.limits.seconds,
        "memory_bytes": run.limits.memory_bytes,
        "processes": PROCESSES,
        "log_bytes": setup.log_bytes,
        "errors": None if run.errors is None else str(run.errors.absolute()),
        "sample_seconds": setup.sample_seconds,
        "cpus": cpus,
        "nice": NICENESS,
        "rlimits": _rlimits(run, memory=groups is None),
        "groups": {} if groups is None else groups.plan(run.limits, PROCESSES),
        "seccomp": setup.filter,
    }
    if setup.bubblewrap is None:
        home = home_of(run.state_dir)
        home.mkdir(mode=0o700, exist_ok=True)
        env = _environment(run, command[0], str(home)) | {"TMPDIR": str(home)}
        spec |= {"argv": command, "env": env, "directory": str(run.volume.absolute())}
    else:
        counted = groups is not None and "pids" in groups.parents
        spec |= _sandboxed(setup, setup.bubblewrap, run, command if counted else _bounded(command))
    return spec


def _sandboxed(setup: Setup, found: Bubblewrap, run: Run, command: list[str]) -> dict[str, Any]:
    network = run.network and setup.share_network
    for name, content in bubblewrap.stubs_for(network=network).items():
        (run.state_dir / name).write_text(content)
    arguments = found.arguments(
        volume=run.volume.absolute(),
        stubs=run.state_dir.absolute(),
        read=setup.images.find(run.image).paths(),
        env=_environment(run, command[0], bubblewrap.HOME),
        memory_bytes=run.limits.memory_bytes,
        network=network,
        filtered=bool(setup.filter),
    )
    return {
        "argv": [found.path, "--args", str(ARGS_FD), "--", *command],
        "env": {},
        "directory": "/",
        "bubblewrap_args": arguments,
    }


def _environment(run: Run, program: str, home: str) -> dict[str, str]:
    path = f"{Path(program).parent}:/usr/local/bin:/usr/bin:/bin"
    return {"PATH": path, "LANG": "C.UTF-8", **run.env, "HOME": home}


def _rlimits(run: Run, *, memory: bool) -> dict[int, tuple[int, int]]:
    """Limits of each process: no core dumps, open files, the size of a file, and private memory if nobody else does."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: files}
    if memory:
        limits[resource.RLIMIT_DATA] = run.limits.memory_bytes
    if run.limits.disk_bytes is not None:
        limits[resource.RLIMIT_FSIZE] = run.limits.disk_bytes
    return {name: (most, most) for name, most in limits.items()}


def _bounded(command: list[str]) -> list[str]:
    """The command with a bound on processes, set inside the sandbox, where only the job's own are counted.

    The kernel does not apply it to root, whom an agent should not be anyway; the supervisor's look does.
    """
    prlimit = "/usr/bin/prlimit"
    if os.geteuid() == 0 or not os.path.exists(prlimit):
        return command
    return [prlimit, f"--nproc={PROCESSES}", "--", *command]
