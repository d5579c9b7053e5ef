-- name: page
-- The next RAPs by age, and which of them were over before the cut-off. That cannot change any more, so no lock is
-- held. Created before it, too: most RAPs are newer, and for those no job needs to be looked at.
SELECT page.id, page.seq,
       page.created_at < @cutoff AND NOT EXISTS (
            SELECT FROM job
            WHERE job.rap_id = page.id AND (job.completed_at IS NULL OR job.completed_at >= @cutoff)) AS finished
FROM (
    SELECT id, seq, created_at FROM rap
    WHERE backend = @backend AND seq > @after
    ORDER BY seq
    LIMIT @page_size
) AS page
ORDER BY page.seq;

-- name: jobs_of
-- All jobs of these RAPs.
SELECT id FROM job WHERE rap_id = ANY(@rap_ids::text[]);

-- name: removable
-- Which of these finished RAPs nobody needs. Kept as a whole is a RAP with
-- * the workspace's memory of an action: its newest job that was not cancelled, among those that ended before the
--   cut-off. (While a newer one is younger than that, a cancel of it brings this one back.)
-- * a job that a job which is not finished waits for, or was given as input;
-- * an active task: the stop that no agent has confirmed;
-- * a job that was cancelled after all since the page was read.
-- The look-up of a newer job starts at the next one, which is nearly always old enough: hence its order.
WITH given AS (
    SELECT jsonb_array_elements_text(task.definition -> 'input_job_ids') AS id
    FROM task
    WHERE task.backend = @backend AND task.active AND task.type = 'runjob'
      AND jsonb_typeof(task.definition -> 'input_job_ids') = 'array'
)
SELECT wanted.id
FROM unnest(@rap_ids::text[]) AS wanted (id)
WHERE NOT EXISTS (
    SELECT FROM job
    WHERE job.rap_id = wanted.id AND (
        job.completed_at >= @cutoff
        OR NOT job.cancelled AND (
            SELECT newer.id FROM job AS newer
            WHERE newer.backend = job.backend AND newer.workspace = job.workspace AND newer.action = job.action
              AND NOT newer.cancelled AND newer.seq > job.seq AND newer.completed_at < @cutoff
            ORDER BY newer.seq
            LIMIT 1) IS NULL
        OR (SELECT waiting.id FROM job_need
            CROSS JOIN LATERAL (
                SELECT id FROM job AS waiting
                WHERE waiting.id = job_need.job_id AND waiting.state IN ('pending', 'running')) AS waiting
            WHERE job_need.need_id = job.id
            LIMIT 1) IS NOT NULL
        OR (SELECT task.id FROM task WHERE task.job_id = job.id AND task.active LIMIT 1) IS NOT NULL
        OR job.id IN (SELECT given.id FROM given)));

-- name: clear
-- What only tells how finished jobs came to their end. Active tasks stay: they are stops that no agent has confirmed.
WITH events AS (
    DELETE FROM job_event WHERE job_id = ANY(@job_ids::text[]) RETURNING job_id
), logs AS (
    DELETE FROM job_log WHERE job_id = ANY(@job_ids::text[]) RETURNING job_id
), samples AS (
    DELETE FROM job_sample WHERE job_id = ANY(@job_ids::text[])
), tasks AS (
    DELETE FROM task WHERE job_id = ANY(@job_ids::text[]) AND NOT active RETURNING job_id
)
SELECT (SELECT count(*) FROM events) AS events, (SELECT count(*) FROM logs) AS logs,
       (SELECT count(*) FROM tasks) AS tasks;

-- name: forget_late_logs
-- A chunk of a log is stored under its task's lock alone, so one may have come while `clear` waited for that task.
-- The tasks are gone now: no further one can.
DELETE FROM job_log WHERE job_id = ANY(@job_ids::text[]);

-- name: forget_needs
-- What jobs that are about to go waited for.
DELETE FROM job_need WHERE job_id = ANY(@job_ids::text[]);

-- name: forget_dependants
-- Who waited for jobs that are about to go: all of them finished. (One statement for both directions would read the
-- whole table.)
DELETE FROM job_need WHERE need_id = ANY(@job_ids::text[]);

-- name: remove_outputs
-- Names and hashes of outputs of jobs that are about to go; the files are the backend's.
WITH gone AS (DELETE FROM output WHERE job_id = ANY(@job_ids::text[]) RETURNING job_id)
SELECT count(*) AS removed FROM gone;

-- name: remove_jobs
-- After everything that refers to them.
DELETE FROM job WHERE id = ANY(@job_ids::text[]);

-- name: remove_raps
-- After their jobs. From now on their ids are new ones.
DELETE FROM rap WHERE id = ANY(@rap_ids::text[]);
