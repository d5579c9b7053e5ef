"""Verdicts on reports: late, repeated, foreign, out of order, nonsense."""

from typing import Any

import pytest

from common.protocol import Verdict
from controller.core.codes import StatusCode
from controller.core.machine import Failed, Progressed, Succeeded
from controller.core.model import TaskType
from controller.core.reports import Statement, TaskState, judge
from tests.factories import job

RUNNING = job(StatusCode.EXECUTING)


def statement(**changes: Any) -> Statement:
    values = {
        "task_id": "t-001",
        "attempt": 1,
        "agent": "a",
        "stage": "executing",
        "complete": False,
        "results": {},
    }
    return Statement(**values | changes)


def task(**changes: Any) -> TaskState:
    values = {
        "id": "t-001",
        "job_id": RUNNING.id,
        "type": TaskType.RUNJOB,
        "attempt": 1,
        "agent": "a",
        "active": True,
        "complete": False,
    }
    return TaskState(**values | changes)


FINAL = {"complete": True, "stage": "finalized", "results": {"error": False, "exit_code": "0"}}


@pytest.mark.parametrize(
    ("said", "state", "verdict"),
    [
        ({}, None, Verdict.UNKNOWN),
        ({"attempt": 2}, {}, Verdict.STALE),
        ({"agent": "b"}, {}, Verdict.STALE),
        ({"agent": "b"}, {"agent": None}, Verdict.STALE),
        ({}, {"active": False}, Verdict.STALE),
        (FINAL, {"active": False}, Verdict.STALE),
        (FINAL, {"active": False, "complete": True}, Verdict.REPEATED),
        ({"stage": "prepared"}, {}, Verdict.REPEATED),
        ({"stage": "dancing"}, {}, Verdict.APPLIED),
    ],
)
def test_reports_that_move_nothing(said: dict[str, Any], state: dict[str, Any] | None, verdict: Verdict) -> None:
    judgement = judge(statement(**said), None if state is None else task(**state), RUNNING)
    assert judgement.verdict is verdict
    assert judgement.event is None


def test_a_stage_moves_the_job() -> None:
    judgement = judge(statement(stage="finalizing"), task(), RUNNING)
    assert judgement.event == Progressed(code=StatusCode.FINALIZING)


def test_the_task_apis_agents_have_no_name_and_no_attempt() -> None:
    judgement = judge(statement(agent=None, attempt=None, **FINAL), task(), RUNNING)
    assert judgement.event == Succeeded()


def test_a_senseless_final_report_ends_the_job_with_a_message() -> None:
    judgement = judge(statement(complete=True, results={}), task(), RUNNING)
    assert judgement.verdict is Verdict.INVALID
    assert isinstance(judgement.event, Failed)
    assert judgement.event.code is StatusCode.JOB_ERROR
    assert "results lack the key 'error'" in judgement.event.message


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ({"results": {"status": "db-maintenance"}}, Verdict.APPLIED),
        ({"results": None, "error": {}}, Verdict.APPLIED),
        ({"results": {"status": "rm -rf"}}, Verdict.INVALID),
    ],
)
def test_database_status_answers(results: dict[str, Any], verdict: Verdict) -> None:
    said = statement(complete=True, stage="", results=results)
    assert judge(said, task(type=TaskType.DBSTATUS), None).verdict is verdict
