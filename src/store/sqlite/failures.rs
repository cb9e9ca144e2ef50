//! Failures by their ids and places: the statements of lists and tails.
//!
//! # Positions of the binds
//!
//! diesel binds the values of a raw statement by position, so that the order of the calls of `bind`
//! is the numbering of `?1`, `?2` and so on, and nothing checks it but the tests. The macros share
//! numbers between statements:
//!
//! | number | `MATCHES_*` | `STORED_WITHIN` |
//! | --- | --- | --- |
//! | 1, 2 | start of the places: moment, id | ids: after, up to |
//! | 3, 4 | end of the places: moment, id | moments of the places: start, end |
//! | 5 | rows at most | rows at most |
//! | 6 to 12 | the filter, as in `that_match!` | the filter |
//! | 13 | the newest id | id of the start |
//! | 14 | | id of the end |
//!
//! The filter therefore keeps its numbers in both, and whatever a statement needs beyond it comes
//! behind. `END_*` use 1 to 5 alone. A wrong order of two values with the same type compiles, runs,
//! and returns wrong rows.

use std::ops::Range;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Float, Nullable, Text};
use uuid::Uuid;

use crate::model::failure::{Direction, Failure, FailureFilter, Place};
use crate::model::outcome::RetrievalFailureType;
use crate::model::source::Labels;
use crate::model::time::Timestamp;
use crate::similarity::Folded;
use crate::store::snapshot::StoredFailure;
use crate::store::sqlite::sources;

/// Returns the failure with this id.
pub(crate) fn get(conn: &mut SqliteConnection, event_id: Uuid) -> QueryResult<Option<Failure>> {
    let id = event_id.as_bytes().as_slice();
    let row: Option<FailureRow> = diesel::sql_query(BY_EVENT_ID)
        .bind::<Binary, _>(id)
        .get_result(conn)
        .optional()?;
    Ok(row.and_then(FailureRow::read))
}

/// Returns the place at which the first `rows` failures within `places` end. `None`: there are
/// fewer.
pub(crate) fn window_end(
    conn: &mut SqliteConnection,
    direction: Direction,
    places: Range<Place>,
    rows: i64,
) -> QueryResult<Option<Place>> {
    #[derive(QueryableByName)]
    struct End {
        #[diesel(sql_type = BigInt)]
        created_at: i64,
        #[diesel(sql_type = BigInt)]
        id: i64,
    }
    let (sql, offset) = match direction {
        // The end of a range is excluded and its start is included. Backwards, the last of the rows
        // is the start of the window; forwards, the first row after them is its end.
        Direction::Backwards => (END_BACKWARDS, rows - 1),
        Direction::Forwards => (END_FORWARDS, rows),
    };
    let end: Option<End> = diesel::sql_query(sql)
        .bind::<BigInt, _>(places.start.created_at)
        .bind::<BigInt, _>(places.start.id)
        .bind::<BigInt, _>(places.end.created_at)
        .bind::<BigInt, _>(places.end.id)
        .bind::<BigInt, _>(offset)
        .get_result(conn)
        .optional()?;
    Ok(end.map(|End { created_at, id }| Place {
        created_at: Timestamp::from_millis(created_at),
        id,
    }))
}

/// Returns the first `limit` failures within `places`, and with an id up to `newest_id`, that
/// `filter` lets through.
pub(crate) fn matches(
    conn: &mut SqliteConnection,
    direction: Direction,
    places: Range<Place>,
    newest_id: i64,
    filter: &FailureFilter,
    limit: usize,
) -> QueryResult<Vec<StoredFailure>> {
    let sql = match direction {
        Direction::Backwards => MATCHES_BACKWARDS,
        Direction::Forwards => MATCHES_FORWARDS,
    };
    let sources = sources::selected(conn, &filter.sources)?;
    let rows: Vec<FailureRow> = diesel::sql_query(sql)
        .bind::<BigInt, _>(places.start.created_at)
        .bind::<BigInt, _>(places.start.id)
        .bind::<BigInt, _>(places.end.created_at)
        .bind::<BigInt, _>(places.end.id)
        .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind::<Nullable<Text>, _>(one_of(filter.failure_type.iter().map(|of| of.as_str())))
        .bind::<Nullable<Text>, _>(one_of(filter.retrieval_strategy.iter().map(String::as_str)))
        .bind::<Nullable<Text>, _>(one_of(filter.conversation_id.iter().map(String::as_str)))
        .bind::<Nullable<Text>, _>(folded_text(filter))
        .bind::<Nullable<Text>, _>(one_of(filter.query_text.iter().map(String::as_str)))
        .bind::<Nullable<Text>, _>(one_of(filter.similar_to.iter().map(String::as_str)))
        .bind::<Nullable<Text>, _>(sources)
        .bind::<BigInt, _>(newest_id)
        .load(conn)?;
    Ok(rows.into_iter().map(FailureRow::stored).collect())
}

