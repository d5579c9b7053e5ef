-- name: database
-- What decides whether a confirmed commit survives, and the clock that the rows' times are compared with.
SELECT clock_timestamp() AS now, current_setting('server_version_num')::integer AS version,
       current_setting('fsync')::boolean AS fsync,
       current_setting('full_page_writes')::boolean AS full_page_writes,
       current_setting('synchronous_commit') <> 'off' AS synchronous_commit;

-- name: agents
-- Agents with how many run tasks are leased to each.
SELECT agent.id, agent.last_seen_at, agent.slots, count(task.id) AS holding
FROM agent
LEFT JOIN task ON task.backend = agent.backend AND task.agent = agent.id AND task.active AND task.type = 'runjob'
WHERE agent.backend = @backend
GROUP BY agent.id, agent.last_seen_at, agent.slots
ORDER BY agent.id;

-- name: tasks
-- Active tasks that wait for something, by the age of the oldest; a lease that ended, by its end.
SELECT count(*) FILTER (WHERE type = 'runjob' AND agent IS NULL) AS unclaimed,
       min(created_at) FILTER (WHERE type = 'runjob' AND agent IS NULL) AS unclaimed_since,
       count(*) FILTER (WHERE type = 'runjob' AND lease_expires_at < @now) AS expired,
       min(lease_expires_at) FILTER (WHERE type = 'runjob' AND lease_expires_at < @now) AS expired_since,
       count(*) FILTER (WHERE type = 'canceljob') AS cancels,
       min(created_at) FILTER (WHERE type = 'canceljob') AS cancels_since
FROM task WHERE backend = @backend AND active;

-- name: jobs
-- Jobs that are not finished, and those of them that no pass has given a code yet.
SELECT count(*) AS active, count(*) FILTER (WHERE code = 'created') AS created,
       min(code_changed_at) FILTER (WHERE code = 'created') AS created_since
FROM job WHERE backend = @backend AND state IN ('pending', 'running');

-- name: without_task
-- Running jobs that nobody was told to run.
SELECT id FROM job
WHERE backend = @backend AND state = 'running' AND NOT EXISTS (
    SELECT FROM task WHERE task.job_id = job.id AND task.active AND task.type = 'runjob')
ORDER BY seq LIMIT 100;

-- name: too_heavy
-- Pending jobs that weigh more than a job of their pool may at most (`core/schedule.py`, `heaviest`).
SELECT id FROM job
WHERE backend = @backend AND state = 'pending'
  AND weight > CASE WHEN requires_db THEN @db_heaviest::double precision ELSE @heaviest::double precision END
ORDER BY seq LIMIT 100;
