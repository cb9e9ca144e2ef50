-- The sources of a span become one. Their counts are added; SQL cannot add sketches, which are given up.
-- As in up.sql, for views of users.
PRAGMA writable_schema = ON;
ALTER TABLE memory_retrieval_attempts_recent DROP COLUMN source_id;
PRAGMA writable_schema = RESET;
CREATE TABLE memory_retrieval_attempts_before (
    resolution  INTEGER NOT NULL,
    started_at  INTEGER NOT NULL,
    strategy    TEXT    NOT NULL,
    outcome     TEXT    NOT NULL,
    attempts    INTEGER NOT NULL,
    unobserved  INTEGER NOT NULL,
    latency     BLOB,
    top_score   BLOB,
    PRIMARY KEY (resolution, started_at, strategy, outcome)
) WITHOUT ROWID;
INSERT INTO memory_retrieval_attempts_before
SELECT resolution, started_at, strategy, outcome, sum(attempts), sum(unobserved),
    CASE WHEN count(*) = 1 THEN max(latency) END, CASE WHEN count(*) = 1 THEN max(top_score) END
FROM memory_retrieval_attempts GROUP BY resolution, started_at, strategy, outcome;
DROP TABLE memory_retrieval_attempts;
PRAGMA writable_schema = ON;
ALTER TABLE memory_retrieval_attempts_before RENAME TO memory_retrieval_attempts;
PRAGMA writable_schema = RESET;
CREATE INDEX memory_retrieval_attempts_counts ON memory_retrieval_attempts (
    resolution, started_at, attempts, unobserved
);
