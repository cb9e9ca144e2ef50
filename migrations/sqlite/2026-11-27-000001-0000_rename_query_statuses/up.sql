-- The API, the command line and the table use one word each: a query has a status, which is set.
-- With a schema that may be written, views of users that refer to what is gone do not fail the renames.
PRAGMA writable_schema = ON;
ALTER TABLE memory_retrieval_question_marks RENAME TO memory_retrieval_query_statuses;
ALTER TABLE memory_retrieval_query_statuses RENAME COLUMN question TO query;
ALTER TABLE memory_retrieval_query_statuses RENAME COLUMN marked_at TO set_at;
PRAGMA writable_schema = RESET;
DROP INDEX memory_retrieval_question_marks_sequence;
CREATE UNIQUE INDEX memory_retrieval_query_statuses_sequence ON memory_retrieval_query_statuses (sequence);
