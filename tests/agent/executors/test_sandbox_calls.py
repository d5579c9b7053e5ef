"""The filter of system calls: what a job may not ask of the kernel, and that it may ask for everything it needs."""

import asyncio
import errno
import json
import os
import platform
import shutil
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.executors import syscalls
from agent.executors.base import Unusable
from agent.executors.sandbox import bubblewrap, seccomp
from agent.executors.sandbox.executor import SandboxExecutor
from agent.images import ImageTable, Interpreter
from agent.outputs.preparation import make_volume
from tests.agent.executors.executor_contract import MIB, Maker, ended, output

pyseccomp = pytest.importorskip("pyseccomp", reason="libseccomp is not installed", exc_type=(ImportError, RuntimeError))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed"),
]

IMAGES = ImageTable({**ImageTable.default().entries, "sh": Interpreter(command=("/bin/sh",))})
MISSING = -1
"""What libseccomp makes of a name that it does not know."""

CALLS = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
answers = []
for number, *arguments in json.loads(sys.argv[1]):
    ctypes.set_errno(0)
    said = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))
    answers.append(ctypes.get_errno() if said == -1 else 0)
print(json.dumps(answers))
"""
"""A job that makes the calls it is given, and prints how each was answered."""

OLD_ABI = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")  # mov eax, 20 (getpid); int 0x80; ret
function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
print(function())
"""

MODES = """
import os, socket, stat
attempts = {
    "chmod": lambda: os.chmod("file", 0o4755),
    "group": lambda: os.chmod("file", 0o2755),
    "fchmod": lambda: os.fchmod(os.open("file", os.O_RDONLY), 0o6755),
    "fchmodat": lambda: os.chmod("file", 0o4755, dir_fd=os.open(".", os.O_RDONLY)),
    "open": lambda: os.open("opened", os.O_CREAT | os.O_WRONLY, 0o4755),
    "nameless": lambda: os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o2755),
    "mknod": lambda: os.mknod("made", stat.S_IFREG | 0o4755),
    "character": lambda: os.mknod("character", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
    "block": lambda: os.mknod("block", stat.S_IFBLK | 0o666, os.makedev(8, 0)),
}
open("file", "w").close()
for name, attempt in attempts.items():
    try:
        attempt()
        print(name)
    except PermissionError:
        pass
os.chmod("file", 0o1755)
os.open("opened", os.O_CREAT | os.O_WRONLY, 0o755)
os.mkfifo("pipe")
"""

ORDINARY = """
import asyncio, concurrent.futures, ctypes, hashlib, multiprocessing, os, shutil, socket, sqlite3, ssl, subprocess
import sys, tempfile, threading, time

def square(number):
    return number * number

def serve(server):
    connection, _ = server.accept()
    connection.sendall(b"hello")
    connection.close()

async def ask():
    process = await asyncio.create_subprocess_exec("/bin/echo", "child", stdout=asyncio.subprocess.PIPE)
    return (await process.communicate())[0]

if __name__ == "__main__":
    with socket.create_server(("localhost", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        with socket.create_connection(("localhost", server.getsockname()[1])) as client:
            assert client.recv(5) == b"hello"
        thread.join()
    for way in ("fork", "spawn"):
        with multiprocessing.get_context(way).Pool(2) as pool:
            assert pool.map(square, range(4)) == [0, 1, 4, 9]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(square, range(8))) == 140
    assert subprocess.run("echo $((6 * 7)) | cat", shell=True, capture_output=True, check=True).stdout == b"42\\n"
    assert asyncio.run(ask()) == b"child\\n"
    database = sqlite3.connect("results.db")
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE answers (answer)")
    database.execute("INSERT INTO answers VALUES (42)")
    database.commit()
    os.makedirs("folder/inner")
    open("folder/inner/file", "w").write("x")
    os.chmod("folder/inner/file", 0o640)
    shutil.copytree("folder", "copy")
    shutil.rmtree("folder")
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile() as file:
        os.symlink("x", place + "/link")
        file.write(hashlib.sha256(b"x").digest())
    try:
        import numpy
        assert numpy.linalg.inv(numpy.eye(200)).trace() == 200
    except ImportError:
        pass
    print("all done", len(os.sched_getaffinity(0)) > 0, os.times().user >= 0)
"""


@pytest.fixture
async def executor(maker: Maker) -> AsyncIterator[SandboxExecutor]:
    executor = SandboxExecutor(IMAGES, filter_calls=seccomp.REQUIRED)
    await executor.check()
    yield executor
    for run in maker.made:
        await executor.cleanup(run)


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path, "python:v2", [])


