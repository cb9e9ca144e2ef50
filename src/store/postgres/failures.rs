//! The table of failures: the insert of a batch, and the statements of lists and tails.
//!
//! # The insert
//!
//! One statement inserts a whole batch from one array a column: it is as fast as `COPY` with an
//! index, takes 17 values however many rows there are, and keeps its plan. Rows that are stored
//! already are left as they are. Only rows that a sender may repeat need to be known as stored
//! already, so that only a batch with such rows asks for the ids of the new ones. The number of
//! affected rows would not do: Citus counts all rows of such a statement.
//!
//! # Positions of the binds of the reads
//!
//! | number | `MATCHES_*` | `STORED_WITHIN` |
//! | --- | --- | --- |
//! | 1, 2 | start of the places: moment, id | the same |
//! | 3, 4 | end of the places: moment, id | the same |
//! | 5 to 8 | the filter, as in `that_match!` | the same |
//! | 9, 10 | the newest id | ids: after, up to |
//! | 11 | rows at most | the same |
//! | 12 | the text that is searched for, folded | the same |
//!
//! The parts of a filter that SQL has no function for are compared here: the case of any script,
//! and the similarity of queries. The server then sends the rows of the window that the other parts
//! let through, row by row, until enough of them fit. A window has 50,000 rows at most. A text of
//! ASCII alone is searched by the server, which sends it only if it contains the part.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use diesel::pg::{Pg, PgRowByRowLoadingMode};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Float, Nullable, Text, Uuid as SqlUuid};
use uuid::Uuid;

use crate::model::failure::{Direction, Failure, FailureFilter, Place};
use crate::model::outcome::RetrievalFailureType;
use crate::model::source::Labels;
use crate::model::time::Timestamp;
use crate::similarity::{Folded, Similar, contains};
use crate::store::postgres::{sources, storable, uncounted};
use crate::store::row::{Counting, Row, SenderPlace};
use crate::store::snapshot::StoredFailure;

/// Result of an insert.
#[derive(Default)]
pub(crate) struct InsertedRows {
    /// Positions of the rows that their senders repeated: they are stored already.
    pub(crate) duplicates: Vec<usize>,
    /// Rows whose source or labels were left out.
    pub(crate) sources_left_out: u64,
}

/// Inserts `rows`.
pub(crate) fn insert(conn: &mut PgConnection, rows: &[Row]) -> QueryResult<InsertedRows> {
    if rows.is_empty() {
        return Ok(InsertedRows::default());
    }
    // First, because the lock of the row makes the order of ids the order of commits.
    let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    let newest = ReserveIds { count }.get_result::<i64>(conn)?;
    let places = sources::places(conn, rows.iter().map(|row| row.sender.as_ref()))?;
    let left_out = places.iter().filter(|place| place.is_left_out());
    let mut inserted = InsertedRows {
        duplicates: Vec::new(),
        sources_left_out: left_out.count() as u64,
    };
    let columns = Columns::new(rows, newest - count, &places);
    if !rows.iter().any(Row::is_repeatable) {
        InsertRows { columns }.execute(conn)?;
        return Ok(inserted);
    }
    let new: Vec<Uuid> = InsertReturningIds { columns }.load(conn)?;
    let mut new: HashSet<Uuid> = new.into_iter().collect();
    // An id becomes known with the first row that has it.
    let is_duplicate = |(nth, row): (usize, &Row)| {
        (!new.remove(&row.event_id) && row.is_repeatable()).then_some(nth)
    };
    inserted.duplicates = rows.iter().enumerate().filter_map(is_duplicate).collect();
    Ok(inserted)
}

/// Moves the largest id by a number, and returns it. Locks the row until the transaction ends.
#[derive(QueryId)]
struct ReserveIds {
    count: i64,
}

impl RunQueryDsl<PgConnection> for ReserveIds {}

impl Query for ReserveIds {
    type SqlType = BigInt;
}

impl QueryFragment<Pg> for ReserveIds {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("UPDATE memory_retrieval_log SET newest_id = newest_id + ");
        out.push_bind_param::<BigInt, _>(&self.count)?;
        out.push_sql(" WHERE one = 1 RETURNING newest_id");
        Ok(())
    }
}

