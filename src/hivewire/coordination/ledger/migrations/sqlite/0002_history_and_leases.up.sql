ALTER TABLE tasks ADD COLUMN parent_id TEXT NOT NULL DEFAULT '';
ALTER TABLE tasks ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE tasks ADD COLUMN change TEXT NOT NULL DEFAULT '';

CREATE TABLE task_history (
    task_id TEXT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    version INTEGER NOT NULL,
    before TEXT NOT NULL,
    status TEXT NOT NULL,
    assigned_to TEXT NOT NULL,
    error TEXT NOT NULL,
    at REAL NOT NULL,
    change TEXT NOT NULL,
    PRIMARY KEY (task_id, version)
);
INSERT INTO task_history
    SELECT id, version, '', status, assigned_to, error, updated_at, change FROM tasks;

CREATE TRIGGER tasks_history_of_new AFTER INSERT ON tasks FOR EACH ROW
BEGIN
    INSERT INTO task_history VALUES (
        NEW.id, NEW.version, '', NEW.status, NEW.assigned_to, NEW.error, NEW.updated_at, NEW.change);
END;
CREATE TRIGGER tasks_history_of_changed AFTER UPDATE ON tasks FOR EACH ROW WHEN NEW.version <> OLD.version
BEGIN
    INSERT INTO task_history VALUES (
        NEW.id, NEW.version, OLD.status, NEW.status, NEW.assigned_to, NEW.error, NEW.updated_at, NEW.change);
END;

CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    token INTEGER NOT NULL,
    until REAL NOT NULL
);

CREATE INDEX tasks_by_updated ON tasks (updated_at, id);
CREATE INDEX tasks_by_priority ON tasks (priority, id);
CREATE INDEX tasks_by_status_priority ON tasks (status, priority, id);
CREATE INDEX tasks_by_assigned ON tasks (assigned_to, created_at, id) WHERE assigned_to <> '';
CREATE INDEX tasks_by_creator ON tasks (created_by, created_at, id) WHERE created_by <> '';
CREATE INDEX tasks_by_parent ON tasks (parent_id, created_at, id) WHERE parent_id <> '';
CREATE INDEX tasks_by_completed ON tasks (completed_at) WHERE completed_at IS NOT NULL;
