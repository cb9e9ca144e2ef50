ALTER TABLE memory_retrieval_failures DROP COLUMN source_id;
DROP TABLE memory_retrieval_sources;