/// The rows of a batch, column by column.
struct Columns<'r> {
    event_id: Vec<Uuid>,
    id: Vec<i64>,
    conversation_id: Vec<Option<Cow<'r, str>>>,
    turn_index: Vec<Option<i64>>,
    failure_type: Vec<&'static str>,
    retrieval_strategy: Vec<Cow<'r, str>>,
    query_text: Vec<Cow<'r, str>>,
    query_len: Vec<i64>,
    top_score: Vec<Option<f32>>,
    confidence_threshold: Vec<Option<f32>>,
    result_count: Vec<Option<i64>>,
    latency_ms: Vec<Option<i64>>,
    edge_types: Vec<Option<Cow<'r, str>>>,
    error_context: Vec<Option<Cow<'r, str>>>,
    created_at: Vec<i64>,
    uncounted: Vec<Option<i64>>,
    source_id: Vec<Option<i64>>,
}

impl<'r> Columns<'r> {
    /// Returns the columns of `rows`, with the ids after `before` and the ids of their senders.
    fn new(rows: &'r [Row], before: i64, places: &[SenderPlace]) -> Self {
        Self {
            event_id: column(rows, |row| row.event_id),
            id: (before..).skip(1).take(rows.len()).collect(),
            conversation_id: column(rows, |row| {
                row.conversation_id.as_ref().map(|id| storable(id.as_str()))
            }),
            turn_index: column(rows, |row| row.turn_index),
            failure_type: column(rows, |row| row.failure_type.as_str()),
            retrieval_strategy: column(rows, |row| storable(&row.retrieval_strategy)),
            query_text: column(rows, |row| storable(&row.query_text)),
            query_len: column(rows, |row| row.query_len),
            top_score: column(rows, |row| row.top_score),
            confidence_threshold: column(rows, |row| row.confidence_threshold),
            result_count: column(rows, |row| row.result_count),
            latency_ms: column(rows, |row| row.latency_ms),
            edge_types: column(rows, |row| row.edge_types.as_deref().map(storable)),
            error_context: column(rows, |row| row.error_context.as_deref().map(storable)),
            created_at: column(rows, |row| row.created_at.as_millis()),
            uncounted: column(rows, |row| match row.counting {
                Counting::FromRow { as_other: false } => Some(uncounted::AS_ITS_STRATEGY),
                Counting::FromRow { as_other: true } => Some(uncounted::AS_OTHER),
                Counting::Elsewhere | Counting::Undecided => None,
            }),
            source_id: places.iter().map(|place| place.stored()).collect(),
        }
    }

    /// Pushes the statement. The order of the names is that of the binds.
    fn push<'b>(&'b self, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            "INSERT INTO memory_retrieval_failures (event_id, id, conversation_id, turn_index, \
             failure_type, retrieval_strategy, query_text, query_len, top_score, \
             confidence_threshold, result_count, latency_ms, edge_types, error_context, \
             created_at, uncounted, source_id) SELECT * FROM unnest(",
        );
        out.push_bind_param::<Array<SqlUuid>, _>(&self.event_id)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<BigInt>, _>(&self.id)?;
        push_texts(out, &self.conversation_id)?;
        push_numbers(out, &self.turn_index)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.failure_type)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.retrieval_strategy)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.query_text)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<BigInt>, _>(&self.query_len)?;
        push_scores(out, &self.top_score)?;
        push_scores(out, &self.confidence_threshold)?;
        push_numbers(out, &self.result_count)?;
        push_numbers(out, &self.latency_ms)?;
        push_texts(out, &self.edge_types)?;
        push_texts(out, &self.error_context)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<BigInt>, _>(&self.created_at)?;
        push_numbers(out, &self.uncounted)?;
        push_numbers(out, &self.source_id)?;
        out.push_sql(") ON CONFLICT DO NOTHING");
        Ok(())
    }
}

fn column<'r, T>(rows: &'r [Row], value: impl Fn(&'r Row) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

fn push_texts<'b>(
    out: &mut AstPass<'_, 'b, Pg>,
    texts: &'b Vec<Option<Cow<'b, str>>>,
) -> QueryResult<()> {
    out.push_sql(", ");
    out.push_bind_param::<Array<Nullable<Text>>, _>(texts)
}

fn push_numbers<'b>(
    out: &mut AstPass<'_, 'b, Pg>,
    numbers: &'b Vec<Option<i64>>,
) -> QueryResult<()> {
    out.push_sql(", ");
    out.push_bind_param::<Array<Nullable<BigInt>>, _>(numbers)
}

