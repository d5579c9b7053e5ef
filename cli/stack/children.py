"""Child processes that cannot outlive us: the kernel ends them when we die, however we die."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1


def tie(signum: int) -> Callable[[], None] | None:
    """What a child must call before it becomes its program, so that it gets `signum` when we die.

    The kernel watches the *thread* that started the child: start children from a thread that lives as long as
    the program: the loop's, in a program on asyncio. None where the kernel has no such thing (not Linux).
    """
    if sys.platform != "linux":
        return None
    # Loaded here and not in the child: between fork and exec as little as possible should happen.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)  # we died before the kernel was told

    return before_exec


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    output: IO[bytes] | int,
    on_our_death: int = signal.SIGKILL,
    cwd: Path | None = None,
    uid: int | None = None,
    gid: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child in a process group of its own (Ctrl-C is ours alone), with nothing on its stdin.

    :param output: where stdout and stderr go.
    :param on_our_death: the signal it gets when this thread ends.
    :param uid: run as this user (root only).
    :raises OSError: it could not be started.
    """
    return subprocess.Popen(
        argv,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        process_group=0,
        user=uid,
        group=gid,
        extra_groups=None if uid is None else [],
        preexec_fn=tie(on_our_death),  # noqa: PLW1509  prepared above; only a system call is left for the child
    )


def signal_group(process: subprocess.Popen[bytes], signum: int) -> None:
    """Send `signum` to the child's whole group, if anything of it is left."""
    try:
        os.killpg(process.pid, signum)
    except ProcessLookupError:
        return
    except PermissionError:
        # macOS says so for a group of which only a zombie is left.
        return
