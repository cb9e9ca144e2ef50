-- Attempts have a source, as failures have. SQLite cannot change a primary key, so that the table is written once more.
-- Number of attempts by strategy, outcome and source, for each minute, hour and day (UTC).
CREATE TABLE memory_retrieval_attempts_by_source (
    -- Length of the span, in seconds: 60, 3600 or 86400. Each attempt is counted once at each resolution.
    resolution  INTEGER NOT NULL,
    started_at  INTEGER NOT NULL,
    strategy    TEXT    NOT NULL,
    -- success, cancelled, unknown, or a failure_type.
    outcome     TEXT    NOT NULL,
    -- 0: neither a source nor labels.
    source_id   INTEGER NOT NULL,
    attempts    INTEGER NOT NULL,
    -- Of these, failures that were logged without counting the successes beside them.
    unobserved  INTEGER NOT NULL,
    -- DDSketches in DataDog's encoding: milliseconds, and scores. NULL if there is none.
    latency     BLOB,
    top_score   BLOB,
    PRIMARY KEY (resolution, started_at, strategy, outcome, source_id)
) WITHOUT ROWID;

INSERT INTO memory_retrieval_attempts_by_source
SELECT resolution, started_at, strategy, outcome, 0, attempts, unobserved, latency, top_score
FROM memory_retrieval_attempts ORDER BY resolution, started_at, strategy, outcome;
DROP TABLE memory_retrieval_attempts;
-- With a schema that may be written, views of users that refer to what is gone do not fail the rename.
PRAGMA writable_schema = ON;
ALTER TABLE memory_retrieval_attempts_by_source RENAME TO memory_retrieval_attempts;
PRAGMA writable_schema = RESET;

-- Covers the questions that need no sketches, which are twenty times as large as the rest. Ends with
-- strategy, outcome and source, the rest of the primary key.
CREATE INDEX memory_retrieval_attempts_counts ON memory_retrieval_attempts (
    resolution, started_at, attempts, unobserved
);

ALTER TABLE memory_retrieval_attempts_recent ADD COLUMN source_id INTEGER NOT NULL DEFAULT 0;
