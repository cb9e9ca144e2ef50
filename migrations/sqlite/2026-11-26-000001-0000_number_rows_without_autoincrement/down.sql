CREATE TABLE memory_retrieval_clock (
    one         INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    believed_at INTEGER NOT NULL
);
INSERT INTO memory_retrieval_clock SELECT 1, trusted_at FROM memory_retrieval_retention WHERE trusted_at > 0;
DROP TABLE memory_retrieval_retention;

CREATE TEMP TABLE memory_retrieval_question_marks_before AS SELECT * FROM main.memory_retrieval_question_marks;
DROP TABLE main.memory_retrieval_question_marks;
CREATE TABLE memory_retrieval_question_marks (
    question   TEXT    NOT NULL PRIMARY KEY,
    status     TEXT    NOT NULL CHECK (status = 'resolved' OR status = 'ignored'),
    marked_at  INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO memory_retrieval_question_marks
SELECT question, status, marked_at FROM temp.memory_retrieval_question_marks_before WHERE status <> 'open';
DROP TABLE temp.memory_retrieval_question_marks_before;

-- What is counted from rows is counted in a table of its own again. Four bytes of zero: may be added up at once.
INSERT INTO memory_retrieval_attempts_recent (delta_id, started_at, strategy, outcome, attempts, unobserved)
SELECT
    randomblob(12) || x'00000000', created_at - created_at % 60000,
    CASE uncounted WHEN 2 THEN 'other' ELSE retrieval_strategy END, failure_type, count(*), count(*)
FROM memory_retrieval_failures
WHERE uncounted IS NOT NULL AND id > (SELECT rolled_up_to FROM memory_retrieval_log)
GROUP BY 2, 3, 4;
ALTER TABLE memory_retrieval_attempts_recent DROP COLUMN owner;
DROP TRIGGER memory_retrieval_failures_deleted;
UPDATE memory_retrieval_failures
SET turn_index = coalesce(turn_index, 0), result_count = coalesce(result_count, 0), latency_ms = coalesce(latency_ms, 0)
WHERE turn_index IS NULL OR result_count IS NULL OR latency_ms IS NULL;
ALTER TABLE memory_retrieval_failures DROP COLUMN uncounted;
PRAGMA writable_schema = ON;
UPDATE sqlite_schema
SET sql = replace(replace(replace(replace(
    sql,
    'INTEGER PRIMARY KEY NOT NULL', 'INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL'),
    'turn_index           INTEGER', 'turn_index           INTEGER NOT NULL'),
    'result_count         INTEGER', 'result_count         INTEGER NOT NULL'),
    'latency_ms           INTEGER', 'latency_ms           INTEGER NOT NULL')
WHERE type = 'table' AND name = 'memory_retrieval_failures';
PRAGMA writable_schema = RESET;
INSERT INTO sqlite_sequence
SELECT 'memory_retrieval_failures', max(largest_deleted_id, (SELECT coalesce(max(id), 0) FROM memory_retrieval_failures))
FROM memory_retrieval_log;
DROP TABLE memory_retrieval_log;