/// Returns the first `limit` failures within `places` that were stored after the id `ids.start`, up
/// to and with `ids.end`, and that `filter` lets through, in the order of their ids.
pub(crate) fn stored_within(
    conn: &mut SqliteConnection,
    ids: Range<i64>,
    places: Range<Place>,
    filter: &FailureFilter,
    limit: usize,
) -> QueryResult<Vec<StoredFailure>> {
    let sources = sources::selected(conn, &filter.sources)?;
    let rows: Vec<FailureRow> = diesel::sql_query(STORED_WITHIN)
        .bind::<BigInt, _>(ids.start)
        .bind::<BigInt, _>(ids.end)
        .bind::<BigInt, _>(places.start.created_at)
        .bind::<BigInt, _>(places.end.created_at)
        .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind::<Nullable<Text>, _>(one_of(filter.failure_type.iter().map(|of| of.as_str())))
        .bind::<Nullable<Text>, _>(one_of(filter.retrieval_strategy.iter().map(String::as_str)))
        .bind::<Nullable<Text>, _>(one_of(filter.conversation_id.iter().map(String::as_str)))
        .bind::<Nullable<Text>, _>(folded_text(filter))
        .bind::<Nullable<Text>, _>(one_of(filter.query_text.iter().map(String::as_str)))
        .bind::<Nullable<Text>, _>(one_of(filter.similar_to.iter().map(String::as_str)))
        .bind::<Nullable<Text>, _>(sources)
        .bind::<BigInt, _>(places.start.id)
        .bind::<BigInt, _>(places.end.id)
        .load(conn)?;
    Ok(rows.into_iter().map(FailureRow::stored).collect())
}

/// Returns a list as a JSON array, which SQL reads by `json_each`: one bind for any number of
/// values, so that the statement stays the same and prepared. `None`: the list is empty, and
/// anything fits.
fn one_of<'a>(texts: impl Iterator<Item = &'a str>) -> Option<String> {
    let texts: Vec<&str> = texts.collect();
    if texts.is_empty() {
        None
    } else {
        serde_json::to_string(&texts).ok()
    }
}

/// Returns the text that is searched for, as SQL compares it.
fn folded_text(filter: &FailureFilter) -> Option<String> {
    let text = filter.text.as_deref().filter(|text| !text.is_empty())?;
    Some(Folded::new(text).as_str().to_owned())
}

macro_rules! columns {
    () => {
        "SELECT id, event_id, conversation_id, turn_index, failure_type, retrieval_strategy, query_text, query_len, \
         top_score, confidence_threshold, result_count, latency_ms, edge_types, error_context, created_at, \
         source, labels \
         FROM memory_retrieval_failures LEFT JOIN memory_retrieval_sources USING (source_id) "
    };
}
// Row values, such as `(a, b) >= (?, ?)`, use the index of `created_at`, whose entries end with the
// id. A test compares the query plans.
macro_rules! between {
    () => {
        "WHERE (created_at, id) >= (?1, ?2) AND (created_at, id) < (?3, ?4) "
    };
}
macro_rules! that_match {
    () => {
        "AND (?6 IS NULL OR failure_type IN (SELECT value FROM json_each(?6))) \
         AND (?7 IS NULL OR retrieval_strategy IN (SELECT value FROM json_each(?7))) \
         AND (?8 IS NULL OR conversation_id IN (SELECT value FROM json_each(?8))) \
         AND (?9 IS NULL OR memory_retrieval_contains(query_text, ?9) \
         OR memory_retrieval_contains(coalesce(error_context, ''), ?9)) \
         AND (?10 IS NULL OR query_text IN (SELECT value FROM json_each(?10))) \
         AND (?11 IS NULL OR memory_retrieval_nearly_the_same(query_text, ?11)) \
         AND (?12 IS NULL OR coalesce(source_id, 0) IN (SELECT value FROM json_each(?12))) "
    };
}
/// `?1`: the id, 16 bytes.
const BY_EVENT_ID: &str = concat!(columns!(), "WHERE event_id = ?1");
const END_BACKWARDS: &str = concat!(
    "SELECT created_at, id FROM memory_retrieval_failures ",
    between!(),
    "ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET ?5"
);
const END_FORWARDS: &str = concat!(
    "SELECT created_at, id FROM memory_retrieval_failures ",
    between!(),
    "ORDER BY created_at, id LIMIT 1 OFFSET ?5"
);
const MATCHES_BACKWARDS: &str = concat!(
    columns!(),
    between!(),
    that_match!(),
    "AND id <= ?13 ORDER BY created_at DESC, id DESC LIMIT ?5"
);
const MATCHES_FORWARDS: &str = concat!(
    columns!(),
    between!(),
    that_match!(),
    "AND id <= ?13 ORDER BY created_at, id LIMIT ?5"
);

