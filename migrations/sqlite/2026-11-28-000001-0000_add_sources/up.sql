-- The programs that send failures. A failure has the id of its sender, so that its row grows by a few bytes.
CREATE TABLE memory_retrieval_sources (
    source_id INTEGER PRIMARY KEY NOT NULL,
    -- Such as the service.name of its traces. Empty: none.
    source    TEXT    NOT NULL,
    -- JSON object of at most four strings, in the order of its keys.
    labels    TEXT    NOT NULL,
    UNIQUE (source, labels)
);

-- NULL: the failure has neither a source nor labels.
ALTER TABLE memory_retrieval_failures ADD COLUMN source_id INTEGER;
