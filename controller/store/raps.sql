-- name: insert
-- Nothing comes back if the id is taken: the first of simultaneous equal creates wins, the others wait here for it.
INSERT INTO rap (id, dialect, backend, workspace, repo_url, branch, commit, database_name, requested_actions,
                 codelists_ok, force_run_dependencies, created_by, project, orgs, analysis_scope, traceparent,
                 parent_traceparent, created_at)
VALUES (@id, @dialect, @backend, @workspace, @repo_url, @branch, @commit, @database_name, @requested_actions,
        @codelists_ok, @force_run_dependencies, @created_by, @project, @orgs, @analysis_scope, @traceparent,
        @parent_traceparent, @created_at)
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: find
-- What a repeated create is compared with, over all backends (reference section 1.3).
SELECT rap.id, rap.repo_url, rap.workspace, rap.commit, rap.backend,
       (SELECT count(*) FROM job WHERE job.rap_id = rap.id) AS job_count
FROM rap WHERE rap.id = @id;

-- name: owners
-- Who asked for these RAPs: part of each task's definition and attributes.
SELECT id, created_by, project, orgs FROM rap WHERE id = ANY(@ids::text[]);

-- name: list_page
-- Newest first, by keyset, per backend from its own index; the counts are looked up for the rows of the page only.
-- What is searched for is compared as it is: none of its characters means anything.
SELECT rap.id, rap.seq, rap.backend, rap.workspace, rap.created_by, rap.project, rap.repo_url, rap.branch, rap.commit,
       rap.created_at, rap.requested_actions, rap.traceparent, tally.counts
FROM (
    SELECT of_backend.* FROM unnest(@backends::text[]) AS wanted (backend)
    CROSS JOIN LATERAL (
        SELECT * FROM rap
        WHERE rap.backend = wanted.backend AND rap.seq < coalesce(@before::bigint, 9223372036854775807)
          AND rap.seq >= coalesce(@down_to::bigint, 0)
          AND (@workspace::text IS NULL OR rap.workspace = @workspace)
          AND (@created_by::text IS NULL OR rap.created_by = @created_by)
          AND (@search::text IS NULL OR position(lower(@search) IN lower(concat_ws(chr(31), rap.id, rap.workspace,
                rap.project, rap.created_by, rap.repo_url, rap.branch, rap.commit,
        array_to_string(rap.requested_actions, chr(31))))) > 0)
          AND (NOT @only_finished::boolean OR NOT EXISTS (
                SELECT FROM job WHERE job.rap_id = rap.id AND job.state IN ('pending', 'running')))
        ORDER BY rap.seq DESC
        LIMIT @page_size
    ) AS of_backend
    ORDER BY of_backend.seq DESC
    LIMIT @page_size
) AS rap
CROSS JOIN LATERAL (
    SELECT coalesce(jsonb_object_agg(state, jobs), '{}') AS counts
    FROM (SELECT state, count(*) AS jobs FROM job WHERE job.rap_id = rap.id GROUP BY state) AS by_state
) AS tally
ORDER BY rap.seq DESC;

-- name: list_active_page
-- The same of the RAPs with a job that is not finished, which are found by these jobs: few, whatever the history.
SELECT rap.id, rap.seq, rap.backend, rap.workspace, rap.created_by, rap.project, rap.repo_url, rap.branch, rap.commit,
       rap.created_at, rap.requested_actions, rap.traceparent, tally.counts
FROM rap
CROSS JOIN LATERAL (
    SELECT coalesce(jsonb_object_agg(state, jobs), '{}') AS counts
    FROM (SELECT state, count(*) AS jobs FROM job WHERE job.rap_id = rap.id GROUP BY state) AS by_state
) AS tally
WHERE rap.id = ANY(ARRAY(
        SELECT DISTINCT job.rap_id FROM job
        WHERE job.backend = ANY(@backends::text[]) AND job.state IN ('pending', 'running')))
  AND rap.backend = ANY(@backends::text[])
  AND rap.seq < coalesce(@before::bigint, 9223372036854775807)
  AND (@workspace::text IS NULL OR rap.workspace = @workspace)
  AND (@created_by::text IS NULL OR rap.created_by = @created_by)
  AND (@search::text IS NULL OR position(lower(@search) IN lower(concat_ws(chr(31), rap.id, rap.workspace, rap.project,
        rap.created_by, rap.repo_url, rap.branch, rap.commit,
        array_to_string(rap.requested_actions, chr(31))))) > 0)
ORDER BY rap.seq DESC
LIMIT @page_size;

-- name: summary
-- One RAP in the shape of the list.
SELECT rap.id, rap.seq, rap.backend, rap.workspace, rap.created_by, rap.project, rap.repo_url, rap.branch, rap.commit,
       rap.created_at, rap.requested_actions, rap.traceparent, tally.counts
FROM rap
CROSS JOIN LATERAL (
    SELECT coalesce(jsonb_object_agg(state, jobs), '{}') AS counts
    FROM (SELECT state, count(*) AS jobs FROM job WHERE job.rap_id = rap.id GROUP BY state) AS by_state
) AS tally
WHERE rap.id = @id AND rap.backend = ANY(@backends::text[]);

-- name: window
-- The RAPs whose jobs a page of jobs may look through, newest first: bounds keep a rare state from being searched for
-- through all of history at once.
SELECT of_backend.id, of_backend.seq FROM unnest(@backends::text[]) AS wanted (backend)
CROSS JOIN LATERAL (
    SELECT id, seq FROM rap
    WHERE rap.backend = wanted.backend AND rap.seq <= @before::bigint
      AND (@workspace::text IS NULL OR rap.workspace = @workspace)
    ORDER BY rap.seq DESC
    LIMIT @look
) AS of_backend
ORDER BY of_backend.seq DESC
LIMIT @look;

-- name: request
-- What was asked for, to ask for a part of it once more.
SELECT id, dialect, backend, workspace, repo_url, branch, commit, database_name, codelists_ok, created_by, project,
       orgs, analysis_scope, parent_traceparent
FROM rap WHERE id = @id;

-- name: active_others
-- RAPs with a job that is not finished, besides these, in a bounded number: what a portal may have forgotten to ask for.
SELECT DISTINCT rap_id FROM job
WHERE backend = ANY(@backends::text[]) AND state IN ('pending', 'running') AND NOT rap_id = ANY(@asked::text[])
ORDER BY rap_id
LIMIT @most;
