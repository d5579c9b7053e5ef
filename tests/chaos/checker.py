"""Judges what a run left behind. Knows nothing of our code: rows, files and the record speak.

What a distributed system can promise, and is held to here:

* **lost**: a create that was answered has all its jobs in the database; one whose answer was lost counts when it is
  there. A RAP that status once knew is never unknown again.
* **run twice in one attempt**: no task starts two processes. (Two *attempts* of a job may overlap: an agent that is cut
  off cannot be told that its job was given to another one. Only the newest may be believed.)
* **run after cancel**: after the answer to a cancel no new attempt is given out, and nothing of a cancelled attempt
  starts after its agent has confirmed the stop (the CANCELJOB task is complete). In between, an agent that has not
  heard of it yet may still start what it holds: nobody can reach into a backend.
* **left non-terminal**: when all is mended, every job ends, and so does every task.
* **illegal transitions**: each step of a job's history is one of section 3 of the reference; it ends once; attempts
  never go back; what it ended with was said by its newest attempt, which really ran, after what it waited for.
* **missing or torn**: every output of a job that succeeded is there, whole, written by the attempt that was believed
  (or by a newer job of the same action that ended otherwise), and the manifest names the same.
"""

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from attrs import Factory, frozen

from tests.chaos import record
from tests.chaos.evidence import EventRow, Evidence, JobRow, TaskRow

_PENDING: Final = frozenset({
    "created", "paused", "waiting_db_maintenance", "waiting_on_dependencies", "waiting_on_workers",
    "waiting_on_db_workers", "waiting_on_reboot", "waiting_on_new_task",
})  # fmt: skip
_STAGES: Final = ("initiated", "preparing", "prepared", "executing", "executed", "finalizing", "finalized")
_RESETS: Final = frozenset({"waiting_db_maintenance", "waiting_on_reboot", "waiting_on_new_task"})
_CANCELLED: Final = frozenset({"cancelled_by_user", "killed_by_admin"})
_NOT_RUN: Final = _CANCELLED | {"dependency_failed", "internal_error", "job_error"}
_FAILED: Final = _NOT_RUN | {"nonzero_exit", "unmatched_patterns"}
_STATE: Final[Mapping[str, str]] = {
    **dict.fromkeys(_PENDING, "pending"),
    **dict.fromkeys(_STAGES, "running"),
    **dict.fromkeys(_FAILED, "failed"),
    "succeeded": "succeeded",
}
_TERMINAL: Final = frozenset({"succeeded", "failed"})
_BY_ITS_RUN: Final = frozenset({"succeeded", "nonzero_exit", "unmatched_patterns"})
INPUT_TORN: Final = 99
"""The exit code of a job whose input was not whole."""


@frozen(kw_only=True)
class Verdict:
    """How many jobs there were, and every fault found, in words."""

    accepted: int
    lost: list[str] = Factory(list)
    run_twice: list[str] = Factory(list)
    run_after_cancel: list[str] = Factory(list)
    left_non_terminal: list[str] = Factory(list)
    illegal_transitions: list[str] = Factory(list)
    outputs_missing_or_torn: list[str] = Factory(list)

    @property
    def faults(self) -> Mapping[str, list[str]]:
        """By kind; all must be empty."""
        return {
            "lost": self.lost,
            "run twice in one attempt": self.run_twice,
            "run after cancel was acknowledged": self.run_after_cancel,
            "left non-terminal": self.left_non_terminal,
            "illegal transitions": self.illegal_transitions,
            "outputs missing or torn": self.outputs_missing_or_torn,
        }

    @property
    def clean(self) -> bool:
        """Whether there is none."""
        return not any(self.faults.values())


def check(evidence: Evidence) -> Verdict:
    """Every fault in the evidence."""
    if not evidence.jobs and not evidence.accepted:
        return Verdict(accepted=0, lost=["nothing was accepted at all: the run shows nothing"])
    return Verdict(
        accepted=len(evidence.jobs),
        lost=list(_lost(evidence)),
        run_twice=list(_run_twice(evidence)),
        run_after_cancel=list(_run_after_cancel(evidence)),
        left_non_terminal=list(_left(evidence)),
        illegal_transitions=[*_histories(evidence), *_believed(evidence), *_too_early(evidence)],
        outputs_missing_or_torn=[*_outputs(evidence), *_inputs(evidence)],
    )


def _lost(evidence: Evidence) -> Iterator[str]:
    there = Counter(job.rap_id for job in evidence.jobs.values())
    for promise in evidence.accepted:
        if there[promise.rap_id] != promise.count:
            yield f"RAP {promise.rap_id}: {promise.count} jobs were accepted, {there[promise.rap_id]} are there"
    yield from evidence.contradictions


