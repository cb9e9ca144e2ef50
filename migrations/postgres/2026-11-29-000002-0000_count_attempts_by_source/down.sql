-- The sources of a span become one. Their counts are added; SQL cannot add sketches, which are given up.
ALTER TABLE memory_retrieval_attempts_recent DROP COLUMN source_id;
CREATE TABLE memory_retrieval_attempts_before AS
SELECT resolution, started_at, strategy, outcome, sum(attempts)::BIGINT AS attempts,
    sum(unobserved)::BIGINT AS unobserved,
    CASE WHEN count(*) = 1 THEN (array_agg(latency))[1] END AS latency,
    CASE WHEN count(*) = 1 THEN (array_agg(top_score))[1] END AS top_score
FROM memory_retrieval_attempts GROUP BY resolution, started_at, strategy, outcome;
DELETE FROM memory_retrieval_attempts;
ALTER TABLE memory_retrieval_attempts DROP COLUMN source_id;
ALTER TABLE memory_retrieval_attempts ADD PRIMARY KEY (resolution, started_at, strategy, outcome);
CREATE INDEX memory_retrieval_attempts_counts ON memory_retrieval_attempts (resolution, started_at)
    INCLUDE (strategy, outcome, attempts, unobserved);
INSERT INTO memory_retrieval_attempts SELECT * FROM memory_retrieval_attempts_before;
DROP TABLE memory_retrieval_attempts_before;