fn push_scores<'b>(out: &mut AstPass<'_, 'b, Pg>, scores: &'b Vec<Option<f32>>) -> QueryResult<()> {
    out.push_sql(", ");
    out.push_bind_param::<Array<Nullable<Float>>, _>(scores)
}

/// The insert. Written by hand, so that the connection keeps it prepared.
struct InsertRows<'r> {
    columns: Columns<'r>,
}

impl RunQueryDsl<PgConnection> for InsertRows<'_> {}

impl QueryId for InsertRows<'_> {
    type QueryId = InsertRows<'static>;

    const HAS_STATIC_QUERY_ID: bool = true;
}

impl QueryFragment<Pg> for InsertRows<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        self.columns.push(&mut out)
    }
}

/// The insert that returns the ids of the rows that were not stored already.
struct InsertReturningIds<'r> {
    columns: Columns<'r>,
}

impl RunQueryDsl<PgConnection> for InsertReturningIds<'_> {}

impl Query for InsertReturningIds<'_> {
    type SqlType = SqlUuid;
}

impl QueryId for InsertReturningIds<'_> {
    type QueryId = InsertReturningIds<'static>;

    const HAS_STATIC_QUERY_ID: bool = true;
}

impl QueryFragment<Pg> for InsertReturningIds<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        self.columns.push(&mut out)?;
        out.push_sql(" RETURNING event_id");
        Ok(())
    }
}

/// Returns the failure with this id.
pub(crate) fn get(conn: &mut PgConnection, event_id: Uuid) -> QueryResult<Option<Failure>> {
    let row: Option<FailureRow> = diesel::sql_query(BY_EVENT_ID)
        .bind::<SqlUuid, _>(event_id)
        .get_result(conn)
        .optional()?;
    Ok(row.and_then(FailureRow::read))
}

/// Returns the place at which the first `rows` failures within `places` end. `None`: there are
/// fewer.
pub(crate) fn window_end(
    conn: &mut PgConnection,
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
        .bind::<BigInt, _>(places.start.created_at.as_millis())
        .bind::<BigInt, _>(places.start.id)
        .bind::<BigInt, _>(places.end.created_at.as_millis())
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
    conn: &mut PgConnection,
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
    select(conn, sql, &places, i64::MIN..newest_id, filter, limit)
}

/// Returns the first `limit` failures within `places` that were stored after the id `ids.start`, up
/// to and with `ids.end`, and that `filter` lets through, in the order of their ids.
pub(crate) fn stored_within(
    conn: &mut PgConnection,
    ids: Range<i64>,
    places: Range<Place>,
    filter: &FailureFilter,
    limit: usize,
) -> QueryResult<Vec<StoredFailure>> {
    select(conn, STORED_WITHIN, &places, ids, filter, limit)
}

fn select(
    conn: &mut PgConnection,
    sql: &'static str,
    places: &Range<Place>,
    ids: Range<i64>,
    filter: &FailureFilter,
    limit: usize,
) -> QueryResult<Vec<StoredFailure>> {
    let rest = RestOfFilter::new(filter);
    let sources = sources::selected(conn, &filter.sources)?;
    // The server stops by itself if no row is left out here.
    let limit_in_sql = if rest.lets_everything_through() {
        i64::try_from(limit).unwrap_or(i64::MAX)
    } else {
        i64::MAX
    };
    let failure_types = filter.failure_type.iter().map(|of| of.as_str());
    let rows = diesel::sql_query(sql)
        .bind::<BigInt, _>(places.start.created_at.as_millis())
        .bind::<BigInt, _>(places.start.id)
        .bind::<BigInt, _>(places.end.created_at.as_millis())
        .bind::<BigInt, _>(places.end.id)
        .bind::<Nullable<Array<Text>>, _>(one_of(failure_types))
        .bind::<Nullable<Array<Text>>, _>(one_of(texts(&filter.retrieval_strategy)))
        .bind::<Nullable<Array<Text>>, _>(one_of(texts(&filter.conversation_id)))
        .bind::<Nullable<Array<Text>>, _>(one_of(texts(&filter.query_text)))
        .bind::<BigInt, _>(ids.start)
        .bind::<BigInt, _>(ids.end)
        .bind::<BigInt, _>(limit_in_sql)
        .bind::<Nullable<Text>, _>(rest.text.as_ref().map(Folded::as_str))
        .bind::<Nullable<Array<BigInt>>, _>(sources)
        .load_iter::<FailureRow, PgRowByRowLoadingMode>(conn)?;
    let mut found = Vec::new();
    for row in rows {
        if found.len() >= limit {
            break;
        }
        let row = row?;
        if rest.lets_through(&row.query_text, row.error_context.as_deref()) {
            found.push(row.stored());
        }
    }
    Ok(found)
}

