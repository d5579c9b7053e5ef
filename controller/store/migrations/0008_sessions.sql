-- People who have signed in at a browser. A session ends with its token: it holds no rights of its own, only the digest
-- by which the token is looked up anew at every request.
CREATE TABLE session (
    digest bytea PRIMARY KEY CHECK (length(digest) = 32),
    token bytea NOT NULL CHECK (length(token) = 32),
    expires_at timestamptz NOT NULL
);
CREATE INDEX session_expiry ON session (expires_at);
