-- name: record
-- What the transaction that holds this did, numbered in the order of commits (migration 0007). What is older than the
-- newest @kept goes, a thousand at a time.
WITH given AS (
    SELECT kind, at, rap_id, content, place
    FROM ROWS FROM (jsonb_to_recordset(@events::jsonb) AS (
        kind text, at timestamptz, rap_id text, content jsonb)) WITH ORDINALITY
        AS new (kind, at, rap_id, content, place)
), counted AS (
    INSERT INTO event_counter AS counter (backend, last) SELECT @backend::text, count(*) FROM given
    ON CONFLICT (backend) DO UPDATE SET last = counter.last + excluded.last
    RETURNING counter.last, counter.last - (SELECT count(*) FROM given) AS before
), recorded AS (
    INSERT INTO event (backend, seq, at, kind, rap_id, content)
    SELECT @backend::text, counted.before + given.place, given.at, given.kind, given.rap_id, given.content
    FROM given CROSS JOIN counted
), forgotten AS (
    DELETE FROM event USING counted
    WHERE event.backend = @backend::text AND event.seq <= counted.last - @kept::bigint
      AND counted.last / 1000 > counted.before / 1000
)
SELECT pg_notify(@channel, '');

-- name: bounds
-- The newest event of each of these backends, and the oldest that is kept; no row where nothing has happened yet.
SELECT counter.backend, counter.last, coalesce(oldest.seq, counter.last + 1) AS first
FROM event_counter AS counter
LEFT JOIN LATERAL (
    SELECT seq FROM event WHERE event.backend = counter.backend ORDER BY seq LIMIT 1
) AS oldest ON true
WHERE counter.backend = ANY(@backends::text[]);

-- name: after
-- What happened on each backend after one event of it, in order.
SELECT page.backend, page.seq, page.at, page.kind, page.rap_id, page.content
FROM unnest(@backends::text[], @seqs::bigint[]) AS wanted (backend, seq)
CROSS JOIN LATERAL (
    SELECT event.backend, event.seq, event.at, event.kind, event.rap_id, event.content FROM event
    WHERE event.backend = wanted.backend AND event.seq > wanted.seq
    ORDER BY event.seq
    LIMIT @page_size
) AS page
ORDER BY page.backend, page.seq;
