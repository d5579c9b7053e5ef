"""What the kernel says about processes, and reading and writing files, for those who must start fast.

Imported by the supervisor of every run: nothing that is slow, nothing outside the standard library.
"""

import os

TYPE_CHECKING = False  # `typing` is slow, too; type checkers take the name for what it says
if TYPE_CHECKING:
    from typing import Any

_PR_SET_CHILD_SUBREAPER = 36


_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
"""Those of the machine that bubblewrap lets into a sandbox."""


def become_subreaper() -> None:
    """Make orphans of the run this process's children."""
    if _call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_CHILD_SUBREAPER) failed")


def guard_devices() -> None:
    """Let this process and those that it starts use the machine's devices, but not change their modes.

    Whoever owns a device may, and its owner is root: so a job of a root agent could take /dev/null away from the whole
    machine, without any capability. Nobody else could, nor could they do what is done here: then nothing is.
    """
    if os.geteuid() != 0 or _call("unshare", _CLONE_NEWNS) != 0:
        return
    if _call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        return
    for name in DEVICES:
        path = f"/dev/{name}".encode()
        if _call("mount", path, path, None, _MS_BIND, None) == 0:
            _call("mount", None, path, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY, None)


def _call(name: str, *arguments: "int | bytes | None") -> int:
    """Call a function of the C library.

    The standard library has no other door to these than ctypes, of which this is the part without 4 ms of import.
    """
    import _ctypes

    this = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]  # None is this program; the stub forgot it
    return int(_ctypes.call_function(_ctypes.dlsym(this, name), arguments))


def descendants() -> "list[int]":
    """Every process below this one, parents before children."""
    found: list[int] = []
    pending = [os.getpid()]
    while pending:
        pid = pending.pop()
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                children = slurp(f"/proc/{pid}/task/{thread}/children").split()
                pending.extend(int(child) for child in children)
                found.extend(int(child) for child in children)
        except OSError:
            continue  # ended while we looked
    return found


def proportional(tree: "list[int]", fallback: int) -> int:
    """Bytes of memory of all processes, a page that n of them share counted as 1/n; `fallback` if unreadable."""
    total = 0
    for pid in tree:
        try:
            for line in slurp(f"/proc/{pid}/smaps_rollup").splitlines():
                if line.startswith(b"Pss:"):
                    total += int(line.split()[1]) * 1024
        except PermissionError:
            return fallback
        except OSError:
            continue
    return total


def stat(pid: int) -> "list[bytes]":
    """/proc/<pid>/stat from the state on (field 3 of proc(5)); empty if there is no such process."""
    try:
        return slurp(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return []


def start_ticks(pid: int) -> int:
    """When the process began, in clock ticks since boot, which tells it from a later one of the same number.

    0 if there is no such process, or it has ended and only its entry is left.
    """
    fields = stat(pid)
    return 0 if not fields or fields[0] in (b"Z", b"X") else int(fields[19])


def boot_id() -> str:
    """Which boot of the machine this is."""
    return slurp("/proc/sys/kernel/random/boot_id").decode().strip()


def write(fd: int, data: bytes) -> None:
    """Write all of `data`."""
    while data:
        data = data[os.write(fd, data) :]


def read(fd: int) -> bytes:
    """Everything up to the end of `fd`."""
    parts = []
    while part := os.read(fd, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def slurp(path: str) -> bytes:
    """The whole content of a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return read(fd)
    finally:
        os.close(fd)


def encode(values: "dict[str, Any]") -> bytes:
    """A flat dict of numbers, flags and plain words as JSON (`json` takes 3 ms to import)."""
    parts = []
    for key, value in values.items():
        if isinstance(value, bool):
            text = "true" if value else "false"
        else:
            text = f'"{value}"' if isinstance(value, str) else repr(value)
        parts.append(f'"{key}": {text}')
    return ("{" + ", ".join(parts) + "}").encode()


def replace(name: str, text: bytes, *, durable: bool = False) -> None:
    """Write a file so that readers see all of it or nothing; `durable`: also after a power cut."""
    fd = os.open(name + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        write(fd, text)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(name + ".tmp", name)
