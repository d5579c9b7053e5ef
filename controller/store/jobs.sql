-- name: insert
-- All jobs of a RAP at once, in the order of the graph.
INSERT INTO job (id, rap_id, position, backend, workspace, action, kind, run_command, requires_db, needs, output_spec,
                 repo_url, commit, branch, reusable_action, image_sha, database_name, analysis_scope, weight,
                 resources, traceparent, created_at, state, code, message, updated_at, code_changed_at, unmet)
SELECT id, rap_id, position, backend, workspace, action, kind, run_command, requires_db, needs, output_spec,
       repo_url, commit, branch, reusable_action, image_sha, database_name, analysis_scope, weight,
       resources, traceparent, created_at, state, code, message, created_at, created_at, unmet
FROM jsonb_to_recordset(@jobs::jsonb) AS new (
    id text, rap_id text, position integer, backend text, workspace text, action text, kind text, run_command text,
    requires_db boolean, needs text[], output_spec jsonb, repo_url text, commit text, branch text,
    reusable_action jsonb, image_sha text, database_name text, analysis_scope jsonb, weight double precision,
    resources jsonb, traceparent text, created_at timestamptz, state text, code text, message text, unmet integer)
ORDER BY position;

-- name: insert_needs
-- The edges to jobs that had not finished when their dependant was planned.
INSERT INTO job_need (job_id, need_id)
SELECT job_id, need_id FROM unnest(@job_ids::text[], @need_ids::text[]) AS edge (job_id, need_id);

-- name: latest_of_actions
-- The workspace's memory: per action its newest job that was not cancelled (reference section 4.4). One index
-- look-up per action, however long the history is.
SELECT wanted.workspace, wanted.action, latest.id, latest.state
FROM unnest(@workspaces::text[], @actions::text[]) AS wanted (workspace, action)
CROSS JOIN LATERAL (
    SELECT job.id, job.state FROM job
    WHERE job.backend = @backend AND job.workspace = wanted.workspace AND job.action = wanted.action
      AND NOT job.cancelled
    ORDER BY job.seq DESC
    LIMIT 1
) AS latest;

-- name: lock
-- Jobs as they are now, held until the transaction ends.
SELECT * FROM job WHERE id = ANY(@ids::text[]) ORDER BY seq FOR UPDATE;

-- name: lock_of_rap
-- The jobs of one RAP that a cancel names, as far as the caller may see them.
SELECT * FROM job
WHERE rap_id = @rap_id AND backend = ANY(@backends::text[])
ORDER BY seq FOR UPDATE;

-- name: of_raps
-- For status: grouped by RAP, inside a RAP in the order of its graph (reference section 1.5).
SELECT * FROM job
WHERE rap_id = ANY(@rap_ids::text[]) AND backend = ANY(@backends::text[])
ORDER BY rap_id, position;

-- name: find
-- One job, if the caller may see it.
SELECT * FROM job WHERE id = @id AND backend = ANY(@backends::text[]);

-- name: schedulable
-- What a scheduling pass may move, oldest first. Jobs that wait for others are left out: the transaction that ends
-- the last of their needs brings them back by changing `unmet` or `need_failed`.
SELECT id, workspace, state, code, message, requires_db, weight, unmet, need_failed, not_before
FROM job
WHERE backend = @backend AND state IN ('pending', 'running')
  AND (@everything OR NOT (code = 'waiting_on_dependencies' AND unmet > 0 AND NOT need_failed))
ORDER BY seq;

-- name: write
-- Compare-and-set on what the decision was made from; the caller checks that every row was still so.
UPDATE job
SET state = new.state, code = new.code, message = new.message, attempt = new.attempt, cancelled = new.cancelled,
    faults = new.faults, not_before = new.not_before, started_at = new.started_at, completed_at = new.completed_at, updated_at = new.updated_at,
    code_changed_at = new.code_changed_at, metrics = new.metrics
