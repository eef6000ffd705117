DROP TABLE run_log;
DROP TABLE run_timers;
DROP TABLE run_outbox;
DROP TABLE run_inbox;
DROP TABLE run_subtasks;
DROP TABLE runs;
