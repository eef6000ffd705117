CREATE TABLE runs (
    run text PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE,
    name text NOT NULL,
    status text NOT NULL,
    seq bigint NOT NULL,
    logged bigint NOT NULL,
    created_at double precision NOT NULL,
    header json NOT NULL
);
CREATE INDEX runs_by_status ON runs (status, created_at);

CREATE TABLE run_subtasks (
    run text NOT NULL REFERENCES runs (run) ON DELETE CASCADE,
    name text NOT NULL,
    place integer NOT NULL,
    status text NOT NULL,
    body json NOT NULL,
    PRIMARY KEY (run, name)
);

-- The events that were taken in: what comes again is known.
CREATE TABLE run_inbox (
    run text NOT NULL REFERENCES runs (run) ON DELETE CASCADE,
    id text NOT NULL,
    PRIMARY KEY (run, id)
);

-- What was decided and must still be sent.
CREATE TABLE run_outbox (
    run text NOT NULL REFERENCES runs (run) ON DELETE CASCADE,
    seq bigint NOT NULL,
    place integer NOT NULL,
    id text NOT NULL,
    recipient text NOT NULL,
    body json NOT NULL,
    created_at double precision NOT NULL,
    PRIMARY KEY (run, seq, place)
);
CREATE INDEX run_outbox_by_created ON run_outbox (created_at);

CREATE TABLE run_timers (
    run text NOT NULL REFERENCES runs (run) ON DELETE CASCADE,
    subtask text NOT NULL,
    generation bigint NOT NULL,
    due_at double precision NOT NULL,
    PRIMARY KEY (run, subtask)
);
CREATE INDEX run_timers_by_due ON run_timers (due_at);

CREATE TABLE run_log (
    run text NOT NULL REFERENCES runs (run) ON DELETE CASCADE,
    number bigint NOT NULL,
    at double precision NOT NULL,
    body json NOT NULL,
    PRIMARY KEY (run, number)
);
