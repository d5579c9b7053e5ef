"""What `sbatch` is told: options and the batch script of a run. Pure.

Neither has anything of the job's environment or arguments: those go through a file that only the node's own
process reads (`notes`). All of this is visible to whoever may ask the cluster.
"""

import math
import shlex
from pathlib import Path
from typing import Final

from agent.executors.base import Limits, Run
from agent.executors.slurm.options import Options

SUPERVISOR_MIB: Final = 48
"""Memory beyond the job's own limit, for the supervisor and the sandbox: the job meets its own limit first."""
GRACE_SECONDS: Final = 120
"""Time beyond the job's own limit, which the supervisor keeps to the second; Slurm counts in minutes."""
_MIB: Final = 1 << 20
_ROOT: Final = Path(__file__).parents[3]
_IMPORT: Final = "import sys; sys.path.insert(0, sys.argv[1]); from agent.executors.slurm import node; "
RUN_BOOTSTRAP: Final = _IMPORT + "node.run(sys.argv[2])"
PROBE_BOOTSTRAP: Final = _IMPORT + "node.probe(sys.argv[2])"


def name_of(run: Run) -> str:
    """The job's name (reference section 5.5)."""
    return f"os-job-{run.job_id}"


def mark_of(run: Run, nonce: str) -> str:
    """The comment by which a submission is found again whose answer was lost."""
    return f"rap {run.task_id} {nonce}"


def arguments(run: Run, options: Options, mark: str) -> list[str]:
    """The options of `sbatch` for a run; the script comes through standard input."""
    return [
        *options.placing(),
        *requests(run.limits),
        f"--job-name={name_of(run)}",
        f"--comment={mark}",
        f"--output={escape(run.state_dir.absolute() / 'batch.log')}",
        "--open-mode=append",
    ]


def requests(limits: Limits) -> list[str]:
    """The job's limits as Slurm counts them: whole CPUs, MiB, minutes; none smaller than what was asked."""
    wanted = [
        f"--cpus-per-task={max(1, math.ceil(limits.cpu_count))}",
        f"--mem={math.ceil(limits.memory_bytes / _MIB) + SUPERVISOR_MIB}M",
    ]
    if limits.seconds is not None:
        wanted.append(f"--time={minutes(limits.seconds)}")
    return wanted


def minutes(seconds: float) -> int:
    """Slurm's time limit for a job that may run so long."""
    return math.ceil((seconds + GRACE_SECONDS) / 60)


def script(python: str, bootstrap: str, folder: Path) -> str:
    """A batch script that becomes our process on the node."""
    command = [python, "-I", "-S", "-c", bootstrap, str(_ROOT), str(folder.absolute())]
    return f"#!/bin/sh\nexec {shlex.join(command)}\n"


def escape(path: Path) -> str:
    """A path in which Slurm replaces nothing: it doubles `%`, and a backslash would switch replacing off."""
    return str(path).replace("%", "%%")
