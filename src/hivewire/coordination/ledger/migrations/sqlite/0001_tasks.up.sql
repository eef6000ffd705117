CREATE TABLE tasks (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    description TEXT NOT NULL DEFAULT '',
    type TEXT NOT NULL DEFAULT '',
    priority INTEGER NOT NULL DEFAULT 5 CHECK (priority BETWEEN 1 AND 10),
    assigned_to TEXT NOT NULL DEFAULT '',
    created_by TEXT NOT NULL DEFAULT '',
    dependencies TEXT NOT NULL DEFAULT '[]',
    input TEXT NOT NULL DEFAULT '{}',
    output TEXT NOT NULL DEFAULT 'null',
    status TEXT NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'assigned', 'in_progress', 'completed', 'failed', 'cancelled')),
    error TEXT NOT NULL DEFAULT '',
    metadata TEXT NOT NULL DEFAULT '{}',
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    completed_at REAL
);
CREATE INDEX tasks_by_created ON tasks (created_at, id);
CREATE INDEX tasks_by_status ON tasks (status, created_at, id);

CREATE TABLE task_progress (
    id TEXT PRIMARY KEY,
    task_id TEXT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    agent_id TEXT NOT NULL DEFAULT '',
    step INTEGER NOT NULL CHECK (step > 0),
    action TEXT NOT NULL,
    description TEXT NOT NULL DEFAULT '',
    input TEXT NOT NULL DEFAULT '{}',
    output TEXT NOT NULL DEFAULT 'null',
    status TEXT NOT NULL DEFAULT '',
    error TEXT NOT NULL DEFAULT '',
    metadata TEXT NOT NULL DEFAULT '{}',
    created_at REAL NOT NULL,
    UNIQUE (task_id, step)
);
CREATE INDEX task_progress_by_created ON task_progress (created_at);

CREATE TABLE agent_state (
    agent_id TEXT PRIMARY KEY,
    role TEXT NOT NULL CHECK (role IN ('orchestrator', 'worker', 'specialist', 'monitor')),
    status TEXT NOT NULL CHECK (status IN ('idle', 'busy', 'waiting', 'failed', 'offline')),
    capabilities TEXT NOT NULL DEFAULT '[]',
    group_id TEXT NOT NULL DEFAULT '',
    priority INTEGER NOT NULL DEFAULT 5,
    custom_data TEXT NOT NULL DEFAULT '{}',
    last_heartbeat REAL NOT NULL,
    updated_at REAL NOT NULL
);

CREATE TABLE message_dedup (
    message_id TEXT NOT NULL,
    agent_id TEXT NOT NULL DEFAULT '',
    processed_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (agent_id, message_id)
);
CREATE INDEX message_dedup_by_expiry ON message_dedup (expires_at);

CREATE TRIGGER tasks_updated_at AFTER UPDATE ON tasks FOR EACH ROW WHEN NEW.updated_at = OLD.updated_at
BEGIN
    UPDATE tasks SET updated_at = (julianday('now') - 2440587.5) * 86400.0 WHERE id = NEW.id;
END;
CREATE TRIGGER agent_state_updated_at AFTER UPDATE ON agent_state FOR EACH ROW WHEN NEW.updated_at = OLD.updated_at
BEGIN
    UPDATE agent_state SET updated_at = (julianday('now') - 2440587.5) * 86400.0 WHERE agent_id = NEW.agent_id;
END;
