"""Podman's compatible socket for tests: a service of the tests' own, with the images of `docker_host`."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.executors.docker_host import PATIENCE, Host, load_images


@contextlib.contextmanager
def service() -> Iterator[Host]:
    """A service on storage of its own."""
    if shutil.which("podman") is None or os.geteuid() != 0:
        pytest.skip("no podman that may be started (Debian: podman)")
    folder = Path(tempfile.mkdtemp(prefix="rap-podman-"))  # short: a socket's path has about 100 characters
    host = Host(f"unix://{folder}/podman.sock")
    # Not systemd's cgroups, and the runtime that Docker uses, too: crun refuses machines with both cgroup versions.
    # fmt: off
    command = ["podman", f"--root={folder / 'root'}", f"--runroot={folder / 'run'}", f"--tmpdir={folder / 'tmp'}",
               "--cgroup-manager=cgroupfs", "--storage-driver=vfs", "--events-backend=file", "--runtime=runc"]
    # fmt: on
    with (folder / "log").open("ab") as log:
        # In a folder of its own: conmon 2.1.6 writes a file `oom` to where it was started.
        process = subprocess.Popen(
            [*command, "system", "service", "--time=0", host.address],
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + PATIENCE
        while not host.works():
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < until, (folder / "log").read_text()[-2000:]
            time.sleep(0.05)
        load_images(host)
        yield host
    finally:
        subprocess.run([*command, "rm", "--all", "--force", "--time=0"], check=False, capture_output=True, cwd=folder)
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        for mount in reversed([line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]):
            if mount.startswith(f"{folder}/"):
                subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(folder, ignore_errors=True)
