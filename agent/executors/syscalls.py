"""Which system calls a job may make, whatever isolates it: rules as data, and pure.

The list has what no pipeline needs and what has opened sandboxes before: it follows container engines' default
filters, and goes further where a job has less use for a call than a container has. The sandbox makes a program for the
kernel of it (`sandbox.seccomp`), the executor `docker` a profile for the engine (`docker.profile`).

In the sandbox everything that is not named stays allowed, so a new version of an interpreter does not break on it; but
calls of kernels newer than this list do not exist for a job, as on an older kernel.
"""

import errno
import stat
from collections.abc import Iterator
from typing import Final

from attrs import frozen

DENIED: Final = (
    # The file systems that a process sees.
    *("mount", "umount", "umount2", "mount_setattr", "move_mount", "open_tree", "pivot_root", "chroot"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "name_to_handle_at", "open_by_handle_at"),
    *("quotactl", "quotactl_fd", "swapon", "swapoff", "fanotify_init", "fanotify_mark", "lookup_dcookie"),
    # Namespaces, and other processes.
    *("unshare", "setns", "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease"),
    *("kcmp", "pidfd_getfd", "migrate_pages", "move_pages", "sched_setaffinity"),
    # Where memory lies; libnuma and OpenMP ask, and take the refusal for a machine with one place.
    *("get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"),
    # The kernel and the machine.
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "create_module"),
    *("query_module", "get_kernel_syms", "bpf", "perf_event_open", "userfaultfd", "reboot", "syslog", "acct"),
    *("settimeofday", "stime", "clock_settime", "clock_settime64", "clock_adjtime", "clock_adjtime64", "adjtimex"),
    *("iopl", "ioperm", "modify_ldt", "vm86", "vm86old", "vhangup", "sethostname", "setdomainname", "memfd_secret"),
    *("nfsservctl", "uselib", "ustat", "sysfs", "_sysctl", "add_key", "request_key", "keyctl"),
)
"""Answered with EPERM."""

ABSENT: Final = (
    *("clone3", "openat2", "fchmodat2", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("inotify_init", "inotify_init1"),
)
"""Answered with ENOSYS, at which a library takes an older call, or looks now and then. The first three have what is
decided on here in memory, where no filter can look. Of inotify a user has 128 on the whole machine, in and outside
sandboxes: one job would take it away from all others, and one of a root agent from the system itself."""
NEWER: Final = frozenset(range(457, 512))
"""Numbers of calls that came after this list (Linux 6.8 and later), the same on every processor; absent, too."""
KNOWN_NEWER: Final = frozenset({462})
"""Of these: mseal, which protects."""

FAMILIES: Final = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6: the sockets there are. Any other family is answered as one that was never built in."""
_ALL_FAMILIES: Final = range(64)

NAMESPACES: Final = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
TERMINAL_CONTROLS: Final = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX, which type into a terminal."""
SET_LEASE: Final = 1024
"""F_SETLEASE of fcntl(2). With a lease on its own log a job would keep whoever reads it waiting for 45 seconds."""
ASK_PERSONALITY: Final = 0xFFFFFFFF
"""The one argument of personality(2) that changes nothing."""
_ALL_BITS: Final = (1 << 64) - 1
_WORD: Final = 0xFFFFFFFF
"""Arguments that are `int`: the kernel ignores the upper half of the register, and so must a comparison."""

_ID_BITS: Final = (stat.S_ISUID, stat.S_ISGID)
_KIND: Final = 0o170000
_DEVICES: Final = (stat.S_IFCHR, stat.S_IFBLK)
_MODES: Final = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "creat": 1, "mknod": 1, "mknodat": 2}
"""Calls that set a file's mode, and which argument it is."""
_OPENS: Final = {"open": 1, "openat": 2}
"""Calls whose argument of this number has flags, and the next one the mode, if the flags say so."""
_CREATES: Final = (0o100, 0o20000000)
"""O_CREAT and O_TMPFILE, on the processors that servers have."""


@frozen
class Test:
    """A question about an argument of a call."""

    argument: int
    """From 0."""
    mask: int
    value: int
    """What the argument has to be under the mask."""
    negated: bool = False
    """Whether the answer has to be no; only with a mask of all 64 bits."""


@frozen
class Rule:
    """A call that is answered with an error if all tests say yes."""

    call: str | int
    error: int
    tests: tuple[Test, ...] = ()


def rules() -> Iterator[Rule]:
    """Everything that a job may not do."""
    for name in DENIED:
        yield Rule(name, errno.EPERM)
    for name in ABSENT:
        yield Rule(name, errno.ENOSYS)
    for number in sorted(NEWER - KNOWN_NEWER):
        yield Rule(number, errno.ENOSYS)
    for flag in NAMESPACES:
        yield Rule("clone", errno.EPERM, (Test(0, flag, flag),))
    for request in TERMINAL_CONTROLS:
        yield Rule("ioctl", errno.EPERM, (Test(1, _WORD, request),))
    for name in ("fcntl", "fcntl64"):
        yield Rule(name, errno.EPERM, (Test(1, _WORD, SET_LEASE),))
    yield Rule("personality", errno.EPERM, (Test(0, _ALL_BITS, ASK_PERSONALITY, negated=True),))
    for family in sorted(set(_ALL_FAMILIES) - set(FAMILIES)):
        yield Rule("socket", errno.EAFNOSUPPORT, (Test(0, _WORD, family),))
    yield from _file_modes()


def _file_modes() -> Iterator[Rule]:
    """No set-user-id and set-group-id files, no devices: the volume is a directory of the host."""
    for bit in _ID_BITS:
        for name, mode in _MODES.items():
            yield Rule(name, errno.EPERM, (Test(mode, bit, bit),))
        for name, flags in _OPENS.items():
            for creates in _CREATES:
                yield Rule(name, errno.EPERM, (Test(flags, creates, creates), Test(flags + 1, bit, bit)))
    for name in ("mknod", "mknodat"):
        for kind in _DEVICES:
            yield Rule(name, errno.EPERM, (Test(_MODES[name], _KIND, kind),))
