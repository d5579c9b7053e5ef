-- name: ensure
-- Backends come from the settings; rows exist so that everything else can refer to them.
INSERT INTO backend (slug, created_at) SELECT unnest(@slugs::text[]), @now ON CONFLICT DO NOTHING;

-- name: lock
-- One writer of job states per backend at a time: every other lock in such a transaction is then free of deadlocks.
-- With it come the limits that an operator has set (null: the settings').
SELECT slug, workers, db_workers FROM backend WHERE slug = @backend FOR NO KEY UPDATE;

-- name: see
-- The heartbeat.
INSERT INTO backend_seen (backend, at) VALUES (@backend, @now)
ON CONFLICT (backend) DO UPDATE SET at = greatest(backend_seen.at, excluded.at);

-- name: seen
-- When each backend was last heard of.
SELECT backend, at FROM backend_seen WHERE backend = ANY(@backends::text[]);

-- name: flags
-- The operator's switches of these backends.
SELECT backend, id, value, changed_at FROM flag WHERE backend = ANY(@backends::text[]);

-- name: set_flag
-- Setting an equal value changes nothing, not even the time (reference section 3.6), and says so by no row. A flag that
-- was never set is null: null for it is equal, too.
INSERT INTO flag (backend, id, value, changed_at)
SELECT @backend::text, @id::text, @value::text, @now::timestamptz
WHERE @value::text IS NOT NULL OR EXISTS (SELECT FROM flag WHERE backend = @backend::text AND id = @id::text)
ON CONFLICT (backend, id) DO UPDATE SET value = excluded.value, changed_at = excluded.changed_at
WHERE flag.value IS DISTINCT FROM excluded.value
RETURNING id;

-- name: running_jobs
-- Whom a reboot interrupts.
SELECT id FROM job WHERE backend = @backend AND state = 'running' ORDER BY seq;

-- name: unfinished
-- What a reboot would interrupt: jobs, and stops that no agent has confirmed yet.
SELECT (SELECT count(*) FROM job WHERE backend = @backend AND state = 'running') AS running,
       (SELECT count(*) FROM task WHERE backend = @backend AND active AND type = 'canceljob') AS cancelling,
       ARRAY(SELECT DISTINCT coalesce(agent, for_agent) FROM task
             WHERE backend = @backend AND active AND type = 'canceljob' AND coalesce(agent, for_agent) IS NOT NULL
             ORDER BY 1) AS unconfirmed;

-- name: declare_agent
-- What an agent says of itself at every start; and whether that is news: it is new, or says something else than before,
-- or had not been heard of for long. (The same again, as after a lost answer, is none.)
WITH known AS (
    SELECT version, executor, slots, egress, on_loss FROM agent
    WHERE backend = @backend AND id = @id AND last_seen_at >= @alive_since::timestamptz
)
INSERT INTO agent (backend, id, version, executor, slots, egress, on_loss, last_seen_at)
VALUES (@backend, @id, @version, @executor, @slots, @egress, @on_loss, @now)
ON CONFLICT (backend, id) DO UPDATE
SET version = excluded.version, executor = excluded.executor, slots = excluded.slots, egress = excluded.egress,
    on_loss = excluded.on_loss, last_seen_at = excluded.last_seen_at
RETURNING NOT EXISTS (
    SELECT FROM known
    WHERE known.version = agent.version AND known.executor = agent.executor AND known.slots = agent.slots
      AND known.egress = agent.egress AND known.on_loss = agent.on_loss) AS news;

-- name: see_agent
-- The heartbeat of one agent. One that is not known (it was forgotten, and lives after all) can hold work from now on,
-- so operators must see it; what it declared is lost, so that its jobs are not run twice.
INSERT INTO agent (backend, id, version, executor, slots, egress, on_loss, last_seen_at, metrics)
VALUES (@backend, @id, 'unknown', 'unknown', greatest(1, @slots), '{}', 'fail', @now, @metrics)
ON CONFLICT (backend, id) DO UPDATE SET last_seen_at = excluded.last_seen_at, metrics = excluded.metrics
RETURNING executor = 'unknown' AS undeclared;

-- name: agents
-- Everybody who ever declared themselves for these backends, and how many jobs each holds.
SELECT agent.id, agent.backend, version, executor, slots, egress, on_loss, last_seen_at, coalesce(held.jobs, 0) AS load
FROM agent
LEFT JOIN (
    SELECT backend, agent, count(*) AS jobs FROM task
    WHERE backend = ANY(@backends::text[]) AND active AND type = 'runjob'
    GROUP BY backend, agent
) AS held ON held.backend = agent.backend AND held.agent = agent.id
WHERE agent.backend = ANY(@backends::text[]) ORDER BY agent.backend, agent.id;

-- name: limits
-- What an operator has set (null: the settings').
SELECT slug, workers, db_workers FROM backend WHERE slug = ANY(@backends::text[]);

-- name: set_limits
-- From now on; null: as the settings say.
UPDATE backend SET workers = @workers, db_workers = @db_workers WHERE slug = @backend;

-- name: demand
-- The weights of the jobs that are not finished: there are few different ones.
SELECT backend, requires_db, state, weight, count(*) AS jobs FROM job
WHERE backend = ANY(@backends::text[]) AND state IN ('pending', 'running')
GROUP BY backend, requires_db, state, weight;

-- name: lock_agent
-- One agent, held until the transaction ends: a heartbeat waits.
SELECT last_seen_at, on_loss FROM agent
WHERE backend = @backend AND id = @id FOR UPDATE;

-- name: forget_agent
-- It is gone for good.
DELETE FROM agent WHERE backend = @backend AND id = @id;

-- name: notify
-- A hint, delivered at commit: the rows are the truth.
SELECT pg_notify(@channel, @backend);
