//! The tables that count attempts: writes, the roll-up and reads.
//!
//! A flush appends its counts as deltas to a small table, in the transaction of the failures. Every
//! few seconds the roll-up adds the deltas to the buckets of their minute, hour and day.
//!
//! # Statements and their binds
//!
//! diesel binds by position. Statements with `?` take the values in the order in which they are
//! written. Statements with numbers use a value twice, or share a condition: `settled!()` has `?1`
//! and `?2` in both statements that contain it, so that the third number is the limit in one and
//! the last id in the other.
//!
//! # Deltas that may be rolled up
//!
//! | delta | rolled up |
//! | --- | --- |
//! | of this logger (`owner = ?2`) | at once, unless one of its deltas is in flight |
//! | released (`owner = 0`), or of a version without owners | at once |
//! | of another logger | after [`SETTLED_AFTER`] by its id, which begins with its moment |
//!
//! The roll-up deletes what it has read in the same transaction. The write lock is held from its
//! beginning, so that no delta comes between the read and the deletion.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Bool, Float, Integer, Nullable, Text};
use uuid::Uuid;

use crate::model::outcome::OutcomeKind;
use crate::model::time::{Timestamp, milliseconds};
use crate::rollup::resolution::{Resolution, Span};
use crate::rollup::sketch::Sketch;
use crate::rollup::sums::{ReadBucket, ReadSketch, SumKey, Sums};
use crate::rollup::{AttemptBatch, Bucket, Delta, Owner, ScoreDirection, StrategySettings};
use crate::store::row::attempts_left_out;
use crate::store::sqlite::schema::{
    memory_retrieval_attempts as attempts, memory_retrieval_attempts_recent as recent,
    memory_retrieval_strategies as strategies,
};
use crate::store::sqlite::{sources, uncounted};

/// Deltas that one transaction rolls up.
const DELTAS_PER_ROLL_UP: i64 = 2000;
/// Buckets that one transaction deletes, about, at each resolution.
const BUCKETS_PER_PURGE: i32 = 2000;
/// Age after which this logger rolls up the deltas of another logger. That logger may write a
/// younger one a second time, after a fault between commit and acknowledgement. The delta must
/// still be there then, so that its id makes the repetition harmless. Few deltas wait this long: a
/// logger rolls up its own within a minute, and releases the rest when it shuts down.
const SETTLED_AFTER: Duration = Duration::from_secs(60 * 60);

/// Appends what was counted. What is there already stays as it is. Returns the number of attempts
/// whose source or labels were left out.
pub(crate) fn insert(
    conn: &mut SqliteConnection,
    batch: &AttemptBatch,
    now: Timestamp,
) -> QueryResult<u64> {
    let senders = batch.deltas.iter().map(|delta| delta.sender.as_ref());
    let places = sources::places(conn, senders)?;
    for (delta, place) in batch.deltas.iter().zip(&places) {
        let Delta {
            id,
            owner,
            started_at,
            strategy,
            sender: _,
            kind,
            bucket,
        } = delta;
        diesel::insert_into(recent::table)
            .values((
                recent::delta_id.eq(id.as_bytes().as_slice()),
                recent::owner.eq(owner.number()),
                recent::started_at.eq(started_at.as_millis()),
                recent::strategy.eq(strategy.as_str()),
                recent::outcome.eq(kind.as_str()),
                recent::source_id.eq(place.id()),
                recent::attempts.eq(stored(bucket.attempts)),
                recent::unobserved.eq(stored(bucket.unobserved)),
                recent::latency.eq(encoded(&bucket.latency)),
                recent::top_score.eq(encoded(&bucket.top_score)),
            ))
            .on_conflict_do_nothing()
            .execute(conn)?;
    }
    for StrategySettings {
        strategy,
        threshold,
        direction,
        timeout_ms,
    } in &batch.settings
    {
        // Another process may have set what this process does not know: NULL keeps what is stored.
        // `?3` occurs twice, because `excluded` has the 0 that stands for it in a new row.
        diesel::sql_query(
            "INSERT INTO memory_retrieval_strategies VALUES (?1, ?2, coalesce(?3, 0), ?4, ?5) \
             ON CONFLICT (strategy) DO UPDATE SET \
             confidence_threshold = coalesce(excluded.confidence_threshold, confidence_threshold), \
             lower_is_better = coalesce(?3, lower_is_better), timeout_ms = coalesce(excluded.timeout_ms, timeout_ms), \
             updated_at = excluded.updated_at",
        )
        .bind::<Text, _>(strategy.as_str())
        .bind::<Nullable<Float>, _>(threshold)
        .bind::<Nullable<Bool>, _>(direction.map(|direction| direction == ScoreDirection::LowerIsBetter))
        .bind::<Nullable<BigInt>, _>(timeout_ms)
        .bind::<BigInt, _>(now)
        .execute(conn)?;
    }
    Ok(batch.senders_left_out + attempts_left_out(&batch.deltas, &places))
}

