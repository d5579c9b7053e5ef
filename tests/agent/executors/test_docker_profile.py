"""The engines' form of the rules about system calls: the same as the rules, and no less than an engine's own."""

import errno
import json
import stat
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.executors import syscalls
from agent.executors.docker import profile

DOCUMENTED = """
acct add_key bpf clock_adjtime clock_settime create_module delete_module finit_module get_kernel_syms get_mempolicy
init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind mount move_pages name_to_handle_at
nfsservctl open_by_handle_at perf_event_open pivot_root process_vm_readv process_vm_writev ptrace query_module quotactl
reboot request_key set_mempolicy setns settimeofday stime swapon swapoff sysfs _sysctl umount umount2 unshare uselib
userfaultfd ustat vm86 vm86old
""".split()  # noqa: SIM905  as the documentation lists them
"""Docker's documentation: "significant syscalls blocked by the default profile"; clone and personality have their own
test, and socket(AF_VSOCK), which newer engines refuse."""
UNNAMED = """
chroot fanotify_init fsconfig fsmount fsopen fspick io_uring_enter io_uring_register io_uring_setup memfd_secret
mount_setattr move_mount open_tree pidfd_getfd process_madvise quotactl_fd set_mempolicy_home_node sethostname
setdomainname syslog vhangup vserver tuxcall security afs_syscall getpmsg putpmsg migrate_pages vmsplice
map_shadow_stack cachestat statmount listmount
""".split()  # noqa: SIM905  the same
"""What default profiles of Docker (20.10 to 29) or Podman refuse without capabilities, and no documentation lists."""

SYSCALL_RULES = list(syscalls.rules())
CONDITIONAL = sorted({rule.call for rule in SYSCALL_RULES if rule.tests and rule.call in profile.CALLS}, key=str)
ENTRIES: list[dict[str, Any]] = json.loads(profile.text())["syscalls"]


def applies(argument: Mapping[str, Any], given: Mapping[int, int]) -> bool:
    """Whether a condition of the profile is met, as libseccomp takes it."""
    value = given.get(argument["index"], 0)
    match argument["op"]:
        case "SCMP_CMP_EQ":
            return bool(value == argument["value"])
        case "SCMP_CMP_NE":
            return bool(value != argument["value"])
        case "SCMP_CMP_MASKED_EQ":
            return bool(value & argument["value"] == argument["valueTwo"])
    raise AssertionError(argument)


def answers(call: str, given: Mapping[int, int]) -> list[int]:
    """What each entry of the profile that is about such a call says: 0, or an error."""
    return [
        entry.get("errnoRet", 0)
        for entry in ENTRIES
        if call in entry["names"] and all(applies(argument, given) for argument in entry["args"])
    ]


def ruled(call: str, given: Mapping[int, int]) -> int:
    """What the rules say."""
    for rule in SYSCALL_RULES:
        tests = [((given.get(t.argument, 0) & t.mask) == t.value) is not t.negated for t in rule.tests]
        if rule.call == call and all(tests):
            return rule.error
    return 0


ODD = [bit for number in range(34) for bit in (1 << number,)]
NUMBERS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 70),
    st.sampled_from([0x5412, 0x541C, 1024, 0xFFFFFFFF, 0x1_0000_0400, 0x7_0000_5412, 0o4755, 0o2755, 0o20666, 0o60666]),
    st.sets(st.sampled_from(ODD), max_size=4).map(sum),
)


@given(st.sampled_from(CONDITIONAL), st.lists(NUMBERS, min_size=4, max_size=4))
def test_the_profile_says_what_the_rules_say_and_says_it_once(call: str, arguments: list[int]) -> None:
    given = dict(enumerate(arguments))
    assert answers(call, given) == [ruled(call, given)]


@pytest.mark.parametrize("call", [*DOCUMENTED, *UNNAMED])
def test_what_engines_refuse_is_refused(call: str) -> None:
    assert call not in profile.CALLS
    assert 0 not in answers(call, {})


@pytest.mark.parametrize("flag", syscalls.NAMESPACES)
def test_namespaces(flag: int) -> None:
    assert answers("clone", {0: flag | 17}) == [errno.EPERM]
    assert answers("clone", {0: 17}) == [0]
    assert answers("clone3", {}) == [errno.ENOSYS], "whose flags no filter sees"


def test_sockets() -> None:
    allowed = {family for family in range(256) if answers("socket", {0: family}) == [0]}
    assert allowed & set(range(64)) == {1, 2, 10}
    assert answers("socket", {0: 40}) == [errno.EAFNOSUPPORT]
    assert answers("socket", {0: 40 | 1 << 32}) == [errno.EAFNOSUPPORT], "the kernel looks at the lower half only"


def test_files() -> None:
    assert answers("openat", {2: 0o1101, 3: 0o644}) == [0]
    assert answers("openat", {2: 0o1101, 3: 0o4755}) == [errno.EPERM]
    assert answers("openat", {2: 0, 3: 0o4755}) == [0], "without O_CREAT the kernel does not look at the mode"
    assert answers("mknod", {1: stat.S_IFIFO | 0o644}) == [0]
    assert answers("mknod", {1: stat.S_IFBLK | 0o644}) == [errno.EPERM]


def test_calls_that_nobody_has_named_do_not_exist() -> None:
    made = json.loads(profile.text())
    assert (made["defaultAction"], made["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", errno.ENOSYS)
    allowed = [entry for entry in made["syscalls"] if entry["action"] == "SCMP_ACT_ALLOW" and not entry["args"]]
    assert len(allowed) == 1
    assert not set(allowed[0]["names"]) & ({*syscalls.DENIED, *syscalls.ABSENT} | set(CONDITIONAL))


def test_another_profile_is_kept_in_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    name = profile.file_name()
    monkeypatch.setattr(profile, "text", lambda: "{}")
    assert profile.file_name() != name
