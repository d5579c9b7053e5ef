"""The append-only record: one line for each start and each end of a job, written by the job itself.

A line is `start|end:<code> <job id> <task id> <pid> <Unix seconds>`, written by one `write` to a file opened with
O_APPEND, so lines of many processes never mix. `job.sh` writes them for sandboxed jobs, `RecordingFake` for its own.
The time is the machine's clock: nobody's clock is skewed there.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen


@frozen(kw_only=True)
class Line:
    """One statement of a job about itself."""

    word: str
    job_id: str
    task_id: str
    pid: int
    at: float

    @property
    def exit_code(self) -> int | None:
        """Of an end; None for a start."""
        return int(self.word.removeprefix("end:")) if self.word.startswith("end:") else None


def append(path: Path, word: str, job_id: str, task_id: str) -> None:
    """Add a line, in the words of this process (blocking, but for a moment only)."""
    text = f"{word} {job_id} {task_id} {os.getpid()} {time.time():.9f}\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def read(path: Path) -> Iterator[Line]:
    """Every line.

    :raises ValueError: a line is not what it should be.
    """
    for text in path.read_text().splitlines():
        word, job_id, task_id, pid, at = text.split(" ")
        yield Line(word=word, job_id=job_id, task_id=task_id, pid=int(pid), at=float(at))


def content(job_id: str, task_id: str, path: str, lines: int) -> bytes:
    """What `job.sh` and `RecordingFake` write to an output: every line names its attempt, so mixtures show."""
    body = "".join(f"{number} {job_id} {task_id} {path}\n" for number in range(1, lines + 1))
    return f"{body}end {job_id} {task_id} {path}\n".encode()
