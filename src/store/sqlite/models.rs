//! The statement that inserts rows.
//!
//! Order of the columns, order of [`push_values`] and order of the placeholders are one list in two
//! places. The values have no names in the statement: a column that is added has to be added to
//! both, at the same position. The insert is the hottest statement, which is why it is written by
//! hand.
//!
//! Ids are given here and not by SQLite, because `AUTOINCREMENT` costs each transaction a page, and
//! a plain `INTEGER PRIMARY KEY` uses the id of a deleted newest row once more. Cursors, tail
//! positions and the roll-up rely on ids that only grow.

use std::collections::HashSet;

use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::serialize::ToSql;
use diesel::sql_types::{BigInt, Binary, Float, HasSqlType, Nullable, Text};
use diesel::sqlite::Sqlite;

use crate::model::record::ConversationId;
use crate::model::source::SenderId;
use crate::store::row::{Counting, FEW_ROWS, Row};
use crate::store::sqlite::schema::memory_retrieval_failures as failures;
use crate::store::sqlite::{sources, uncounted};

/// Rows of the largest statement. More gain nothing. SQLite takes 32,766 values in a statement,
/// which are 1927 rows of 17 values.
const ROWS_PER_STATEMENT: usize = 64;

/// Result of an insert.
#[derive(Default)]
pub(crate) struct InsertedRows {
    /// Positions of the rows that their senders repeated: they are stored already.
    pub(crate) duplicates: Vec<usize>,
    /// Readers must look at the rows, because the roll-up has not seen them.
    pub(crate) are_behind: bool,
    /// Rows whose source or labels were left out.
    pub(crate) sources_left_out: u64,
}

/// Inserts `rows`, and leaves those whose `event_id` is known as they are. The transaction must
/// hold the write lock.
pub(crate) fn insert_new(conn: &mut SqliteConnection, rows: &[Row]) -> QueryResult<InsertedRows> {
    if rows.is_empty() {
        return Ok(InsertedRows::default());
    }
    let Ids {
        before,
        inserted,
        sources_left_out,
        ..
    } = insert(conn, rows)?;
    let mut duplicates = Vec::new();
    if inserted < rows.len() && rows.iter().any(Row::is_repeatable) {
        let new = failures::table
            .filter(failures::id.gt(before))
            .select(failures::event_id);
        let mut new: HashSet<Vec<u8>> = new.load(conn)?.into_iter().collect();
        for (nth, row) in rows.iter().enumerate().filter(|(_, row)| row.is_repeatable) {
            // An id becomes known with the first row that has it.
            if !new.remove(row.event_id.as_bytes().as_slice()) {
                duplicates.push(nth);
            }
        }
    }
    // A page of its own, which is not worth it for few rows: the roll-up comes to them.
    let are_behind =
        rows.len() <= FEW_ROWS || rows.iter().any(|row| row.counted_from_row().is_some());
    if !are_behind {
        uncounted::skip_counted(conn, before)?;
    }
    Ok(InsertedRows {
        duplicates,
        are_behind,
        sources_left_out,
    })
}

/// Inserts `rows` with statements of 64, 8 and 1 rows, each of which the connection keeps
/// prepared. Rows whose `event_id` is known are left as they are.
///
/// The transaction must hold the write lock: ids are given here, above those of all rows that are
/// there or were deleted, so that no id is used twice.
pub(crate) fn insert(conn: &mut SqliteConnection, rows: &[Row]) -> QueryResult<Ids> {
    let before = LargestId.get_result::<i64>(conn)?;
    let mut ids = Ids {
        before,
        largest: before,
        inserted: 0,
        sources_left_out: 0,
    };
    let places = sources::places(conn, rows.iter().map(|row| row.sender.as_ref()))?;
    let left_out = places.iter().filter(|place| place.is_left_out());
    ids.sources_left_out = left_out.count() as u64;
    let senders: Vec<Option<SenderId>> = places.iter().map(|place| place.stored()).collect();
    let mut senders = &senders[..];
    let rest = insert_by::<ROWS_PER_STATEMENT>(conn, rows, &mut senders, &mut ids)?;
    let rest = insert_by::<8>(conn, rest, &mut senders, &mut ids)?;
    insert_by::<1>(conn, rest, &mut senders, &mut ids)?;
    Ok(ids)
}

/// The ids of inserted rows.
pub(crate) struct Ids {
    /// The largest one that was ever used before.
    before: i64,
    largest: i64,
    /// Rows that were not stored already.
    inserted: usize,
    /// Rows whose source or labels were left out.
    sources_left_out: u64,
}

