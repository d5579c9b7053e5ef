-- name: insert
-- Instructions for a backend; their definitions are complete, so that handing one out reads nothing else.
INSERT INTO task (id, backend, type, job_id, attempt, definition, attributes, traceparent, for_agent, created_at,
                  time_limit)
SELECT id, backend, type, job_id, attempt, definition, attributes, traceparent, for_agent, created_at, time_limit
FROM ROWS FROM (jsonb_to_recordset(@tasks::jsonb) AS (
    id text, backend text, type text, job_id text, attempt integer, definition jsonb, attributes jsonb,
    traceparent text, for_agent text, created_at timestamptz, time_limit double precision)) WITH ORDINALITY
    AS new (id, backend, type, job_id, attempt, definition, attributes, traceparent, for_agent, created_at, time_limit,
            place)
ORDER BY place;

-- name: list_active
-- The Task API's listing: everything active, `dbstatus` first, then by age (reference section 2.3). Not what only our
-- own agents know.
SELECT id, backend, type, job_id, attempt, definition, attributes, traceparent, created_at, time_limit
FROM task WHERE backend = @backend AND active AND type <> 'release'
ORDER BY type <> 'dbstatus', seq;

-- name: claim
-- New tasks for the agent, and its own that it does not know of (it was restarted, or an answer was lost). Two agents
-- never get one task: SKIP LOCKED leaves a row alone that the other is just taking. Releases go to agents whose policy
-- has a review, and that did not say already that they lack the files; 16 at once, since each may name a megabyte of
-- paths and an answer must stay below what an agent reads.
WITH lost AS (
    SELECT id FROM task
    WHERE backend = @backend AND active AND agent = @agent AND NOT id = ANY(@holding::text[])
    FOR UPDATE SKIP LOCKED
), new_runs AS (
    SELECT id FROM task
    WHERE backend = @backend AND active AND agent IS NULL AND type = 'runjob'
    ORDER BY seq
    LIMIT greatest(0, @slots::integer - (SELECT count(*) FROM lost))
    FOR UPDATE SKIP LOCKED
), others AS (
    SELECT id FROM task
    WHERE backend = @backend AND active AND agent IS NULL AND type NOT IN ('runjob', 'release')
      AND (for_agent IS NULL OR for_agent = @agent)
    ORDER BY seq
    FOR UPDATE SKIP LOCKED
), releases AS (
    SELECT id FROM task
    WHERE backend = @backend AND active AND agent IS NULL AND type = 'release'
      AND NOT definition -> 'absent' ? @agent AND EXISTS (
            SELECT FROM agent AS declared
            WHERE declared.backend = @backend AND declared.id = @agent AND declared.egress ->> 'reviewed' = 'true')
    ORDER BY seq
    LIMIT greatest(0, 16 - (
        SELECT count(*) FROM task AS its
        WHERE its.backend = @backend AND its.active AND its.type = 'release' AND its.agent = @agent))
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE task SET agent = @agent, lease_expires_at = @lease
    WHERE id IN (SELECT id FROM lost UNION ALL SELECT id FROM new_runs UNION ALL SELECT id FROM others
                 UNION ALL SELECT id FROM releases)
      AND active AND (agent IS NULL OR agent = @agent)
    RETURNING id, backend, type, job_id, attempt, definition, attributes, traceparent, created_at, time_limit, seq
)
SELECT id, backend, type, job_id, attempt, definition, attributes, traceparent, created_at, time_limit,
       id NOT IN (SELECT id FROM lost) AS fresh
FROM claimed
ORDER BY type <> 'dbstatus', seq;

-- name: renew
-- The agent still works on these. Whoever locks several tasks does so by seq, so that nobody waits in a circle.
WITH held AS (
    SELECT id FROM task
    WHERE id = ANY(@holding::text[]) AND backend = @backend AND active AND agent = @agent
    ORDER BY seq FOR UPDATE
)
UPDATE task SET lease_expires_at = @lease FROM held WHERE task.id = held.id;

