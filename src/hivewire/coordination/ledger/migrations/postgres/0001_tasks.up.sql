CREATE TABLE tasks (
    id text PRIMARY KEY,
    name text NOT NULL,
    description text NOT NULL DEFAULT '',
    type text NOT NULL DEFAULT '',
    priority integer NOT NULL DEFAULT 5 CHECK (priority BETWEEN 1 AND 10),
    assigned_to text NOT NULL DEFAULT '',
    created_by text NOT NULL DEFAULT '',
    dependencies json NOT NULL DEFAULT '[]',
    input json NOT NULL DEFAULT '{}',
    output json NOT NULL DEFAULT 'null',
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'assigned', 'in_progress', 'completed', 'failed', 'cancelled')),
    error text NOT NULL DEFAULT '',
    metadata json NOT NULL DEFAULT '{}',
    created_at double precision NOT NULL,
    updated_at double precision NOT NULL,
    completed_at double precision
);
CREATE INDEX tasks_by_created ON tasks (created_at, id);
CREATE INDEX tasks_by_status ON tasks (status, created_at, id);

CREATE TABLE task_progress (
    id text PRIMARY KEY,
    task_id text NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    agent_id text NOT NULL DEFAULT '',
    step integer NOT NULL CHECK (step > 0),
    action text NOT NULL,
    description text NOT NULL DEFAULT '',
    input json NOT NULL DEFAULT '{}',
    output json NOT NULL DEFAULT 'null',
    status text NOT NULL DEFAULT '',
    error text NOT NULL DEFAULT '',
    metadata json NOT NULL DEFAULT '{}',
    created_at double precision NOT NULL,
    UNIQUE (task_id, step)
);
CREATE INDEX task_progress_by_created ON task_progress (created_at);

CREATE TABLE agent_state (
    agent_id text PRIMARY KEY,
    role text NOT NULL CHECK (role IN ('orchestrator', 'worker', 'specialist', 'monitor')),
    status text NOT NULL CHECK (status IN ('idle', 'busy', 'waiting', 'failed', 'offline')),
    capabilities json NOT NULL DEFAULT '[]',
    group_id text NOT NULL DEFAULT '',
    priority integer NOT NULL DEFAULT 5,
    custom_data json NOT NULL DEFAULT '{}',
    last_heartbeat double precision NOT NULL,
    updated_at double precision NOT NULL
);

CREATE TABLE message_dedup (
    message_id text NOT NULL,
    agent_id text NOT NULL DEFAULT '',
    processed_at double precision NOT NULL,
    expires_at double precision NOT NULL,
    PRIMARY KEY (agent_id, message_id)
);
CREATE INDEX message_dedup_by_expiry ON message_dedup (expires_at);

CREATE FUNCTION set_updated_at() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    NEW.updated_at := extract(epoch FROM clock_timestamp());
    RETURN NEW;
END
$body$;
CREATE TRIGGER tasks_updated_at BEFORE UPDATE ON tasks
    FOR EACH ROW WHEN (NEW.updated_at = OLD.updated_at) EXECUTE FUNCTION set_updated_at();
CREATE TRIGGER agent_state_updated_at BEFORE UPDATE ON agent_state
    FOR EACH ROW WHEN (NEW.updated_at = OLD.updated_at) EXECUTE FUNCTION set_updated_at();

-- Locks the task, so that two who add a step at once get two numbers: each statement in here sees what was
-- committed while it waited.
CREATE FUNCTION next_step() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    PERFORM 1 FROM tasks WHERE id = NEW.task_id FOR NO KEY UPDATE;
    NEW.step := (SELECT coalesce(max(step), 0) + 1 FROM task_progress WHERE task_id = NEW.task_id);
    RETURN NEW;
END
$body$;
CREATE TRIGGER task_progress_step BEFORE INSERT ON task_progress
    FOR EACH ROW WHEN (NEW.step IS NULL) EXECUTE FUNCTION next_step();

CREATE FUNCTION cleanup_expired_dedup() RETURNS bigint LANGUAGE sql AS $body$
    WITH gone AS (
        DELETE FROM message_dedup WHERE expires_at < extract(epoch FROM clock_timestamp()) RETURNING 1
    )
    SELECT count(*) FROM gone
$body$;
