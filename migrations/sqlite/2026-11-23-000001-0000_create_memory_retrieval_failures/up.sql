-- One row for each retrieval that failed.
CREATE TABLE memory_retrieval_failures (
    id                   INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    -- UUIDv7: makes a retried insert harmless.
    event_id             BLOB    NOT NULL,
    conversation_id      TEXT,
    turn_index           INTEGER NOT NULL,
    -- Written out, because SQLite builds a temporary index for IN (...) at every statement.
    failure_type         TEXT    NOT NULL CHECK (
        failure_type = 'no_hit' OR failure_type = 'low_confidence' OR failure_type = 'timeout' OR failure_type = 'error'
    ),
    retrieval_strategy   TEXT    NOT NULL,
    query_text           TEXT    NOT NULL,
    -- Bytes of the original query, before it was cut.
    query_len            INTEGER NOT NULL,
    top_score            REAL,
    confidence_threshold REAL,
    result_count         INTEGER NOT NULL,
    latency_ms           INTEGER NOT NULL,
    -- JSON list of text.
    edge_types           TEXT,
    error_context        TEXT,
    -- Unix milliseconds, UTC: the moment of the call.
    created_at           INTEGER NOT NULL
);

-- Both grow at their right edge only, which costs the insert almost nothing.
CREATE UNIQUE INDEX memory_retrieval_failures_event_id ON memory_retrieval_failures (event_id);
CREATE INDEX memory_retrieval_failures_created_at ON memory_retrieval_failures (created_at);

-- The same for human readers.
CREATE VIEW memory_retrieval_failures_readable AS
SELECT
    id,
    lower(
        substr(hex(event_id), 1, 8) || '-' || substr(hex(event_id), 9, 4) || '-' || substr(hex(event_id), 13, 4)
        || '-' || substr(hex(event_id), 17, 4) || '-' || substr(hex(event_id), 21)
    ) AS event_id,
    conversation_id, turn_index, failure_type, retrieval_strategy, query_text, query_len, top_score,
    confidence_threshold, result_count, latency_ms, edge_types, error_context,
    strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1000.0, 'unixepoch') AS created_at
FROM memory_retrieval_failures;
