-- How many retrievals were attempted, by strategy and outcome, for each minute, hour and day (UTC).
CREATE TABLE memory_retrieval_attempts (
    -- Length of the span, in seconds: 60, 3600 or 86400. Each attempt is counted once at each resolution.
    resolution  INTEGER NOT NULL,
    -- Start of the span, in Unix milliseconds, UTC.
    started_at  INTEGER NOT NULL,
    strategy    TEXT    NOT NULL,
    -- success, cancelled, or a failure_type.
    outcome     TEXT    NOT NULL,
    attempts    INTEGER NOT NULL,
    -- Of these, failures that were logged without counting the successes beside them.
    unobserved  INTEGER NOT NULL,
    -- DDSketches in DataDog's encoding: milliseconds, and scores. NULL if there is none.
    latency     BLOB,
    top_score   BLOB,
    PRIMARY KEY (resolution, started_at, strategy, outcome)
) WITHOUT ROWID;

-- Covers the questions that need no sketches, which are twenty times as large as the rest. Ends with
-- strategy and outcome, the rest of the primary key.
CREATE INDEX memory_retrieval_attempts_counts ON memory_retrieval_attempts (
    resolution, started_at, attempts, unobserved
);

-- What was counted last, as it was written, until it is added to the table above.
CREATE TABLE memory_retrieval_attempts_recent (
    -- UUIDv7: makes a repeated insert harmless, and orders by time.
    delta_id    BLOB    NOT NULL PRIMARY KEY,
    started_at  INTEGER NOT NULL,
    strategy    TEXT    NOT NULL,
    outcome     TEXT    NOT NULL,
    attempts    INTEGER NOT NULL,
    unobserved  INTEGER NOT NULL,
    latency     BLOB,
    top_score   BLOB
) WITHOUT ROWID;

-- What is believed to be the time, so that a clock that is wrong deletes nothing: one row.
CREATE TABLE memory_retrieval_clock (
    one         INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    -- Unix milliseconds, UTC.
    believed_at INTEGER NOT NULL
);

-- How a strategy's results were judged last.
CREATE TABLE memory_retrieval_strategies (
    strategy             TEXT    NOT NULL PRIMARY KEY,
    confidence_threshold REAL,
    -- Whether scores are distances.
    lower_is_better      INTEGER NOT NULL,
    timeout_ms           INTEGER,
    updated_at           INTEGER NOT NULL
) WITHOUT ROWID;
