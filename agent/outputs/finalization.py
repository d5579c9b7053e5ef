"""Brings a finished job's files home: outputs, level-4 checks, manifest, log and, last of all, `metadata.json`.

Everything is idempotent: killed half-way, the next agent does it again from the volume and the executor's log.
Outputs are kept whatever the exit code is (reference section 5.2).
"""

import asyncio
import io
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

import structlog
from attrs import frozen
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from agent.checkout import Checkouts
from agent.core import messages
from agent.core.definition import JobDefinition
from agent.core.errors import JobError
from agent.executors.base import Executor, Exit, Run
from agent.outputs import attempts, collect, joblog, level4, manifest, metadata
from agent.outputs.copies import Batch, Copied
from agent.outputs.metadata import Ending, Kept
from agent.outputs.workspaces import Places, Stopped, remove_file, sweep
from agent.waits import in_thread

_log = structlog.get_logger()

_PROJECT_LIMIT: Final = 1024 * 1024
_LOG_CHUNK: Final = 256 * 1024
_LONGEST_NAME: Final = 255
"""Bytes of a file's name on every file system that we know of."""


@frozen(kw_only=True)
class _Stored:
    """An output in the high-privacy area, with its check's findings."""

    kept: Kept
    changed_at: float
    """Its mtime, Unix seconds."""
    rows: int | None
    cols: int | None


