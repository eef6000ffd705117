DROP TABLE message_dedup;
DROP TABLE agent_state;
DROP TABLE task_progress;
DROP TABLE tasks;
