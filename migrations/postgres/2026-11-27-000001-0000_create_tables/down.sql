DROP VIEW memory_retrieval_failures_readable;
DROP TABLE memory_retrieval_failures, memory_retrieval_attempts, memory_retrieval_attempts_recent,
    memory_retrieval_strategies, memory_retrieval_query_statuses, memory_retrieval_drops, memory_retrieval_retention,
    memory_retrieval_rollup, memory_retrieval_log;
