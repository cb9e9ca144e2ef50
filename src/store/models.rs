//! A row of the table, and the statement that inserts rows.

use std::collections::HashSet;

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::serialize::ToSql;
use diesel::sql_types::{BigInt, Binary, Float, HasSqlType, Nullable, Text};
use diesel::sqlite::Sqlite;
use uuid::Uuid;

use super::schema::memory_retrieval_failures as failures;
use super::uncounted;
use crate::attempts::UncountedFailure;
use crate::buffer::{Entry, Origin};
use crate::record::{BoundedText, ConversationId, RetrievalFailureRecord, RetrievalFailureType, whole_json_list};

/// A record as it is stored: every value is one that the table accepts.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    event_id: Uuid,
    conversation_id: Option<ConversationId>,
    turn_index: Option<i64>,
    failure_type: RetrievalFailureType,
    retrieval_strategy: BoundedText<64>,
    query_text: BoundedText<512>,
    query_len: i64,
    top_score: Option<f32>,
    confidence_threshold: Option<f32>,
    result_count: Option<i64>,
    latency_ms: Option<i64>,
    edge_types: Option<BoundedText<1024>>,
    error_context: Option<BoundedText<256>>,
    created_at: i64,
    counting: Counting,
    /// A row of this id may be stored already: then it is not counted once more.
    is_repeatable: bool,
}

/// What counts the failure as an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counting {
    /// A monitor, or a delta that is written beside the rows.
    Elsewhere,
    Undecided,
    /// The roll-up, from the row: under its own strategy, or under the one of all others.
    FromRow {
        as_other: bool,
    },
}

impl Row {
    /// `event_id` is for an entry that has none.
    pub(crate) fn new(event_id: Uuid, Entry { record, logged_at, origin }: Entry) -> Self {
        let Origin { is_observed, event_id: given, unmeasured } = origin;
        let finite = |score: Option<f32>| score.filter(|s| s.is_finite());
        let measured = |number: i64, unmeasured: bool| (!unmeasured).then_some(number);
        Self {
            event_id: given.unwrap_or(event_id),
            conversation_id: record.conversation_id,
            turn_index: measured(record.turn_index, unmeasured.turn_index),
            failure_type: record.failure_type,
            retrieval_strategy: record.retrieval_strategy,
            query_text: record.query_text,
            query_len: saturating(record.query_len as u64),
            top_score: finite(record.top_score),
            confidence_threshold: finite(record.confidence_threshold),
            result_count: measured(saturating(record.result_count as u64), unmeasured.result_count),
            latency_ms: measured(saturating(record.latency_ms), unmeasured.latency_ms),
            edge_types: record.edge_types.map(whole_json_list),
            error_context: record.error_context,
            created_at: logged_at,
            counting: if is_observed { Counting::Elsewhere } else { Counting::Undecided },
            is_repeatable: given.is_some(),
        }
    }

    pub(crate) fn is_repeatable(&self) -> bool {
        self.is_repeatable
    }

    pub(crate) fn strategy(&self) -> &str {
        &self.retrieval_strategy
    }

    /// Returns `true` if nothing counts the failure yet.
    pub(crate) fn is_undecided(&self) -> bool {
        self.counting == Counting::Undecided
    }

    /// Has the failure counted from its row.
    pub(crate) fn count_from_row(&mut self, as_other: bool) {
        self.counting = Counting::FromRow { as_other };
    }

    /// Has the failure counted by the caller.
    pub(crate) fn count_elsewhere(&mut self) -> UncountedFailure<'_> {
        self.counting = Counting::Elsewhere;
        self.uncounted_failure()
    }

    /// The failure under its own strategy, if it is counted from its row. `Attempts` finds by itself that a strategy is one
    /// of too many.
    pub(crate) fn counted_from_row(&self) -> Option<UncountedFailure<'_>> {
        match self.counting {
            Counting::FromRow { as_other: _ } => Some(self.uncounted_failure()),
            Counting::Elsewhere | Counting::Undecided => None,
        }
    }

    fn uncounted_failure(&self) -> UncountedFailure<'_> {
        UncountedFailure {
            strategy: &self.retrieval_strategy,
            failure: self.failure_type,
            at: self.created_at,
            latency_ms: self.latency_ms,
        }
    }

    /// A row of which nothing is known to be wrong.
    pub(super) fn plain() -> Self {
        let record = RetrievalFailureRecord::new(RetrievalFailureType::NoHit, "probe", "probe");
        Self::new(
            Uuid::now_v7(),
            Entry { record, logged_at: 0, origin: Origin { is_observed: true, ..Origin::LOGGED } },
        )
    }
}

