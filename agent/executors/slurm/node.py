"""What runs on the node: the batch script of a run becomes its supervisor.

Started as `python -I -S -c ...` by the batch script, so like `supervisor` it imports nothing that is slow and nothing
outside the standard library; the packages around both are empty. What it leaves in the run's state directory is what a
supervisor leaves, and:

- `spec`: what to run, environment included. Whoever renames it owns the run: one job of the cluster, so that of two
  submissions one runs; or the agent, which thereby withdraws it. It is removed before the job starts.
- `node.json`: the number of the cluster's job and the node.
- `stopped.json` instead of `exit.json`: somebody else than the agent ended the run (a limit of Slurm's, a preemption,
  an administrator); Slurm knows why.
"""

import _signal  # type: ignore[import-not-found]  # as in `supervisor`: the other half costs 4 ms of `enum`
import marshal
import os
import resource
import subprocess

from agent.executors import processes
from agent.executors.sandbox import supervisor

TYPE_CHECKING = False  # as in `supervisor`
if TYPE_CHECKING:
    from typing import Any

KILLED = (128 + 9, 128 + 15)
PROBE_SECONDS = 30


class SupervisedOnNode(supervisor.Supervised):
    """The run of this node: as on any machine, and Slurm may end it as well."""

    def __init__(self, spec: "dict[str, Any]") -> None:
        super().__init__(spec)
        self.ooms = oom_kills()

    def watch(self) -> None:
        """Sleep until the job ends, or has to; if we are root, woken before any process of the job."""
        come_first()
        super().watch()

    def kill(self) -> None:
        """End every process of the run; first the sandbox itself, with which all others end, however many."""
        if self.job:
            os.kill(self.job, _signal.SIGKILL)
        super().kill()

    def _exceeds(self) -> bool:
        # The signal comes through slurmctld, which may be away; this file does not.
        if os.path.exists("terminate"):
            self.flags["terminated"] = True
            return True
        return super()._exceeds()

    def finish(self) -> None:
        """The last word; `stopped.json` if the end was not the job's, the agent's or the supervisor's doing."""
        self.kill()
        code = os.waitstatus_to_exitcode(self.wait_status)
        killed = abs(code) in (9, 15, *KILLED)
        if not (self.flags["terminated"] or self.flags["timed_out"] or self.flags["oom_killed"]):
            # Slurm signals every process of a job: ours may get it after the job has died of its own.
            late = _signal.sigtimedwait((_signal.SIGTERM,), 0.2 if killed and not self.signalled else 0)
            if killed and oom_kills() > self.ooms:
                self.flags["oom_killed"] = True
            elif self.signalled or late is not None:
                self.exit_name = "stopped.json"
        super().finish()


def come_first() -> bool:
    """Let the kernel prefer this process to all ordinary ones; False if it does not.

    Root's processes have no bound that the kernel keeps, unless by control groups, which are Slurm's here. Beside ten
    thousand of them a process like any other would come too late, or never. Whoever is not root may not be preferred,
    but has that bound.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return False
    return True


def run(state_dir: str) -> None:
    """Own the run, if it is still to be had, and supervise it to its end."""
    os.closerange(3, 256)
    try:
        os.chdir(state_dir)
        spec = claim()
    except FileNotFoundError:
        return  # withdrawn, forgotten, or another submission's
    run = None
    try:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, supervisor.BLOCKED)
        spec["rlimits"] = {name: _possible(name, most) for name, (_, most) in spec["rlimits"].items()}
        run = SupervisedOnNode(spec)
        # Nobody else can start this run, so the lock and the answer of a launcher lead nowhere.
        run.start(os.memfd_create("lock"), os.open("/dev/null", os.O_WRONLY))
        run.watch()
        run.finish()
    except BaseException as error:  # the batch log is where the agent looks for the reason
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        if run is not None and run.under_way:
            run.kill()
            processes.replace("fault", f"{type(error).__name__}: {error}".encode())
        os._exit(1)


def claim() -> "dict[str, Any]":
    """Take the specification away from everybody else.

    :raises FileNotFoundError: somebody else has.
    """
    job = os.environ.get("SLURM_JOB_ID", "0")
    mine = f"spec.{job}"
    try:
        os.rename("spec", mine)
    except FileNotFoundError:
        # Over NFS a rename whose answer was lost is sent again, and fails although it was done.
        if not os.path.exists(mine):
            raise
    fd = os.open(mine, os.O_RDONLY)
    spec: dict[str, Any] = marshal.loads(processes.read(fd))  # noqa: S302  # the agent's file, readable by us only
    os.close(fd)
    node = {"slurm_job_id": int(job), "node": os.environ.get("SLURMD_NODENAME", "")}
    processes.replace("node.json", processes.encode(node), durable=True)
    os.unlink(mine)
    return spec


def oom_kills(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> int:
    """How many processes the kernel has killed in this process's cgroup for want of memory; 0 if nobody counts."""
    try:
        lines = processes.slurp(own).decode().splitlines()
    except OSError:
        return 0
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            counter = f"{root}{path}/memory.events"
        elif "memory" in controllers.split(","):
            counter = f"{root}/memory{path}/memory.oom_control"
        else:
            continue
        try:
            for count in processes.slurp(counter).decode().splitlines():
                if count.startswith("oom_kill "):
                    return int(count.split()[1])
        except OSError:
            continue
    return 0


def probe(folder: str) -> None:
    """Answer the agent's questions about this node: do I see its folders, can I make a sandbox?"""
    os.chdir(folder)
    with open("question", "rb") as file:
        question = marshal.loads(file.read())  # noqa: S302  # from our own agent
    unseen = [path for path in question["seen"] if not os.path.exists(path)]
    unrun = ""
    if question["sandbox"]:
        try:
            done = subprocess.run(question["sandbox"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, env={}, timeout=PROBE_SECONDS, check=False)  # fmt: skip
            unrun = done.stdout.decode(errors="replace").strip() or f"exit code {done.returncode}"
            unrun = unrun if done.returncode else ""
        except (OSError, subprocess.SubprocessError) as error:
            unrun = str(error)
    answer = {"node": os.environ.get("SLURMD_NODENAME", ""), "unseen": unseen, "unrun": unrun}
    with open("answer.tmp", "wb") as file:
        file.write(marshal.dumps(answer))
    os.rename("answer.tmp", "answer")


def _possible(name: int, most: int) -> "tuple[int, int]":
    """A limit of at most `most` that an ordinary process of this node may set."""
    _, hard = resource.getrlimit(name)
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    return value, value
