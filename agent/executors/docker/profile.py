"""The filter of system calls that the container engine gives a job: our rules in the engines' own form, and pure.

Engines have filters of their own, which differ: Docker 20.10 lets io_uring and sockets of the family AF_VSOCK pass, for
which no network namespace holds; Podman's lets a job make user namespaces. Ours is the same on all of them. As theirs
it names the calls that there are, and all others do not exist: an engine has no way to name a call by its number, as
the sandbox's filter does for those of newer kernels.

What depends on a call's arguments is put in terms of what is allowed. For libseccomp knows no order of rules: one that
allows a call whatever its arguments would win over all that refuse it for some.
"""

import errno
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import orjson

from agent.executors.syscalls import Rule, rules

SETTING: Final = "RAP_DOCKER_SECCOMP"
OWN: Final = "own"
"""This module's profile."""
ENGINE: Final = "engine"
"""Whatever filter the engine has for containers."""
CHOICES: Final = (OWN, ENGINE)
MACHINES: Final = frozenset({"x86_64", "amd64", "aarch64", "arm64"})
"""The processors, in the engines' words, whose calls and numbers of arguments the rules were written for."""

_ARCHITECTURES: Final = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")
"""The same for libseccomp; the engine takes its own. Docker 20.10 knows no `defaultErrnoRet`, and only for a processor
that is named here makes runc calls of newer kernels absent by itself. 32-bit calls are none of these: they kill."""

_NAMES: Final = """
accept accept4 access alarm arch_prctl bind brk capget capset chdir chmod chown clock_getres clock_gettime
clock_nanosleep clone close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
exit_group faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchown fchownat fcntl fdatasync
fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_waitv futimesat
get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer
getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage
getsockname getsockopt gettid gettimeofday getuid getxattr inotify_add_watch inotify_rm_watch io_cancel io_destroy
io_getevents io_pgetevents io_setup io_submit ioctl ioprio_get ioprio_set kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listxattr llistxattr
lremovexattr lseek lsetxattr lstat madvise membarrier memfd_create mincore mkdir mkdirat mknod mknodat mlock
mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal
msgctl msgget msgrcv msgsnd msync munlock munlockall munmap nanosleep newfstatat open openat pause personality
pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2
prlimit64 pselect6 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg
remap_file_pages removexattr rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending
rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile
sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups
setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr
shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socket socketpair splice stat statfs statx
symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun
timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname unlink
unlinkat utime utimensat utimes vfork wait4 waitid write writev
"""
CALLS: Final = frozenset(_NAMES.split())
"""All calls that a job may make, on one of these processors or on both; some of them not with all arguments."""

Known = Mapping[int, tuple[int, int]]
"""What is known of a call's arguments: by their number a mask, and what the argument is under it."""


def refused(known: Known, rule: Rule) -> bool | None:
    """Whether a rule is about calls with such arguments; None if that depends on what is not known."""
    answer: bool | None = True
    for test in rule.tests:
        mask, value = known.get(test.argument, (0, 0))
        if (mask & test.mask) & (value ^ test.value):
            return False
        if test.mask & ~mask:
            answer = None
    return answer


def split(about: Iterable[Rule], known: Known) -> Iterator[tuple[Known, int | None]]:
    """Cut a call's arguments into parts: those that are refused, with the error, and those that are allowed (None).

    No two parts have anything in common, so it does not matter in which order they are looked at.

    :param about: the call's rules, none of them with a negated test.
    """
    answers = [(rule, refused(known, rule)) for rule in about]
    for rule, answer in answers:
        if answer:
            yield known, rule.error
            return
    open_rules = [rule for rule, answer in answers if answer is None]
    if not open_rules:
        yield known, None
        return
    for test in open_rules[0].tests:
        mask, value = known.get(test.argument, (0, 0))
        if unknown := test.mask & ~mask:
            bit = 1 << (unknown.bit_length() - 1)
            for each in (value, value | bit):
                yield from split(open_rules, {**known, test.argument: (mask | bit, each)})
            return


def _by_arguments(call: str, about: list[Rule]) -> Iterator[dict[str, Any]]:
    [*negated] = [(rule, test) for rule in about for test in rule.tests if test.negated]
    if negated:  # one value is allowed, and no other
        [(rule, test)] = negated
        yield _entry([call], None, [{"index": test.argument, "value": test.value, "op": "SCMP_CMP_EQ"}])
        yield _entry([call], rule.error, [{"index": test.argument, "value": test.value, "op": "SCMP_CMP_NE"}])
        return
    for known, error in split(about, {}):
        arguments = [
            {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
            for index, (mask, value) in sorted(known.items())
        ]
        yield _entry([call], error, arguments)


def _entry(calls: Iterable[str], error: int | None, arguments: list[dict[str, Any]]) -> dict[str, Any]:
    names = sorted(calls)
    if error is None:
        return {"names": names, "action": "SCMP_ACT_ALLOW", "args": arguments}
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": error, "args": arguments}


@functools.cache
def text() -> str:
    """The profile, as JSON."""
    conditional: dict[str, list[Rule]] = {}
    flat: dict[int, set[str]] = {}
    for rule in rules():
        if not isinstance(rule.call, str):
            continue  # a number, which no call that is allowed here has
        if rule.tests:
            conditional.setdefault(rule.call, []).append(rule)
        else:
            flat.setdefault(rule.error, set()).add(rule.call)
    entries = [_entry(CALLS - set(conditional), None, [])]
    entries += [_entry(calls, error, []) for error, calls in sorted(flat.items())]
    for call in sorted(CALLS & set(conditional)):
        entries += _by_arguments(call, conditional[call])
    made = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "archMap": [{"architecture": name, "subArchitectures": []} for name in _ARCHITECTURES],
        "syscalls": entries,
    }
    return orjson.dumps(made).decode()


def file_name() -> str:
    """What a file with the profile is called: another profile has another name."""
    return f".seccomp-{hashlib.sha256(text().encode()).hexdigest()[:16]}.json"