/// Returns `true` if anything has been appended that is not added up yet.
pub(crate) fn has_deltas(conn: &mut SqliteConnection) -> QueryResult<bool> {
    diesel::select(diesel::dsl::exists(recent::table.select(recent::delta_id))).get_result(conn)
}

/// Says that nothing of `owner` is written once more, so that others may add it up.
pub(crate) fn release(conn: &mut SqliteConnection, owner: Owner) -> QueryResult<()> {
    diesel::update(recent::table.filter(recent::owner.eq(owner.number())))
        .set(recent::owner.eq(0))
        .execute(conn)
        .map(drop)
}

/// Returns `true` if anything of `owner` is not added up yet.
pub(crate) fn has_deltas_of(conn: &mut SqliteConnection, owner: Owner) -> QueryResult<bool> {
    let own = recent::table.filter(recent::owner.eq(owner.number()));
    diesel::select(diesel::dsl::exists(own.select(recent::delta_id))).get_result(conn)
}

/// Adds some of what was appended, and some failures that are counted from their rows, to their
/// minutes, hours and days. Returns `true` if that was all. `own`: of what is young, what may be
/// added up as well; `None` leaves all that was appended as it is.
pub(crate) fn roll_up(
    conn: &mut SqliteConnection,
    now: Timestamp,
    own: Option<Owner>,
) -> QueryResult<bool> {
    let mut sums = Sums::default();
    let deltas = own.map_or(Ok(true), |own| roll_up_deltas(conn, now, own, &mut sums))?;
    let rows = uncounted::roll_up(conn, &mut sums)?;
    write(sums, conn)?;
    Ok(deltas && rows)
}

/// Moves a chunk of deltas into `sums`, and deletes them. Returns `true` if those were all that may
/// be rolled up.
fn roll_up_deltas(
    conn: &mut SqliteConnection,
    now: Timestamp,
    own: Owner,
    sums: &mut Sums,
) -> QueryResult<bool> {
    let settled = id_at(now - milliseconds(SETTLED_AFTER));
    let deltas: Vec<StoredDelta> = diesel::sql_query(SETTLED_DELTAS)
        .bind::<Binary, _>(settled.as_bytes().as_slice())
        .bind::<BigInt, _>(own.number())
        .bind::<BigInt, _>(DELTAS_PER_ROLL_UP)
        .load(conn)?;
    let Some(StoredDelta { delta_id: last, .. }) = deltas.last() else {
        return Ok(true);
    };
    let all = i64::try_from(deltas.len()).is_ok_and(|count| count < DELTAS_PER_ROLL_UP);
    // By the largest id that was read and the same condition: exactly the rows of `deltas`.
    diesel::sql_query(DELETE_SETTLED)
        .bind::<Binary, _>(settled.as_bytes().as_slice())
        .bind::<BigInt, _>(own.number())
        .bind::<Binary, _>(last)
        .execute(conn)?;
    for StoredDelta { bucket: delta, .. } in deltas {
        sums.add(
            Timestamp::from_millis(delta.started_at),
            &delta.strategy,
            &delta.outcome,
            delta.source_id,
            &delta.decoded(),
        );
    }
    Ok(all)
}

