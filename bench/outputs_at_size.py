"""What it costs to bring home many outputs, or large ones: time, memory, and how long the event loop was kept waiting.

Two job volumes on a real file system: very many small files, and a few huge ones. Each goes through what an agent does,
in a process of its own: `finalize` (globs, copies and hashes, level-4 checks, manifest, log, metadata), `report` (its
list of outputs is composed), `prepare` (a dependant that takes every output as its input), `archive` and `unarchive`
of the workspace. Beside them, in the same run, `cp -a`, `sync -f` and `sha256sum` of the same files: the least that has
to be done. "MiB" is how much the process grew at its largest, "lag" the longest that the event loop was late.

    python -m bench.outputs_at_size [--folder FOLDER] [--files 100000] [--gib 10] [--no-archive]

The folder (default: the system's temporary one) needs room for six times the outputs; four times without archives,
which are compressed on one core and so take by far the longest.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, cast

import attrs
from attrs import frozen

from agent.checkout import Checkouts, Rules
from agent.core.definition import JobDefinition
from agent.core.redact import redact_results
from agent.executors.base import Executor, Exit, Limits, Run
from agent.outputs import archives, finalization, metadata, preparation
from agent.outputs.copies import force
from agent.outputs.workspaces import TIMESTAMP, Places
from common.clock import SystemClock
from common.protocol import Egress, Named

_SMALL: Final = 2048
"""Bytes of each of many files."""
_HUGE: Final = 4
"""How many huge files there are."""
_LOOK: Final = 0.005
"""Seconds between two looks at how late the event loop is."""


@frozen(kw_only=True)
class Phase:
    """One line of the table."""

    name: str
    seconds: float
    mebibytes: float | None = None
    """Growth of the process at its largest."""
    lag: float | None = None
    """Longest delay of the event loop, seconds."""


class _Silent:
    """An executor whose job has ended and printed nothing: all that finalizing asks of one."""

    async def logs(self, run: Run, offset: int, limit: int) -> bytes:
        """Nothing was printed."""
        del run, offset, limit
        return b""


def fill(volume: Path, files: int, size: int, *, sparse: bool = False) -> None:
    """A job's volume with a timestamp and `files` outputs of `size` bytes each, in folders of 5000.

    :param sparse: whether the contents take no room on the disk, and no time to be written.
    """
    volume.mkdir(parents=True)
    (volume / TIMESTAMP).touch()
    os.utime(volume / TIMESTAMP, ns=(1, 1))
    block = os.urandom(1024 * 1024)
    for number in range(files):
        folder = volume / "output" / f"part{number // 5000}"
        if number % 5000 == 0:
            folder.mkdir(parents=True)
        left = size
        with (folder / f"table_{number:06}.csv").open("wb") as file:
            file.write(f"{number}\n".encode())
            if sparse:
                file.truncate(size)
            while left > 0 and not sparse:
                file.write(block[: min(left, len(block))])
                left -= len(block)


def _grown() -> float:
    """MiB of the process at its largest since `_forget_growth`."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def _forget_growth() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")


@contextlib.asynccontextmanager
async def _watching() -> AsyncIterator[list[float]]:
    """A list that gets the longest delay of the event loop."""
    longest = [0.0]

    async def look() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(_LOOK)
            longest[0] = max(longest[0], time.perf_counter() - before - _LOOK)

    task = asyncio.create_task(look())
    try:
        yield longest
    finally:
        task.cancel()


async def _timed(name: str, work: Callable[[], Awaitable[object]]) -> Phase:
    _forget_growth()
    before = _grown()
    start = time.perf_counter()
    async with _watching() as longest:
        await work()
    return Phase(name=name, seconds=time.perf_counter() - start, mebibytes=_grown() - before, lag=longest[0])


def _definition(repo: str, commit: str, **changes: Any) -> JobDefinition:
    values: dict[str, Any] = {"id": "jobone", "repo_url": repo, "commit": commit, "workspace": "ws", "action": "make"}
    values |= {"created_at": 1.0, "image": "python:v2", "output_spec": {"output/*/*.csv": "highly_sensitive"}}
    return JobDefinition(**(values | changes))


def _run(places: Places, definition: JobDefinition) -> Run:
    task_id = f"{definition.id}-001"
    return Run(
        task_id=task_id, job_id=definition.id, workspace="ws", action=definition.action, image="python:v2",
        image_sha=None, args=(), env={}, volume=places.volume(task_id), state_dir=places.notes(task_id) / "run",
        limits=Limits(cpu_count=1, memory_bytes=1 << 30, seconds=None),
    )  # fmt: skip


