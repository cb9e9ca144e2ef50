//! Failures that are counted as attempts from their rows, as in `store/sqlite/uncounted.rs`.
//!
//! A partial index has these rows alone, so that a mark that lags behind costs a read nothing: no
//! insert moves the mark, and inserts of one node do not wait for the roll-up of another.
//!
//! The mark moves to `newest_id` as it was committed. Each transaction with a smaller id held the
//! row of the log until its commit, so that all rows up to this id are visible by then.

use std::collections::HashMap;

use diesel::pg::PgRowByRowLoadingMode;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};

use crate::model::outcome::OutcomeKind;
use crate::model::source::SenderId;
use crate::model::time::Timestamp;
use crate::rollup::resolution::Resolution;
use crate::rollup::sums::{ReadBucket, Sums};
use crate::rollup::{Bucket, OTHER_STRATEGIES};

/// Value of the column `uncounted`: the failure is counted under its own strategy. The numbers are
/// those of SQLite's table.
pub(crate) const AS_ITS_STRATEGY: i64 = 1;
/// Value of the column `uncounted`: the failure is counted under [`OTHER_STRATEGIES`].
pub(crate) const AS_OTHER: i64 = 2;

/// Rows that one transaction counts at most.
const ROWS_PER_ROLL_UP: i64 = 2000;

/// Takes some rows after the mark into `sums`, and moves the mark. Returns `true` if none are left.
/// The transaction must hold the lock of the mark.
pub(crate) fn roll_up(
    conn: &mut PgConnection,
    rolled_up_to: i64,
    sums: &mut Sums,
) -> QueryResult<bool> {
    let Number { number: newest } = diesel::sql_query(NEWEST_ID).get_result(conn)?;
    if newest <= rolled_up_to {
        return Ok(true);
    }
    let rows: Vec<UncountedRow> = diesel::sql_query(ROWS)
        .bind::<BigInt, _>(rolled_up_to)
        .bind::<BigInt, _>(newest)
        .bind::<BigInt, _>(ROWS_PER_ROLL_UP)
        .load(conn)?;
    // A full page ends at its last row. One that is not full has seen all rows.
    let is_full = i64::try_from(rows.len()).is_ok_and(|rows| rows >= ROWS_PER_ROLL_UP);
    let to = rows
        .last()
        .filter(|_| is_full)
        .map_or(newest, |last| last.id);
    for row in rows {
        let mut bucket = Bucket::default();
        bucket.add_unobserved(row.latency_ms);
        let at = Timestamp::from_millis(row.created_at);
        sums.add(
            at,
            row.strategy(),
            &row.failure_type,
            row.source_id,
            &bucket,
        );
    }
    diesel::sql_query(MOVE_MARK)
        .bind::<BigInt, _>(to)
        .execute(conn)?;
    Ok(to == newest)
}

/// Returns `true` if there are rows from before `before` that the roll-up has not seen.
pub(crate) fn has_rows_before(conn: &mut PgConnection, before: Timestamp) -> QueryResult<bool> {
    let rolled_up_to = mark(conn)?;
    let Found { found } = diesel::sql_query(OLDEST_OF_ALL)
        .bind::<BigInt, _>(rolled_up_to)
        .get_result(conn)?;
    Ok(found.is_some_and(|oldest| oldest < before.as_millis()))
}

