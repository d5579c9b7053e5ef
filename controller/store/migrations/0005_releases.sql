-- Outputs that leave only once a person has released them.

-- An instruction to a backend's agents, of our own protocol only.
ALTER TABLE task
    DROP CONSTRAINT task_type_check,
    DROP CONSTRAINT task_of_job,
    ADD CONSTRAINT task_type_check CHECK (type IN ('runjob', 'canceljob', 'dbstatus', 'dbdatacheck', 'release')),
    ADD CONSTRAINT task_of_job CHECK ((job_id IS NOT NULL) = (type IN ('runjob', 'canceljob', 'release')));

-- Who let an output out, and when; null: the backend's policy names it without a review.
ALTER TABLE output
    ADD COLUMN released_by text,
    ADD COLUMN released_at timestamptz,
    ADD CONSTRAINT output_released_by_somebody CHECK ((released_by IS NULL) = (released_at IS NULL));

-- Policies name levels from now on; `true` was every output of every level. Without a policy: never declared.
UPDATE agent SET egress = egress || jsonb_build_object(
    'outputs', CASE egress ->> 'outputs' WHEN 'true' THEN 'all' ELSE 'none' END, 'reviewed', false)
WHERE egress <> '{}' AND jsonb_typeof(egress -> 'outputs') IS DISTINCT FROM 'string';
