-- Each statement runs in a transaction of its own, because some engines that speak PostgreSQL's protocol allow one
-- change of the schema in a transaction. Each can run once more, because a process may die between two of them.
-- Plain tables without partitions, sequences and triggers, so that Citus, TimescaleDB, YugabyteDB and CockroachDB can
-- hold them. Moments are Unix milliseconds, UTC, as in SQLite's tables: a copy between both changes no value, the
-- ends of an open range fit, and no setting of a session changes what a moment means.

-- One row for each retrieval that failed.
CREATE TABLE IF NOT EXISTS memory_retrieval_failures (
    -- UUIDv7: makes a retried insert harmless. The only key, so that a distributed table can be distributed by it.
    event_id             UUID   NOT NULL PRIMARY KEY,
    -- From memory_retrieval_log.newest_id: the order of the ids is the order of the commits, on any number of nodes.
    id                   BIGINT NOT NULL,
    conversation_id      TEXT,
    turn_index           BIGINT,
    failure_type         TEXT   NOT NULL CHECK (failure_type IN ('no_hit', 'low_confidence', 'timeout', 'error')),
    retrieval_strategy   TEXT   NOT NULL,
    query_text           TEXT   NOT NULL,
    -- Bytes of the original query, before it was cut.
    query_len            BIGINT NOT NULL,
    top_score            REAL,
    confidence_threshold REAL,
    result_count         BIGINT,
    latency_ms           BIGINT,
    -- JSON list of text.
    edge_types           TEXT,
    error_context        TEXT,
    created_at           BIGINT NOT NULL,
    -- The roll-up counts the attempt from this row: 1 under its strategy, 2 under "other". NULL: it is counted elsewhere.
    uncounted            BIGINT
);

CREATE INDEX IF NOT EXISTS memory_retrieval_failures_created_at ON memory_retrieval_failures (created_at, id);

CREATE INDEX IF NOT EXISTS memory_retrieval_failures_id ON memory_retrieval_failures (id);

-- Few rows, those of small transactions.
CREATE INDEX IF NOT EXISTS memory_retrieval_failures_uncounted ON memory_retrieval_failures (id)
    WHERE uncounted IS NOT NULL;

-- The same for human readers.
CREATE OR REPLACE VIEW memory_retrieval_failures_readable AS
SELECT
    id, event_id, conversation_id, turn_index, failure_type, retrieval_strategy, query_text, query_len, top_score,
    confidence_threshold, result_count, latency_ms, edge_types, error_context,
    to_timestamp(created_at / 1000.0) AS created_at
FROM memory_retrieval_failures;

-- Number of attempts by strategy and outcome, for each minute, hour and day (UTC).
CREATE TABLE IF NOT EXISTS memory_retrieval_attempts (
    -- Length of the span, in seconds: 60, 3600 or 86400. Each attempt is counted once at each resolution.
    resolution  BIGINT NOT NULL,
    started_at  BIGINT NOT NULL,
    strategy    TEXT   NOT NULL,
    -- success, cancelled, or a failure_type.
    outcome     TEXT   NOT NULL,
    attempts    BIGINT NOT NULL,
    -- Of these, failures that were logged without counting the successes beside them.
    unobserved  BIGINT NOT NULL,
    -- DDSketches in DataDog's encoding: milliseconds, and scores. NULL if there is none.
    latency     BYTEA,
    top_score   BYTEA,
    PRIMARY KEY (resolution, started_at, strategy, outcome)
);

-- Covers the reads that need no sketches, which are twenty times as large as the rest.
CREATE INDEX IF NOT EXISTS memory_retrieval_attempts_counts ON memory_retrieval_attempts (resolution, started_at)
    INCLUDE (strategy, outcome, attempts, unobserved);

-- The counts since the last roll-up.
CREATE TABLE IF NOT EXISTS memory_retrieval_attempts_recent (
    -- UUIDv7: makes a retried insert harmless, and orders by time.
    delta_id    UUID   NOT NULL PRIMARY KEY,
    started_at  BIGINT NOT NULL,
    strategy    TEXT   NOT NULL,
    outcome     TEXT   NOT NULL,
    attempts    BIGINT NOT NULL,
    unobserved  BIGINT NOT NULL,
    latency     BYTEA,
    top_score   BYTEA,
    -- The logger that may retry the delta; 0: none.
    owner       BIGINT NOT NULL
);

-- The settings by which each strategy was judged last.
CREATE TABLE IF NOT EXISTS memory_retrieval_strategies (
    strategy             TEXT    NOT NULL PRIMARY KEY,
    confidence_threshold REAL,
    lower_is_better      BOOLEAN NOT NULL,
    timeout_ms           BIGINT,
    updated_at           BIGINT  NOT NULL
);

-- Statuses of groups of queries.
CREATE TABLE IF NOT EXISTS memory_retrieval_query_statuses (
    -- UUIDv5 of the query, because an index of long texts has a limit of 2704 bytes a key.
    query_id   UUID   NOT NULL PRIMARY KEY,
    -- In lower case and without punctuation.
    query      TEXT   NOT NULL CHECK (length(query) <= 1024),
    status     TEXT   NOT NULL CHECK (status IN ('open', 'resolved', 'ignored')),
    set_at     BIGINT NOT NULL,
    -- The larger one was set later, whatever the clock said.
    sequence   BIGINT NOT NULL
);

-- Dropped records by minute and reason.
CREATE TABLE IF NOT EXISTS memory_retrieval_drops (
    started_at BIGINT NOT NULL,
    reason     TEXT   NOT NULL,
    records    BIGINT NOT NULL,
    PRIMARY KEY (started_at, reason)
);

-- How long rows are kept, and the clock that says how old they are: one row.
CREATE TABLE IF NOT EXISTS memory_retrieval_retention (
    one                 BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    -- Days after which failures and counts of attempts are deleted; 0: never. NULL: no logger set it, the defaults hold.
    failures_days       BIGINT,
    attempts_days       BIGINT,
    -- As in SQLite's table: readings of the wall clock with the boot of the machine and the milliseconds since it.
    trusted_at          BIGINT,
    trusted_boot        TEXT,
    trusted_since_boot  BIGINT,
    trusted_unexplained BIGINT,
    ahead_at            BIGINT,
    ahead_boot          TEXT,
    ahead_since_boot    BIGINT,
    behind_at           BIGINT,
    behind_boot         TEXT,
    behind_since_boot   BIGINT
);

INSERT INTO memory_retrieval_retention (one) VALUES (1) ON CONFLICT DO NOTHING;

-- The roll-up has counted every uncounted failure up to this id: one row, which a roll-up locks.
CREATE TABLE IF NOT EXISTS memory_retrieval_rollup (
    one          BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    rolled_up_to BIGINT NOT NULL
);

INSERT INTO memory_retrieval_rollup VALUES (1, 0) ON CONFLICT DO NOTHING;

-- Facts about the log as a whole: one row, which each transaction with failures locks from its first statement to
-- its commit.
CREATE TABLE IF NOT EXISTS memory_retrieval_log (
    one          BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    -- Random: distinguishes this log from any other that has had its name.
    log_id       UUID   NOT NULL,
    -- A reader whose position belongs to another log resumes after this id.
    starts_after BIGINT NOT NULL,
    -- Largest id that any row has or had.
    newest_id    BIGINT NOT NULL
);

INSERT INTO memory_retrieval_log VALUES (1, gen_random_uuid(), 0, 0) ON CONFLICT DO NOTHING;
