//! The reads of a log, on one connection within a transaction.
//!
//! A read of very many rows runs in chunks, because diesel must receive the rest of a result before
//! it can run the next statement: a caller that stops early waits for one chunk at most.

use std::ops::{ControlFlow, Range};

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
use crate::store::postgres::errors::read_error;
use crate::store::postgres::{attempts, failures, small, sources};
use crate::store::snapshot::{FailedQuery, LogEdge, Snapshot, StoredFailure};

/// Rows of a chunk.
const ROWS_PER_CHUNK: i64 = 4096;

/// A connection within a read transaction.
pub(crate) struct PostgresSnapshot<'c>(pub(crate) &'c mut PgConnection);

impl Snapshot for PostgresSnapshot<'_> {
    fn log(&mut self) -> Result<LogEdge, ReadError> {
        small::edge(self.0).map_err(|error| read_error(&error))
    }

    fn log_of_any_version(&mut self) -> Result<LogEdge, ReadError> {
        self.log()
    }

    fn oldest_failure(&mut self) -> Result<Option<Timestamp>, ReadError> {
        small::oldest_row(self.0).map_err(|error| read_error(&error))
    }

    fn failure(&mut self, event_id: Uuid) -> Result<Option<Failure>, ReadError> {
        failures::get(self.0, event_id).map_err(|error| read_error(&error))
    }

    fn window_end(
        &mut self,
        direction: Direction,
        places: Range<Place>,
        rows: i64,
    ) -> Result<Option<Place>, ReadError> {
        failures::window_end(self.0, direction, places, rows).map_err(|error| read_error(&error))
    }

    fn failures(
        &mut self,
        direction: Direction,
        places: Range<Place>,
        newest_id: i64,
        filter: &FailureFilter,
        limit: usize,
    ) -> Result<Vec<StoredFailure>, ReadError> {
        failures::matches(self.0, direction, places, newest_id, filter, limit)
            .map_err(|error| read_error(&error))
    }

    fn stored_within(
        &mut self,
        ids: Range<i64>,
        places: Range<Place>,
        filter: &FailureFilter,
        limit: usize,
    ) -> Result<Vec<StoredFailure>, ReadError> {
        failures::stored_within(self.0, ids, places, filter, limit)
            .map_err(|error| read_error(&error))
    }

    fn query_text(&mut self, id: i64) -> Result<Option<String>, ReadError> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Text)]
            query_text: String,
        }
        let row: Option<Row> = diesel::sql_query(QUERY_TEXT)
            .bind::<BigInt, _>(id)
            .get_result(self.0)
            .optional()
            .map_err(|error| read_error(&error))?;
        Ok(row.map(|row| row.query_text))
    }

    fn queries(
        &mut self,
        before: Place,
        limit: u64,
        each: &mut dyn FnMut(FailedQuery) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let mut left = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut before = before;
        while left > 0 {
            let chunk = left.min(ROWS_PER_CHUNK);
            let rows: Vec<QueryRow> = diesel::sql_query(QUERIES)
                .bind::<BigInt, _>(before.created_at.as_millis())
                .bind::<BigInt, _>(before.id)
                .bind::<BigInt, _>(chunk)
                .load(self.0)
                .map_err(|error| read_error(&error))?;
            let is_last = is_last_chunk(rows.len(), chunk);
            for row in rows {
                let query = row.read();
                before = query.place;
                if each(query).is_break() {
                    return Ok(());
                }
            }
            if is_last {
                break;
            }
            left -= chunk;
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
            id: i64,
            #[diesel(sql_type = BigInt)]
            created_at: i64,
            #[diesel(sql_type = Nullable<Text>)]
            conversation_id: Option<String>,
        }
        let mut before = Place::at(range.end);
        loop {
            let rows: Vec<Row> = diesel::sql_query(CONVERSATIONS)
                .bind::<BigInt, _>(range.start.as_millis())
                .bind::<BigInt, _>(before.created_at.as_millis())
                .bind::<BigInt, _>(before.id)
                .bind::<BigInt, _>(ROWS_PER_CHUNK)
                .load(self.0)
                .map_err(|error| read_error(&error))?;
            let is_last = is_last_chunk(rows.len(), ROWS_PER_CHUNK);
            for row in rows {
                before = Place {
                    created_at: Timestamp::from_millis(row.created_at),
                    id: row.id,
                };
                if each(before.created_at, row.conversation_id).is_break() {
                    return Ok(());
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }

    fn buckets(
        &mut self,
        span: Span,
        sketches: bool,
        each: &mut dyn FnMut(ReadBucket) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        attempts::read(self.0, span, sketches, |bucket| each(bucket).is_continue())
            .map_err(|error| read_error(&error))
    }

    fn deltas(
        &mut self,
        range: Range<Timestamp>,
        each: &mut dyn FnMut(ReadBucket) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        attempts::read_recent(self.0, range.start, range.end, |bucket| {
            each(bucket).is_continue()
        })
        .map_err(|error| read_error(&error))
    }

    fn oldest_attempt(&mut self) -> Result<Option<Timestamp>, ReadError> {
        attempts::oldest(self.0).map_err(|error| read_error(&error))
    }

    fn senders(&mut self) -> Result<Vec<(SenderId, Sender)>, ReadError> {
        sources::all(self.0).map_err(|error| read_error(&error))
    }

    fn strategies(&mut self) -> Result<Vec<StrategySettings>, ReadError> {
        attempts::settings(self.0).map_err(|error| read_error(&error))
    }

    fn statuses(&mut self) -> Result<Vec<(String, StatusChange)>, ReadError> {
        small::statuses(self.0).map_err(|error| read_error(&error))
    }

    fn drops(&mut self, range: Range<Timestamp>) -> Result<DropCounts, ReadError> {
        small::drops_within(self.0, range.start, range.end).map_err(|error| read_error(&error))
    }

    #[cfg(feature = "program")]
    fn retention(&mut self) -> Result<StoredRetention, ReadError> {
        small::retention(self.0, small::Lock::None).map_err(|error| read_error(&error))
    }
}

/// Returns `true` if a chunk has fewer rows than there was room for.
fn is_last_chunk(rows: usize, chunk: i64) -> bool {
    i64::try_from(rows).is_ok_and(|rows| rows < chunk)
}

const QUERIES: &str = "SELECT id, created_at, failure_type, retrieval_strategy, query_text, \
     top_score FROM memory_retrieval_failures WHERE (created_at, id) < ($1, $2) \
     ORDER BY created_at DESC, id DESC LIMIT $3";
const QUERY_TEXT: &str = "SELECT query_text FROM memory_retrieval_failures WHERE id = $1 LIMIT 1";
const CONVERSATIONS: &str = "SELECT id, created_at, conversation_id \
     FROM memory_retrieval_failures WHERE created_at >= $1 AND (created_at, id) < ($2, $3) \
     ORDER BY created_at DESC, id DESC LIMIT $4";

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

impl QueryRow {
    fn read(self) -> FailedQuery {
        FailedQuery {
            place: Place {
                created_at: Timestamp::from_millis(self.created_at),
                id: self.id,
            },
            failure_type: self.failure_type,
            retrieval_strategy: self.retrieval_strategy,
            query_text: self.query_text,
            top_score: self.top_score,
        }
    }
}
