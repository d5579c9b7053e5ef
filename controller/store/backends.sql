-- name: ensure
-- Backends come from the settings; rows exist so that everything else can refer to them.
INSERT INTO backend (slug, created_at) SELECT unnest(@slugs::text[]), @now ON CONFLICT DO NOTHING;

-- name: lock
-- One writer of job states per backend at a time: every other lock in such a transaction is then free of deadlocks.
SELECT slug FROM backend WHERE slug = @backend FOR NO KEY UPDATE;

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
       (SELECT count(*) FROM task WHERE backend = @backend AND active AND type = 'canceljob') AS cancelling;

-- name: declare_agent
-- What an agent says of itself at every start.
INSERT INTO agent (backend, id, version, executor, slots, egress, last_seen_at)
VALUES (@backend, @id, @version, @executor, @slots, @egress, @now)
ON CONFLICT (backend, id) DO UPDATE
SET version = excluded.version, executor = excluded.executor, slots = excluded.slots, egress = excluded.egress,
    last_seen_at = excluded.last_seen_at;

-- name: see_agent
-- The heartbeat of one agent.
UPDATE agent SET last_seen_at = @now WHERE backend = @backend AND id = @id;

-- name: agents
-- Everybody who ever declared themselves for these backends.
SELECT id, backend, version, executor, slots, egress, last_seen_at FROM agent
WHERE backend = ANY(@backends::text[]) ORDER BY backend, id;

-- name: notify
-- A hint, delivered at commit: the rows are the truth.
SELECT pg_notify(@channel, @backend);
