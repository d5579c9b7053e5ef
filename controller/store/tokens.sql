-- name: insert
-- No row: the name or the digest is taken, be it by a token that was revoked.
INSERT INTO token (name, kind, digest, created_at, created_by, expires_at)
VALUES (@name, @kind, @digest, @now, @created_by, @expires_at)
ON CONFLICT DO NOTHING RETURNING name;

-- name: grant
-- What a token allows on one backend.
INSERT INTO token_grant (token, backend, verbs) VALUES (@token, @backend, @verbs::text[]);

-- name: of_digest
-- At most one: digests are unique. Revoked ones, too, so that a refusal can be told by its name.
SELECT name, kind, created_at, created_by, expires_at, revoked_at, revoked_by,
       (SELECT jsonb_object_agg(backend, verbs) FROM token_grant WHERE token = name) AS grants
FROM token WHERE digest = @digest;

-- name: of_name
-- The same by name.
SELECT name, kind, created_at, created_by, expires_at, revoked_at, revoked_by,
       (SELECT jsonb_object_agg(backend, verbs) FROM token_grant WHERE token = name) AS grants
FROM token WHERE name = @name;

-- name: of_backends
-- Every token that opens one of these backends, or did.
SELECT name, kind, created_at, created_by, expires_at, revoked_at, revoked_by,
       (SELECT jsonb_object_agg(backend, verbs) FROM token_grant WHERE token = name) AS grants
FROM token
WHERE EXISTS (SELECT FROM token_grant WHERE token = name AND backend = ANY(@backends::text[]))
ORDER BY name;

-- name: revoke
-- No row: somebody did already, and what they left stays.
UPDATE token SET revoked_at = @now, revoked_by = @revoked_by WHERE name = @name AND revoked_at IS NULL RETURNING name;

-- name: notify
-- A hint, delivered at commit: whoever remembers tokens forgets them and looks again.
SELECT pg_notify(@channel, @name);