async def finalize(
    places: Places, checkouts: Checkouts, executor: Executor, definition: JobDefinition, run: Run, exit: Exit,
    *, over_disk: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Store everything that the run produced and return its `metadata.json`.

    :param over_disk: whether the run ended for having written more than it may.
    :raises JobError: an output leads outside the volume, clashes with a folder of the workspace, or a newer attempt
        has begun.
    """
    folder = places.log_dir(definition.id, definition.created_at)
    action = places.action_dir(definition.workspace, definition.action)

    def collect_outputs(stop: threading.Event) -> tuple[collect.Findings, list[_Stored]]:
        findings = collect.find(run.volume, definition.output_spec, stop)
        workspace = places.high_workspace(definition.workspace)
        with attempts.newest(folder, run.task_id, stop), attempts.last_job(action, definition.id, stop):
            sweep(folder)
            with Batch(_staging(workspace, definition), stop) as batch:
                copied = collect.persist(run.volume, workspace, findings.outputs, batch)
            medium = _staging(places.medium_workspace(definition.workspace), definition)
            with Batch(medium, stop) as batch:
                return findings, _release(places, definition, run.volume, findings.outputs, copied, batch, stop)

    findings, stored = await in_thread(collect_outputs)
    ending = _describe(run, exit, findings, stored, over_disk=over_disk)
    # In a thread: with a hundred thousand outputs it takes its time.
    recorded = await asyncio.to_thread(metadata.compose, definition, run.task_id, ending, exit, exit.finished_at_ns)
    log = await write_log(places, executor, definition, run, recorded)
    actions = await _study_actions(checkouts, definition)

    def publish(stop: threading.Event) -> None:
        with attempts.newest(folder, run.task_id, stop), attempts.last_job(action, definition.id, stop):
            write(stop)

    def write(stop: threading.Event) -> None:
        high, medium = places.high_workspace(definition.workspace), places.medium_workspace(definition.workspace)
        for workspace in (high, medium):
            with Batch(_staging(workspace, definition), stop) as batch:
                batch.copy(log, workspace / f"metadata/{definition.action}.log")
        entries = _entries(definition, stored)
        manifest.update(medium / "metadata", definition.workspace, definition.action, entries, actions)
        metadata.write(log.parent, recorded)

    await in_thread(publish)
    return recorded


def _describe(
    run: Run, exit: Exit, findings: collect.Findings, stored: Sequence[_Stored], *, over_disk: bool
) -> Ending:
    message = messages.describe_exit(
        exit,
        unmatched_patterns=findings.unmatched_patterns,
        memory_bytes=run.limits.memory_bytes,
        seconds=run.limits.seconds,
        disk_bytes=run.limits.disk_bytes if over_disk else None,
    )
    return Ending(
        status_message=message,
        hint=messages.suggest(findings.unmatched_patterns, findings.unmatched_outputs),
        outputs=[one.kept for one in stored],
        unmatched_patterns=findings.unmatched_patterns,
        unmatched_outputs=findings.unmatched_outputs,
    )


async def record_ending(
    places: Places,
    executor: Executor,
    definition: JobDefinition,
    run: Run,
    ending: Ending,
    exit: Exit | None,
    now_ns: int,
) -> dict[str, Any]:
    """Record a cancelled or errored attempt: log and metadata in the log folder, nothing in the workspace.

    :raises JobError: a newer attempt has begun, whose folder it is now.
    """
    recorded = metadata.compose(definition, run.task_id, ending, exit, now_ns)
    log = await write_log(places, executor, definition, run, recorded)

    def write(stop: threading.Event) -> None:
        with attempts.newest(log.parent, run.task_id, stop):
            sweep(log.parent)
            metadata.write(log.parent, recorded)

    await in_thread(write)
    return recorded


async def write_log(
    places: Places, executor: Executor, definition: JobDefinition, run: Run, recorded: Mapping[str, Any]
) -> Path:
    """Write what the job printed and the summary to its log folder, with bounded memory; return the file."""
    path = places.log_dir(definition.id, definition.created_at) / "logs.txt"
    offset, last = 0, b"\n"
    part = path.with_name(f"logs.txt.{run.task_id}.part")
    await asyncio.to_thread(_start_file, part)
    while chunk := await executor.logs(run, offset, _LOG_CHUNK):
        await asyncio.to_thread(_append, part, chunk)
        offset, last = offset + len(chunk), chunk[-1:]
    await asyncio.to_thread(_append_summary, part, recorded, b"" if last == b"\n" else b"\n")
    await in_thread(lambda stop: _finish_file(part, path, run.task_id, stop))
    return path


def _start_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def _finish_file(part: Path, path: Path, task_id: str, stop: threading.Event) -> None:
    try:
        with attempts.newest(path.parent, task_id, stop):
            part.replace(path)
    finally:
        remove_file(part)


def _append(path: Path, body: bytes) -> None:
    with path.open("ab") as file:
        file.write(body)


def _append_summary(path: Path, recorded: Mapping[str, Any], separator: bytes) -> None:
    with path.open("ab") as file:
        file.write(separator)
        for line in joblog.summarise(recorded):
            file.write(f"{line}\n".encode(errors="backslashreplace"))


def _staging(workspace: Path, definition: JobDefinition) -> Path:
    """Where files wait that are to be moved into a workspace; the action's lock is also the right to use it."""
    return workspace / collect.METADATA / ".incoming" / definition.action


def _release(
    places: Places,
    definition: JobDefinition,
    volume: Path,
    outputs: Mapping[str, str],
    copied: dict[str, Copied],
    batch: Batch,
    stop: threading.Event,
) -> list[_Stored]:
    """Check every moderately sensitive output and bring the medium-privacy area up to date (section 5.3).

    What is checked is what is copied: the job's own files. Those in the workspace another action may replace meanwhile.

    :param copied: emptied, so that what is known of an output is held once.
    """
    rules = level4.Rules(
        max_size=definition.level4_max_filesize,
        max_rows=definition.level4_max_csv_rows,
        file_types=definition.level4_file_types,
    )
    medium, origins = places.medium_workspace(definition.workspace), collect.Origins(volume)
    stored = []
    for path, level in outputs.items():
        if stop.is_set():
            raise Stopped
        source = origins.find(path)
        suffix = PurePosixPath(path).suffix  # an output may be a link, to a file of another name
        checked = level4.check(source, suffix, rules) if level == level4.LEVEL else level4.Checked()
        accepted = level == level4.LEVEL and checked.message is None
        _place(source, medium / path, accepted, checked.message, f"{path}.txt" in outputs, batch)
        copy = copied.pop(path)
        kept = Kept(
            path=path,
            level=level,
            size=copy.size,
            sha256=copy.sha256,
            excluded=checked.message is not None,
            message=checked.message or "",
        )
        stored.append(_Stored(kept=kept, changed_at=copy.changed_at, rows=checked.row_count, cols=checked.col_count))
    return stored


def _place(source: Path, target: Path, accepted: bool, message: str | None, note_is_output: bool, batch: Batch) -> None:
    """Copy an accepted file to the medium-privacy area; take any other out of it, and say why if it was refused."""
    note = target.with_name(f"{target.name}.txt")
    if accepted:
        batch.copy(source, target)
    else:
        batch.remove(target)
    if len(os.fsencode(note.name)) > _LONGEST_NAME:
        return  # the manifest and the log say it, too
    if message is not None:
        batch.write(note, f"{message}\n".encode())
    elif not note_is_output:
        batch.remove(note)


def _entries(definition: JobDefinition, stored: Sequence[_Stored]) -> dict[str, manifest.Entry]:
    return {
        one.kept.path: manifest.Entry(
            level=one.kept.level,
            job_id=definition.id,
            job_request=definition.rap_id,
            action=definition.action,
            user=definition.user,
            repo=definition.study.git_repo_url or definition.repo_url,
            commit=definition.study.commit or definition.commit,
            size=one.kept.size,
            timestamp=one.changed_at,
            content_hash=one.kept.sha256,
            excluded=one.kept.excluded,
            message=one.kept.message or None,
            row_count=one.rows,
            col_count=one.cols,
        )
        for one in stored
    }


def _read_actions(project_file: bytes) -> frozenset[str]:
    project = YAML(typ="safe", pure=True).load(io.BytesIO(project_file))
    return frozenset(str(name) for name in project["actions"])


async def _study_actions(checkouts: Checkouts, definition: JobDefinition) -> frozenset[str] | None:
    """The actions in the study's own project file; None if it cannot be had, which is no fault of the job."""
    study = definition.study
    if not study.git_repo_url or not study.commit:
        return None
    try:
        body = await checkouts.read_file(study.git_repo_url, study.commit, "project.yaml", _PROJECT_LIMIT)
        return await asyncio.to_thread(_read_actions, body)
    except (JobError, OSError, YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        _log.warning("study's project file not readable: manifest keeps its actions", error=str(error)[:500])
        return None