/// Adds `sums` to what the table has.
fn write(sums: Sums, conn: &mut SqliteConnection) -> QueryResult<()> {
    for (key, mut sum) in sums.0 {
        let SumKey {
            resolution,
            started_at,
            strategy,
            outcome,
            source_id,
        } = key;
        let (resolution, started_at) = (resolution.seconds(), started_at.as_millis());
        let before: Option<StoredBucket> = attempts::table
            .find((resolution, started_at, &strategy, &outcome, source_id))
            .select((
                attempts::started_at,
                attempts::strategy,
                attempts::outcome,
                attempts::source_id,
                attempts::attempts,
                attempts::unobserved,
                attempts::latency,
                attempts::top_score,
            ))
            .first(conn)
            .optional()?;
        if let Some(before) = before {
            // Read, merge and write: SQL cannot add sketches. Correct only under the write lock.
            sum.merge(&before.decoded());
        }
        let counts = (
            attempts::attempts.eq(stored(sum.attempts)),
            attempts::unobserved.eq(stored(sum.unobserved)),
            attempts::latency.eq(encoded(&sum.latency)),
            attempts::top_score.eq(encoded(&sum.top_score)),
        );
        diesel::insert_into(attempts::table)
            .values((
                attempts::resolution.eq(resolution),
                attempts::started_at.eq(started_at),
                attempts::strategy.eq(strategy),
                attempts::outcome.eq(outcome),
                attempts::source_id.eq(source_id),
                counts.clone(),
            ))
            .on_conflict((
                attempts::resolution,
                attempts::started_at,
                attempts::strategy,
                attempts::outcome,
                attempts::source_id,
            ))
            .do_update()
            .set(counts)
            .execute(conn)?;
    }
    Ok(())
}

/// Deletes some buckets of `resolution` that ended before `before`, oldest first. Returns `true` if
/// those were all.
pub(crate) fn expire(
    conn: &mut SqliteConnection,
    resolution: Resolution,
    before: Timestamp,
) -> QueryResult<bool> {
    let expired = diesel::sql_query(EXPIRE)
        .bind::<BigInt, _>(resolution.seconds())
        .bind::<BigInt, _>(resolution.ended_before(before))
        .bind::<BigInt, _>(resolution.seconds())
        .bind::<Integer, _>(BUCKETS_PER_PURGE)
        .execute(conn)?;
    Ok(i32::try_from(expired).is_ok_and(|expired| expired < BUCKETS_PER_PURGE))
}

/// Deletes what was counted in spans that begin at `from` or later.
#[cfg(feature = "program")]
pub(crate) fn delete_from(conn: &mut SqliteConnection, from: Timestamp) -> QueryResult<()> {
    diesel::delete(attempts::table.filter(attempts::started_at.ge(from.as_millis())))
        .execute(conn)?;
    diesel::delete(recent::table.filter(recent::started_at.ge(from.as_millis())))
        .execute(conn)
        .map(drop)
}

/// Returns the start of the oldest day with attempts, or of the oldest attempts that are not rolled
/// up yet.
pub(crate) fn oldest(conn: &mut SqliteConnection) -> QueryResult<Option<Timestamp>> {
    let recent: Option<i64> = recent::table
        .select(diesel::dsl::min(recent::started_at))
        .first(conn)?;
    let uncounted = uncounted::oldest(conn)?;
    Ok(oldest_at(conn, Resolution::Day)?
        .into_iter()
        .chain(recent.map(Timestamp::from_millis))
        .chain(uncounted)
        .min())
}

/// Returns the start of the oldest span at one resolution.
pub(crate) fn oldest_at(
    conn: &mut SqliteConnection,
    resolution: Resolution,
) -> QueryResult<Option<Timestamp>> {
    let oldest = diesel::sql_query(OLDEST)
        .bind::<BigInt, _>(resolution.seconds())
        .get_result::<Edge>(conn)?;
    Ok(oldest.started_at.map(Timestamp::from_millis))
}

#[derive(QueryableByName)]
struct Edge {
    #[diesel(sql_type = Nullable<BigInt>)]
    started_at: Option<i64>,
}

