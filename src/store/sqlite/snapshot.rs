//! The reads of a log, on one connection within a transaction.
//!
//! Columns are read by their names ([`QueryableByName`]), so that their order in a statement is
//! free. Binds are by position: `?1` to `?3` of [`QUERIES`] are moment, id and limit.

use std::ops::{ControlFlow, Range};

use diesel::connection::DefaultLoadingMode;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Float, Nullable, Text};
use uuid::Uuid;

use crate::error::ReadError;
use crate::model::failure::{Direction, Failure, FailureFilter, Place};
use crate::model::query_status::StatusChange;
use crate::model::source::{Sender, SenderId};
use crate::model::stats::DropCounts;
use crate::model::time::Timestamp;
#[cfg(feature = "program")]
use crate::retention::StoredRetention;
use crate::rollup::StrategySettings;
use crate::rollup::resolution::Span;
use crate::rollup::sums::ReadBucket;
use crate::store::snapshot::{FailedQuery, LogEdge, Snapshot, StoredFailure};
#[cfg(feature = "program")]
use crate::store::sqlite::retention;
use crate::store::sqlite::{attempts, drops, failures, log, sources, statuses};

impl Snapshot for SqliteConnection {
    fn log(&mut self) -> Result<LogEdge, ReadError> {
        Ok(log::edge(self)?)
    }

    fn log_of_any_version(&mut self) -> Result<LogEdge, ReadError> {
        Ok(log::edge_of_any(self)?)
    }

    fn oldest_failure(&mut self) -> Result<Option<Timestamp>, ReadError> {
        Ok(log::oldest_row(self)?)
    }

    fn failure(&mut self, event_id: Uuid) -> Result<Option<Failure>, ReadError> {
        Ok(failures::get(self, event_id)?)
    }

    fn window_end(
        &mut self,
        direction: Direction,
        places: Range<Place>,
        rows: i64,
    ) -> Result<Option<Place>, ReadError> {
        Ok(failures::window_end(self, direction, places, rows)?)
    }

    fn failures(
        &mut self,
        direction: Direction,
        places: Range<Place>,
        newest_id: i64,
        filter: &FailureFilter,
        limit: usize,
    ) -> Result<Vec<StoredFailure>, ReadError> {
        Ok(failures::matches(
            self, direction, places, newest_id, filter, limit,
        )?)
    }

    fn stored_within(
        &mut self,
        ids: Range<i64>,
        places: Range<Place>,
        filter: &FailureFilter,
        limit: usize,
    ) -> Result<Vec<StoredFailure>, ReadError> {
        Ok(failures::stored_within(self, ids, places, filter, limit)?)
    }

    fn query_text(&mut self, id: i64) -> Result<Option<String>, ReadError> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Text)]
            query_text: String,
        }
        let row: Option<Row> = diesel::sql_query(QUERY_TEXT)
            .bind::<BigInt, _>(id)
            .get_result(self)
            .optional()?;
        Ok(row.map(|row| row.query_text))
    }

    fn queries(
        &mut self,
        before: Place,
        limit: u64,
        each: &mut dyn FnMut(FailedQuery) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let rows = diesel::sql_query(QUERIES)
            .bind::<BigInt, _>(before.created_at)
            .bind::<BigInt, _>(before.id)
            .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
            .load_iter::<QueryRow, DefaultLoadingMode>(self)?;
        for row in rows {
            let QueryRow {
                id,
                created_at,
                failure_type,
                retrieval_strategy,
                query_text,
                top_score,
            } = row?;
            let place = Place {
                created_at: Timestamp::from_millis(created_at),
                id,
            };
            if each(FailedQuery {
                place,
                failure_type,
                retrieval_strategy,
                query_text,
                top_score,
            })
            .is_break()
            {
                break;
            }
        }
        Ok(())
    }

    fn conversations(
        &mut self,
        range: Range<Timestamp>,
        each: &mut dyn FnMut(Timestamp, Option<String>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = BigInt)]
            created_at: i64,
            #[diesel(sql_type = Nullable<Text>)]
            conversation_id: Option<String>,
        }
        let rows = diesel::sql_query(CONVERSATIONS)
            .bind::<BigInt, _>(range.start)
            .bind::<BigInt, _>(range.end)
            .load_iter::<Row, DefaultLoadingMode>(self)?;
        for row in rows {
            let Row {
                created_at,
                conversation_id,
            } = row?;
            if each(Timestamp::from_millis(created_at), conversation_id).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn buckets(
        &mut self,
        span: Span,
        sketches: bool,
        each: &mut dyn FnMut(ReadBucket) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        Ok(attempts::read(self, span, sketches, |bucket| {
            each(bucket).is_continue()
        })?)
    }

    fn deltas(
        &mut self,
        range: Range<Timestamp>,
        each: &mut dyn FnMut(ReadBucket) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        Ok(attempts::read_recent(
            self,
            range.start,
            range.end,
            |bucket| each(bucket).is_continue(),
        )?)
    }

    fn oldest_attempt(&mut self) -> Result<Option<Timestamp>, ReadError> {
        Ok(attempts::oldest(self)?)
    }

    fn senders(&mut self) -> Result<Vec<(SenderId, Sender)>, ReadError> {
        Ok(sources::all(self)?)
    }

    fn strategies(&mut self) -> Result<Vec<StrategySettings>, ReadError> {
        Ok(attempts::settings(self)?)
    }

    fn statuses(&mut self) -> Result<Vec<(String, StatusChange)>, ReadError> {
        Ok(statuses::all(self)?)
    }

    fn drops(&mut self, range: Range<Timestamp>) -> Result<DropCounts, ReadError> {
        Ok(drops::within(self, range.start, range.end)?)
    }

    #[cfg(feature = "program")]
    fn retention(&mut self) -> Result<StoredRetention, ReadError> {
        Ok(retention::read(self)?)
    }
}

const QUERIES: &str = "SELECT id, created_at, failure_type, retrieval_strategy, query_text, top_score \
     FROM memory_retrieval_failures WHERE (created_at, id) < (?1, ?2) \
     ORDER BY created_at DESC, id DESC LIMIT ?3";
const QUERY_TEXT: &str = "SELECT query_text FROM memory_retrieval_failures WHERE id = ?1";
const CONVERSATIONS: &str = "SELECT created_at, conversation_id FROM memory_retrieval_failures \
     WHERE created_at >= ?1 AND created_at < ?2 ORDER BY created_at DESC, id DESC";

#[derive(QueryableByName)]
struct QueryRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = Text)]
    failure_type: String,
    #[diesel(sql_type = Text)]
    retrieval_strategy: String,
    #[diesel(sql_type = Text)]
    query_text: String,
    #[diesel(sql_type = Nullable<Float>)]
    top_score: Option<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{migrated, plan};

    #[test]
    fn every_statement_uses_the_index_that_was_meant() {
        let mut conn = migrated();
        let by_time = "SEARCH memory_retrieval_failures USING INDEX memory_retrieval_failures_created_at \
             (created_at<?)";
        assert_eq!(plan(&mut conn, QUERIES), [by_time]);
        let by_id = "SEARCH memory_retrieval_failures USING INTEGER PRIMARY KEY (rowid=?)";
        assert_eq!(plan(&mut conn, QUERY_TEXT), [by_id]);
        let within = "SEARCH memory_retrieval_failures USING INDEX memory_retrieval_failures_created_at \
             (created_at>? AND created_at<?)";
        assert_eq!(plan(&mut conn, CONVERSATIONS), [within]);
    }
}
