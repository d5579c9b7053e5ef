"""What code could get wrong, the database refuses: each invariant is violated by hand, once."""

import asyncpg
import pytest

from controller.store.db import Database
from tests.store.seeded import seed_one

VIOLATIONS: dict[str, tuple[str, str]] = {
    "a job's code belongs to its state": ("UPDATE job SET state = 'failed'", "job_code_belongs_to_state"),
    "there are no other codes": ("UPDATE job SET code = 'tired'", "job_code_belongs_to_state"),
    "a finished job has the time of its end": (
        "UPDATE job SET state = 'failed', code = 'job_error'",
        "job_completed_iff_terminal",
    ),
    "an unfinished job has none": ("UPDATE job SET completed_at = now()", "job_completed_iff_terminal"),
    "a running job has started": (
        "UPDATE job SET state = 'running', code = 'initiated', attempt = 1",
        "job_running_has_started",
    ),
    "a running job has an attempt": (
        "UPDATE job SET state = 'running', code = 'initiated', started_at = now(), attempt = 0",
        "job_running_has_started",
    ),
    "nothing runs before its needs are met": (
        "UPDATE job SET state = 'running', code = 'initiated', started_at = now(), attempt = 1, unmet = 1",
        "job_starts_when_needs_are_met",
    ),
    "nothing runs after a need has failed": (
        "UPDATE job SET state = 'succeeded', code = 'succeeded', completed_at = now(), need_failed = true",
        "job_starts_when_needs_are_met",
    ),
    "needs cannot be met more often than there are any": ("UPDATE job SET unmet = -1", "job_unmet_check"),
    "a job has a weight": ("UPDATE job SET weight = 0", "job_weight_check"),
    "there are no other kinds of jobs": ("UPDATE job SET kind = 'cron'", "job_kind_check"),
    "an action is once in its RAP": ("UPDATE job SET action = 'same'", "job_rap_id_action_key"),
    "a position is once in its RAP": ("UPDATE job SET position = 1", "job_rap_id_position_key"),
    "a job has a RAP": ("UPDATE job SET rap_id = 'none'", "job_rap_id_fkey"),
    "a job needs another": ("INSERT INTO job_need SELECT id, id FROM job", "job_need_check"),
    "a RAP's id is an id": ("UPDATE rap SET id = 'Short'", "rap_id_check"),
    "a RAP's backend exists": ("UPDATE rap SET backend = 'mars'", "rap_backend_fkey"),
    "there are no other types of tasks": ("UPDATE task SET type = 'lunch', job_id = NULL", "task_type_check"),
    "a complete task is not active": ("UPDATE task SET complete = true", "task_complete_is_inactive"),
    "an active task has not finished": ("UPDATE task SET finished_at = now()", "task_finished_iff_inactive"),
    "an inactive task has": ("UPDATE task SET active = false", "task_finished_iff_inactive"),
    "a task of a job's type has a job": ("UPDATE task SET job_id = NULL", "task_of_job"),
    "a task of another type has none": ("UPDATE task SET type = 'dbstatus'", "task_of_job"),
    "a lease has a holder": ("UPDATE task SET lease_expires_at = now()", "task_lease_has_holder"),
    "a holder has a lease": ("UPDATE task SET agent = 'somebody'", "task_lease_has_holder"),
    "a job has one active attempt": (
        "INSERT INTO task (id, backend, type, job_id, attempt, definition, attributes, created_at) "
        "SELECT id || '-more', backend, type, job_id, attempt + 1, '{}', '{}', now() FROM task",
        "task_one_active_run",
    ),
    "an attempt is one task": (
        "INSERT INTO task (id, backend, type, job_id, attempt, definition, attributes, created_at, active, finished_at)"
        " SELECT id || '-more', backend, type, job_id, attempt, '{}', '{}', now(), false, now() FROM task",
        "task_job_id_type_attempt_key",
    ),
    "an agent has slots": ("INSERT INTO agent VALUES ('test', 'a', '1', 'fake', 0, '{}', now())", "agent_slots_check"),
    "an output has a size": (
        "INSERT INTO output SELECT id, 'a', 'highly_sensitive', -1, '', false, '' FROM job",
        "output_size_check",
    ),
    "a log begins at its start": ("INSERT INTO job_log SELECT id, 1, -1, '' FROM job", "job_log_start_check"),
}


@pytest.mark.parametrize("invariant", VIOLATIONS)
async def test_the_database_refuses_what_would_break_an_invariant(database: Database, invariant: str) -> None:
    statement, constraint = VIOLATIONS[invariant]
    await seed_one(database)
    async with database.connection() as tx:
        with pytest.raises(asyncpg.IntegrityConstraintViolationError) as caught:
            await tx.execute(statement)
    assert caught.value.constraint_name == constraint
