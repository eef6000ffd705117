CREATE TABLE runs (
    run TEXT PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    seq INTEGER NOT NULL,
    logged INTEGER NOT NULL,
    created_at REAL NOT NULL,
    header TEXT NOT NULL
);
CREATE INDEX runs_by_status ON runs (status, created_at);

CREATE TABLE run_subtasks (
    run TEXT NOT NULL REFERENCES runs (run) ON DELETE CASCADE,
    name TEXT NOT NULL,
    place INTEGER NOT NULL,
    status TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (run, name)
);

-- The events that were taken in: what comes again is known.
CREATE TABLE run_inbox (
    run TEXT NOT NULL REFERENCES runs (run) ON DELETE CASCADE,
    id TEXT NOT NULL,
    PRIMARY KEY (run, id)
);

-- What was decided and must still be sent.
CREATE TABLE run_outbox (
    run TEXT NOT NULL REFERENCES runs (run) ON DELETE CASCADE,
    seq INTEGER NOT NULL,
    place INTEGER NOT NULL,
    id TEXT NOT NULL,
    recipient TEXT NOT NULL,
    body TEXT NOT NULL,
    created_at REAL NOT NULL,
    PRIMARY KEY (run, seq, place)
);
CREATE INDEX run_outbox_by_created ON run_outbox (created_at);

CREATE TABLE run_timers (
    run TEXT NOT NULL REFERENCES runs (run) ON DELETE CASCADE,
    subtask TEXT NOT NULL,
    generation INTEGER NOT NULL,
    due_at REAL NOT NULL,
    PRIMARY KEY (run, subtask)
);
CREATE INDEX run_timers_by_due ON run_timers (due_at);

CREATE TABLE run_log (
    run TEXT NOT NULL REFERENCES runs (run) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    at REAL NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (run, number)
);