/// By id, because rows that came late are few among those that came. The unary plus keeps SQLite
/// from the index of `created_at`, which it would otherwise prefer.
const STORED_WITHIN: &str = concat!(
    columns!(),
    "WHERE id > ?1 AND id <= ?2 AND (+created_at, id) >= (?3, ?13) AND (+created_at, id) < (?4, \
     ?14) ",
    that_match!(),
    "ORDER BY id LIMIT ?5"
);

#[derive(QueryableByName)]
struct FailureRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Binary)]
    event_id: Vec<u8>,
    #[diesel(sql_type = Nullable<Text>)]
    conversation_id: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    turn_index: Option<i64>,
    #[diesel(sql_type = Text)]
    failure_type: String,
    #[diesel(sql_type = Text)]
    retrieval_strategy: String,
    #[diesel(sql_type = Text)]
    query_text: String,
    #[diesel(sql_type = BigInt)]
    query_len: i64,
    #[diesel(sql_type = Nullable<Float>)]
    top_score: Option<f32>,
    #[diesel(sql_type = Nullable<Float>)]
    confidence_threshold: Option<f32>,
    #[diesel(sql_type = Nullable<BigInt>)]
    result_count: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    latency_ms: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    edge_types: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    error_context: Option<String>,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = Nullable<Text>)]
    source: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    labels: Option<String>,
}

impl FailureRow {
    fn stored(self) -> StoredFailure {
        StoredFailure {
            place: Place {
                created_at: Timestamp::from_millis(self.created_at),
                id: self.id,
            },
            failure: self.read(),
        }
    }

    /// Returns the failure. `None`: a type of a newer version.
    fn read(self) -> Option<Failure> {
        Some(Failure {
            id: self.id,
            event_id: Uuid::from_slice(&self.event_id).unwrap_or_default(),
            conversation_id: self.conversation_id,
            turn_index: self.turn_index,
            failure_type: RetrievalFailureType::parse(&self.failure_type)?,
            retrieval_strategy: self.retrieval_strategy,
            query_text: self.query_text,
            query_len: self.query_len,
            top_score: self.top_score,
            confidence_threshold: self.confidence_threshold,
            result_count: self.result_count,
            latency_ms: self.latency_ms,
            edge_types: self.edge_types,
            error_context: self.error_context,
            created_at: Timestamp::from_millis(self.created_at).into(),
            source: self.source.filter(|source| !source.is_empty()),
            labels: Labels::from_stored(self.labels.as_deref()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{migrated, plan};

    #[test]
    fn every_statement_uses_the_index_that_was_meant() {
        let mut conn = migrated();
        let by_time = "memory_retrieval_failures USING INDEX memory_retrieval_failures_created_at \
             (created_at>? AND created_at<?)";
        for (sql, meant) in [
            (
                END_BACKWARDS,
                by_time.replace("USING INDEX", "USING COVERING INDEX"),
            ),
            (
                END_FORWARDS,
                by_time.replace("USING INDEX", "USING COVERING INDEX"),
            ),
            (MATCHES_BACKWARDS, by_time.to_owned()),
            (MATCHES_FORWARDS, by_time.to_owned()),
            (
                BY_EVENT_ID,
                "memory_retrieval_failures USING INDEX memory_retrieval_failures_event_id \
                 (event_id=?)"
                    .to_owned(),
            ),
            (
                STORED_WITHIN,
                "memory_retrieval_failures USING INTEGER PRIMARY KEY (rowid>? AND \
                rowid<?)"
                    .to_owned(),
            ),
        ] {
            assert_eq!(
                of_the_table(plan(&mut conn, sql)),
                [format!("SEARCH {meant}")],
                "{sql}"
            );
        }
    }

    /// The lists of a filter are read once, and are no part of the search.
    fn of_the_table(steps: Vec<String>) -> Vec<String> {
        steps
            .into_iter()
            .filter(|step| step.contains("memory_retrieval_failures"))
            .collect()
    }
}
