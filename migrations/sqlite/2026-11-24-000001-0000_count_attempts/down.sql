DROP TABLE memory_retrieval_strategies;
DROP TABLE memory_retrieval_clock;
DROP TABLE memory_retrieval_attempts_recent;
DROP TABLE memory_retrieval_attempts;
