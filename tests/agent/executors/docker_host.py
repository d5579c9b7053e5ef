"""A real container engine for tests: the one that DOCKER_HOST names, or a Docker Engine of the tests' own.

No image can be pulled there: a small one is made of this machine's busybox and Python.
"""

import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from attrs import define

PATIENCE = 60.0
PYTHON = "localhost/python:latest"
"""An image; its name has a host in it, without which Podman would look for it in a
registry; the tag is the one that Podman gives."""
_LEFT_OUT = {"test", "tests", "idlelib", "ensurepip", "lib2to3", "tkinter", "turtledemo", "site-packages", "pydoc_data"}


class UnixConnection(http.client.HTTPConnection):
    """HTTP to a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


@define
class Host:
    """An engine, asked without the code under test."""

    address: str

    def ask(self, method: str, path: str, body: Any = None, **query: str) -> tuple[int, bytes]:
        """The status and body of an answer."""
        connection = UnixConnection(self.address.removeprefix("unix://"))
        with contextlib.closing(connection):
            target = f"{path}?{urlencode(query)}" if query else path
            connection.request(method, target, body=body, headers={"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def inspect(self, name: str) -> dict[str, Any]:
        """A container."""
        status, body = self.ask("GET", f"/containers/{name}/json")
        assert status == 200, body
        return dict(json.loads(body))

    def works(self) -> bool:
        """Whether somebody answers."""
        try:
            return self.ask("GET", "/version")[0] == 200
        except OSError:
            return False

    def load(self, image: str, archive: Path, *changes: str) -> None:
        """Make an image of a file system."""
        name, _, tag = image.rpartition(":")
        query = [("fromSrc", "-"), ("repo", name), ("tag", tag), *(("changes", change) for change in changes)]
        with archive.open("rb") as file:
            connection = UnixConnection(self.address.removeprefix("unix://"))
            with contextlib.closing(connection):
                connection.request("POST", f"/images/create?{urlencode(query)}", body=file)
                answer = connection.getresponse()
                said = answer.read()
        assert answer.status == 200, said
        assert b"error" not in said, said


@define
class Daemon(Host):
    """A Docker Engine that the tests may stop and start."""

    folder: Path = Path()
    options: tuple[str, ...] = ()
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it, and return when it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    "dockerd",
                    f"--data-root={self.folder / 'data'}",
                    f"--exec-root={self.folder / 'exec'}",
                    f"--pidfile={self.folder / 'pid'}",
                    f"--host={self.address}",
                    "--iptables=false",
                    "--bridge=none",
                    *self.options,
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + PATIENCE
        while not self.works():
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            assert time.monotonic() < until, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, as a service manager does, or as a crash does."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(PATIENCE)
        if number == signal.SIGKILL:
            # Its containerd dies with it, the containers' shims stay. Where nobody reaps that containerd, the next
            # dockerd would take it for a living one.
            (self.folder / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)


@contextlib.contextmanager
def daemon(*options: str) -> Iterator[Daemon]:
    """A Docker Engine of the tests' own."""
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        pytest.skip("no DOCKER_HOST, and no dockerd that may be started (Debian: docker.io)")
    folder = Path(tempfile.mkdtemp(prefix="rap-docker-"))  # short: a socket's path has about 100 characters
    engine = Daemon(f"unix://{folder}/docker.sock", folder=folder, options=options)
    try:
        engine.start()
        yield engine
    finally:
        if engine.process is not None and engine.process.poll() is None:
            _remove_containers(engine)
            engine.stop()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            # Of a dockerd that was killed, containerd stays; the next one uses it, and may not end it.
            os.kill(int((folder / "exec" / "containerd" / "containerd.pid").read_text()), signal.SIGKILL)
        for mount in reversed([line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]):
            if mount.startswith(f"{folder}/"):
                subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_containers(host: Host) -> None:
    for container in json.loads(host.ask("GET", "/containers/json", all="1")[1]):
        host.ask("DELETE", f"/containers/{container['Id']}", force="1")


@contextlib.contextmanager
def engine() -> Iterator[Host]:
    """The engine that DOCKER_HOST names if it is usable, else one of the tests' own; with the images."""
    given = Host(os.environ.get("DOCKER_HOST", ""))
    with contextlib.ExitStack() as stack:
        host = given if given.address.startswith("unix://") and given.works() else stack.enter_context(daemon())
        load_images(host)
        yield host


def load_images(host: Host) -> None:
    """The image `PYTHON`: this machine's Python, and the commands of busybox."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "root.tar"
        with tarfile.open(archive, "w") as root:
            _add_busybox(root)
            _add_python(root)
        labels = [f"LABEL org.opencontainers.image.{label}" for label in ("version=2.0", "revision=abc")]
        host.load(PYTHON, archive, "ENV PATH=/usr/local/bin:/bin", *labels)


def _add_busybox(root: tarfile.TarFile) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox (Debian: busybox-static)")
    for name in ("bin", "tmp", "etc", "workspace"):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
        root.addfile(entry)
    root.add(busybox, "bin/busybox")
    for name in ("sh", "cat", "echo", "grep", "sleep", "ls", "id", "wget", "nslookup", "ip", "mount", "ping", "dd"):
        entry = tarfile.TarInfo(f"bin/{name}")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/bin/busybox"
        root.addfile(entry)
    users = b"root:x:0:0:root:/:/bin/sh\n"
    entry = tarfile.TarInfo("etc/passwd")
    entry.size = len(users)
    root.addfile(entry, io.BytesIO(users))


def _add_python(root: tarfile.TarFile) -> None:
    """The Python that runs the tests: its program, the libraries that it needs, its modules."""
    program = Path(sys.executable).resolve()
    modules = Path(sysconfig.get_path("stdlib"))
    files = {program, *(modules / "lib-dynload").glob("*.so")}
    done = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=False)
    libraries = {word for line in done.stdout.splitlines() for word in line.split() if word.startswith("/")}
    for library in sorted(word for word in libraries if not word.endswith(":")):
        root.add(os.path.realpath(library), library)
    root.add(program, str(program))
    entry = tarfile.TarInfo("usr/local/bin/python")
    entry.type, entry.linkname = tarfile.SYMTYPE, str(program)
    root.addfile(entry)

    def choose(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = Path(entry.name).relative_to(str(modules)[1:]).parts
        left_out = parts and (parts[0] in _LEFT_OUT or parts[0].startswith("config-") or parts[-1] == "__pycache__")
        return None if left_out else entry

    root.add(modules, str(modules), filter=choose)
