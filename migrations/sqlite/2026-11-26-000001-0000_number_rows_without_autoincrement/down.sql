CREATE TABLE memory_retrieval_clock (
    one         INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    believed_at INTEGER NOT NULL
);
INSERT INTO memory_retrieval_clock SELECT 1, trusted_at FROM memory_retrieval_retention WHERE trusted_at > 0;
DROP TABLE memory_retrieval_retention;

DELETE FROM memory_retrieval_question_marks WHERE status = 'open';
DROP INDEX memory_retrieval_question_marks_sequence;
ALTER TABLE memory_retrieval_question_marks DROP COLUMN sequence;
PRAGMA writable_schema = ON;
UPDATE sqlite_schema
SET sql = replace(replace(
    sql,
    'question   TEXT    NOT NULL PRIMARY KEY CHECK (length(question) <= 1024)', 'question   TEXT    NOT NULL PRIMARY KEY'),
    'CHECK (status = ''open'' OR status = ''resolved'' OR status = ''ignored'')',
    'CHECK (status = ''resolved'' OR status = ''ignored'')')
WHERE type = 'table' AND name = 'memory_retrieval_question_marks';
PRAGMA writable_schema = RESET;

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