/// SQLite's integers are signed.
fn saturating(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Rows of the largest statement: more gain nothing, and a statement takes 32,766 values at most.
const ROWS_PER_STATEMENT: usize = 64;

/// Rows of transactions up to this number are counted from their rows. Readers must look at those until they are
/// rolled up: of more rows, the counts are written beside them.
pub(crate) const FEW_ROWS: usize = 32;

/// What an insert did.
#[derive(Default)]
pub(super) struct InsertedRows {
    /// Positions of the rows that their senders repeated: they are stored already.
    pub(super) duplicates: Vec<usize>,
    /// Readers must look at the rows, because the roll-up has not seen them.
    pub(super) are_behind: bool,
}

/// Inserts `rows`, and leaves those whose `event_id` is known as they are. The transaction must hold the write lock.
pub(super) fn insert_new(conn: &mut SqliteConnection, rows: &[Row]) -> QueryResult<InsertedRows> {
    if rows.is_empty() {
        return Ok(InsertedRows::default());
    }
    let Ids { before, inserted, .. } = insert(conn, rows)?;
    let mut duplicates = Vec::new();
    if inserted < rows.len() && rows.iter().any(Row::is_repeatable) {
        let new = failures::table.filter(failures::id.gt(before)).select(failures::event_id);
        let mut new: HashSet<Vec<u8>> = new.load(conn)?.into_iter().collect();
        for (nth, row) in rows.iter().enumerate().filter(|(_, row)| row.is_repeatable) {
            // An id becomes known with the first row that has it.
            if !new.remove(row.event_id.as_bytes().as_slice()) {
                duplicates.push(nth);
            }
        }
    }
    // A page of its own, which is not worth it for few rows: the roll-up comes to them.
    let are_behind = rows.len() <= FEW_ROWS || rows.iter().any(|row| row.counted_from_row().is_some());
    if !are_behind {
        uncounted::skip_counted(conn, before)?;
    }
    Ok(InsertedRows { duplicates, are_behind })
}

/// Inserts `rows` with statements of 64, 8 and 1 rows, each of which the connection keeps
/// prepared. Rows whose `event_id` is known are left as they are.
///
/// The transaction must hold the write lock: ids are given here, above those of all rows that are
/// there or were deleted, so that no id is used twice.
pub(super) fn insert(conn: &mut SqliteConnection, rows: &[Row]) -> QueryResult<Ids> {
    let before = LargestId.get_result::<i64>(conn)?;
    let mut ids = Ids { before, largest: before, inserted: 0 };
    let rest = insert_by::<ROWS_PER_STATEMENT>(conn, rows, &mut ids)?;
    let rest = insert_by::<8>(conn, rest, &mut ids)?;
    insert_by::<1>(conn, rest, &mut ids)?;
    Ok(ids)
}

/// The ids of inserted rows.
pub(super) struct Ids {
    /// The largest one that was ever used before.
    before: i64,
    largest: i64,
    /// Rows that were not stored already.
    inserted: usize,
}

fn insert_by<'r, const N: usize>(
    conn: &mut SqliteConnection,
    rows: &'r [Row],
    Ids { largest, inserted, .. }: &mut Ids,
) -> QueryResult<&'r [Row]> {
    let (chunks, rest) = rows.as_chunks::<N>();
    for rows in chunks {
        let ids = std::array::from_fn(|_| {
            *largest = largest.saturating_add(1);
            *largest
        });
        *inserted += InsertRows { ids, rows }.execute(conn)?;
    }
    Ok(rest)
}

