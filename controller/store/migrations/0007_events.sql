-- What happened lately, for whoever follows it live; and how attempts used their machine while they ran.

-- The number of each backend's last event. Who records events holds the row until the end of the transaction: so events
-- of one backend are numbered in the order in which they become visible, without a gap, and whoever has seen one has
-- missed none before it. (An identity column is counted on before the commit: its order is not that of visibility.)
CREATE TABLE event_counter (
    backend text PRIMARY KEY REFERENCES backend,
    last bigint NOT NULL CHECK (last > 0)
) WITH (fillfactor = 50);

CREATE TABLE event (
    backend text NOT NULL,
    seq bigint NOT NULL CHECK (seq > 0),
    at timestamptz NOT NULL,
    kind text NOT NULL CHECK (kind IN ('rap', 'job', 'flags', 'agent')),
    -- No reference: what happened stays so when its RAP is forgotten.
    rap_id text,
    content jsonb NOT NULL,
    PRIMARY KEY (backend, seq)
);

CREATE TABLE job_sample (
    job_id text NOT NULL REFERENCES job,
    attempt integer NOT NULL,
    at timestamptz NOT NULL,
    metrics jsonb NOT NULL,
    PRIMARY KEY (job_id, attempt, at)
);
