DROP INDEX tasks_by_updated, tasks_by_priority, tasks_by_status_priority, tasks_by_assigned, tasks_by_creator,
    tasks_by_parent, tasks_by_completed;
DROP TABLE leases;
DROP TRIGGER tasks_history_of_changed ON tasks;
DROP TRIGGER tasks_history_of_new ON tasks;
DROP FUNCTION note_task();
DROP TABLE task_history;
ALTER TABLE tasks DROP COLUMN change, DROP COLUMN version, DROP COLUMN parent_id;