FROM jsonb_to_recordset(@changes::jsonb) AS new (
    id text, was_code text, was_attempt integer, was_cancelled boolean, state text, code text, message text,
    attempt integer, cancelled boolean, faults integer, not_before timestamptz, started_at timestamptz, completed_at timestamptz, updated_at timestamptz,
    code_changed_at timestamptz, metrics jsonb)
WHERE job.id = new.id AND job.code = new.was_code AND job.attempt = new.was_attempt
  AND job.cancelled = new.was_cancelled
RETURNING job.id;

-- name: record_events
-- History is append-only: one row per transition.
INSERT INTO job_event (job_id, at, attempt, state, code, message)
SELECT job_id, at, attempt, state, code, message
FROM ROWS FROM (jsonb_to_recordset(@events::jsonb) AS (
    job_id text, at timestamptz, attempt integer, state text, code text, message text)) WITH ORDINALITY
    AS new (job_id, at, attempt, state, code, message, place)
ORDER BY place;

-- name: meet_needs
-- These jobs succeeded: whoever waits for them has that much less to wait for.
UPDATE job SET unmet = unmet - met.needs
FROM (SELECT job_id, count(*)::integer AS needs FROM job_need WHERE need_id = ANY(@ids::text[]) GROUP BY job_id) AS met
WHERE job.id = met.job_id AND job.state = 'pending';

-- name: doom_dependants
-- These jobs failed: nobody who waits for them, however far down, can ever start.
WITH RECURSIVE doomed AS (
    SELECT job_id FROM job_need WHERE need_id = ANY(@ids::text[])
    UNION
    SELECT next.job_id FROM doomed
    -- OFFSET keeps this a look-up per job: how many there will be cannot be guessed.
    CROSS JOIN LATERAL (SELECT job_id FROM job_need WHERE job_need.need_id = doomed.job_id OFFSET 0) AS next
)
UPDATE job SET need_failed = true
FROM doomed
WHERE job.id = doomed.job_id AND job.state = 'pending' AND NOT job.need_failed;

-- name: history
-- A job's transitions in their order.
SELECT job_id, at, attempt, state, code, message FROM job_event WHERE job_id = ANY(@ids::text[]) ORDER BY seq;

-- name: outputs
-- What the backend's policy let us know of the jobs' outputs.
SELECT job_id, path, level, size, sha256, excluded, message, released_by, released_at FROM output
WHERE job_id = ANY(@ids::text[]) ORDER BY job_id, path;

-- name: replace_outputs
-- The newest report about a job's outputs is the only one.
WITH gone AS (
    DELETE FROM output WHERE job_id = @job_id AND NOT path = ANY(
        SELECT kept.path FROM jsonb_to_recordset(@outputs::jsonb) AS kept (path text))
)
INSERT INTO output (job_id, path, level, size, sha256, excluded, message)
SELECT @job_id, path, level, size, sha256, excluded, message
FROM jsonb_to_recordset(@outputs::jsonb) AS new (
    path text, level text, size bigint, sha256 text, excluded boolean, message text)
ON CONFLICT (job_id, path) DO UPDATE
SET level = excluded.level, size = excluded.size, sha256 = excluded.sha256, excluded = excluded.excluded,
    message = excluded.message;

-- name: release_outputs
-- What somebody has let out; who was first stays. An output that the policy names anyway was not let out by anybody.
INSERT INTO output (job_id, path, level, size, sha256, excluded, message, released_by, released_at)
SELECT @job_id, path, level, size, sha256, false, '', @by, @at
FROM jsonb_to_recordset(@outputs::jsonb) AS new (path text, level text, size bigint, sha256 text)
ON CONFLICT (job_id, path) DO NOTHING;

-- name: log_length
-- Where the next chunk of a log must start, in characters.
SELECT coalesce(max(start + length(text)), 0) AS next_offset FROM job_log WHERE job_id = @job_id AND attempt = @attempt;