async def tell(executor: SandboxExecutor, maker: Maker, *command: str, image: str = "python:v2") -> str:
    """What a job prints."""
    run = maker(*command, image=image, memory=512 * MIB)
    await executor.execute(run)
    exit = await ended(executor, run)
    said = await output(executor, run)
    assert exit.code == 0, said
    return said.strip()


async def ask(executor: SandboxExecutor, maker: Maker, calls: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """How a job's calls are answered: by name, the name of an error, `done`, or nothing if there is no such call.

    :param calls: a name of a call, with or without `:` and more, and its arguments.
    """
    numbers = {name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name.split(":")[0]) for name in calls}
    there = [name for name, number in numbers.items() if number >= 0]
    asked = json.dumps([[numbers[name], *calls[name]] for name in there])
    answers = json.loads(await tell(executor, maker, "python", "-c", CALLS, asked))
    return {name: errno.errorcode.get(answer, "done") for name, answer in zip(there, answers, strict=True)}


async def test_calls_that_no_job_needs(executor: SandboxExecutor, maker: Maker) -> None:
    calls: dict[str, tuple[int, ...]] = dict.fromkeys((*syscalls.DENIED, *syscalls.ABSENT), (0, 0, 0, 0, 0))
    answers = await ask(executor, maker, calls)
    assert len(answers) > 50
    wrong = {
        name: answer for name, answer in answers.items() if answer != ("ENOSYS" if name in syscalls.ABSENT else "EPERM")
    }
    assert wrong == {}


ARGUMENTS: dict[str, tuple[tuple[int, ...], str, str]] = {
    "clone:user": ((0x10000000 | 17, 0, 0, 0, 0), "EPERM", ""),
    "clone:mount": ((0x00020000 | 17, 0, 0, 0, 0), "EPERM", ""),
    "ioctl:type": ((0, 0x5412, 0), "EPERM", "ENOTTY"),
    "ioctl:type, upper half": ((0, 0x7_0000_5412, 0), "EPERM", "ENOTTY"),
    "ioctl:ask": ((0, 0x5401, 0), "ENOTTY", "ENOTTY"),
    "fcntl:lease": ((1, 1024, 1), "EPERM", "done"),
    "fcntl:lease, upper half": ((1, 0x1_0000_0400, 2), "EPERM", "done"),
    "fcntl:ask": ((1, 1025), "done", "done"),
    "personality:set": ((0x0040000,), "EPERM", "done"),
    "personality:ask": ((0xFFFFFFFF,), "done", "done"),
    "socket:unix": ((1, 1, 0), "done", "done"),
    "socket:inet": ((2, 1, 0), "done", "done"),
    "socket:inet6": ((10, 1, 0), "done", ""),
    "socket:netlink": ((16, 3, 0), "EAFNOSUPPORT", "done"),
    "socket:netlink, upper half": ((0x1_0000_0010, 3, 0), "EAFNOSUPPORT", "done"),
    "socket:packet": ((17, 3, 0), "EAFNOSUPPORT", "EPERM"),
    "socket:crypto": ((38, 5, 0), "EAFNOSUPPORT", ""),
    "socket:virtual machine": ((40, 1, 0), "EAFNOSUPPORT", ""),
    "ptrace": ((0, 0, 0, 0), "EPERM", "done"),
    "keyctl": ((0, -3, 0), "EPERM", ""),
    "kcmp": ((0, 0, 0, 0, 0), "EPERM", ""),
    "process_vm_readv": ((1, 0, 0, 0, 0, 0), "EPERM", ""),
    "name_to_handle_at": ((-100, 0, 0, 0, 0), "EPERM", "EFAULT"),
    "unshare": ((0,), "EPERM", "done"),
    "clone3": ((0, 0), "ENOSYS", "EINVAL"),
    "openat2": ((-100, 0, 0, 0), "ENOSYS", "EINVAL"),
}
"""Calls, how the filter answers, and how the kernel does without one (where that is the same on all)."""


async def test_calls_by_their_arguments(executor: SandboxExecutor, maker: Maker) -> None:
    # personality(2) and ptrace(2) last: without a filter they change the job.
    calls = {name: arguments for name, (arguments, _, _) in ARGUMENTS.items()}
    answers = await ask(executor, maker, calls)
    assert answers == {name: filtered for name, (_, filtered, _) in ARGUMENTS.items()}
    open_hearted = SandboxExecutor(IMAGES, filter_calls=seccomp.OFF)
    await open_hearted.check()
    known = {name: free for name, (_, _, free) in ARGUMENTS.items() if free}
    assert await ask(open_hearted, maker, {name: calls[name] for name in known}) == known


