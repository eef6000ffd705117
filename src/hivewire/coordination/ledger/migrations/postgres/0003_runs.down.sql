DROP TABLE run_log, run_timers, run_outbox, run_inbox, run_subtasks, runs;
