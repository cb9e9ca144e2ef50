-- What people said of failing questions.
CREATE TABLE memory_retrieval_question_marks (
    -- The question in lower case and without punctuation.
    question   TEXT    NOT NULL PRIMARY KEY,
    -- A question without a mark is open.
    status     TEXT    NOT NULL CHECK (status = 'resolved' OR status = 'ignored'),
    -- Unix milliseconds, UTC. A resolved question that fails later is open again.
    marked_at  INTEGER NOT NULL
) WITHOUT ROWID;

-- How many records were lost, by minute (Unix milliseconds, UTC) and reason.
CREATE TABLE memory_retrieval_drops (
    started_at INTEGER NOT NULL,
    reason     TEXT    NOT NULL,
    records    INTEGER NOT NULL,
    PRIMARY KEY (started_at, reason)
) WITHOUT ROWID;
