-- Errors of the platform are tried again later: how many a job has had, and from when on it may start.
ALTER TABLE job
    ADD COLUMN faults integer NOT NULL DEFAULT 0 CHECK (faults >= 0),
    ADD COLUMN not_before timestamptz,
    ADD CONSTRAINT job_only_pending_is_put_off CHECK (not_before IS NULL OR state = 'pending');
