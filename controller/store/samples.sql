-- name: add
-- What an attempt has used so far. At most one report of a moment counts.
INSERT INTO job_sample (job_id, attempt, at, metrics)
SELECT new.job_id, new.attempt, @at::timestamptz, new.metrics
FROM jsonb_to_recordset(@samples::jsonb) AS new (job_id text, attempt integer, metrics jsonb)
ON CONFLICT DO NOTHING;

-- name: full
-- Which of these attempts have as many samples as there may be.
SELECT wanted.job_id, wanted.attempt
FROM unnest(@job_ids::text[], @attempts::integer[]) AS wanted (job_id, attempt)
WHERE (SELECT count(*) FROM job_sample
       WHERE job_sample.job_id = wanted.job_id AND job_sample.attempt = wanted.attempt) >= @most::bigint;

-- name: thin
-- Merge neighbours: of each pair the later one stays. Samples tell what was used since the beginning, so the pair's
-- mean and peak are in it. The newest sample stays as it is.
DELETE FROM job_sample
WHERE job_id = @job_id AND attempt = @attempt AND at IN (
    SELECT at FROM (
        SELECT at, row_number() OVER (ORDER BY at DESC) AS place FROM job_sample
        WHERE job_id = @job_id AND attempt = @attempt
    ) AS numbered
    WHERE place % 2 = 0);

-- name: series
-- An attempt's samples, oldest first.
SELECT at, metrics FROM job_sample WHERE job_id = @job_id AND attempt = @attempt ORDER BY at;

-- name: executing_since
-- When an attempt was first known to execute.
SELECT at FROM job_event WHERE job_id = @job_id AND attempt = @attempt AND code = 'executing' ORDER BY seq LIMIT 1;