-- name: rounds
-- Where a backend is with each of these kinds of check: the active one, and when the last one was over. An end that
-- lies further ahead than clocks differ is what a wrong clock left behind: waiting for it could be waiting for years.
SELECT kind.type, current.id AS active, current.lease_expires_at, past.finished_at
FROM unnest(@types::text[]) AS kind (type)
LEFT JOIN LATERAL (
    SELECT id, lease_expires_at FROM task
    WHERE backend = @backend AND type = kind.type AND active AND type IN ('dbstatus', 'dbdatacheck')
) AS current ON true
LEFT JOIN LATERAL (
    SELECT finished_at FROM task
    WHERE backend = @backend AND type = kind.type AND finished_at <= @believable AND type IN ('dbstatus', 'dbdatacheck')
    ORDER BY finished_at DESC LIMIT 1
) AS past ON true;

-- name: last_checks
-- How the last check of each kind ended that an agent spoke of; no row for a kind that was never asked for.
SELECT site.backend, kind.type, past.finished_at, past.results #>> '{results,status}' AS status
FROM unnest(@backends::text[]) WITH ORDINALITY AS site (backend, place)
CROSS JOIN unnest(ARRAY['dbstatus', 'dbdatacheck']) WITH ORDINALITY AS kind (type, place)
CROSS JOIN LATERAL (
    SELECT finished_at, results FROM task
    WHERE backend = site.backend AND type = kind.type AND complete AND finished_at IS NOT NULL
      AND type IN ('dbstatus', 'dbdatacheck')
    ORDER BY finished_at DESC LIMIT 1
) AS past
ORDER BY site.place, kind.place;

-- name: drop_old_checks
-- A check's result is of no use once there are newer ones; the newest of its kind is what operators see, so it stays.
DELETE FROM task AS old
WHERE old.backend = @backend AND old.type IN ('dbstatus', 'dbdatacheck') AND old.finished_at < @before
  AND EXISTS (
        SELECT FROM task AS newer
        WHERE newer.backend = old.backend AND newer.type = old.type AND newer.type IN ('dbstatus', 'dbdatacheck')
          AND newer.complete AND newer.finished_at > old.finished_at);

-- name: void_checks
-- Nobody wants these any more; an agent that holds one learns it as revoked. One that its agent is just renewing is
-- left for the next pass: waiting for it with other tasks locked could be waiting in a circle.
WITH unwanted AS (
    SELECT id FROM task WHERE id = ANY(@ids::text[]) AND active AND type IN ('dbstatus', 'dbdatacheck')
    FOR UPDATE SKIP LOCKED
)
UPDATE task SET active = false, finished_at = @now FROM unwanted WHERE task.id = unwanted.id
RETURNING task.id;

-- name: hand_over_checks
-- Their agent fell silent: the same check is anybody's again. Carrying one out twice is harmless.
WITH silent AS (
    SELECT id FROM task
    WHERE id = ANY(@ids::text[]) AND active AND lease_expires_at <= @now AND type IN ('dbstatus', 'dbdatacheck')
    FOR UPDATE SKIP LOCKED
)
UPDATE task SET agent = NULL, lease_expires_at = NULL FROM silent WHERE task.id = silent.id
RETURNING task.id;

-- name: revoked
-- What the agent holds and should stop: void or somebody else's. Not what it has just completed, and not what a
-- cancel task tells it to stop in an orderly way.
SELECT held.id
FROM unnest(@holding::text[]) AS held (id)
LEFT JOIN task ON task.id = held.id AND task.backend = @backend
WHERE task.id IS NULL
   OR (task.active AND task.agent IS DISTINCT FROM @agent)
   OR (NOT task.active AND NOT task.complete AND NOT EXISTS (
        SELECT FROM task AS cancel
        WHERE cancel.job_id = task.job_id AND cancel.attempt = task.attempt AND cancel.type = 'canceljob'));

