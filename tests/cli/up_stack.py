"""`rap up` and `rap demo` as real processes, for the tests of these commands."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds after which a test gives up; nothing is measured by it."""


class Up:
    """A `rap up` with its lines."""

    def __init__(self, home: Path, *arguments: str, **environ: str) -> None:
        self.home = home
        self.process = subprocess.Popen(
            command("up", *arguments),
            env=environment(home, **environ),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait_for(self, words: str) -> str:
        """Read on until a line has `words`; the line."""
        while True:
            line = self._lines.get(timeout=PATIENCE)
            assert line is not None, f"ended without saying {words!r}: {self.said}"
            self.said.append(line)
            if words in line:
                return line

    def ended(self) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        while (line := self._lines.get(timeout=PATIENCE)) is not None:
            self.said.append(line)
        return code

    def service(self, name: str) -> psutil.Process:
        """The child that runs `controller` or `agent`, or PostgreSQL (`postgres`)."""

        def find() -> psutil.Process | None:
            for child in psutil.Process(self.process.pid).children():
                line = command_line(child)
                if line[-2:] == ["-m", name] or (name == "postgres" and line and line[0].endswith("/postgres")):
                    return child
            return None

        return eventually(find)

    def close(self) -> None:
        """End it if a test has not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def up(home: Path, *arguments: str, **environ: str) -> Iterator[Up]:
    """A `rap up` that is ready, on any port."""
    process = Up(home, "--port", "0", *arguments, **environ)
    try:
        process.wait_for("Ctrl-C stops everything")
        yield process
    finally:
        process.close()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cli.main", *arguments]


def environment(home: Path, **more: str) -> dict[str, str]:
    """A user's environment, whose home is `home`; jobs run in the sandbox, whatever engines the machine has."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAP_", "XDG_"))}
    return {
        **kept,
        "RAP_EXECUTOR": "sandbox",
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "MPLCONFIGDIR": str(home),
        **more,
    }


def rap(home: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run another `rap` command to its end."""
    return subprocess.run(
        command(*arguments),
        env=environment(home, **environ),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )


def rap_json(home: Path, *arguments: str) -> Any:
    done = rap(home, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def eventually(look: Callable[[], T | None]) -> T:
    """What `look` finds, looking again and again: another process gives no other sign."""
    pause, tries = threading.Event(), int(PATIENCE / 0.02)
    for _ in range(tries):
        found = look()
        if found:
            return found
        pause.wait(0.02)
    raise AssertionError("it never happened")


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def left_over(folder: Path) -> list[str]:
    """Command lines of processes that have something to do with `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            told = [process.cwd(), *process.cmdline(), *process.environ().values()]
            alive = process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue
        if alive and process.pid != os.getpid() and any(str(folder) in word for word in told):
            found.append(" ".join(process.cmdline()))
    return found


def study(folder: Path, script: str, outputs: str = "output/*.txt") -> Path:
    """A repository with one action, `work`, that runs `script` in Python."""
    folder.mkdir(parents=True)
    (folder / "work.py").write_text(script)
    (folder / "project.yaml").write_text(
        'version: "4.0"\n'
        "actions:\n"
        "  work:\n"
        "    run: python:v2 python work.py\n"
        "    outputs:\n"
        "      moderately_sensitive:\n"
        f"        result: {outputs}\n"
    )
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], [*identity, "commit", "-q", "-m", "study"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)
    return folder