/// Gives `each` what is counted from rows in `from..to`. It ends the reading by returning `false`.
pub(crate) fn read(
    conn: &mut PgConnection,
    from: Timestamp,
    to: Timestamp,
    each: &mut impl FnMut(ReadBucket) -> bool,
) -> QueryResult<()> {
    let mut buckets: HashMap<(Timestamp, String, SenderId, OutcomeKind), Bucket> = HashMap::new();
    let rolled_up_to = mark(conn)?;
    let rows = diesel::sql_query(ROWS_BETWEEN)
        .bind::<BigInt, _>(rolled_up_to)
        .bind::<BigInt, _>(from.as_millis())
        .bind::<BigInt, _>(to.as_millis())
        .load_iter::<UncountedRow, PgRowByRowLoadingMode>(conn)?;
    for row in rows {
        let row = row?;
        // One of a newer version is passed over.
        let Some(kind) = OutcomeKind::parse(&row.failure_type) else {
            continue;
        };
        let key = (
            Resolution::Minute.floor(Timestamp::from_millis(row.created_at)),
            row.strategy().to_owned(),
            row.source_id,
            kind,
        );
        buckets
            .entry(key)
            .or_default()
            .add_unobserved(row.latency_ms);
    }
    for ((started_at, strategy, source_id, kind), bucket) in buckets {
        if !each(ReadBucket::new(
            started_at, strategy, source_id, kind, bucket,
        )) {
            break;
        }
    }
    Ok(())
}

/// Returns the moment of the oldest row that the roll-up has not counted.
pub(crate) fn oldest(conn: &mut PgConnection) -> QueryResult<Option<Timestamp>> {
    let rolled_up_to = mark(conn)?;
    let Found { found } = diesel::sql_query(OLDEST)
        .bind::<BigInt, _>(rolled_up_to)
        .get_result(conn)?;
    Ok(found.map(Timestamp::from_millis))
}

/// Returns the id up to which all rows are counted. Read apart from the rows, so that the planner
/// knows the value and sees that few rows are beyond it.
pub(crate) fn mark(conn: &mut PgConnection) -> QueryResult<i64> {
    diesel::sql_query(MARK)
        .get_result(conn)
        .map(|Number { number }| number)
}

#[derive(QueryableByName)]
struct UncountedRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = Text)]
    retrieval_strategy: String,
    #[diesel(sql_type = Text)]
    failure_type: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    latency_ms: Option<i64>,
    #[diesel(sql_type = BigInt)]
    uncounted: i64,
    #[diesel(sql_type = BigInt)]
    source_id: i64,
}

impl UncountedRow {
    /// Returns the strategy under which the failure is counted.
    fn strategy(&self) -> &str {
        if self.uncounted == AS_OTHER {
            OTHER_STRATEGIES
        } else {
            &self.retrieval_strategy
        }
    }
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

#[derive(QueryableByName)]
struct Found {
    #[diesel(sql_type = Nullable<BigInt>)]
    found: Option<i64>,
}

const NEWEST_ID: &str = "SELECT newest_id AS number FROM memory_retrieval_log WHERE one = 1";
const MOVE_MARK: &str = "UPDATE memory_retrieval_rollup SET rolled_up_to = $1 WHERE one = 1";
const ROWS: &str = "SELECT id, created_at, retrieval_strategy, failure_type, latency_ms, uncounted, \
     coalesce(source_id, 0) AS source_id FROM memory_retrieval_failures WHERE id > $1 AND id <= $2 AND uncounted IS NOT NULL \
     ORDER BY id LIMIT $3";
const MARK: &str = "SELECT rolled_up_to AS number FROM memory_retrieval_rollup WHERE one = 1";
// By their ids, of which there are few, and not by the index of their moments: `+ 0` keeps the
// planner from it.
const ROWS_BETWEEN: &str = "SELECT id, created_at, retrieval_strategy, failure_type, latency_ms, \
     uncounted, coalesce(source_id, 0) AS source_id FROM memory_retrieval_failures WHERE id > $1 AND uncounted IS NOT NULL \
     AND created_at + 0 >= $2 AND created_at + 0 < $3";
const OLDEST: &str = "SELECT min(created_at + 0) AS found FROM memory_retrieval_failures \
     WHERE id > $1 AND uncounted IS NOT NULL";
/// Also of rows that are counted elsewhere: the purge deletes none beyond the mark.
const OLDEST_OF_ALL: &str = "SELECT min(created_at + 0) AS found FROM memory_retrieval_failures \
     WHERE id > $1";
