DROP TABLE message_dedup, agent_state, task_progress, tasks;
DROP FUNCTION cleanup_expired_dedup(), next_step(), set_updated_at();