def _run_twice(evidence: Evidence) -> Iterator[str]:
    known = {task.id for task in evidence.tasks if task.type == "runjob"}
    starts: dict[str, list[record.Line]] = defaultdict(list)
    for line in evidence.lines:
        if line.exit_code is None:
            starts[line.task_id].append(line)
    for task_id, lines in starts.items():
        if len(lines) > 1:
            told = ", ".join(f"process {line.pid} at {line.at:.3f}" for line in lines)
            yield f"task {task_id} was started {len(lines)} times: {told}"
        if task_id not in known:
            yield f"task {task_id} was started, and the database does not know it"


def _run_after_cancel(evidence: Evidence) -> Iterator[str]:
    stopped = {
        task.id.removesuffix("-cancel"): task.finished_at.timestamp()
        for task in evidence.tasks
        if task.type == "canceljob" and task.complete and task.finished_at is not None
    }
    for line in evidence.lines:
        if line.exit_code is None and line.at > stopped.get(line.task_id, line.at):
            yield f"task {line.task_id} was started at {line.at:.3f}, after its cancel was done"
    acknowledged = _acknowledged(evidence)
    for task in evidence.tasks:
        at = acknowledged.get(task.job_id)
        if task.type == "runjob" and at is not None and task.created_at.timestamp() > at:
            yield f"task {task.id} was made at {task.created_at}, after the answer to its job's cancel"


def _acknowledged(evidence: Evidence) -> dict[str, float]:
    """Job -> when the first answer to a cancel of it had come."""
    by_name = {(job.rap_id, job.action): job.id for job in evidence.jobs.values()}
    found: dict[str, float] = {}
    for cancel in evidence.acknowledged:
        for action in cancel.actions:
            job = by_name.get((cancel.rap_id, action))
            if job is not None:
                found[job] = min(cancel.at, found.get(job, cancel.at))
    return found


def _left(evidence: Evidence) -> Iterator[str]:
    for job in evidence.jobs.values():
        if job.state not in _TERMINAL:
            yield f"job {job.id} ({job.action} of {job.rap_id}) is still {job.state}, {job.code}"
    for task in evidence.tasks:
        if task.active:
            yield f"task {task.id} is still active"


def _histories(evidence: Evidence) -> Iterator[str]:
    for job in evidence.jobs.values():
        history = evidence.events.get(job.id, [])
        for fault in _history(job, history):
            told = " > ".join(f"{event.code}/{event.attempt}" for event in history)
            yield f"job {job.id}: {fault} ({told})"


def _history(job: JobRow, history: Sequence[EventRow]) -> Iterator[str]:
    if not history:
        yield "it has no history"
        return
    first, last = history[0], history[-1]
    if (first.code, first.attempt) != ("created", 0):
        yield f"its history begins with {first.code}, attempt {first.attempt}"
    for event in history:
        if _STATE.get(event.code) != event.state:
            yield f"{event.code} is no code of {event.state}"
    for before, after in itertools.pairwise(history):
        if not _follows(before, after):
            yield f"{before.code}, attempt {before.attempt}, was followed by {after.code}, attempt {after.attempt}"
    if (last.state, last.code, last.attempt) != (job.state, job.code, job.attempt):
        yield f"its row says {job.code}, attempt {job.attempt}, and its history {last.code}, attempt {last.attempt}"
    if (job.completed_at is not None) != (job.state in _TERMINAL):
        yield f"it is {job.state} and completed at {job.completed_at}"
    ends = [event for event in history if event.state in _TERMINAL]
    late_cancel = len(ends) == 2 and job.cancelled and history[-1].code not in _CANCELLED
    if len(ends) > 1 and not late_cancel:
        yield f"it ended {len(ends)} times"


def _follows(before: EventRow, after: EventRow) -> bool:
    """Section 3 of the reference, as pairs. After the end only a late cancel is noted, which changes nothing."""
    same_attempt = after.attempt == before.attempt
    match before.state, after.state:
        case ("pending", "pending"):
            return same_attempt and after.code != "created"
        case ("pending", "running"):
            return after.code == "initiated" and after.attempt == before.attempt + 1
        case ("pending", "failed"):
            return same_attempt and after.code in _NOT_RUN
        case ("running", "running"):
            return same_attempt and _STAGES.index(after.code) > _STAGES.index(before.code)
        case ("running", "pending"):
            return same_attempt and after.code in _RESETS
        case ("running", "succeeded" | "failed"):
            return same_attempt and after.code != "dependency_failed"
        case ("succeeded", "succeeded") | ("failed", "failed"):
            return same_attempt and after.code == before.code
        case _:
            return False


def _runs(evidence: Evidence) -> dict[tuple[str, int], TaskRow]:
    return {(task.job_id, task.attempt): task for task in evidence.tasks if task.type == "runjob"}