-- name: lock
-- Tasks that reports are about, held until the transaction ends.
SELECT id, type, job_id, attempt, agent, active, complete FROM task
WHERE id = ANY(@ids::text[]) AND backend = @backend
ORDER BY seq FOR UPDATE;

-- name: write
-- What agents said of their tasks; a complete task is over.
UPDATE task
SET stage = new.stage, results = coalesce(new.results, task.results), complete = new.complete,
    active = NOT new.complete, finished_at = CASE WHEN new.complete THEN @now::timestamptz END,
    agent_timestamp_ns = coalesce(new.timestamp_ns, task.agent_timestamp_ns)
FROM jsonb_to_recordset(@changes::jsonb) AS new (
    id text, stage text, results jsonb, complete boolean, timestamp_ns bigint)
WHERE task.id = new.id AND task.active;

-- name: void_runs
-- These jobs' attempts are over before their agents said so; who held them is told.
WITH void AS (
    SELECT id FROM task WHERE job_id = ANY(@job_ids::text[]) AND type = 'runjob' AND active
    ORDER BY seq FOR UPDATE
)
UPDATE task SET active = false, finished_at = @now FROM void WHERE task.id = void.id
RETURNING task.id, job_id, attempt, agent, definition, attributes, traceparent;

-- name: release
-- Handed back by the agent that held them: the attempts are void.
SELECT job_id FROM task
WHERE id = ANY(@ids::text[]) AND backend = @backend AND agent = @agent AND active AND type = 'runjob'
ORDER BY seq FOR UPDATE;

-- name: holders
-- Which agent has, or last had, each job's newest attempt, what it said of the exit, and what the attempt may use.
SELECT DISTINCT ON (job_id) job_id, agent, results ->> 'exit_code' AS exit_code,
       (definition ->> 'cpu_count')::double precision AS cpu_count, definition ->> 'memory_limit' AS memory_limit,
       time_limit
FROM task
WHERE job_id = ANY(@job_ids::text[]) AND type = 'runjob'
ORDER BY job_id, attempt DESC;

-- name: abandoned
-- Attempts whose agent let its lease end while another agent of the backend is alive to take them over. With nobody
-- else there, waiting is better: the agent may come back with a finished job.
SELECT task.job_id, task.agent, coalesce(holder.on_loss, 'retry') AS on_loss FROM task
LEFT JOIN agent AS holder ON holder.backend = task.backend AND holder.id = task.agent
WHERE task.backend = @backend AND task.active AND task.type = 'runjob' AND task.lease_expires_at < @now
  AND EXISTS (
        SELECT FROM agent
        WHERE agent.backend = task.backend AND agent.id <> task.agent AND agent.last_seen_at >= @alive_since)
ORDER BY task.seq FOR UPDATE OF task;

-- name: held_by
-- Every attempt that one agent holds.
SELECT job_id, agent, @on_loss::text AS on_loss FROM task
WHERE backend = @backend AND agent = @agent AND active AND type = 'runjob'
ORDER BY seq FOR UPDATE;

-- name: void_others_of
-- What only this agent could have confirmed: stops and checks that it holds, or that are meant for it alone.
UPDATE task SET active = false, finished_at = @now
WHERE backend = @backend AND active AND type NOT IN ('runjob', 'release') AND @agent IN (agent, for_agent)
RETURNING id;

-- name: hand_over_releases
-- Their agent fell silent, or is gone (null: none is): another one that shares its storage may do the same.
WITH silent AS (
    SELECT id FROM task
    WHERE backend = @backend AND active AND type = 'release' AND (lease_expires_at <= @now OR agent = @gone)
    ORDER BY seq FOR UPDATE SKIP LOCKED
)
UPDATE task SET agent = NULL, lease_expires_at = NULL FROM silent WHERE task.id = silent.id
RETURNING task.id;

-- name: releases
-- What was asked of agents about the outputs of a job, and what they answered.
SELECT id, attempt, definition, agent, active, results, created_at, finished_at FROM task
WHERE job_id = @job_id AND type = 'release' ORDER BY attempt;
