-- Facts about the log as a whole: one row.
CREATE TABLE memory_retrieval_log (
    one                INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    -- Random: distinguishes this log from any other that has had its file name.
    log_id             BLOB    NOT NULL,
    -- A reader whose position belongs to another log resumes after this id.
    starts_after       INTEGER NOT NULL,
    -- Largest id of all deleted rows: no id is used twice.
    largest_deleted_id INTEGER NOT NULL,
    -- The roll-up has counted every uncounted failure up to this id.
    rolled_up_to       INTEGER NOT NULL
);
INSERT INTO memory_retrieval_log
SELECT
    1,
    randomblob(16),
    0,
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'memory_retrieval_failures'), 0),
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'memory_retrieval_failures'), 0);

-- The roll-up counts the attempt from this row: 1 under its strategy, 2 under "other". NULL: it is counted elsewhere.
ALTER TABLE memory_retrieval_failures ADD COLUMN uncounted INTEGER;

-- Without AUTOINCREMENT, whose counter costs every transaction a page. Three numbers may be unknown.
-- The format of the rows is the same, so that only the text of the schema changes, however many rows there are
-- (sqlite.org/lang_altertable.html, "Making Other Kinds Of Table Schema Changes").
PRAGMA writable_schema = ON;
UPDATE sqlite_schema
SET sql = replace(replace(replace(replace(
    sql,
    'INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL', 'INTEGER PRIMARY KEY NOT NULL'),
    'turn_index           INTEGER NOT NULL', 'turn_index           INTEGER'),
    'result_count         INTEGER NOT NULL', 'result_count         INTEGER'),
    'latency_ms           INTEGER NOT NULL', 'latency_ms           INTEGER')
WHERE type = 'table' AND name = 'memory_retrieval_failures';
PRAGMA writable_schema = RESET;
DELETE FROM sqlite_sequence WHERE name = 'memory_retrieval_failures';

-- After the change of the table, which it refers to.
CREATE TRIGGER memory_retrieval_failures_deleted AFTER DELETE ON memory_retrieval_failures
WHEN OLD.id > (SELECT largest_deleted_id FROM memory_retrieval_log)
BEGIN
    UPDATE memory_retrieval_log SET largest_deleted_id = OLD.id;
END;

-- Statuses of groups of queries. `open` is stored as well: it holds against an earlier status of another text of the
-- group. No query is longer than 512 characters, which are 1023 at most in lower case and without punctuation.
-- Changed in place, so that columns, indexes and triggers of users stay.
DELETE FROM memory_retrieval_question_marks WHERE length(question) > 1024;
PRAGMA writable_schema = ON;
UPDATE sqlite_schema
SET sql = replace(replace(
    sql,
    'question   TEXT    NOT NULL PRIMARY KEY', 'question   TEXT    NOT NULL PRIMARY KEY CHECK (length(question) <= 1024)'),
    'CHECK (status = ''resolved'' OR status = ''ignored'')',
    'CHECK (status = ''open'' OR status = ''resolved'' OR status = ''ignored'')')
WHERE type = 'table' AND name = 'memory_retrieval_question_marks';
PRAGMA writable_schema = RESET;
-- The larger one was set later, whatever the clock said.
ALTER TABLE memory_retrieval_question_marks ADD COLUMN sequence INTEGER;
UPDATE memory_retrieval_question_marks AS mark
SET sequence = before.place
FROM (
    SELECT question AS of_question, row_number() OVER (ORDER BY marked_at, question) AS place
    FROM memory_retrieval_question_marks
) AS before
WHERE mark.question = before.of_question;
CREATE UNIQUE INDEX memory_retrieval_question_marks_sequence ON memory_retrieval_question_marks (sequence);

-- The logger that wrote a delta and may write it once more; 0: none. It stood in the last bytes of delta_id.
ALTER TABLE memory_retrieval_attempts_recent ADD COLUMN owner INTEGER NOT NULL DEFAULT 0;

-- Retention.

-- How long rows are kept, and the clock that says how old they are: one row.
CREATE TABLE memory_retrieval_retention (
    one                INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    -- Days after which failures and counts of attempts are deleted; 0: never. NULL: no logger was told, the defaults hold.
    failures_days      INTEGER,
    attempts_days      INTEGER,
    -- The last reading of the wall clock that retention trusts (Unix milliseconds, UTC), with the boot of the machine
    -- in which it was read, and the time since that boot in milliseconds. NULL: no reading yet.
    trusted_at         INTEGER,
    trusted_boot       TEXT,
    trusted_since_boot INTEGER,
    -- Milliseconds of it that are trusted although the time since that boot does not explain them.
    trusted_unexplained INTEGER,
    -- The first reading that was too far ahead of it, or too far behind, as long as none in between agreed with it.
    ahead_at           INTEGER,
    ahead_boot         TEXT,
    ahead_since_boot   INTEGER,
    behind_at          INTEGER,
    behind_boot        TEXT,
    behind_since_boot  INTEGER
);
-- A log without a trusted reading trusts none at once: it has rows that a wrong clock would delete.
INSERT INTO memory_retrieval_retention (one, trusted_at)
SELECT
    1,
    coalesce(
        (SELECT believed_at FROM memory_retrieval_clock),
        CASE WHEN EXISTS (SELECT 1 FROM memory_retrieval_failures) THEN 0 END
    );
DROP TABLE memory_retrieval_clock;

-- Rows dated more than five minutes after they were written get the moment at which they were written, which their
-- event_id (UUIDv7) begins with. No later date is accepted now, and no retention would reach those.
UPDATE memory_retrieval_failures
SET created_at = written_at
FROM (
    SELECT
        future.id AS row_id,
        (
            WITH RECURSIVE digits (place, value) AS (
                SELECT 0, 0
                UNION ALL
                SELECT
                    place + 1,
                    value * 16 + instr('0123456789ABCDEF', substr(hex(substr(future.event_id, 1, 6)), place + 1, 1)) - 1
                FROM digits
                WHERE place < 12
            )
            SELECT value FROM digits WHERE place = 12
        ) AS written_at
    FROM memory_retrieval_failures AS future
    WHERE future.created_at > unixepoch() * 1000 + 300000 AND hex(substr(future.event_id, 7, 1)) LIKE '7%'
)
WHERE id = row_id AND created_at > written_at + 300000;