async def test_calls_newer_than_the_filter(executor: SandboxExecutor, maker: Maker) -> None:
    asked = json.dumps([[number, 0, 0, 0, 0, 0] for number in (457, 458, 470, 511)])
    assert json.loads(await tell(executor, maker, "python", "-c", CALLS, asked)) == [errno.ENOSYS] * 4


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another processor: no 32-bit calls of this kind")
async def test_calls_of_another_abi(executor: SandboxExecutor, maker: Maker) -> None:
    assert await tell(executor, maker, "python", "-c", OLD_ABI) == str(-errno.ENOSYS)
    x32 = json.dumps([[0x40000000 | 39]])
    assert json.loads(await tell(executor, maker, "python", "-c", CALLS, x32)) == [errno.ENOSYS]


async def test_no_file_gives_rights_to_others(executor: SandboxExecutor, maker: Maker) -> None:
    assert await tell(executor, maker, "python", "-c", MODES) == ""
    found = {path.name: path.lstat().st_mode for path in maker.made[0].volume.iterdir()}
    assert set(found) == {"file", "opened", "pipe"}
    assert not any(mode & (stat.S_ISUID | stat.S_ISGID) for mode in found.values())
    assert stat.S_IMODE(found["file"]) == 0o1755
    open_hearted = SandboxExecutor(IMAGES, filter_calls=seccomp.OFF)
    await open_hearted.check()
    assert {"chmod", "open"} < set((await tell(open_hearted, maker, "python", "-c", MODES)).split())


async def test_copying_a_folder_with_its_mode(executor: SandboxExecutor, maker: Maker) -> None:
    run = maker("python", "-c", "import os, shutil; os.mkdir('a'); shutil.copytree('a', 'b'); print('copied')")
    # A storage area of a group: new folders in it belong to the group, and hand that on.
    run.volume.rmdir()
    run.volume.parent.chmod(0o2775)
    await asyncio.to_thread(make_volume, run.volume)
    await executor.execute(run)
    await ended(executor, run)
    assert await output(executor, run) == "copied\n"


async def test_a_set_user_id_program_gives_no_rights(executor: SandboxExecutor, maker: Maker) -> None:
    run = maker("-c", "./grep -E '^(Uid|Gid|NoNewPrivs|CapEff):' /proc/self/status; grep ' /workspace ' /proc/mounts",
                image="sh")  # fmt: skip
    program = run.volume / "grep"
    shutil.copy(str(shutil.which("grep")), program)
    if os.geteuid() == 0:
        os.chown(program, 65534, 65534)
    program.chmod(0o6755)
    await executor.execute(run)
    await ended(executor, run)
    *status, mount = (await output(executor, run)).splitlines()
    seen = {line.split(":")[0]: set(line.split()[1:]) for line in status}
    assert seen == {"Uid": {"1000"}, "Gid": {"1000"}, "CapEff": {"0" * 16}, "NoNewPrivs": {"1"}}
    assert "nosuid" in mount.split()[3].split(",")


async def test_ordinary_work(executor: SandboxExecutor, maker: Maker) -> None:
    run = maker("python", "work.py")
    (run.volume / "work.py").write_text(ORDINARY)
    await executor.execute(run)
    exit = await ended(executor, run)
    assert (await output(executor, run), exit.code) == ("all done True True\n", 0)


async def test_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    seccomp.program.cache_clear()
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    executor = SandboxExecutor(IMAGES)
    with capture_logs() as logs:
        await executor.check()
    assert executor.isolated
    [warning] = [line for line in logs if line["log_level"] == "warning"]
    assert warning["setting"] == "RAP_SANDBOX_SECCOMP"
    assert "libseccomp2" in warning["reason"]
    assert "filter of system calls: none (libseccomp is not there" in executor.describe()
    with pytest.raises(Unusable, match=r"libseccomp2.*RAP_SANDBOX_SECCOMP is required"):
        await SandboxExecutor(IMAGES, filter_calls=seccomp.REQUIRED).check()


async def test_filter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "program", lambda: b"no program")
    executor = SandboxExecutor(IMAGES)
    await executor.check()
    assert "none (a sandbox with a filter of system calls fails: bwrap: " in executor.describe()


async def test_nothing_to_filter_in() -> None:
    bare = SandboxExecutor(IMAGES, allow_unisolated=True, bubblewrap_path=None, filter_calls=seccomp.REQUIRED)
    with pytest.raises(Unusable, match="RAP_SANDBOX_SECCOMP is required"):
        await bare.check()


def test_rules_are_for_calls_that_exist() -> None:
    unknown = [
        rule.call
        for rule in syscalls.rules()
        if isinstance(rule.call, str) and pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, rule.call) == MISSING
    ]
    assert unknown == []
    assert len(seccomp.program()) % 8 == 0
    assert bubblewrap.Bubblewrap(path="bwrap", options=frozenset()).trial()
