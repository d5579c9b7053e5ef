-- What it takes to run for years: capacity that operators change, tokens that are made and revoked, checks of the
-- backends' databases at intervals, and what becomes of jobs whose agent is lost.

-- Capacity as an operator set it while running; null: what the settings say.
ALTER TABLE backend
    ADD COLUMN workers double precision CHECK (workers >= 0),
    ADD COLUMN db_workers double precision CHECK (db_workers >= 0);

-- Tokens of people, portals and agents besides those of the settings. Only a digest is kept: a token is shown once.
-- A revoked one stays, so that its name still tells who did what.
CREATE TABLE token (
    name text PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('client', 'agent')),
    digest bytea NOT NULL UNIQUE CHECK (length(digest) = 32),
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    revoked_by text
);

CREATE TABLE token_grant (
    token text NOT NULL REFERENCES token,
    backend text NOT NULL REFERENCES backend,
    verbs text[] NOT NULL,
    PRIMARY KEY (token, backend)
);

-- Tasks that come round: one at a time of each kind, and when the last one was over.
CREATE UNIQUE INDEX task_one_active_check ON task (backend, type) WHERE active AND type IN ('dbstatus', 'dbdatacheck');
CREATE INDEX task_last_check ON task (backend, type, finished_at DESC) WHERE type IN ('dbstatus', 'dbdatacheck');

-- Whether jobs of an agent that is lost may run a second time elsewhere: its executor's own declaration.
ALTER TABLE agent ADD COLUMN on_loss text NOT NULL DEFAULT 'retry' CHECK (on_loss IN ('retry', 'fail'));