/// Gives `each` the buckets within `span` that are added up, with or without their sketches. It ends
/// the reading by returning `false`.
pub(crate) fn read(
    conn: &mut SqliteConnection,
    span: Span,
    sketches: bool,
    mut each: impl FnMut(ReadBucket) -> bool,
) -> QueryResult<()> {
    let buckets = diesel::sql_query(if sketches { BUCKETS } else { COUNTS })
        .bind::<BigInt, _>(span.resolution.seconds())
        .bind::<BigInt, _>(span.from)
        .bind::<BigInt, _>(span.to)
        .load_iter::<StoredBucket, diesel::connection::DefaultLoadingMode>(conn)?;
    for bucket in buckets {
        if bucket?.read().is_some_and(|bucket| !each(bucket)) {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads the deltas that are not rolled up, for all of `from..to` at any resolution.
pub(crate) fn read_recent(
    conn: &mut SqliteConnection,
    from: Timestamp,
    to: Timestamp,
    mut each: impl FnMut(ReadBucket) -> bool,
) -> QueryResult<()> {
    let buckets = diesel::sql_query(DELTAS)
        .bind::<BigInt, _>(from)
        .bind::<BigInt, _>(to)
        .load_iter::<StoredBucket, diesel::connection::DefaultLoadingMode>(conn)?;
    for bucket in buckets {
        if bucket?.read().is_some_and(|bucket| !each(bucket)) {
            return Ok(());
        }
    }
    uncounted::read(conn, from, to, &mut each)
}

/// Returns the settings by which each strategy was judged last.
pub(crate) fn settings(conn: &mut SqliteConnection) -> QueryResult<Vec<StrategySettings>> {
    type Stored = (String, Option<f32>, bool, Option<i64>);
    let stored: Vec<Stored> = strategies::table
        .select((
            strategies::strategy,
            strategies::confidence_threshold,
            strategies::lower_is_better,
            strategies::timeout_ms,
        ))
        .load(conn)?;
    let settings = stored
        .into_iter()
        .map(
            |(strategy, threshold, lower_is_better, timeout_ms)| StrategySettings {
                strategy: strategy.into(),
                threshold,
                direction: Some(if lower_is_better {
                    ScoreDirection::LowerIsBetter
                } else {
                    ScoreDirection::HigherIsBetter
                }),
                timeout_ms,
            },
        );
    Ok(settings.collect())
}

const BUCKETS: &str = "SELECT started_at, strategy, outcome, source_id, attempts, unobserved, latency, top_score \
     FROM memory_retrieval_attempts WHERE resolution = ? AND started_at >= ? AND started_at < ?";
/// Without sketches, which are twenty times as large as the rest: an index covers these columns.
const COUNTS: &str = "SELECT started_at, strategy, outcome, source_id, attempts, unobserved, NULL AS latency, NULL AS top_score \
     FROM memory_retrieval_attempts WHERE resolution = ? AND started_at >= ? AND started_at < ?";
/// Scans the table, which the roll-up keeps small.
const DELTAS: &str = "SELECT started_at, strategy, outcome, source_id, attempts, unobserved, latency, top_score \
     FROM memory_retrieval_attempts_recent WHERE started_at >= ? AND started_at < ?";
macro_rules! settled {
    () => {
        "(delta_id < ?1 OR owner = ?2 OR owner = 0)"
    };
}
const SETTLED_DELTAS: &str = concat!(
    "SELECT delta_id, started_at, strategy, outcome, source_id, attempts, unobserved, latency, top_score \
     FROM memory_retrieval_attempts_recent WHERE ",
    settled!(),
    " ORDER BY delta_id LIMIT ?3"
);
const DELETE_SETTLED: &str = concat!(
    "DELETE FROM memory_retrieval_attempts_recent WHERE delta_id <= ?3 AND ",
    settled!()
);
const OLDEST: &str =
    "SELECT min(started_at) AS started_at FROM memory_retrieval_attempts WHERE resolution = ?";
// The binds are resolution, moment, resolution, limit: the resolution occurs twice. The inner query
// finds the moment up to which about that many buckets lie; all buckets of that moment are deleted
// with it.
const EXPIRE: &str = "DELETE FROM memory_retrieval_attempts WHERE resolution = ? AND started_at < ? AND started_at <= ( \
     SELECT max(started_at) FROM (SELECT started_at FROM memory_retrieval_attempts WHERE resolution = ? \
     ORDER BY started_at LIMIT ?))";

#[derive(Queryable, QueryableByName)]
struct StoredBucket {
    #[diesel(sql_type = BigInt)]
    started_at: i64,
    #[diesel(sql_type = Text)]
    strategy: String,
    #[diesel(sql_type = Text)]
    outcome: String,
    #[diesel(sql_type = BigInt)]
    source_id: i64,
    #[diesel(sql_type = BigInt)]
    attempts: i64,
    #[diesel(sql_type = BigInt)]
    unobserved: i64,
    #[diesel(sql_type = Nullable<Binary>)]
    latency: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Binary>)]
    top_score: Option<Vec<u8>>,
}

#[derive(QueryableByName)]
struct StoredDelta {
    #[diesel(sql_type = Binary)]
    delta_id: Vec<u8>,
    #[diesel(embed)]
    bucket: StoredBucket,
}

impl StoredBucket {
    /// Returns the bucket with its sketches. A sketch that cannot be decoded is empty: the count
    /// must not be dropped with it.
    fn decoded(&self) -> Bucket {
        let sketch = |bytes: &Option<Vec<u8>>| {
            bytes
                .as_deref()
                .and_then(Sketch::decode)
                .unwrap_or_default()
        };
        Bucket {
            attempts: read_count(self.attempts),
            unobserved: read_count(self.unobserved),
            latency: sketch(&self.latency),
            top_score: sketch(&self.top_score),
        }
    }

    /// Returns the bucket as a report reads it. `None`: an outcome of a newer version.
    fn read(self) -> Option<ReadBucket> {
        Some(ReadBucket {
            kind: OutcomeKind::parse(&self.outcome)?,
            started_at: Timestamp::from_millis(self.started_at),
            strategy: self.strategy,
            source_id: self.source_id,
            attempts: read_count(self.attempts),
            unobserved: read_count(self.unobserved),
            latency: ReadSketch::Encoded(self.latency),
            top_score: ReadSketch::Encoded(self.top_score),
        })
    }
}

/// Returns the bytes of a sketch; NULL for an empty one, so that counts without latencies take no
/// space.
fn encoded(sketch: &Sketch) -> Option<Vec<u8>> {
    (sketch.count() > 0).then(|| sketch.encode())
}

/// Returns a count as SQLite stores it: its integers are signed.
fn stored(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Returns a count that was stored; 0 for a negative one, which only another program writes.
fn read_count(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// Returns the smallest UUIDv7 of a moment: its Unix milliseconds stand in the first 48 of 128
/// bits, hence the shift. Ids of earlier moments compare as smaller, byte by byte.
fn id_at(moment: Timestamp) -> Uuid {
    Uuid::from_u128(u128::from(moment.as_millis().max(0).unsigned_abs()) << 80)
}

#[cfg(test)]
mod tests {
    use diesel::connection::SimpleConnection as _;

    use super::*;
    use crate::model::time::{DAY_MS, HOUR_MS, MINUTE_MS};

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn database() -> SqliteConnection {
        crate::store::migrated()
    }

    /// Attempts at some moments, each with a latency that tells it from the others.
    fn batch(moments: &[Timestamp]) -> AttemptBatch {
        let deltas = moments.iter().enumerate().map(|(nth, at)| {
            let mut bucket = Bucket {
                attempts: 1,
                ..Bucket::default()
            };
            bucket.latency.add(1.0 + nth as f64);
            Delta {
                // Of the past, so that they may be added up.
                id: Uuid::from_u128(id_at(NOW - 2 * HOUR_MS).as_u128() | (nth as u128 + 1)),
                owner: Owner::default(),
                started_at: Resolution::Minute.floor(*at),
                strategy: "semantic".into(),
                sender: None,
                kind: OutcomeKind::Success,
                bucket,
            }
        });
        AttemptBatch {
            deltas: deltas.collect(),
            ..AttemptBatch::default()
        }
    }

    /// Attempts at each resolution, those that are not added up included.
    fn totals(conn: &mut SqliteConnection) -> [(u64, u64); 3] {
        Resolution::ALL.map(|resolution| {
            let (mut attempts, mut latencies) = (0, 0);
            let mut add = |bucket: ReadBucket| {
                attempts += bucket.attempts;
                latencies += bucket.latency().map_or(0, |latency| latency.count());
                true
            };
            read(
                conn,
                Span {
                    resolution,
                    from: Timestamp::EPOCH,
                    to: Timestamp::MAX,
                },
                true,
                &mut add,
            )
            .unwrap();
            read_recent(conn, Timestamp::EPOCH, Timestamp::MAX, &mut add).unwrap();
            (attempts, latencies)
        })
    }

    #[test]
    fn adding_up_changes_no_count_at_any_resolution() {
        let mut conn = database();
        let moments: Vec<Timestamp> = (0..5000).map(|nth| NOW - nth * 20_000).collect();
        insert(&mut conn, &batch(&moments), NOW).unwrap();
        assert_eq!(totals(&mut conn), [(5000, 5000); 3]);
        let mut rounds = 1;
        while !roll_up(&mut conn, NOW, Some(Owner::default())).unwrap() {
            assert_eq!(totals(&mut conn), [(5000, 5000); 3], "in between");
            rounds += 1;
        }
        assert_eq!(rounds, 3);
        assert_eq!(totals(&mut conn), [(5000, 5000); 3]);
        assert!(has_deltas(&mut conn).is_ok_and(|any| !any));
        // Later deltas of the same minutes are added to them.
        let mut later = batch(&moments[..10]);
        later
            .deltas
            .iter_mut()
            .for_each(|delta| delta.id = Uuid::from_u128(delta.id.as_u128() | 1 << 70));
        insert(&mut conn, &later, NOW).unwrap();
        roll_up(&mut conn, NOW, Some(Owner::default())).unwrap();
        assert_eq!(totals(&mut conn), [(5010, 5010); 3]);
    }

    #[test]
    fn reinserted_rows_are_counted_once_and_young_rows_wait() {
        let mut conn = database();
        let batch = batch(&[NOW, NOW - 1]);
        insert(&mut conn, &batch, NOW).unwrap();
        insert(&mut conn, &batch, NOW).unwrap();
        assert_eq!(totals(&mut conn), [(2, 2); 3]);
        assert!(roll_up(&mut conn, NOW - 2 * HOUR_MS, Some(Owner::default())).unwrap());
        insert(&mut conn, &batch, NOW).unwrap();
        assert_eq!(
            totals(&mut conn),
            [(2, 2); 3],
            "not rolled up while its logger may write it a second time"
        );
    }

    #[test]
    fn logger_rolls_up_its_own_rows_and_leaves_recent_foreign_ones() {
        let mut conn = database();
        let (own, others) = (Owner::default(), Owner::default());
        let now = Timestamp::now();
        for (owner, moments) in [(own, 0..3), (others, 3..5)] {
            let mut batch = batch(&moments.map(|nth| NOW - nth).collect::<Vec<_>>());
            batch
                .deltas
                .iter_mut()
                .for_each(|delta| (delta.id, delta.owner) = (Uuid::now_v7(), owner));
            insert(&mut conn, &batch, NOW).unwrap();
        }
        let waiting =
            |conn: &mut SqliteConnection| recent::table.count().get_result::<i64>(conn).unwrap();
        assert!(roll_up(&mut conn, now, None).unwrap(), "in doubt");
        assert!(roll_up(&mut conn, now + HOUR_MS / 2, Some(Owner::default())).unwrap());
        assert_eq!(waiting(&mut conn), 5, "a third logger takes neither");
        assert!(roll_up(&mut conn, now, Some(own)).unwrap());
        assert_eq!(
            (waiting(&mut conn), has_deltas_of(&mut conn, own)),
            (2, Ok(false))
        );
        assert_eq!(has_deltas_of(&mut conn, others), Ok(true));
        release(&mut conn, others).unwrap();
        assert!(roll_up(&mut conn, now, Some(own)).unwrap());
        assert_eq!((waiting(&mut conn), totals(&mut conn)), (0, [(5, 5); 3]));
    }

    #[test]
    fn what_a_killed_logger_left_is_added_up_after_a_while() {
        let mut conn = database();
        let mut batch = batch(&[NOW]);
        batch
            .deltas
            .iter_mut()
            .for_each(|delta| delta.id = Uuid::now_v7());
        insert(&mut conn, &batch, NOW).unwrap();
        let later = Timestamp::now() + 2 * HOUR_MS;
        assert!(roll_up(&mut conn, later, Some(Owner::default())).unwrap());
        assert_eq!(
            (has_deltas(&mut conn), totals(&mut conn)),
            (Ok(false), [(1, 1); 3])
        );
    }

    #[test]
    fn delta_of_another_logger_waits_for_an_hour() {
        let mut conn = database();
        let mut batch = batch(&[NOW]);
        batch.deltas[0].id = Uuid::from_u128(id_at(NOW).as_u128() | 1);
        let waiting =
            |conn: &mut SqliteConnection| recent::table.count().get_result::<i64>(conn).unwrap();
        for (minutes, left) in [(0, 1), (59, 1), (61, 0)] {
            insert(&mut conn, &batch, NOW).unwrap();
            assert!(roll_up(&mut conn, NOW + minutes * MINUTE_MS, Some(Owner::default())).unwrap());
            assert_eq!(waiting(&mut conn), left, "after {minutes} minutes");
            assert_eq!(totals(&mut conn), [(1, 1); 3]);
        }
    }

    #[test]
    fn old_spans_go_at_their_resolution_only() {
        let mut conn = database();
        let days: Vec<Timestamp> = (0..10).map(|day| NOW - day * DAY_MS).collect();
        insert(&mut conn, &batch(&days), NOW).unwrap();
        roll_up(&mut conn, NOW, Some(Owner::default())).unwrap();
        expire(&mut conn, Resolution::Minute, NOW - 3 * DAY_MS).unwrap();
        assert_eq!(totals(&mut conn).map(|(attempts, _)| attempts), [4, 10, 10]);
        assert_eq!(
            oldest(&mut conn).unwrap(),
            Some(Resolution::Day.floor(NOW - 9 * DAY_MS))
        );
    }

    #[test]
    fn span_is_deleted_once_its_end_is_past_and_not_before() {
        for (nth, resolution) in Resolution::ALL.into_iter().enumerate() {
            let mut conn = database();
            let end = resolution.ceil(NOW - 5 * DAY_MS);
            insert(&mut conn, &batch(&[end - 1, end]), NOW).unwrap();
            roll_up(&mut conn, NOW, Some(Owner::default())).unwrap();
            let mut left = |before| {
                expire(&mut conn, resolution, before).unwrap();
                totals(&mut conn)[nth].0
            };
            let next = end + resolution.span();
            assert_eq!(
                [end - 1, end, next - 1, next].map(&mut left),
                [2, 1, 1, 0],
                "{resolution:?}"
            );
        }
    }

    #[test]
    fn unreadable_sketch_costs_its_values_and_nothing_else() {
        let mut conn = database();
        insert(&mut conn, &batch(&[NOW, NOW - HOUR_MS]), NOW).unwrap();
        conn.batch_execute("UPDATE memory_retrieval_attempts_recent SET latency = x'0102030405'")
            .unwrap();
        roll_up(&mut conn, NOW, Some(Owner::default())).unwrap();
        assert_eq!(totals(&mut conn), [(2, 0); 3]);
    }

    fn sql(query: &impl diesel::query_builder::QueryFragment<diesel::sqlite::Sqlite>) -> String {
        let text = diesel::debug_query::<diesel::sqlite::Sqlite, _>(query).to_string();
        text.split(" -- ").next().unwrap().to_owned()
    }

    #[test]
    fn every_statement_uses_the_index_that_was_meant() {
        let mut conn = database();
        let one = sql(&attempts::table
            .find((60_i64, 0_i64, "s", "o", 0_i64))
            .select(attempts::attempts));
        let any = sql(&diesel::select(diesel::dsl::exists(
            recent::table.select(recent::delta_id),
        )));
        for (sql, plan) in [
            (
                BUCKETS,
                "SEARCH memory_retrieval_attempts USING PRIMARY KEY (resolution=? AND \
                 started_at>? AND started_at<?)",
            ),
            (
                COUNTS,
                "SEARCH memory_retrieval_attempts USING COVERING INDEX \
                 memory_retrieval_attempts_counts (resolution=? AND started_at>? AND started_at<?)",
            ),
            (
                OLDEST,
                "SEARCH memory_retrieval_attempts USING COVERING INDEX \
                 memory_retrieval_attempts_counts (resolution=?)",
            ),
            (
                EXPIRE,
                "SEARCH memory_retrieval_attempts USING PRIMARY KEY (resolution=? AND started_at<?)",
            ),
            // In the order of its key, and a few hundred rows.
            (SETTLED_DELTAS, "SCAN memory_retrieval_attempts_recent"),
            (
                DELETE_SETTLED,
                "SEARCH memory_retrieval_attempts_recent USING PRIMARY KEY (delta_id<?)",
            ),
            (
                &one,
                "SEARCH memory_retrieval_attempts USING PRIMARY KEY \
                 (resolution=? AND started_at=? AND strategy=? AND outcome=? AND source_id=?)",
            ),
            // Ends with the first row.
            (&any, "SCAN memory_retrieval_attempts_recent"),
            // A row for each strategy, always read whole.
            (
                "SELECT * FROM memory_retrieval_strategies",
                "SCAN memory_retrieval_strategies",
            ),
            // A few hundred rows, always read whole.
            (DELTAS, "SCAN memory_retrieval_attempts_recent"),
        ] {
            let plans = crate::store::plan(&mut conn, sql);
            assert!(plans.iter().any(|step| step == plan), "{sql}: {plans:?}");
            assert!(
                !plans.iter().any(|step| step.contains("TEMP B-TREE")),
                "{sql}: {plans:?}"
            );
        }
    }
}
