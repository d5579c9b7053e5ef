-- name: queue
-- Jobs that are not finished, and since when the one has its code that has had it longest.
SELECT backend, code, count(*) AS jobs, min(code_changed_at) AS since FROM job
WHERE backend = ANY(@backends::text[]) AND state IN ('pending', 'running')
GROUP BY backend, code;

-- name: tasks
-- Run tasks that nobody has taken, and those whose lease is over.
SELECT backend, count(*) FILTER (WHERE agent IS NULL) AS unclaimed,
       min(created_at) FILTER (WHERE agent IS NULL) AS unclaimed_since,
       count(*) FILTER (WHERE lease_expires_at < @now) AS expired
FROM task WHERE backend = ANY(@backends::text[]) AND active AND type = 'runjob'
GROUP BY backend;

-- name: agents
-- Agents by executor, and what those that are alive say of themselves. One that was last heard of long ago and holds
-- nothing is not missed.
SELECT backend, executor, count(*) FILTER (WHERE alive) AS alive, count(*) FILTER (WHERE NOT alive) AS silent,
       count(*) FILTER (WHERE alive AND metrics <> '{}') AS telling,
       coalesce(sum(slots) FILTER (WHERE alive), 0) AS slots,
       sum((metrics ->> 'slots_used')::double precision) FILTER (WHERE alive) AS slots_used,
       sum((metrics ->> 'jobs_running')::double precision) FILTER (WHERE alive) AS jobs_running,
       sum((metrics ->> 'reports_queued')::double precision) FILTER (WHERE alive) AS reports_queued,
       min((metrics ->> 'disk_free_ratio')::double precision) FILTER (WHERE alive) AS disk_free_ratio,
       max((metrics ->> 'loop_lag_seconds')::double precision) FILTER (WHERE alive) AS loop_lag_seconds
FROM (
    SELECT backend, executor, slots, metrics, last_seen_at >= @alive_since AS alive FROM agent
    WHERE backend = ANY(@backends::text[])
      AND (last_seen_at >= @missed_since OR EXISTS (
            SELECT FROM task
            WHERE task.backend = agent.backend AND task.active AND task.type = 'runjob' AND task.agent = agent.id))
) AS known
GROUP BY backend, executor;
