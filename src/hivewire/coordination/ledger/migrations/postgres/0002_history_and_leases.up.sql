ALTER TABLE tasks ADD COLUMN parent_id text NOT NULL DEFAULT '';
ALTER TABLE tasks ADD COLUMN version bigint NOT NULL DEFAULT 1;
ALTER TABLE tasks ADD COLUMN change text NOT NULL DEFAULT '';

CREATE TABLE task_history (
    task_id text NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    version bigint NOT NULL,
    before text NOT NULL,
    status text NOT NULL,
    assigned_to text NOT NULL,
    error text NOT NULL,
    at double precision NOT NULL,
    change text NOT NULL,
    PRIMARY KEY (task_id, version)
);
INSERT INTO task_history
    SELECT id, version, '', status, assigned_to, error, updated_at, change FROM tasks;

CREATE FUNCTION note_task() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    INSERT INTO task_history VALUES (
        NEW.id, NEW.version, CASE WHEN TG_OP = 'UPDATE' THEN OLD.status ELSE '' END,
        NEW.status, NEW.assigned_to, NEW.error, NEW.updated_at, NEW.change);
    RETURN NULL;
END
$body$;
CREATE TRIGGER tasks_history_of_new AFTER INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION note_task();
CREATE TRIGGER tasks_history_of_changed AFTER UPDATE ON tasks
    FOR EACH ROW WHEN (NEW.version <> OLD.version) EXECUTE FUNCTION note_task();

CREATE TABLE leases (
    name text PRIMARY KEY,
    owner text NOT NULL,
    token bigint NOT NULL,
    until double precision NOT NULL
);

CREATE INDEX tasks_by_updated ON tasks (updated_at, id);
CREATE INDEX tasks_by_priority ON tasks (priority, id);
CREATE INDEX tasks_by_status_priority ON tasks (status, priority, id);
CREATE INDEX tasks_by_assigned ON tasks (assigned_to, created_at, id) WHERE assigned_to <> '';
CREATE INDEX tasks_by_creator ON tasks (created_by, created_at, id) WHERE created_by <> '';
CREATE INDEX tasks_by_parent ON tasks (parent_id, created_at, id) WHERE parent_id <> '';
CREATE INDEX tasks_by_completed ON tasks (completed_at) WHERE completed_at IS NOT NULL;
