-- name: raps
-- The RAPs that spans are made of; `backends` null: all of them.
SELECT id, backend, workspace, repo_url, branch, commit, requested_actions, created_by, project, orgs, traceparent,
       parent_traceparent, created_at
FROM rap
WHERE id = ANY(@ids::text[]) AND (@backends::text[] IS NULL OR backend = ANY(@backends::text[]));

-- name: jobs_of
-- All jobs of these RAPs, in the order of their graphs.
SELECT * FROM job WHERE rap_id = ANY(@rap_ids::text[]) ORDER BY rap_id, position;

-- name: jobs
-- These jobs.
SELECT * FROM job WHERE id = ANY(@ids::text[]) ORDER BY rap_id, position;

-- name: changes
-- What happened to jobs, in its order.
SELECT seq, job_id, at, attempt, state, code, message FROM job_event WHERE job_id = ANY(@job_ids::text[]) ORDER BY seq;

-- name: attempts
-- Who ran the jobs, and what the agent said of the end: nothing but what spans tell, as results may be large.
SELECT job_id, attempt, agent,
       CASE WHEN complete THEN jsonb_build_object(
            'exit_code', results -> 'exit_code', 'docker_image_id', results -> 'docker_image_id',
            'status_message', results -> 'status_message', 'action_version', results -> 'action_version',
            'action_revision', results -> 'action_revision', 'action_created', results -> 'action_created',
            'base_revision', results -> 'base_revision', 'base_created', results -> 'base_created') END AS results
FROM task
WHERE job_id = ANY(@job_ids::text[]) AND type = 'runjob'
ORDER BY job_id, attempt;

-- name: awaited
-- The spans of the jobs that these had to wait for.
SELECT job_need.job_id, need.traceparent
FROM job_need JOIN job AS need ON need.id = job_need.need_id
WHERE job_need.job_id = ANY(@job_ids::text[])
ORDER BY job_need.job_id, need.position;

-- name: want
-- This controller exports spans: what ends until then is to leave a row. Several controllers keep the latest time.
INSERT INTO trace_export (wanted_until) VALUES (@until)
ON CONFLICT (only_one) DO UPDATE SET wanted_until = greatest(trace_export.wanted_until, excluded.wanted_until);

-- name: note_ended
-- These jobs have just ended; with the last of a RAP's, so has the RAP. The backend's lock keeps two jobs of one RAP from
-- ending side by side, each taking the other for running.
INSERT INTO trace_due (rap_id, job_id)
SELECT due.rap_id, due.job_id
FROM (
    SELECT rap_id, id AS job_id, seq FROM job WHERE id = ANY(@ids::text[])
    UNION ALL
    SELECT ended.rap_id, NULL, max(ended.seq) FROM job AS ended
    WHERE ended.id = ANY(@ids::text[]) AND NOT EXISTS (
        SELECT FROM job WHERE job.rap_id = ended.rap_id AND job.state IN ('pending', 'running'))
    GROUP BY ended.rap_id
) AS due
WHERE EXISTS (SELECT FROM trace_export WHERE wanted_until > @now)
ORDER BY due.seq, due.job_id
ON CONFLICT DO NOTHING;

-- name: claim
-- The next to be exported, those first that were tried least. SKIP LOCKED and the lease keep controllers apart.
WITH next AS (
    SELECT seq FROM trace_due
    WHERE leased_until IS NULL OR leased_until <= @now
    ORDER BY attempts, seq
    LIMIT @most
    FOR UPDATE SKIP LOCKED
)
UPDATE trace_due SET leased_until = @until FROM next WHERE trace_due.seq = next.seq
RETURNING trace_due.seq, trace_due.rap_id, trace_due.job_id, trace_due.attempts;

-- name: done
-- A collector has taken these, or will never.
DELETE FROM trace_due WHERE seq IN (
    SELECT seq FROM trace_due WHERE seq = ANY(@seqs::bigint[]) ORDER BY seq FOR UPDATE SKIP LOCKED);

-- name: give_back
-- Not exported now; `tried`: a collector was asked to take them, and did not.
WITH mine AS (
    SELECT seq FROM trace_due WHERE seq = ANY(@seqs::bigint[]) ORDER BY seq FOR UPDATE SKIP LOCKED
)
UPDATE trace_due SET leased_until = NULL, attempts = attempts + @tried FROM mine WHERE trace_due.seq = mine.seq;

-- name: drop_oldest
-- What is too much to be kept while no collector takes anything, oldest first; how much that is.
WITH gone AS (
    DELETE FROM trace_due WHERE seq IN (
        SELECT seq FROM trace_due
        WHERE seq <= (SELECT seq FROM trace_due ORDER BY seq DESC OFFSET @most LIMIT 1)
        ORDER BY seq FOR UPDATE SKIP LOCKED)
    RETURNING seq
)
SELECT count(*) AS dropped FROM gone;
