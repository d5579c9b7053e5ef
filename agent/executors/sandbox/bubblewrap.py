"""What a job sees of the machine when bubblewrap runs it, and whether bubblewrap works here."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import frozen

from agent.executors.base import Unusable
from agent.executors.sandbox import seccomp
from agent.executors.sandbox.supervisor import SECCOMP_FD, STATUS_FD
from agent.images import SYSTEM

WORKSPACE = "/workspace"
PROBE_SECONDS = 30.0
HOME = "/tmp"  # noqa: S108  # inside the sandbox, where it is the job's own

ETC = (
    "alternatives",
    "fonts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "R",
    "ssl/certs",
    "ssl/openssl.cnf",
)
"""All that a job sees of /etc: what programs need to start, nothing about this machine or its users."""
ETC_WITH_NETWORK = ("hosts", "nsswitch.conf", "protocols", "resolv.conf", "services")

USERS = "job:x:1000:1000:job:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
GROUPS = "job:x:1000:\nnogroup:x:65534:\n"
HOSTS = "127.0.0.1 localhost sandbox\n::1 localhost\n"
NAMES = "passwd: files\ngroup: files\nhosts: files\n"
STUBS = {"passwd": USERS, "group": GROUPS}
"""What a job sees at these places of /etc instead of the machine's."""
STUBS_WITHOUT_NETWORK = {"hosts": HOSTS, "nsswitch.conf": NAMES}
"""The same where there is no network: programs that talk to themselves, as workers of R do, ask for `localhost`."""


@frozen(kw_only=True)
class Bubblewrap:
    """A bubblewrap that was found to work."""

    path: str
    options: frozenset[str]
    """What this version can do beyond 0.4: of `--size` and `--disable-userns`."""

    def arguments(
        self,
        *,
        volume: Path,
        stubs: Path,
        read: Sequence[Path],
        env: Mapping[str, str],
        memory_bytes: int,
        network: bool,
        filtered: bool,
    ) -> bytes:
        """The options, NUL-separated, for `--args FD`: the environment must not be on a command line.

        :param stubs: a directory with the files that `stubs` names.
        :param read: what the interpreter needs beyond the system's directories, parents before children.
        :param filtered: whether SECCOMP_FD will have a filter of system calls.
        """
        options = [*self._namespaces(network), *_system(), *self._writable(memory_bytes)]
        for name in ETC + (ETC_WITH_NETWORK if network else ()):
            options += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        for name in stubs_for(network=network):
            options += ["--ro-bind", str(stubs / name), f"/etc/{name}"]
        for path in read:
            options += _expose(path)
        options += ["--bind", str(volume), WORKSPACE, "--chdir", WORKSPACE, "--remount-ro", "/"]
        for name, value in env.items():
            options += ["--setenv", name, value]
        options += ["--json-status-fd", str(STATUS_FD)]
        if filtered:
            options += ["--seccomp", str(SECCOMP_FD)]
        return b"\0".join(os.fsencode(option) for option in options)

    def trial(self) -> list[str]:
        """A command line that makes a sandbox with every option that jobs get, and does nothing in it."""
        options = [*self._namespaces(network=False), *_system(), *self._writable(1 << 20)]
        return [self.path, *options, "--remount-ro", "/", "--", "/bin/true"]

    def find_filter(self, setting: str) -> tuple[bytes, str]:
        """The filter of system calls that jobs get, tried (blocking).

        :param setting: what `seccomp.SETTING` says.
        :return: the filter, empty if there is none, and why there is none.
        :raises Unusable: there can be none, and there has to be one.
        """
        if setting == seccomp.OFF:
            return b"", f"{seccomp.SETTING} is {seccomp.OFF}"
        try:
            program = seccomp.program()
            self.try_filter(program)
        except Unusable as reason:
            if setting == seccomp.REQUIRED:
                raise Unusable(f"{reason} ({seccomp.SETTING} is {seccomp.REQUIRED})") from reason
            return b"", str(reason)
        return program, ""

    def try_filter(self, program: bytes) -> None:
        """Make a sandbox with a filter of system calls (blocking).

        :raises Unusable: bubblewrap or the kernel does not take the filter.
        """
        with open(os.memfd_create("filter"), "w+b") as file:
            file.write(program)
            file.flush()
            file.seek(0)
            fd = file.fileno()
            command = self.trial()
            code, said = _run(command[0], "--seccomp", str(fd), *command[1:], pass_fds=(fd,))
        if code != 0:
            raise Unusable(f"a sandbox with a filter of system calls fails: {said.strip() or f'exit code {code}'}")

    def _namespaces(self, network: bool) -> list[str]:
        options = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        if not network:
            options.append("--unshare-net")
        if "--disable-userns" in self.options:
            options.append("--disable-userns")
        options += ["--uid", "1000", "--gid", "1000", "--hostname", "sandbox"]
        return [*options, "--cap-drop", "ALL", "--die-with-parent", "--new-session"]

    def _writable(self, memory_bytes: int) -> list[str]:
        """/dev and /tmp in memory, each no larger than the memory limit; /proc, which must not be writable.

        To the kernel a root agent's job is still root without capabilities, and root's files below /proc/sys ask
        for none: with a writable /proc such a job could change the machine's settings, `core_pattern` included.
        """
        size = ["--size", str(memory_bytes)] if "--size" in self.options else []
        options = ["--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev"]
        for directory in ("/dev/shm", HOME):  # noqa: S108  # the sandbox's own
            options += [*size, "--tmpfs", directory]
        # /dev is memory too, which nobody would count where there are no control groups.
        return [*options, "--remount-ro", "/dev"]


def stubs_for(*, network: bool) -> dict[str, str]:
    """Names and contents of the files of /etc that a job sees instead of the machine's."""
    return STUBS if network else STUBS | STUBS_WITHOUT_NETWORK


def find(program: str | None) -> Bubblewrap:
    """The bubblewrap of this machine, tried (blocking).

    :param program: its name or path; None for none.
    :raises Unusable: why there can be no sandbox here.
    """
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        raise Unusable("the kernel lacks /proc/<pid>/task/<tid>/children (CONFIG_PROC_CHILDREN)")
    path = program and shutil.which(program)
    if not path:
        raise Unusable("bubblewrap is not installed (package `bubblewrap`)")
    return probe(path)


def probe(path: str) -> Bubblewrap:
    """Make a sandbox for real, with every option that jobs get (blocking).

    :raises Unusable: why there cannot be one, in bubblewrap's own words and ours.
    """
    _, helped = _run(path, "--help")
    options = frozenset(option for option in ("--size", "--disable-userns") if option in helped)
    for chosen in (options, options - {"--disable-userns"}):
        # A setuid bubblewrap knows --disable-userns but refuses it.
        found = Bubblewrap(path=path, options=chosen)
        code, said = _run(*found.trial())
        if code == 0:
            return found
    raise Unusable(
        f"bubblewrap is installed but cannot make a sandbox here: {said.strip() or f'exit code {code}'}. "
        "The machine may forbid user namespaces (sysctl kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns, user.max_user_namespaces), or this is a container "
        "without the right to make them"
    )


def _run(path: str, *arguments: str, pass_fds: Sequence[int] = ()) -> tuple[int, str]:
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={},
            pass_fds=pass_fds,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout.decode(errors="replace")


def _system() -> list[str]:
    options = []
    for path in SYSTEM:
        if path.exists():
            options += _expose(path)
    return options


def _expose(path: Path) -> list[str]:
    if path.is_symlink():
        return ["--symlink", str(path.readlink()), str(path)]
    return ["--ro-bind", str(path), str(path)]
