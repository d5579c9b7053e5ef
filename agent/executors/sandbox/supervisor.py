"""The small process that outlives the agent and owns one run: it starts it, limits it, and says how it ended.

The agent starts it as `python -I -S -c ...` (see `executor`), so it imports nothing that is slow:
no `json`, no `signal` (4 ms of `enum`), nothing outside the standard library. The specification of the run comes
through descriptor 0, an anonymous file of `marshal` data: the environment never touches a command line or a disk.

Files, all in the run's state directory:

- `lock`: held (`flock`) from the first look until `started` is written. Whoever starts, ends or forgets a run that
  has no `started` holds it, so of two launchers one starts the job and the other sees that it has been started.
- `started`: who supervises. The job itself waits at a gate (a pipe) that opens after this file is on disk; if the
  supervisor dies before that, the gate breaks and the job never begins. So: no `started`, no job, ever.
- `cgroups`: where the run's control groups are (see `run_group`), while there are any.
- `metrics.json`: the latest sample; `terminate`: the agent asked for the end; `log`: the combined output.
- `exit.json`: how it ended, written when no process of the run is left. Its space is reserved before the job
  starts, so a job that fills the disk is still reported.
"""

import _signal  # type: ignore[import-not-found]  # the C half of `signal`: the other half costs 4 ms of `enum`
import fcntl
import marshal
import os
import resource
import time

from agent.executors.processes import (
    become_subreaper,
    boot_id,
    descendants,
    encode,
    guard_devices,
    proportional,
    read,
    replace,
    start_ticks,
    stat,
    write,
)
from agent.executors.sandbox.run_group import RunGroup

TYPE_CHECKING = False  # `typing` is slow, too; type checkers take the name for what it says
if TYPE_CHECKING:
    from typing import Any, NoReturn

ARGS_FD = 3
"""Where bubblewrap reads its options, environment included."""
STATUS_FD = 4
"""Where bubblewrap says whether the command was started at all."""
SECCOMP_FD = 5
"""Where bubblewrap reads the filter of system calls, if there is one."""
ENGINE_FAILED = 125
"""The exit code of a sandbox that could not be made (Docker's choice, too)."""
AGENT_GONE = 3
"""The launcher's own exit code when nobody waits for it any more."""
MIB = 1024 * 1024
BLOCKED = (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP)
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


