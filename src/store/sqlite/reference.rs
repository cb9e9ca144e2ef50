//! The table of the reference implementation.
//!
//! Columns are cast in SQL and read by their names. SQLite columns accept values of any type,
//! whatever their declaration: without the casts, one row with a text in a number column would end
//! the import.

use std::path::Path;
use std::sync::Arc;

use diesel::prelude::*;
use diesel::sql_types::BigInt;

use crate::error::{ReadError, StoreError};
use crate::store::reads::{Lane, Reads};
use crate::store::reference::{PAGE, PAGE_TIMEOUT, ReferenceRow};
use crate::store::sqlite::reader::{Source, SqliteReads};

/// A file that the reference implementation wrote.
pub(crate) struct ReferenceFile {
    file: Arc<SqliteReads>,
    reads: Reads,
}

impl ReferenceFile {
    /// Returns the file at `path`, which is opened with the first page.
    pub(crate) fn open(path: &Path) -> Self {
        let file = Arc::new(SqliteReads::new(Source::file(path)));
        Self {
            reads: Reads::new(Some(file.clone())),
            file,
        }
    }

    /// Returns some rows after an id. `Err` within `Ok`: the file has no such table, with the
    /// reason.
    pub(crate) async fn page(
        &self,
        after: i64,
    ) -> Result<Result<Vec<ReferenceRow>, String>, ReadError> {
        let file = Arc::clone(&self.file);
        let read = move |deadline| {
            file.run(deadline, |conn, _| {
                match read(conn, after).map_err(ReadError::from) {
                    // Here, because a read takes a table that is missing for one of an earlier
                    // version of ours.
                    Err(ReadError::Store(StoreError::Reopen(cause))) => Ok(Err(cause)),
                    page => page.map(Ok),
                }
            })
        };
        self.reads.spawn(Lane::Heavy, PAGE_TIMEOUT, read).await
    }
}

/// Text is read as bytes, because it may not be UTF-8. Words such as `now` are no moments.
const ROWS: &str = "SELECT id, CAST(conversation_id AS BLOB) AS conversation_id, CAST(turn_index AS INTEGER) AS turn_index, \
     CAST(failure_type AS BLOB) AS failure_type, CAST(retrieval_strategy AS BLOB) AS retrieval_strategy, \
     CAST(query_text AS BLOB) AS query_text, CAST(query_len AS INTEGER) AS query_len, CAST(top_score AS REAL) AS top_score, \
     CAST(confidence_threshold AS REAL) AS confidence_threshold, CAST(result_count AS INTEGER) AS result_count, \
     CAST(latency_ms AS INTEGER) AS latency_ms, CAST(edge_types AS BLOB) AS edge_types, \
     CAST(error_context AS BLOB) AS error_context, \
     CASE WHEN created_at GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*' \
     THEN CAST(round(unixepoch(created_at, 'subsec') * 1000) AS INTEGER) END AS created_at \
     FROM memory_retrieval_failures WHERE id > ?1 ORDER BY id LIMIT ?2";

fn read(conn: &mut SqliteConnection, after: i64) -> QueryResult<Vec<ReferenceRow>> {
    diesel::sql_query(ROWS)
        .bind::<BigInt, _>(after)
        .bind::<BigInt, _>(PAGE)
        .load(conn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement_uses_the_index_that_was_meant() {
        let by_id = "SEARCH memory_retrieval_failures USING INTEGER PRIMARY KEY (rowid>?)";
        assert_eq!(
            crate::store::plan(&mut crate::store::migrated(), ROWS),
            [by_id]
        );
    }
}
