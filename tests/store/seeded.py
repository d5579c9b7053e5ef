"""A database with a history: what years of use leave behind, made by the database itself."""

from controller.store.db import Database

RAPS = 2_000
JOBS_OF_A_RAP = 15
"""Of one workspace, all finished except for the newest RAP's."""

RAP_ID = "lpad(to_hex(r), 16, '0')"
JOB_ID = "lpad(to_hex(r * 1000 + n), 16, 'j')"
NEWEST = f"r = {RAPS}"

_SEED = f"""
INSERT INTO backend SELECT unnest(ARRAY['test', 'other']), now();
INSERT INTO rap (id, dialect, backend, workspace, repo_url, branch, commit, database_name, requested_actions,
                 codelists_ok, force_run_dependencies, created_by, project, orgs, analysis_scope, traceparent,
                 created_at)
SELECT {RAP_ID}, 'rap', 'test', 'study', '/study', 'main', repeat('c', 40), 'default', ARRAY['run_all'], true, false,
       'somebody', 'project', ARRAY[]::text[], '{{}}', '', now()
FROM generate_series(1, {RAPS}) AS r;
INSERT INTO job (id, rap_id, position, backend, workspace, action, kind, run_command, requires_db, needs, output_spec,
                 repo_url, commit, branch, analysis_scope, weight, traceparent, created_at, state, code, message,
                 updated_at, code_changed_at, completed_at, attempt)
SELECT {JOB_ID}, {RAP_ID}, n, 'test', 'study', 'action_' || n, 'run', 'python:v2 a.py', false, ARRAY[]::text[], '{{}}',
       '/study', repeat('c', 40), 'main', '{{}}', 1, '', now(),
       CASE WHEN {NEWEST} THEN 'pending' ELSE 'succeeded' END, CASE WHEN {NEWEST} THEN 'created' ELSE 'succeeded' END,
       '', now(), now(), CASE WHEN {NEWEST} THEN NULL ELSE now() END, 1
FROM generate_series(1, {RAPS}) AS r, generate_series(1, {JOBS_OF_A_RAP}) AS n;
INSERT INTO job_event (job_id, at, attempt, state, code, message)
SELECT id, now(), 1, state, code, '' FROM job, generate_series(1, 3);
INSERT INTO job_need (job_id, need_id)
SELECT job.id, need.id FROM job JOIN job AS need ON need.rap_id = job.rap_id AND need.position = job.position - 1;
INSERT INTO task (id, backend, type, job_id, attempt, definition, attributes, created_at, active, complete, finished_at)
SELECT id || '-001', 'test', 'runjob', id, 1, '{{}}', '{{}}', now(), state = 'pending', state <> 'pending',
       CASE WHEN state = 'pending' THEN NULL ELSE now() END
FROM job ORDER BY seq;
INSERT INTO output (job_id, path, level, size, sha256, excluded, message)
SELECT id, 'a.csv', 'highly_sensitive', 1, '', false, '' FROM job;
INSERT INTO job_log (job_id, attempt, start, text) SELECT id, 1, 0, 'log' FROM job;
INSERT INTO event_counter VALUES ('test', 50000);
INSERT INTO event SELECT 'test', n, now(), 'job', NULL, '{{}}' FROM generate_series(1, 50000) AS n;
INSERT INTO job_sample SELECT id, 1, now() + n * interval '1 s', '{{}}' FROM job, generate_series(1, 3) AS n;
ANALYZE;
"""


async def seed(database: Database) -> None:
    """Fill an empty database."""
    async with database.connection() as tx:
        await tx.execute(_SEED)


async def seed_one(database: Database) -> None:
    """Fill an empty database with one RAP of two pending jobs, each with its active task."""
    statements = _SEED.replace(f"generate_series(1, {RAPS})", f"generate_series({RAPS}, {RAPS})")
    async with database.connection() as tx:
        await tx.execute(statements.replace(f"generate_series(1, {JOBS_OF_A_RAP})", "generate_series(1, 2)"))
