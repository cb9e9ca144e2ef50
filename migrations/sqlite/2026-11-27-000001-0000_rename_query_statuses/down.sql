DROP INDEX memory_retrieval_query_statuses_sequence;
PRAGMA writable_schema = ON;
ALTER TABLE memory_retrieval_query_statuses RENAME COLUMN set_at TO marked_at;
ALTER TABLE memory_retrieval_query_statuses RENAME COLUMN query TO question;
ALTER TABLE memory_retrieval_query_statuses RENAME TO memory_retrieval_question_marks;
PRAGMA writable_schema = RESET;
CREATE UNIQUE INDEX memory_retrieval_question_marks_sequence ON memory_retrieval_question_marks (sequence);