def _believed(evidence: Evidence) -> Iterator[str]:
    """A job that ended by its run: its newest attempt said so, and ran as it said."""
    runs = _runs(evidence)
    ends: dict[str, list[int]] = defaultdict(list)
    for line in evidence.lines:
        if line.exit_code is not None:
            ends[line.task_id].append(line.exit_code)
    for job in evidence.jobs.values():
        if job.code not in _BY_ITS_RUN:
            continue
        task = runs.get((job.id, job.attempt))
        if task is None or not task.complete:
            yield f"job {job.id} is {job.code}, which its attempt {job.attempt} has never said"
        elif [str(code) for code in ends[task.id]] != [task.exit_code]:
            yield f"job {job.id}: task {task.id} reported exit code {task.exit_code}, its record says {ends[task.id]}"
        elif (job.code == "succeeded") != (task.exit_code == "0"):
            yield f"job {job.id} is {job.code} with exit code {task.exit_code}"


def _too_early(evidence: Evidence) -> Iterator[str]:
    """Nothing starts before what it waits for has ended well."""
    runs = _runs(evidence)
    ends = {line.task_id: line.at for line in evidence.lines if line.exit_code == 0}
    starts: dict[str, float] = {}
    for line in evidence.lines:
        if line.exit_code is None:
            starts[line.job_id] = min(line.at, starts.get(line.job_id, line.at))
    for job_id, need_id in evidence.needs:
        need = evidence.jobs[need_id]
        believed = runs.get((need_id, need.attempt))
        if job_id not in starts:
            continue
        if need.state != "succeeded" or believed is None:
            yield f"job {job_id} was started although {need_id}, which it needs, never succeeded"
        elif starts[job_id] < ends.get(believed.id, 0.0):
            yield f"job {job_id} was started before {need_id}, which it needs, had ended"


def _outputs(evidence: Evidence) -> Iterator[str]:
    runs = _runs(evidence)
    of_action: dict[tuple[str, str, str], list[JobRow]] = defaultdict(list)
    for job in sorted(evidence.jobs.values(), key=lambda job: job.seq):
        of_action[job.backend, job.workspace, job.action].append(job)
    for (backend, workspace, _), jobs in of_action.items():
        winner = next((job for job in reversed(jobs) if job.state == "succeeded"), None)
        if winner is None:
            continue
        # A newer job that failed or was cancelled keeps what it made, too (section 5.2).
        believed = runs.get((winner.id, winner.attempt))
        candidates = [(winner.id, believed.id)] if believed is not None else []
        later = {job.id for job in jobs if job.seq > winner.seq}
        candidates += [(task.job_id, task.id) for task in runs.values() if task.job_id in later]
        action = evidence.actions[f"{winner.rap_id}/{winner.action}"]
        manifest = evidence.manifests.get((backend, workspace), {})
        for path in action.outputs:
            where = f"{backend}/{workspace}/{path}"
            body = evidence.files.get((backend, workspace, path))
            if body is None:
                yield f"{where} is missing, though job {winner.id} succeeded"
                continue
            author = next((c for c in candidates if body == record.content(*c, path, action.lines)), None)
            if author is None:
                yield f"{where} is not what {candidates[:1]} wrote, but {_shown(body)}"
            else:
                yield from _manifest_faults(where, manifest.get(path), author[0], body)


def _manifest_faults(where: str, entry: Mapping[str, object] | None, job_id: str, body: bytes) -> Iterator[str]:
    if entry is None:
        yield f"{where} is not in the manifest"
    elif (entry["job_id"], entry["content_hash"]) != (job_id, hashlib.sha256(body).hexdigest()):
        yield f"{where}: the manifest says it is of job {entry['job_id']} with another content, or it is of {job_id}"


def _inputs(evidence: Evidence) -> Iterator[str]:
    """No attempt that was believed has found its inputs missing or torn.

    Two things take outputs away from who comes later, and are no faults: a cancel of the finished job that made them
    (section 1.4), and another RAP's newer job of the same action, finished or not (edge behaviour 21).
    """
    believed = {task.id for task in evidence.tasks if task.type == "runjob" and task.complete}
    makers: dict[tuple[str, str, str], list[JobRow]] = defaultdict(list)
    for job in evidence.jobs.values():
        makers[job.backend, job.workspace, job.action].append(job)
    for line in evidence.lines:
        found = evidence.jobs.get(line.job_id)
        if line.exit_code is None or found is None or line.task_id not in believed:
            continue
        action = evidence.actions[f"{found.rap_id}/{found.action}"]
        needed = [maker for need in action.needs for maker in makers[found.backend, found.workspace, need]]
        withdrawn = any(maker.cancelled or maker.rap_id != found.rap_id for maker in needed)
        if line.exit_code != action.exit_code and not (line.exit_code == INPUT_TORN and withdrawn):
            yield f"task {line.task_id} ended with {line.exit_code}, not {action.exit_code}: its inputs were not whole"


def _shown(body: bytes) -> str:
    lines = body.splitlines()
    return f"{len(lines)} lines from {lines[:1]} to {lines[-1:]}"
