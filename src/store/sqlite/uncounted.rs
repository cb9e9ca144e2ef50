//! Failures that are counted as attempts from their rows: a row for the count, in a table of its
//! own, would cost a small flush a page or two more.
//!
//! The roll-up reads the rows behind `rolled_up_to`, adds them to their buckets and moves
//! `rolled_up_to`, in one transaction. Until then, readers count them from the rows. Ids only grow,
//! and a row is deleted only after it was rolled up, so that each is counted once. A repeated
//! `event_id` is not inserted, and so not counted.
//!
//! `rolled_up_to` is a high-water mark over ids. It may only move over rows that are counted: by
//! the roll-up itself, or by [`skip_counted`] in the transaction that inserted rows whose counts
//! stand in deltas. Two processes write one file, so that each move happens under the write lock,
//! from the value that was read under it. A mark that moved too far would leave failures out of
//! every rate; one that moved back would count them twice.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};

use crate::model::outcome::OutcomeKind;
use crate::model::source::SenderId;
use crate::model::time::Timestamp;
use crate::rollup::resolution::Resolution;
use crate::rollup::sums::{ReadBucket, Sums};
use crate::rollup::{Bucket, OTHER_STRATEGIES};
use crate::store::sqlite::schema::{
    memory_retrieval_failures as failures, memory_retrieval_log as log,
};

/// Value of the column `uncounted`: the failure is counted under its own strategy. These numbers
/// are part of the file format, and NULL stands for a failure that is counted elsewhere.
pub(crate) const AS_ITS_STRATEGY: i64 = 1;
/// Value of the column `uncounted`: the failure is counted under [`OTHER_STRATEGIES`], because
/// there were too many strategies when it was written. The roll-up, which may run in another
/// process, must not decide that once more.
pub(crate) const AS_OTHER: i64 = 2;

/// Rows that one transaction counts at most.
const ROWS_PER_ROLL_UP: i64 = 2000;
/// Rows that one transaction looks at: those that are counted already cost little.
const IDS_PER_ROLL_UP: i64 = 10 * ROWS_PER_ROLL_UP;

/// Takes some uncounted rows into `sums`. Returns `true` if none are left.
pub(crate) fn roll_up(conn: &mut SqliteConnection, sums: &mut Sums) -> QueryResult<bool> {
    let (from, largest) = (rolled_up_to(conn)?, largest_id(conn)?);
    let window = largest.min(from.saturating_add(IDS_PER_ROLL_UP));
    if window <= from {
        return Ok(true);
    }
    let rows: Vec<UncountedRow> = diesel::sql_query(ROWS)
        .bind::<BigInt, _>(from)
        .bind::<BigInt, _>(window)
        .bind::<BigInt, _>(ROWS_PER_ROLL_UP)
        .load(conn)?;
    // A full page ends at its last row. A page that is not full has seen all of the window, also
    // the rows that are counted elsewhere.
    let is_full = i64::try_from(rows.len()).is_ok_and(|rows| rows >= ROWS_PER_ROLL_UP);
    let to = rows
        .last()
        .filter(|_| is_full)
        .map_or(window, |last| last.id);
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
    diesel::update(log::table)
        .set(log::rolled_up_to.eq(to))
        .execute(conn)?;
    Ok(to == largest)
}

/// Notes that the rows after `before` are all counted, if those up to `before` are: a reader need
/// not look at them. To be called in the transaction that inserted them.
pub(crate) fn skip_counted(conn: &mut SqliteConnection, before: i64) -> QueryResult<()> {
    let rows = failures::table
        .select(diesel::dsl::max(failures::id))
        .single_value();
    diesel::update(
        log::table.filter(
            log::rolled_up_to
                .ge(before)
                .and(log::rolled_up_to.nullable().lt(rows)),
        ),
    )
    .set(log::rolled_up_to.eq(rows.assume_not_null()))
    .execute(conn)
    .map(drop)
}

/// Returns `true` if there are rows that the roll-up has not seen.
pub(crate) fn has_rows(conn: &mut SqliteConnection) -> QueryResult<bool> {
    Ok(rolled_up_to(conn)? < largest_id(conn)?)
}

/// Returns `true` if there are rows from before `before` that the roll-up has not seen.
pub(crate) fn has_rows_before(conn: &mut SqliteConnection, before: Timestamp) -> QueryResult<bool> {
    Ok(oldest(conn)?.is_some_and(|oldest| oldest < before))
}

