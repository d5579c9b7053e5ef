-- Spans of what has ended, until a collector has taken them.

-- Until when somebody means to export spans. What ends later leaves no row below: where no controller exports, nothing
-- piles up, and where only some do, they export for all.
CREATE TABLE trace_export (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    wanted_until timestamptz NOT NULL
);

-- A job, or (without `job_id`) a RAP, whose spans are to be exported. Written by the transaction that ends it.
CREATE TABLE trace_due (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rap_id text NOT NULL REFERENCES rap ON DELETE CASCADE,
    job_id text UNIQUE REFERENCES job ON DELETE CASCADE,
    attempts integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    leased_until timestamptz
);
CREATE UNIQUE INDEX trace_due_rap ON trace_due (rap_id) WHERE job_id IS NULL;
CREATE INDEX trace_due_of_rap ON trace_due (rap_id);
CREATE INDEX trace_due_next ON trace_due (attempts, seq);
