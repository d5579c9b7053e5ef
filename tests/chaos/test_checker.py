"""The checker sees every kind of fault: a good run by hand, and what each fault makes of it."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from controller.store.db import Database
from tests.chaos import checker, evidence, record
from tests.chaos.evidence import EventRow, Evidence, JobRow, TaskRow
from tests.chaos.plan import Action
from tests.chaos.portal import Accepted, Acknowledged
from tests.chaos.record import Line

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
PATH = "out/a.txt"
BODY = record.content("a", "a-002", PATH, 3)


def later(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def row(job: str, **changes: Any) -> JobRow:
    values: dict[str, Any] = {
        "id": job, "seq": 1, "rap_id": "rap", "backend": "alpha", "workspace": "w", "action": job,
        "state": "succeeded", "code": "succeeded", "attempt": 1, "cancelled": False, "completed_at": later(9),
    }  # fmt: skip
    return JobRow(**values | changes)


def history(job: str, *steps: tuple[str, int]) -> list[EventRow]:
    states = {"created": "pending", "waiting_on_new_task": "pending", "initiated": "running", "executing": "running"}
    return [
        EventRow(
            job_id=job,
            at=later(number),
            attempt=attempt,
            state=states.get(code, "succeeded" if code == "succeeded" else "failed"),
            code=code,
        )
        for number, (code, attempt) in enumerate(steps)
    ]


def task(job: str, attempt: int, **changes: Any) -> TaskRow:
    values: dict[str, Any] = {
        "id": f"{job}-{attempt:03}", "job_id": job, "type": "runjob", "attempt": attempt, "created_at": later(attempt),
        "finished_at": later(8), "active": False, "complete": True, "exit_code": "0",
    }  # fmt: skip
    return TaskRow(**values | changes)


def action(name: str, *needs: str) -> Action:
    return Action(
        name=name, needs=needs, outputs={PATH: "highly_sensitive"} if name == "a" else {}, seconds=0.0, exit_code=0,
        lines=3, database=False, inputs=(),
    )  # fmt: skip


def line(word: str, task_id: str, at: float) -> Line:
    return Line(word=word, job_id=task_id.split("-", maxsplit=1)[0], task_id=task_id, pid=2, at=later(at).timestamp())


def entry(body: bytes = BODY, job: str = "a") -> dict[str, str]:
    return {"job_id": job, "content_hash": hashlib.sha256(body).hexdigest()}


GOOD = Evidence(
    jobs={
        "a": row("a", attempt=2),
        "b": row("b", seq=2),
        "c": row("c", seq=3, state="failed", code="cancelled_by_user", cancelled=True),
    },
    events={
        "a": history("a", ("created", 0), ("initiated", 1), ("executing", 1), ("waiting_on_new_task", 1),
                     ("initiated", 2), ("succeeded", 2)),
        "b": history("b", ("created", 0), ("initiated", 1), ("succeeded", 1)),
        "c": history("c", ("created", 0), ("initiated", 1), ("cancelled_by_user", 1)),
    },
    tasks=[
        task("a", 1, complete=False, exit_code=None), task("a", 2), task("b", 1),
        task("c", 1, complete=False, exit_code=None),
        task("c", 1, id="c-001-cancel", type="canceljob", finished_at=later(6)),
    ],
    needs=[("b", "a")],
    lines=[
        line("start", "a-001", 2), line("start", "a-002", 3), line("end:0", "a-002", 4), line("start", "b-001", 6),
        line("end:0", "b-001", 7), line("start", "c-001", 5.5),
    ],
    accepted=[Accepted(rap_id="rap", count=3)],
    acknowledged=[Acknowledged(rap_id="rap", actions=("c",), at=later(5).timestamp())],
    actions={"rap/a": action("a"), "rap/b": action("b", "a"), "rap/c": action("c")},
    files={("alpha", "w", PATH): BODY},
    manifests={("alpha", "w"): {PATH: entry()}},
)  # fmt: skip


def test_a_good_run_has_no_fault() -> None:
    verdict = checker.check(GOOD)
    assert not [fault for faults in verdict.faults.values() for fault in faults]
    assert verdict.clean
    assert verdict.accepted == 3


def jobs(**changes: JobRow) -> Evidence:
    return attrs.evolve(GOOD, jobs={**GOOD.jobs, **changes})


def events(job: str, *steps: tuple[str, int]) -> Evidence:
    return attrs.evolve(GOOD, events={**GOOD.events, job: history(job, *steps)})


def lines(*more: Line) -> Evidence:
    return attrs.evolve(GOOD, lines=[*GOOD.lines, *more])


def tasks(*more: TaskRow) -> Evidence:
    """The good tasks, each replaced by one of the same id."""
    by_id = {each.id: each for each in (*GOOD.tasks, *more)}
    return attrs.evolve(GOOD, tasks=list(by_id.values()))


def stored(body: bytes) -> Evidence:
    return attrs.evolve(GOOD, files={("alpha", "w", PATH): body})


OLD = record.content("a", "a-001", PATH, 3)

BAD: dict[str, tuple[str, Callable[[], Evidence], str]] = {
    "a job too few": ("lost", lambda: attrs.evolve(GOOD, accepted=[Accepted(rap_id="rap", count=4)]), "4 jobs"),
    "a RAP that is not there": (
        "lost",
        lambda: attrs.evolve(GOOD, accepted=[*GOOD.accepted, Accepted(rap_id="gone", count=1)]),
        "RAP gone",
    ),
    "a status that contradicts": ("lost", lambda: attrs.evolve(GOOD, contradictions=["seen twice"]), "seen twice"),
    "a second process": ("run twice in one attempt", lambda: lines(line("start", "a-002", 3.5)), "started 2 times"),
    "a task of nobody": ("run twice in one attempt", lambda: lines(line("start", "a-009", 3)), "does not know"),
    "a start after the stop": (
        "run after cancel was acknowledged",
        lambda: attrs.evolve(GOOD, lines=[*GOOD.lines[:-1], line("start", "c-001", 6.5)]),
        "after its cancel was done",
    ),
    "an attempt after the cancel": (
        "run after cancel was acknowledged",
        lambda: tasks(task("c", 2, created_at=later(5.5))),
        "after the answer",
    ),
    "a job that goes on": (
        "left non-terminal",
        lambda: jobs(b=row("b", state="running", code="executing", completed_at=None)),
        "still running",
    ),
    "a task that goes on": ("left non-terminal", lambda: tasks(task("a", 1, active=True)), "a-001 is still active"),
    "a start from the end": (
        "illegal transitions",
        lambda: events("b", ("created", 0), ("initiated", 1), ("succeeded", 1), ("initiated", 2), ("succeeded", 2)),
        "succeeded, attempt 1, was followed by initiated",
    ),
    "two ends": (
        "illegal transitions",
        lambda: events("b", ("created", 0), ("initiated", 1), ("succeeded", 1), ("succeeded", 1)),
        "ended 2 times",
    ),
    "another end": (
        "illegal transitions",
        lambda: events("b", ("created", 0), ("initiated", 1), ("nonzero_exit", 1), ("succeeded", 1)),
        "was followed by succeeded",
    ),
    "an attempt that goes back": (
        "illegal transitions",
        lambda: events("a", ("created", 0), ("initiated", 1), ("waiting_on_new_task", 1), ("initiated", 2),
                       ("executing", 1), ("succeeded", 2)),
        "was followed by executing, attempt 1",
    ),
    "an attempt left out": (
        "illegal transitions",
        lambda: events("a", ("created", 0), ("initiated", 2), ("succeeded", 2)),
        "was followed by initiated, attempt 2",
    ),
    "a stage that goes back": (
        "illegal transitions",
        lambda: events("b", ("created", 0), ("initiated", 1), ("executing", 1), ("executing", 1), ("succeeded", 1)),
        "was followed by executing",
    ),
    "no history": ("illegal transitions", lambda: attrs.evolve(GOOD, events={**GOOD.events, "b": []}), "no history"),
    "a row that its history does not know": (
        "illegal transitions",
        lambda: jobs(b=row("b", seq=2, code="nonzero_exit", state="failed")),
        "its row says",
    ),
    "an end without its time": (
        "illegal transitions",
        lambda: jobs(b=row("b", completed_at=None)),
        "completed at None",
    ),
    "a time without its end": (
        "illegal transitions",
        lambda: jobs(b=row("b", state="pending", code="paused")),
        "completed at 2026",
    ),
    "an end that the attempt never said": (
        "illegal transitions",
        lambda: tasks(task("a", 2, complete=False)),
        "has never said",
    ),
    "an end that the record does not know": (
        "illegal transitions",
        lambda: attrs.evolve(GOOD, lines=[each for each in GOOD.lines if each.word != "end:0"]),
        "its record says []",
    ),
    "success with a bad exit code": (
        "illegal transitions",
        lambda: attrs.evolve(
            tasks(task("b", 1, exit_code="3")),
            lines=[line("end:3", "b-001", 7) if each.word == "end:0" and each.job_id == "b" else each
                   for each in GOOD.lines],
        ),
        "with exit code 3",
    ),
    "a start before what it needs": (
        "illegal transitions",
        lambda: attrs.evolve(GOOD, lines=[*GOOD.lines[:3], line("start", "b-001", 3.5), *GOOD.lines[4:]]),
        "started before a",
    ),
    "a start without what it needs": (
        "illegal transitions",
        lambda: attrs.evolve(GOOD, needs=[("b", "c")]),
        "never succeeded",
    ),
    "an output that is gone": ("outputs missing or torn", lambda: attrs.evolve(GOOD, files={}), "is missing"),
    "an output cut short": ("outputs missing or torn", lambda: stored(BODY[:-5]), "is not what"),
    "an output of two attempts": ("outputs missing or torn", lambda: stored(OLD[:20] + BODY[20:]), "is not what"),
    "an output of an old attempt": ("outputs missing or torn", lambda: stored(OLD), "is not what"),
    "no entry in the manifest": ("outputs missing or torn", lambda: attrs.evolve(GOOD, manifests={}), "not in the"),
    "another content in the manifest": (
        "outputs missing or torn",
        lambda: attrs.evolve(GOOD, manifests={("alpha", "w"): {PATH: entry(OLD)}}),
        "another content",
    ),
    "a job that found its input torn": (
        "outputs missing or torn",
        lambda: attrs.evolve(GOOD, lines=[*GOOD.lines, line("end:99", "b-001", 7)]),
        "inputs were not whole",
    ),
    "nothing at all": (
        "lost",
        lambda: attrs.evolve(GOOD, jobs={}, accepted=[]),
        "nothing was accepted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_each_fault_is_seen_for_what_it_is(name: str) -> None:
    kind, make, words = BAD[name]
    verdict = checker.check(make())
    assert not verdict.clean
    assert any(words in fault for fault in verdict.faults[kind]), verdict.faults


def test_a_newer_job_that_failed_may_have_written_the_output() -> None:
    """Outputs are kept whatever the exit code is (section 5.2)."""
    newer = row("n", seq=9, action="a", rap_id="later", state="failed", code="cancelled_by_user", cancelled=True)
    body = record.content("n", "n-001", PATH, 3)
    found = attrs.evolve(
        GOOD,
        jobs={**GOOD.jobs, "n": newer},
        events={**GOOD.events, "n": history("n", ("created", 0), ("initiated", 1), ("cancelled_by_user", 1))},
        tasks=[*GOOD.tasks, task("n", 1, complete=False)],
        actions={**GOOD.actions, "later/a": action("a")},
        files={("alpha", "w", PATH): body},
        manifests={("alpha", "w"): {PATH: entry(body, "n")}},
    )
    assert checker.check(found).clean


def test_a_late_cancel_is_noted_and_changes_nothing() -> None:
    found = attrs.evolve(
        events("b", ("created", 0), ("initiated", 1), ("succeeded", 1), ("succeeded", 1)),
        jobs={**GOOD.jobs, "b": row("b", seq=2, cancelled=True)},
    )
    assert checker.check(found).clean


def test_another_raps_newer_job_may_stand_between_a_job_and_its_inputs() -> None:
    """Edge behaviour 21 of the reference."""
    torn = attrs.evolve(GOOD, lines=[*GOOD.lines, line("end:99", "b-001", 7)])
    newer = row("n", seq=9, action="a", rap_id="later", state="failed", code="dependency_failed", attempt=0)
    found = attrs.evolve(torn, jobs={**GOOD.jobs, "n": newer})
    assert not checker.check(found).outputs_missing_or_torn


def test_what_a_cancelled_job_had_made_may_be_withdrawn_from_later_ones() -> None:
    cancelled = attrs.evolve(GOOD, jobs={**GOOD.jobs, "a": row("a", attempt=2, cancelled=True)})
    found = attrs.evolve(cancelled, lines=[*GOOD.lines, line("end:99", "b-001", 7)])
    assert not checker.check(found).outputs_missing_or_torn


def test_a_line_of_the_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "record"
    file.touch()
    record.append(file, "start", "a", "a-001")
    record.append(file, "end:7", "a", "a-001")
    first, last = record.read(file)
    assert (first.job_id, first.task_id, first.exit_code) == ("a", "a-001", None)
    assert last.exit_code == 7
    file.write_text("start a a-0")
    with pytest.raises(ValueError, match="unpack"):
        list(record.read(file))


async def test_the_evidence_is_read_from_a_real_database_and_from_disk(database: Database, tmp_path: Path) -> None:
    """A bad database, made with the checker's own eyes shut: rows that no code of ours would write."""
    async with database.connection() as tx:
        await tx.execute(_ROWS)
    high, medium = tmp_path / "high", tmp_path / "medium"
    (high / "workspaces" / "w" / "out").mkdir(parents=True)
    (high / "workspaces" / "w" / PATH).write_bytes(b"torn")
    (tmp_path / "record").write_text("start a a-001 2 1795262400.5\nstart a a-001 3 1795262401.5\n")
    found = await evidence.read(
        database.dsn,
        record_file=tmp_path / "record",
        storages={"alpha": (high, medium)},
        actions={"rapraprapraprapr/a": action("a")},
        accepted=[Accepted(rap_id="rapraprapraprapr", count=2)],
        acknowledged=[],
        contradictions=[],
    )
    verdict = checker.check(found)
    assert {kind: len(faults) for kind, faults in verdict.faults.items()} == {
        "lost": 1,
        "run twice in one attempt": 1,
        "run after cancel was acknowledged": 0,
        "left non-terminal": 1,
        "illegal transitions": 2,
        "outputs missing or torn": 1,
    }, verdict.faults
    assert await evidence.count_open(database.dsn) == 1