def launch() -> "NoReturn":
    """The agent's direct child: fork the supervisor, leave when the job is under way or cannot be."""
    spec = marshal.loads(read(0))  # noqa: S302  # from our own agent, through an anonymous file
    os.chdir(spec["state_dir"])
    lock = os.open("lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    if os.fstat(lock).st_nlink == 0 or os.getppid() != spec["agent"]:
        os._exit(AGENT_GONE)
    if os.path.exists("started") or os.path.exists("exit.json"):
        os._exit(0)
    answer, ready = os.pipe()
    if os.fork() == 0:
        os.close(answer)
        _supervise(spec, lock, ready)
    os.close(ready)
    said = read(answer)
    if said == b"ok":
        os._exit(0)
    os.write(2, said or b"the supervisor died")
    os._exit(1)


def _supervise(spec: "dict[str, Any]", lock: int, ready: int) -> "NoReturn":
    run = None
    try:
        quiet = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(quiet, fd)
        _signal.pthread_sigmask(_signal.SIG_BLOCK, BLOCKED)
        run = Supervised(spec)
        run.start(lock, ready)
        run.watch()
        run.finish()
    except BaseException as error:  # the last thing this process can do is say why
        reason = f"{type(error).__name__}: {error}".encode()
        if run is None or not run.under_way:
            if run is not None and run.group is not None:
                run.group.remove()
            os.write(ready, reason)
        else:
            run.kill()
            replace("fault", reason)
    os._exit(0)


class Supervised:
    """The one run of this process."""

    def __init__(self, spec: "dict[str, Any]") -> None:
        self.spec = spec
        self.under_way = False
        self.meter = Meter(spec["sample_seconds"])
        self.group = RunGroup(spec["groups"]) if spec["groups"] else None
        self.job = 0
        self.wait_status = 0
        self.flags = {"oom_killed": False, "timed_out": False, "terminated": False, "log_truncated": False}
        self.signalled = False
        """Whether anybody asked for the end, be it the agent or another."""
        self.exit_name = "exit.json"
        self.exit_fd = -1
        self.status_fd = -1

    def start(self, lock: int, ready: int) -> None:
        """Fork the job up to its gate, write down that it is started, open the gate."""
        spec = self.spec
        self.exit_fd = os.open("exit.tmp", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.posix_fallocate(self.exit_fd, 0, 4096)
        become_subreaper()
        if self.group is not None:
            self.group.make()
        if spec["isolated"]:
            self.status_fd = os.memfd_create("status")
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        errors = log
        if spec["errors"] is not None:
            errors = os.open(spec["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        gate, opener = os.pipe()
        self.job = os.fork()
        if self.job == 0:
            os.close(opener)
            os.close(lock)
            os.close(ready)
            _become_job(spec, self.group, gate, (log, errors), self.status_fd)
        os.close(gate)
        for output in {log, errors}:
            os.close(output)
        self.started_at_ns = time.time_ns()
        me = os.getpid()
        replace("started", encode({
            "supervisor": me,
            "supervisor_start": start_ticks(me),
            "job": self.job,
            "job_start": start_ticks(self.job),
            "boot_id": boot_id(),
            "at_ns": self.started_at_ns,
        }), durable=True)  # fmt: skip
        self.under_way = True
        os.write(opener, b"!")
        os.close(opener)
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)
        os.write(ready, b"ok")
        os.close(ready)

    def watch(self) -> None:
        """Sleep until the job ends, or has to."""
        limit = self.spec["seconds"]
        deadline = None if limit is None else self.meter.began + limit
        while True:
            now = time.monotonic()
            wake = self.meter.due if deadline is None else min(self.meter.due, deadline)
            info = _signal.sigtimedwait((_signal.SIGCHLD, _signal.SIGTERM), max(0.0, wake - now))
            asked = info is not None and info.si_signo == _signal.SIGTERM
            self.signalled = self.signalled or asked
            if self._reap():
                return
            if asked:
                self.flags["terminated"] = os.path.exists("terminate")
                break
            if deadline is not None and time.monotonic() >= deadline:
                self.flags["timed_out"] = True
                break
            if time.monotonic() >= self.meter.due and self._exceeds():
                break
        self.kill()

    def _exceeds(self) -> bool:
        """Take a sample; whether the run uses more than it may."""
        bounded = self.group is not None and "pids" in self.group.paths
        used = None if self.group is None else self.group.usage()
        tree = [] if used is not None and bounded else descendants()
        resident = self.meter.sample(*(used or tree_usage(tree, self.meter.reaped_cpu)))
        try:
            replace("metrics.json", encode(self.meter.metrics()))
            for output in ("log", self.spec["errors"]):
                if output is not None and os.stat(output).st_size > self.spec["log_bytes"]:
                    os.truncate(output, self.spec["log_bytes"])
                    self.flags["log_truncated"] = True
        except OSError:
            pass  # a full disk costs a sample, never the job
        if not bounded and len(tree) > self.spec["processes"]:
            return True  # at once: to look at the memory of so many takes seconds
        self.flags["oom_killed"] = self._is_out_of_memory(tree, resident)
        return self.flags["oom_killed"]

    def _is_out_of_memory(self, tree: "list[int]", resident: int) -> bool:
        if self.group is not None:
            # Of cgroups v1 the kernel ends one process only: a run without it is a run that failed.
            return self.group.ooms() > 0
        memory = self.spec["memory_bytes"]
        # Resident pages that processes share are counted once for each: only the proportional share convicts.
        return bool(resident > memory and proportional(tree, resident) > memory)

    def _reap(self) -> bool:
        """Collect who has ended; whether the job is among them."""
        ended = False
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            self.meter.add(usage)
            if pid == self.job:
                self.wait_status, ended = status, True
                self.job = 0

    def kill(self) -> None:
        """End every process of the run, and return when the kernel has none left.

        As a subreaper this process inherits every orphan, daemons included. Isolated, the first to die is the
        sandbox's init, and the kernel ends the rest of its namespace.
        """
        if self.group is not None:
            self.group.kill()
        while True:
            for pid in descendants():
                try:
                    os.kill(pid, _signal.SIGKILL)
                except ProcessLookupError:
                    continue
            try:
                pid, status, usage = os.wait4(-1, 0)
            except ChildProcessError:
                return
            self.meter.add(usage)
            if pid == self.job:
                self.wait_status = status
                self.job = 0

    def finish(self) -> None:
        """Write exit.json once nothing of the run is left."""
        self.kill()
        if self.group is not None:
            self._close_group(self.group)
        code = os.waitstatus_to_exitcode(self.wait_status)
        code = 128 - code if code < 0 else code
        engine_failed = False
        if self.status_fd >= 0 and os.WIFEXITED(self.wait_status):
            engine_failed = b'"exit-code"' not in os.pread(self.status_fd, 4096, 0)
        self.meter.end()
        outcome = {
            "code": ENGINE_FAILED if engine_failed else code,
            "engine_failed": engine_failed,
            "started_at_ns": self.started_at_ns,
            "finished_at_ns": time.time_ns(),
            "cpu_seconds": round(self.meter.reaped_cpu, 6),
            "max_rss_bytes": self.meter.max_rss,
            **self.flags,
            **self.meter.metrics(),
        }
        text = encode(outcome)
        os.pwrite(self.exit_fd, text, 0)
        os.ftruncate(self.exit_fd, len(text))
        os.fsync(self.exit_fd)
        os.rename("exit.tmp", self.exit_name)

    def _close_group(self, group: RunGroup) -> None:
        """The kernel's account of the whole run, and the end of its group."""
        used = group.usage()
        self.meter.reaped_cpu = max(self.meter.reaped_cpu, used[0] if used else 0.0)
        if group.ooms() > 0:
            # There was nothing else left to give up, so here the peak has no file cache in it.
            self.meter.mem_peak = max(self.meter.mem_peak, group.memory_peak() / MIB)
            if not (self.flags["terminated"] or self.flags["timed_out"]):
                # Of v1 a job may outlive a process of it by a moment, and end as it likes; of v2 it cannot.
                self.flags["oom_killed"] = True
                self.wait_status = _signal.SIGKILL
        group.remove()


class Meter:
    """CPU and memory of a process tree: samples while it runs, the kernel's own account when it has ended."""

    def __init__(self, period: float) -> None:
        self.period = period
        self.began = self.last = time.monotonic()
        self.due = self.began + period
        self.reaped_cpu = 0.0
        self.max_rss = 0
        self.cpu = 0.0
        self.cpu_peak = 0.0
        self.mem_peak = 0.0
        self.mem_seconds = 0.0
        self.samples = 0
        self.ended = 0.0

    def add(self, usage: "resource.struct_rusage") -> None:
        """The account of a child that ended: its own and of all whom it waited for."""
        self.reaped_cpu += usage.ru_utime + usage.ru_stime
        self.max_rss = max(self.max_rss, usage.ru_maxrss * 1024)

    def sample(self, cpu: float, resident: int) -> int:
        """Take down the CPU seconds so far and the bytes of memory now; the latter."""
        now = time.monotonic()
        span = now - self.last
        self.cpu_peak = max(self.cpu_peak, 100 * (cpu - self.cpu) / span)
        self.mem_peak = max(self.mem_peak, resident / MIB)
        self.mem_seconds += resident / MIB * span
        self.cpu, self.last, self.due = max(cpu, self.cpu), now, now + self.period
        self.samples += 1
        return resident

    def end(self) -> None:
        """Close the account: what came after the last sample, and the whole of a run too short for one."""
        now = time.monotonic()
        span = now - self.last
        if self.samples == 0 or span > self.period / 2:
            self.cpu_peak = max(self.cpu_peak, 100 * (self.reaped_cpu - self.cpu) / span)
        self.mem_peak = max(self.mem_peak, self.max_rss / MIB)
        if self.samples == 0:
            self.mem_seconds += self.max_rss / MIB * span
            self.last = now
        self.cpu = max(self.cpu, self.reaped_cpu)
        mean = 100 * self.cpu / (now - self.began)
        self.cpu_peak = max(self.cpu_peak, mean)
        self.ended = now

    def metrics(self) -> "dict[str, float]":
        """The four metrics of the contract: percent of one CPU, and MiB."""
        until = self.ended or self.last
        return {
            "cpu_mean": round(100 * self.cpu / (until - self.began), 3),
            "cpu_peak": round(self.cpu_peak, 3),
            "mem_mb_mean": round(self.mem_seconds / (self.last - self.began), 3),
            "mem_mb_peak": round(self.mem_peak, 3),
        }


def tree_usage(tree: "list[int]", ended: float) -> "tuple[float, int]":
    """CPU seconds and resident bytes of every process of `tree` together.

    :param ended: CPU seconds of those that are no more.
    """
    cpu, resident = ended, 0
    for pid in tree:
        fields = stat(pid)
        if fields:
            cpu += sum(int(ticks) for ticks in fields[11:15]) / _TICK
            resident += int(fields[21]) * _PAGE
    return cpu, resident


def _become_job(
    spec: "dict[str, Any]", group: "RunGroup | None", gate: int, outputs: "tuple[int, int]", status: int
) -> "NoReturn":
    """In the forked child: group, descriptors, limits, the gate, then the job's own program."""
    try:
        os.setsid()
        if group is not None:
            group.enter()
        if spec["isolated"]:
            guard_devices()
        _place_descriptors(spec, outputs, status)
        for name, (soft, hard) in spec["rlimits"].items():
            resource.setrlimit(name, (soft, hard))
        if spec["cpus"]:
            os.sched_setaffinity(0, spec["cpus"])
        os.nice(spec["nice"])
        if os.read(gate, 1) != b"!":
            os._exit(ENGINE_FAILED)
        for number in _signal.valid_signals():
            # Python ignores some, whoever started the agent (nohup, a shell's background) others; children inherit.
            if _signal.getsignal(number) == _signal.SIG_IGN:
                _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        os.chdir(spec["directory"])
        os.execve(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606  # a shell is what we do not want
    except OSError as error:
        os.write(outputs[0], f"could not start {spec['argv'][0]}: {error.strerror}\n".encode())
    os._exit(127)


def _place_descriptors(spec: "dict[str, Any]", outputs: "tuple[int, int]", status: int) -> None:
    """0: nothing; 1 and 2: the log, or the log and the errors; bubblewrap's own. All others close themselves."""
    wanted = {0: os.open("/dev/null", os.O_RDWR), 1: outputs[0], 2: outputs[1]}
    if spec["isolated"]:
        wanted |= {ARGS_FD: _anonymous(spec["bubblewrap_args"]), STATUS_FD: status}
        if spec["seccomp"]:
            wanted[SECCOMP_FD] = _anonymous(spec["seccomp"])
    # First out of the way: any may sit where another has to go.
    copies = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for number, fd in wanted.items()}
    for number, copy in copies.items():
        os.dup2(copy, number)


def _anonymous(content: bytes) -> int:
    """A file in memory, at its start."""
    fd = os.memfd_create("supervisor")
    write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
