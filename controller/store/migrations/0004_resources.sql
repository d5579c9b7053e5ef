-- What single jobs may use, where that is not what their backend gives to every job.

-- As decided when the job was planned: `{cpus, memory, seconds}`, null or missing for the backend's own limit.
ALTER TABLE job ADD COLUMN resources jsonb NOT NULL DEFAULT '{}';

-- Seconds that the attempt may run; null: no limit. Beside the definition, whose keys are upstream's.
ALTER TABLE task ADD COLUMN time_limit double precision CHECK (time_limit > 0);