fn texts(texts: &[String]) -> impl Iterator<Item = &str> {
    texts.iter().map(String::as_str)
}

/// Returns a list of which a value must be one. `None`: the list is empty, and anything fits.
fn one_of<'a>(values: impl Iterator<Item = &'a str>) -> Option<Vec<Cow<'a, str>>> {
    let values: Vec<_> = values.map(storable).collect();
    (!values.is_empty()).then_some(values)
}

/// The parts of a filter that are compared outside of SQL.
struct RestOfFilter {
    /// Folded.
    text: Option<Folded>,
    similar_to: Option<Similar>,
}

impl RestOfFilter {
    fn new(filter: &FailureFilter) -> Self {
        let text = filter.text.as_deref().filter(|text| !text.is_empty());
        Self {
            text: text.map(|text| Folded::new(&storable(text))),
            similar_to: (!filter.similar_to.is_empty())
                .then(|| Similar::to(filter.similar_to.iter().map(String::as_str))),
        }
    }

    fn lets_everything_through(&self) -> bool {
        self.text.is_none() && self.similar_to.is_none()
    }

    fn lets_through(&self, query_text: &str, error_context: Option<&str>) -> bool {
        let has_text = |part: &Folded| {
            contains(query_text, part.as_str())
                || contains(error_context.unwrap_or_default(), part.as_str())
        };
        self.text.as_ref().is_none_or(has_text)
            && self
                .similar_to
                .as_ref()
                .is_none_or(|similar| similar.has(query_text))
    }
}

macro_rules! columns {
    () => {
        "SELECT id, event_id, conversation_id, turn_index, failure_type, retrieval_strategy, \
         query_text, query_len, top_score, confidence_threshold, result_count, latency_ms, \
         edge_types, error_context, created_at, source, labels FROM memory_retrieval_failures \
         LEFT JOIN memory_retrieval_sources USING (source_id) "
    };
}
// Row values use the index of both columns. A test compares the query plans.
macro_rules! between {
    () => {
        "WHERE (created_at, id) >= ($1, $2) AND (created_at, id) < ($3, $4) "
    };
}
// By the rules of the collation "C", because those of Turkish have another lower case of `I`.
macro_rules! that_match {
    () => {
        "AND ($5 IS NULL OR failure_type = ANY ($5)) \
         AND ($6 IS NULL OR retrieval_strategy = ANY ($6)) \
         AND ($7 IS NULL OR conversation_id = ANY ($7)) \
         AND ($8 IS NULL OR query_text = ANY ($8)) \
         AND id > $9 AND id <= $10 \
         AND ($12 IS NULL OR strpos(lower(query_text COLLATE \"C\"), $12) > 0 \
         OR octet_length(query_text) <> length(query_text) \
         OR strpos(lower(error_context COLLATE \"C\"), $12) > 0 \
         OR octet_length(error_context) <> length(error_context)) \
         AND ($13 IS NULL OR coalesce(source_id, 0) = ANY ($13)) "
    };
}
const BY_EVENT_ID: &str = concat!(columns!(), "WHERE event_id = $1");
const END_BACKWARDS: &str = concat!(
    "SELECT created_at, id FROM memory_retrieval_failures ",
    between!(),
    "ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET $5"
);
const END_FORWARDS: &str = concat!(
    "SELECT created_at, id FROM memory_retrieval_failures ",
    between!(),
    "ORDER BY created_at, id LIMIT 1 OFFSET $5"
);
const MATCHES_BACKWARDS: &str = concat!(
    columns!(),
    between!(),
    that_match!(),
    "ORDER BY created_at DESC, id DESC LIMIT $11"
);
const MATCHES_FORWARDS: &str = concat!(
    columns!(),
    between!(),
    that_match!(),
    "ORDER BY created_at, id LIMIT $11"
);
const STORED_WITHIN: &str = concat!(
    columns!(),
    between!(),
    that_match!(),
    "ORDER BY id LIMIT $11"
);

#[derive(QueryableByName)]
struct FailureRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = SqlUuid)]
    event_id: Uuid,
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
            event_id: self.event_id,
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