_ROWS = """
INSERT INTO backend (slug, created_at) VALUES ('alpha', now());
INSERT INTO rap (id, dialect, backend, workspace, repo_url, branch, commit, database_name, requested_actions,
                 codelists_ok, force_run_dependencies, created_by, project, orgs, analysis_scope, traceparent,
                 created_at)
VALUES ('rapraprapraprapr', 'rap', 'alpha', 'w', 'u', 'main', 'c', 'default', '{a}', true, false, 'me', 'p', '{}', '{}',
        't', now());
INSERT INTO job (id, rap_id, position, backend, workspace, action, kind, run_command, requires_db, needs, output_spec,
                 repo_url, commit, branch, analysis_scope, weight, traceparent, created_at, state, code, message,
                 attempt, started_at, completed_at, updated_at, code_changed_at)
VALUES ('a', 'rapraprapraprapr', 0, 'alpha', 'w', 'a', 'run', 'python:v2', false, '{}', '{}', 'u', 'c', 'main', '{}',
        1, 't', now(), 'succeeded', 'succeeded', 'm', 1, now(), now(), now(), now());
INSERT INTO job_event (job_id, at, attempt, state, code, message)
VALUES ('a', now(), 0, 'pending', 'created', 'm'), ('a', now(), 1, 'succeeded', 'succeeded', 'm');
INSERT INTO task (id, backend, type, job_id, attempt, definition, attributes, created_at)
VALUES ('a-001', 'alpha', 'runjob', 'a', 1, '{}', '{}', now());
"""
