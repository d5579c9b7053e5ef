-- The whole state of the controller. Invariants that code could break are constraints here.
-- Order is always `seq` (the database's own counter), never a clock: controllers' clocks may disagree.

CREATE TABLE backend (
    slug text PRIMARY KEY,
    -- Kept apart from agent.last_seen_at because agents of the Task API have no name.
    created_at timestamptz NOT NULL
);

CREATE TABLE backend_seen (
    backend text PRIMARY KEY REFERENCES backend,
    at timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE flag (
    backend text NOT NULL REFERENCES backend,
    id text NOT NULL,
    value text,
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (backend, id)
);

CREATE TABLE rap (
    id text PRIMARY KEY CHECK (id ~ '^[a-z0-9]{16}$'),
    seq bigint GENERATED ALWAYS AS IDENTITY,
    dialect text NOT NULL,
    backend text NOT NULL REFERENCES backend,
    workspace text NOT NULL,
    repo_url text NOT NULL,
    branch text NOT NULL,
    commit text NOT NULL,
    database_name text NOT NULL,
    requested_actions text[] NOT NULL,
    codelists_ok boolean NOT NULL,
    force_run_dependencies boolean NOT NULL,
    created_by text NOT NULL,
    project text NOT NULL,
    orgs text[] NOT NULL,
    analysis_scope jsonb NOT NULL,
    traceparent text NOT NULL,
    parent_traceparent text,
    created_at timestamptz NOT NULL
);
-- A page of RAPs reads what is on the page, and not through everybody else's.
CREATE INDEX rap_of_backend ON rap (backend, seq DESC);
CREATE INDEX rap_of_workspace ON rap (backend, workspace, seq DESC);

CREATE TABLE job (
    id text PRIMARY KEY,
    seq bigint GENERATED ALWAYS AS IDENTITY,
    rap_id text NOT NULL REFERENCES rap,
    position integer NOT NULL,
    backend text NOT NULL REFERENCES backend,
    workspace text NOT NULL,
    action text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('run', 'gate', 'group', 'rap')),
    run_command text NOT NULL,
    requires_db boolean NOT NULL,
    needs text[] NOT NULL,
    output_spec jsonb NOT NULL,
    repo_url text NOT NULL,
    commit text NOT NULL,
    branch text NOT NULL,
    reusable_action jsonb,
    image_sha text,
    database_name text,
    analysis_scope jsonb NOT NULL,
    weight double precision NOT NULL CHECK (weight > 0),
    traceparent text NOT NULL,
    created_at timestamptz NOT NULL,

    state text NOT NULL,
    code text NOT NULL,
    message text NOT NULL,
    attempt integer NOT NULL DEFAULT 0,
    cancelled boolean NOT NULL DEFAULT false,
    started_at timestamptz,
    completed_at timestamptz,
    updated_at timestamptz NOT NULL,
    code_changed_at timestamptz NOT NULL,
    metrics jsonb NOT NULL DEFAULT '{}',

    -- Kept in the transaction that ends a job, so that no scheduling pass walks the graph.
    unmet integer NOT NULL DEFAULT 0 CHECK (unmet >= 0),
    need_failed boolean NOT NULL DEFAULT false,

    UNIQUE (rap_id, action),
    UNIQUE (rap_id, position),
    CONSTRAINT job_code_belongs_to_state CHECK (CASE code
        WHEN 'created' THEN state = 'pending'
        WHEN 'paused' THEN state = 'pending'
        WHEN 'waiting_db_maintenance' THEN state = 'pending'
        WHEN 'waiting_on_dependencies' THEN state = 'pending'
        WHEN 'waiting_on_workers' THEN state = 'pending'
        WHEN 'waiting_on_db_workers' THEN state = 'pending'
        WHEN 'waiting_on_reboot' THEN state = 'pending'
        WHEN 'waiting_on_new_task' THEN state = 'pending'
        WHEN 'initiated' THEN state = 'running'
        WHEN 'preparing' THEN state = 'running'
        WHEN 'prepared' THEN state = 'running'
        WHEN 'executing' THEN state = 'running'
        WHEN 'executed' THEN state = 'running'
        WHEN 'finalizing' THEN state = 'running'
        WHEN 'finalized' THEN state = 'running'
        WHEN 'succeeded' THEN state = 'succeeded'
        WHEN 'dependency_failed' THEN state = 'failed'
        WHEN 'nonzero_exit' THEN state = 'failed'
        WHEN 'cancelled_by_user' THEN state = 'failed'
        WHEN 'unmatched_patterns' THEN state = 'failed'
        WHEN 'internal_error' THEN state = 'failed'
        WHEN 'killed_by_admin' THEN state = 'failed'
        WHEN 'stale_codelists' THEN state = 'failed'
        WHEN 'job_error' THEN state = 'failed'
        ELSE false END),
    CONSTRAINT job_completed_iff_terminal
        CHECK ((completed_at IS NOT NULL) = (state IN ('succeeded', 'failed'))),
    CONSTRAINT job_running_has_started
        CHECK (state <> 'running' OR (started_at IS NOT NULL AND attempt > 0)),
    CONSTRAINT job_starts_when_needs_are_met
        CHECK (state NOT IN ('running', 'succeeded') OR (unmet = 0 AND NOT need_failed))
);
CREATE INDEX job_active ON job (backend, seq) WHERE state IN ('pending', 'running');
CREATE INDEX job_latest_of_action ON job (backend, workspace, action, seq DESC) WHERE NOT cancelled;

CREATE TABLE job_need (
    job_id text NOT NULL REFERENCES job,
    need_id text NOT NULL REFERENCES job,
    PRIMARY KEY (job_id, need_id),
    CHECK (job_id <> need_id)
);
CREATE INDEX job_need_dependants ON job_need (need_id);

CREATE TABLE job_event (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id text NOT NULL REFERENCES job,
    at timestamptz NOT NULL,
    attempt integer NOT NULL,
    state text NOT NULL,
    code text NOT NULL,
    message text NOT NULL
);
CREATE INDEX job_event_of_job ON job_event (job_id, seq);

CREATE TABLE task (
    id text PRIMARY KEY,
    seq bigint GENERATED ALWAYS AS IDENTITY,
    backend text NOT NULL REFERENCES backend,
    type text NOT NULL CHECK (type IN ('runjob', 'canceljob', 'dbstatus', 'dbdatacheck')),
    job_id text REFERENCES job,
    attempt integer NOT NULL,
    definition jsonb NOT NULL,
    attributes jsonb NOT NULL,
    traceparent text,
    created_at timestamptz NOT NULL,

    -- `for_agent`: only this agent may claim it (a cancel goes to whoever runs the job).
    for_agent text,
    agent text,
    lease_expires_at timestamptz,

    active boolean NOT NULL DEFAULT true,
    complete boolean NOT NULL DEFAULT false,
    stage text NOT NULL DEFAULT '',
    results jsonb NOT NULL DEFAULT '{}',
    agent_timestamp_ns bigint,
    finished_at timestamptz,

    CONSTRAINT task_complete_is_inactive CHECK (NOT (complete AND active)),
    CONSTRAINT task_finished_iff_inactive CHECK ((finished_at IS NOT NULL) = (NOT active)),
    CONSTRAINT task_of_job CHECK ((job_id IS NOT NULL) = (type IN ('runjob', 'canceljob'))),
    CONSTRAINT task_lease_has_holder CHECK ((agent IS NULL) = (lease_expires_at IS NULL)),
    UNIQUE (job_id, type, attempt)
);
CREATE UNIQUE INDEX task_one_active_run ON task (job_id) WHERE active AND type = 'runjob';
CREATE INDEX task_active ON task (backend, seq) WHERE active;

CREATE TABLE agent (
    backend text NOT NULL REFERENCES backend,
    id text NOT NULL,
    version text NOT NULL,
    executor text NOT NULL,
    slots integer NOT NULL CHECK (slots > 0),
    egress jsonb NOT NULL,
    last_seen_at timestamptz NOT NULL,
    PRIMARY KEY (backend, id)
) WITH (fillfactor = 50);

CREATE TABLE output (
    job_id text NOT NULL REFERENCES job,
    path text NOT NULL,
    level text NOT NULL,
    size bigint NOT NULL CHECK (size >= 0),
    sha256 text NOT NULL,
    excluded boolean NOT NULL,
    message text NOT NULL,
    PRIMARY KEY (job_id, path)
);

CREATE TABLE job_log (
    job_id text NOT NULL REFERENCES job,
    attempt integer NOT NULL,
    start integer NOT NULL CHECK (start >= 0),
    text text NOT NULL,
    PRIMARY KEY (job_id, attempt, start)
);