/// The largest id that any row has or had.
///
/// Written by hand, because the query that diesel derives is prepared again each time.
struct LargestId;

impl RunQueryDsl<SqliteConnection> for LargestId {}

impl Query for LargestId {
    type SqlType = BigInt;
}

impl QueryId for LargestId {
    type QueryId = Self;

    const HAS_STATIC_QUERY_ID: bool = true;
}

impl QueryFragment<Sqlite> for LargestId {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql(LARGEST_ID);
        Ok(())
    }
}

pub(super) const LARGEST_ID: &str = "SELECT max( \
     (SELECT largest_deleted_id FROM memory_retrieval_log), \
     coalesce((SELECT max(id) FROM memory_retrieval_failures), 0))";

/// One INSERT of `N` rows.
///
/// Written by hand, because the statements that diesel derives for several rows are prepared again
/// each time.
struct InsertRows<'r, const N: usize> {
    ids: [i64; N],
    rows: &'r [Row; N],
}

impl<const N: usize> RunQueryDsl<SqliteConnection> for InsertRows<'_, N> {}

impl<const N: usize> QueryId for InsertRows<'_, N> {
    type QueryId = InsertRows<'static, N>;

    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<const N: usize> QueryFragment<Sqlite> for InsertRows<'_, N> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql(
            "INSERT INTO memory_retrieval_failures (id, event_id, conversation_id, turn_index, failure_type, \
             retrieval_strategy, query_text, query_len, top_score, confidence_threshold, result_count, latency_ms, \
             edge_types, error_context, created_at, uncounted) VALUES ",
        );
        for (nth, (id, row)) in self.ids.iter().zip(self.rows).enumerate() {
            out.push_sql(if nth == 0 { "(" } else { ", (" });
            out.push_bind_param::<BigInt, _>(id)?;
            row.push_values(&mut out)?;
            out.push_sql(")");
        }
        out.push_sql(" ON CONFLICT (event_id) DO NOTHING");
        Ok(())
    }
}

impl Row {
    fn push_values<'b>(&'b self, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        push::<Binary, [u8]>(out, self.event_id.as_bytes())?;
        push_text(out, self.conversation_id.as_ref().map(ConversationId::as_str))?;
        push::<Nullable<BigInt>, _>(out, &self.turn_index)?;
        push_text(out, Some(self.failure_type.as_str()))?;
        push_text(out, Some(&self.retrieval_strategy))?;
        push_text(out, Some(&self.query_text))?;
        push::<BigInt, _>(out, &self.query_len)?;
        push::<Nullable<Float>, _>(out, &self.top_score)?;
        push::<Nullable<Float>, _>(out, &self.confidence_threshold)?;
        push::<Nullable<BigInt>, _>(out, &self.result_count)?;
        push::<Nullable<BigInt>, _>(out, &self.latency_ms)?;
        push_text(out, self.edge_types.as_deref())?;
        push_text(out, self.error_context.as_deref())?;
        push::<BigInt, _>(out, &self.created_at)?;
        match self.counting {
            Counting::FromRow { as_other: false } => {
                push::<Nullable<BigInt>, _>(out, &Some(uncounted::AS_ITS_STRATEGY))
            }
            Counting::FromRow { as_other: true } => push::<Nullable<BigInt>, _>(out, &Some(uncounted::AS_OTHER)),
            Counting::Elsewhere | Counting::Undecided => push::<Nullable<BigInt>, Option<i64>>(out, &None),
        }
    }
}

fn push<'b, T, U>(out: &mut AstPass<'_, 'b, Sqlite>, value: &'b U) -> QueryResult<()>
where
    Sqlite: HasSqlType<T>,
    U: ToSql<T, Sqlite> + ?Sized,
{
    out.push_sql(", ");
    out.push_bind_param(value)
}

fn push_text<'b>(out: &mut AstPass<'_, 'b, Sqlite>, text: Option<&'b str>) -> QueryResult<()> {
    match text {
        Some(text) => push::<Text, str>(out, text),
        None => push::<Nullable<Text>, Option<String>>(out, &None),
    }
}