/// Gives `each` what is counted from rows in `from..to`. It ends the reading by returning `false`.
pub(crate) fn read(
    conn: &mut SqliteConnection,
    from: Timestamp,
    to: Timestamp,
    each: &mut impl FnMut(ReadBucket) -> bool,
) -> QueryResult<()> {
    let mut buckets: HashMap<(Timestamp, String, SenderId, OutcomeKind), Bucket> = HashMap::new();
    let rows = diesel::sql_query(ROWS_BETWEEN)
        .bind::<BigInt, _>(from)
        .bind::<BigInt, _>(to)
        .load_iter::<UncountedRow, diesel::connection::DefaultLoadingMode>(conn)?;
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

/// Returns the moment of the oldest row that the roll-up has not seen.
pub(crate) fn oldest(conn: &mut SqliteConnection) -> QueryResult<Option<Timestamp>> {
    diesel::sql_query(OLDEST)
        .get_result::<Oldest>(conn)
        .map(|oldest| oldest.created_at.map(Timestamp::from_millis))
}

/// Returns the largest id that any row has; 0 without one.
fn largest_id(conn: &mut SqliteConnection) -> QueryResult<i64> {
    failures::table
        .select(diesel::dsl::max(failures::id))
        .first::<Option<i64>>(conn)
        .map(Option::unwrap_or_default)
}

/// Returns the id up to which all rows are counted. To be read under the write lock if it is
/// changed afterwards.
fn rolled_up_to(conn: &mut SqliteConnection) -> QueryResult<i64> {
    log::table.select(log::rolled_up_to).first(conn)
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
struct Oldest {
    #[diesel(sql_type = Nullable<BigInt>)]
    created_at: Option<i64>,
}

const ROWS: &str = "SELECT id, created_at, retrieval_strategy, failure_type, latency_ms, uncounted, \
     coalesce(source_id, 0) AS source_id FROM memory_retrieval_failures WHERE id > ?1 AND id <= ?2 AND uncounted IS NOT NULL ORDER BY id LIMIT ?3";
// By their ids, of which there are few, and not by the index of their moments: the unary plus keeps
// SQLite from it.
const ROWS_BETWEEN: &str = "SELECT id, created_at, retrieval_strategy, failure_type, latency_ms, uncounted, \
     coalesce(source_id, 0) AS source_id FROM memory_retrieval_failures WHERE id > (SELECT rolled_up_to FROM memory_retrieval_log) \
     AND uncounted IS NOT NULL AND +created_at >= ?1 AND +created_at < ?2";
const OLDEST: &str = "SELECT min(+created_at) AS created_at FROM memory_retrieval_failures \
     WHERE id > (SELECT rolled_up_to FROM memory_retrieval_log)";

#[cfg(test)]
mod tests {
    use diesel::connection::SimpleConnection as _;

    use super::*;
    use crate::store::{migrated, plan};

    /// Inserts a row for each value of `uncounted`, one a minute.
    fn insert(conn: &mut SqliteConnection, rows: &[Option<i64>]) {
        for uncounted in rows {
            let uncounted = uncounted.map_or("NULL".into(), |value| value.to_string());
            conn.batch_execute(&format!(
                "INSERT INTO memory_retrieval_failures (event_id, failure_type, retrieval_strategy, query_text, query_len, \
                     latency_ms, created_at, uncounted) \
                 SELECT randomblob(16), 'no_hit', 's', 'q', 1, 7, 60000 * (1 + coalesce(max(id), 0)), {uncounted} \
                 FROM memory_retrieval_failures"
            ))
            .unwrap();
        }
    }

    /// Attempts and values by strategy, from the rows alone.
    fn counted(conn: &mut SqliteConnection, from: i64, to: i64) -> Vec<(String, u64, u64, u64)> {
        let mut found: HashMap<String, (u64, u64, u64)> = HashMap::new();
        let mut each = |bucket: ReadBucket| {
            let (attempts, unobserved, values) = found.entry(bucket.strategy.clone()).or_default();
            *attempts += bucket.attempts;
            *unobserved += bucket.unobserved;
            *values += bucket.latency().map_or(0, |latency| latency.count());
            true
        };
        let [from, to] = [from, to].map(Timestamp::from_millis);
        read(conn, from, to, &mut each).unwrap();
        let mut found: Vec<_> = found
            .into_iter()
            .map(|(name, (a, u, v))| (name, a, u, v))
            .collect();
        found.sort();
        found
    }

    #[test]
    fn rows_are_counted_by_the_reader_until_the_roll_up_has_them() {
        let mut conn = migrated();
        insert(
            &mut conn,
            &[
                Some(AS_ITS_STRATEGY),
                None,
                Some(AS_OTHER),
                Some(AS_ITS_STRATEGY),
            ],
        );
        assert_eq!(
            counted(&mut conn, 0, i64::MAX),
            [(OTHER_STRATEGIES.into(), 1, 1, 1), ("s".into(), 2, 2, 2)]
        );
        assert_eq!(
            counted(&mut conn, 120_000, 240_000),
            [(OTHER_STRATEGIES.into(), 1, 1, 1)],
            "within the range only"
        );
        assert_eq!(
            oldest(&mut conn).unwrap(),
            Some(Timestamp::from_millis(60_000))
        );
        assert_eq!(
            [59_999, 60_000, 60_001].map(|at| has_rows_before(
                &mut conn,
                Timestamp::from_millis(at)
            )
            .unwrap()),
            [false, false, true]
        );
        let mut sums = Sums::default();
        assert!(roll_up(&mut conn, &mut sums).unwrap());
        assert_eq!(sums.attempts(Resolution::Day), 3);
        assert_eq!(
            (
                counted(&mut conn, 0, i64::MAX).len(),
                has_rows(&mut conn).unwrap()
            ),
            (0, false)
        );
    }

    #[test]
    fn many_rows_are_rolled_up_in_chunks_each_once() {
        let mut conn = migrated();
        let rows: Vec<_> = (0..ROWS_PER_ROLL_UP + 500)
            .map(|nth| (nth % 3 > 0).then_some(AS_ITS_STRATEGY))
            .collect();
        for _ in 0..2 {
            insert(&mut conn, &rows);
        }
        let uncounted = 2 * rows.iter().flatten().count() as u64;
        let mut sums = Sums::default();
        let mut rounds = 1;
        while !roll_up(&mut conn, &mut sums).unwrap() {
            rounds += 1;
        }
        assert_eq!((rounds, sums.attempts(Resolution::Minute)), (2, uncounted));
    }

    #[test]
    fn counted_rows_are_skipped_only_if_all_before_them_are_counted() {
        let mut conn = migrated();
        insert(&mut conn, &[None; 3]);
        skip_counted(&mut conn, 0).unwrap();
        assert!(!has_rows(&mut conn).unwrap());
        insert(&mut conn, &[Some(AS_ITS_STRATEGY)]);
        insert(&mut conn, &[None; 3]);
        skip_counted(&mut conn, 4).unwrap();
        assert_eq!(
            (
                rolled_up_to(&mut conn).unwrap(),
                counted(&mut conn, 0, i64::MAX).len()
            ),
            (3, 1)
        );
    }

    #[test]
    fn a_downgrade_keeps_what_is_counted_from_rows() {
        let mut conn = migrated();
        insert(&mut conn, &[Some(AS_ITS_STRATEGY)]);
        assert!(roll_up(&mut conn, &mut Sums::default()).unwrap());
        insert(
            &mut conn,
            &[
                Some(AS_ITS_STRATEGY),
                Some(AS_ITS_STRATEGY),
                None,
                Some(AS_OTHER),
            ],
        );
        for sql in [
            include_str!(
                "../../../migrations/sqlite/2026-11-27-000001-0000_rename_query_statuses/down.sql"
            ),
            include_str!(
                "../../../migrations/sqlite/2026-11-26-000001-0000_number_rows_without_autoincrement/down.sql"
            ),
        ] {
            conn.batch_execute(sql).unwrap();
        }
        #[derive(QueryableByName)]
        struct Count {
            #[diesel(sql_type = Text)]
            strategy: String,
            #[diesel(sql_type = BigInt)]
            attempts: i64,
        }
        let sql = "SELECT strategy, sum(attempts) AS attempts FROM \
            memory_retrieval_attempts_recent GROUP BY 1 ORDER BY 1";
        let counts: Vec<Count> = diesel::sql_query(sql).load(&mut conn).unwrap();
        let counts: Vec<_> = counts
            .iter()
            .map(|count| (count.strategy.as_str(), count.attempts))
            .collect();
        assert_eq!(counts, [("other", 1), ("s", 2)]);
    }

    #[test]
    fn every_statement_uses_the_index_that_was_meant() {
        let mut conn = migrated();
        let by_id = "SEARCH memory_retrieval_failures USING INTEGER PRIMARY KEY (rowid>?";
        for sql in [ROWS, ROWS_BETWEEN, OLDEST] {
            let steps = plan(&mut conn, sql);
            assert!(
                steps.iter().any(|step| step.starts_with(by_id)),
                "{sql}: {steps:?}"
            );
            assert!(
                !steps.iter().any(|step| step.contains("TEMP B-TREE")),
                "{sql}: {steps:?}"
            );
        }
    }
}