def _repository(folder: Path) -> tuple[str, str]:
    """A study that is nearly empty; its path and commit."""
    folder.mkdir()
    (folder / "project.yaml").write_text("version: 4\nactions:\n  make:\n    run: python:v2 make.py\n")
    git = ["git", "-C", str(folder), "-c", "user.name=b", "-c", "user.email=b@example.org"]
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=study"]):
        subprocess.run([*git, *arguments], check=True)
    done = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return str(folder), done.stdout.strip()


async def measure(folder: Path, files: int, size: int, *, quick: bool = False, archive: bool = True) -> list[Phase]:
    """All phases for one kind of volume, in an empty folder.

    :param quick: without the comparison, and with sparse files: for memory, not for time.
    :param archive: whether the workspace is put away and brought back, too.
    """
    places = Places(high=folder / "high", medium=folder / "medium", archive=folder / "archives", work=folder / "work")
    repo, commit = _repository(folder / "study")
    rules = Rules(allow_local=True, allowed_orgs=())
    checkouts = Checkouts(cache=folder / "repos", rules=rules, clock=SystemClock(), time_limit=60)
    first = _definition(repo, commit)
    run = _run(places, first)
    await asyncio.to_thread(fill, run.volume, files, size, sparse=quick)
    await asyncio.to_thread(force, run.volume)
    exit = Exit(code=0, started_at_ns=1, finished_at_ns=2)
    executor = cast(Executor, _Silent())

    async def report() -> None:
        recorded = await asyncio.to_thread(metadata.read, places.log_dir(first.id, first.created_at))
        await asyncio.to_thread(redact_results, recorded or {}, Egress(outputs=Named.ALL))

    phases = [
        await _timed("finalize", lambda: finalization.finalize(places, checkouts, executor, first, run, exit)),
        await _timed("finalize again", lambda: finalization.finalize(places, checkouts, executor, first, run, exit)),
        await _timed("report", report),
    ]
    if not quick:
        phases += await asyncio.to_thread(_compare, run.volume / "output", folder / "plain")
    second = _definition(repo, commit, id="jobtwo", action="use", input_job_ids=("jobone",), output_spec={})
    after, notes = _run(places, second), places.notes("jobtwo-001")
    phases.append(await _timed("prepare", lambda: preparation.prepare(places, checkouts, second, after, notes)))
    if not archive:
        return phases
    phases.append(await _timed("archive", lambda: asyncio.to_thread(archives.put_away, places, "ws")))
    phases.append(await _timed("unarchive", lambda: asyncio.to_thread(archives.bring_back, places, "ws")))
    return phases


def _compare(source: Path, copy: Path) -> list[Phase]:
    """The same with the system's own tools."""
    start = time.perf_counter()
    subprocess.run(["cp", "-a", str(source), str(copy)], check=True)
    subprocess.run(["sync", "-f", str(copy)], check=True)
    hashing = f"find {copy} -type f -print0 | xargs -0 sha256sum > {copy}.sums"
    subprocess.run(["bash", "-c", hashing], check=True)
    # Not removed before the end: ext4 is slow to make files where many were removed a moment ago.
    return [Phase(name="cp, sync, sha256sum", seconds=time.perf_counter() - start)]


def _show(files: int, size: int, phases: list[Phase]) -> None:
    plain = next(phase.seconds for phase in phases if phase.mebibytes is None)
    print(f"\n{files} files, {files * size / 1024**3:.2f} GiB")
    print(f"  {'':22}{'seconds':>9}{'ratio':>8}{'MiB':>9}{'lag ms':>9}")
    for phase in phases:
        grown = "" if phase.mebibytes is None else f"{phase.mebibytes:.0f}"
        lag = "" if phase.lag is None else f"{phase.lag * 1000:.0f}"
        print(f"  {phase.name:22}{phase.seconds:9.1f}{phase.seconds / plain:8.2f}{grown:>9}{lag:>9}", flush=True)


def main() -> None:
    """Measure both kinds, each in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m bench.outputs_at_size", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--gib", type=float, default=10)
    parser.add_argument("--no-archive", dest="archive", action="store_false")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        files, size = map(int, asked.case.split("x"))
        done = asyncio.run(measure(asked.folder, files, size, quick=asked.quick, archive=asked.archive))
        print(json.dumps([attrs.asdict(one) for one in done]))
        return
    for files, size in ((asked.files, _SMALL), (_HUGE, int(asked.gib * 1024**3) // _HUGE)):
        if not files * size:
            continue
        with tempfile.TemporaryDirectory(prefix="rap-bench-", dir=asked.folder) as folder:
            command = [sys.executable, "-m", "bench.outputs_at_size", "--folder", folder, "--case", f"{files}x{size}"]
            command += [] if asked.archive else ["--no-archive"]
            child = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            _show(files, size, [Phase(**one) for one in json.loads(child.stdout)])
    print(f"\nlargest child: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024} MiB")


if __name__ == "__main__":
    main()