/// Inserts as many chunks of `N` rows as there are, and returns the rest. The id of a row that is
/// left out as a duplicate may stay unused: ids have gaps, and no meaning but their order.
/// `senders` has the id of the sender of each row, and afterwards those of the rest.
fn insert_by<'r, const N: usize>(
    conn: &mut SqliteConnection,
    rows: &'r [Row],
    senders: &mut &[Option<SenderId>],
    Ids {
        largest, inserted, ..
    }: &mut Ids,
) -> QueryResult<&'r [Row]> {
    let (chunks, rest) = rows.as_chunks::<N>();
    let (chunks_of_senders, rest_of_senders) = senders.as_chunks::<N>();
    for (rows, senders) in chunks.iter().zip(chunks_of_senders) {
        let ids = std::array::from_fn(|_| {
            *largest = largest.saturating_add(1);
            *largest
        });
        *inserted += InsertRows { ids, rows, senders }.execute(conn)?;
    }
    *senders = rest_of_senders;
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

    // The type alone tells the statement, so that diesel finds the prepared one by it. It must not
    // depend on a value: diesel would run the first statement for all values.
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl QueryFragment<Sqlite> for LargestId {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql(LARGEST_ID);
        Ok(())
    }
}

/// The trigger of the table notes the largest deleted id, so that a row and its id may go and no
/// later row gets the id.
pub(crate) const LARGEST_ID: &str = "SELECT max( \
     (SELECT largest_deleted_id FROM memory_retrieval_log), \
     coalesce((SELECT max(id) FROM memory_retrieval_failures), 0))";

/// One INSERT of `N` rows.
///
/// Written by hand, because the statements that diesel derives for several rows are prepared again
/// each time.
struct InsertRows<'r, const N: usize> {
    ids: [i64; N],
    rows: &'r [Row; N],
    senders: &'r [Option<SenderId>; N],
}

impl<const N: usize> RunQueryDsl<SqliteConnection> for InsertRows<'_, N> {}

impl<const N: usize> QueryId for InsertRows<'_, N> {
    // The number of rows is part of the type, and so of the key of the prepared statement.
    type QueryId = InsertRows<'static, N>;

    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<const N: usize> QueryFragment<Sqlite> for InsertRows<'_, N> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql(
            "INSERT INTO memory_retrieval_failures (id, event_id, conversation_id, turn_index, failure_type, \
             retrieval_strategy, query_text, query_len, top_score, confidence_threshold, result_count, latency_ms, \
             edge_types, error_context, created_at, uncounted, source_id) VALUES ",
        );
        let rows = self.ids.iter().zip(self.rows).zip(self.senders);
        for (nth, ((id, row), sender)) in rows.enumerate() {
            out.push_sql(if nth == 0 { "(" } else { ", (" });
            out.push_bind_param::<BigInt, _>(id)?;
            push_values(row, &mut out)?;
            push::<Nullable<BigInt>, _>(&mut out, sender)?;
            out.push_sql(")");
        }
        out.push_sql(" ON CONFLICT (event_id) DO NOTHING");
        Ok(())
    }
}

/// Binds the values of a row between its id and its sender, in the order of the columns in the statement. A value of
/// another type at a position is stored as it is: SQLite accepts any type in any column.
fn push_values<'b>(row: &'b Row, out: &mut AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
    push::<Binary, [u8]>(out, row.event_id.as_bytes())?;
    push_text(
        out,
        row.conversation_id.as_ref().map(ConversationId::as_str),
    )?;
    push::<Nullable<BigInt>, _>(out, &row.turn_index)?;
    push_text(out, Some(row.failure_type.as_str()))?;
    push_text(out, Some(&row.retrieval_strategy))?;
    push_text(out, Some(&row.query_text))?;
    push::<BigInt, _>(out, &row.query_len)?;
    push::<Nullable<Float>, _>(out, &row.top_score)?;
    push::<Nullable<Float>, _>(out, &row.confidence_threshold)?;
    push::<Nullable<BigInt>, _>(out, &row.result_count)?;
    push::<Nullable<BigInt>, _>(out, &row.latency_ms)?;
    push_text(out, row.edge_types.as_deref())?;
    push_text(out, row.error_context.as_deref())?;
    push::<BigInt, _>(out, &row.created_at)?;
    match row.counting {
        Counting::FromRow { as_other: false } => {
            push::<Nullable<BigInt>, _>(out, &Some(uncounted::AS_ITS_STRATEGY))
        }
        Counting::FromRow { as_other: true } => {
            push::<Nullable<BigInt>, _>(out, &Some(uncounted::AS_OTHER))
        }
        Counting::Elsewhere | Counting::Undecided => {
            push::<Nullable<BigInt>, Option<i64>>(out, &None)
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
