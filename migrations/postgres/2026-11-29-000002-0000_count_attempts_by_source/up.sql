-- Attempts have a source, as failures have. 0: neither a source nor labels.
ALTER TABLE memory_retrieval_attempts ADD COLUMN IF NOT EXISTS source_id BIGINT NOT NULL DEFAULT 0;
ALTER TABLE memory_retrieval_attempts DROP CONSTRAINT IF EXISTS memory_retrieval_attempts_pkey;
ALTER TABLE memory_retrieval_attempts ADD PRIMARY KEY (resolution, started_at, strategy, outcome, source_id);
DROP INDEX IF EXISTS memory_retrieval_attempts_counts;
CREATE INDEX IF NOT EXISTS memory_retrieval_attempts_counts ON memory_retrieval_attempts (resolution, started_at)
    INCLUDE (strategy, outcome, source_id, attempts, unobserved);
ALTER TABLE memory_retrieval_attempts_recent ADD COLUMN IF NOT EXISTS source_id BIGINT NOT NULL DEFAULT 0;
