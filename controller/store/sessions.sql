-- name: insert
-- Somebody has signed in with a token; neither the token nor the session's secret is here.
INSERT INTO session (digest, token, expires_at) VALUES (@digest, @token, @expires_at);

-- name: find
-- The digest of the token that a session was begun with; whether that token still opens anything is asked elsewhere.
SELECT token FROM session WHERE digest = @digest AND expires_at > @now;

-- name: delete
-- Signed out.
DELETE FROM session WHERE digest = @digest;

-- name: delete_expired
-- Sessions that opened nothing any more.
DELETE FROM session WHERE expires_at <= @now;