-- name: append_log
-- A chunk that somebody else stored meanwhile is left alone.
INSERT INTO job_log (job_id, attempt, start, text) VALUES (@job_id, @attempt, @start, @text)
ON CONFLICT DO NOTHING;

-- name: read_log
-- The chunks that touch the wanted part.
SELECT start, text FROM job_log
WHERE job_id = @job_id AND attempt = @attempt AND start + length(text) > @start AND start < @stop
ORDER BY start;

-- name: list_active_page
-- What is not finished, oldest first, by keyset, per backend from its own index: few, whatever the history.
SELECT job.id, job.seq, job.rap_id, job.position, job.backend, job.workspace, job.action, job.state, job.code,
       job.message, job.requires_db, job.weight, job.attempt, job.cancelled, job.faults, job.not_before, job.created_at,
       job.started_at, job.completed_at, job.code_changed_at, holder.agent
FROM (
    SELECT of_backend.* FROM unnest(@backends::text[]) AS wanted (backend)
    CROSS JOIN LATERAL (
        SELECT * FROM job
        WHERE job.backend = wanted.backend AND job.state IN ('pending', 'running')
          AND job.seq > coalesce(@after::bigint, 0)
          AND (@workspace::text IS NULL OR job.workspace = @workspace)
          AND (@state::text IS NULL OR job.state = @state)
          AND (@code::text IS NULL OR job.code = @code)
          AND (@created_by::text IS NULL
               OR (SELECT rap.created_by FROM rap WHERE rap.id = job.rap_id) = @created_by)
          AND (@search::text IS NULL OR position(lower(@search) IN lower(concat_ws(chr(31), job.id, job.rap_id,
                job.workspace, job.action))) > 0)
        ORDER BY job.seq
        LIMIT @page_size
    ) AS of_backend
    ORDER BY of_backend.seq
    LIMIT @page_size
) AS job
LEFT JOIN LATERAL (
    SELECT agent FROM task WHERE task.job_id = job.id AND task.type = 'runjob' AND task.attempt = job.attempt OFFSET 0
) AS holder ON true
ORDER BY job.seq;

-- name: list_page
-- Jobs of these RAPs, newest RAP first, the last of its jobs first, below one place (RAP and position).
SELECT job.id, job.seq, job.rap_id, job.position, job.backend, job.workspace, job.action, job.state, job.code,
       job.message, job.requires_db, job.weight, job.attempt, job.cancelled, job.faults, job.not_before, job.created_at,
       job.started_at, job.completed_at, job.code_changed_at, holder.agent
FROM (
    SELECT of_rap.*, wanted.seq AS rap_seq FROM unnest(@rap_ids::text[], @rap_seqs::bigint[]) AS wanted (rap_id, seq)
    CROSS JOIN LATERAL (
        SELECT * FROM job
        WHERE job.rap_id = wanted.rap_id
          AND (wanted.seq < @before::bigint OR job.position < @before_position::integer)
          AND (@state::text IS NULL OR job.state = @state)
          AND (@code::text IS NULL OR job.code = @code)
          AND (@created_by::text IS NULL
               OR (SELECT rap.created_by FROM rap WHERE rap.id = job.rap_id) = @created_by)
          AND (@search::text IS NULL OR position(lower(@search) IN lower(concat_ws(chr(31), job.id, job.rap_id,
                job.workspace, job.action))) > 0)
        ORDER BY job.position DESC
        LIMIT @page_size
    ) AS of_rap
    ORDER BY wanted.seq DESC, of_rap.position DESC
    LIMIT @page_size
) AS job
LEFT JOIN LATERAL (
    SELECT agent FROM task WHERE task.job_id = job.id AND task.type = 'runjob' AND task.attempt = job.attempt OFFSET 0
) AS holder ON true
ORDER BY job.rap_seq DESC, job.position DESC;
