"""The state directory of a run on a cluster, as the agent reads and writes it.

Beside what the supervisor leaves (`agent.executors.sandbox.notes`) and the node (`node`):

- `spec`: what to run, mode 0600. While it is there the run has not begun; whoever renames it decides whether it does.
- `submission.json`: the agent gave or is about to give the run to Slurm; the mark by which the job is found again,
  and the job's number once Slurm has said it.
- `submit.lock`: held while a submission is under way, by the `sbatch` process as well: when the agent is killed, its
  successor waits until that has ended and then looks for the job.

Everything here is blocking and quick, and is called in a thread.
"""

import contextlib
import fcntl
import marshal
import os
import time
import uuid
from pathlib import Path
from typing import Any

import orjson
from attrs import evolve, frozen

from agent.executors.base import Exit, Phase, Status
from agent.executors.sandbox.notes import KILLED, Notes
from agent.executors.slurm.state import Verdict
from common.convert import dumps, loads

_SAID_BYTES = 2000


@frozen(kw_only=True)
class Submission:
    """The whole of `submission.json`."""

    nonce: str
    at_ns: int
    job_id: int | None = None


@frozen(kw_only=True)
class Look:
    """What a glance at the directory says."""

    started: bool
    exited: bool
    stopped: bool
    """Whether the supervisor was made to end, and only Slurm knows why."""


@frozen
class SlurmNotes:
    """The state directory of one run."""

    directory: Path

    @property
    def plain(self) -> Notes:
        """The same directory as the sandbox sees it. Its `status` is no good here: it asks this machine's kernel."""
        return Notes(self.directory)

    def look(self) -> Look:
        """The cheapest answer to whether something has happened."""
        return Look(
            started=(self.directory / "started").exists(),
            exited=(self.directory / "exit.json").exists(),
            stopped=(self.directory / "stopped.json").exists(),
        )

    def status(self) -> Status:
        """The phase. A job in Slurm's queue has not been started: it is as absent as before."""
        started = self.plain.started()  # before the exit: whoever has ended by then has written both
        if (ended := self.exit()) is not None:
            return Status(phase=Phase.EXITED, started_at_ns=ended.started_at_ns, exit=ended)
        if started is not None:
            return Status(phase=Phase.RUNNING, started_at_ns=started.at_ns)
        return Status(phase=Phase.ABSENT)

    def exit(self) -> Exit | None:
        """How the run ended, if that is decided; with the cluster's number and node of it."""
        ended = self.plain.exit()
        if ended is None:
            return None
        node = self.plain.values("node.json") or {}
        return evolve(ended, metadata={**ended.metadata, **node})

    def submission(self) -> Submission | None:
        """The submission, if there is or may be one."""
        with contextlib.suppress(FileNotFoundError):
            return loads((self.directory / "submission.json").read_bytes(), Submission)
        return None

    def job_id(self) -> int | None:
        """The cluster's number of the job, as Slurm or the node said."""
        node = self.plain.values("node.json")
        if node is not None:
            return int(node["slurm_job_id"]) or None
        submission = self.submission()
        return submission.job_id if submission else None

    def write_spec(self, spec: dict[str, Any]) -> None:
        """Make the run ready to be claimed. It may hold secrets: nobody else may read it, at no time."""
        fresh = self.directory / "spec.new"
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "wb") as file:
            file.write(marshal.dumps(spec))
            os.fsync(fd)
        fresh.rename(self.directory / "spec")

    def begin_submission(self) -> Submission:
        """Write down that a job is about to be given to Slurm, before it is."""
        submission = Submission(nonce=uuid.uuid4().hex, at_ns=time.time_ns())
        self.save(submission)
        return submission

    def save(self, submission: Submission) -> None:
        """Write `submission.json`, to stay."""
        fresh = self.directory / "submission.new"
        with fresh.open("wb") as file:
            file.write(dumps(submission))
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self.directory / "submission.json")

    def withdraw(self) -> bool:
        """Take the run away from the cluster; False if a node was quicker, or nothing was there."""
        mine = self.directory / "spec.withdrawn"
        try:
            (self.directory / "spec").rename(mine)
        except FileNotFoundError:
            return False
        mine.unlink(missing_ok=True)
        return True

    def unsubmit(self) -> None:
        """Forget a submission that Slurm refused."""
        self.withdraw()
        (self.directory / "submission.json").unlink(missing_ok=True)

    def request_end(self) -> None:
        """Ask the supervisor to end the run: it looks for this when it is signalled, and now and then."""
        with contextlib.suppress(FileNotFoundError):
            (self.directory / "terminate").touch()

    def refresh(self) -> None:
        """Change the directory, so that a network file system forgets which files it believes not to be there."""
        with contextlib.suppress(OSError):
            (self.directory / "refresh").touch()
            (self.directory / "refresh").unlink()

    def said(self) -> str:
        """The end of what Slurm and the batch script printed; nothing of the job's own."""
        try:
            text = (self.directory / "batch.log").read_bytes()[-_SAID_BYTES:]
        except OSError:
            return ""
        return text.decode(errors="replace").strip()

    def settle(self, verdict: Verdict) -> None:
        """Write the exit that no supervisor wrote, unless one is there by now."""
        stopped = self.plain.values("stopped.json") or {}
        started = self.plain.started()
        submission = self.submission()
        began = started.at_ns if started else submission.at_ns if submission else time.time_ns()
        terminated = (self.directory / "terminate").exists()
        values: dict[str, object] = {
            "code": KILLED,
            "started_at_ns": began,
            "finished_at_ns": max(time.time_ns(), began),
            **self.plain.metrics(),
            **stopped,
            "oom_killed": verdict.oom_killed and not terminated,
            "timed_out": verdict.timed_out and not terminated,
            "terminated": terminated,
            "lost": None if terminated else verdict.lost,
        }
        values["code"] = KILLED
        # Not under the final name at once: the first to link it there has said the last word.
        mine = self.directory / f"exit.{os.getpid()}.{time.monotonic_ns()}"
        with contextlib.suppress(FileNotFoundError):  # forgotten in between
            mine.write_bytes(orjson.dumps(values))
            with contextlib.suppress(FileExistsError):
                os.link(mine, self.directory / "exit.json")
            mine.unlink()

    def try_lock(self) -> int | None:
        """A descriptor that holds `submit.lock`; None if somebody else has it. Inheritable by nobody unless passed."""
        path = self.directory / "submit.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd
        except BlockingIOError:
            pass
        os.close(fd)
        return None
