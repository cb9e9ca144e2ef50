//! The tables that count attempts: writes, the roll-up and reads, as in `store/sqlite/attempts.rs`.
//!
//! # The roll-up
//!
//! One node rolls up at a time, because it reads buckets, merges their sketches and writes them. It
//! locks the row of `memory_retrieval_rollup` first. A node that finds the row locked leaves the
//! work to the other one, and does not wait. The lock ends with the transaction, so that no node
//! takes over anything from one that died: it finds the row unlocked, and the deltas where they
//! were.
//!
//! Other nodes insert deltas meanwhile. The roll-up therefore deletes exactly those that it read,
//! by their ids. Which deltas it may read is the table in `store/sqlite/attempts.rs`.

use std::time::Duration;

use diesel::pg::PgRowByRowLoadingMode;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Float, Nullable, Text, Uuid as SqlUuid};
use uuid::Uuid;

use crate::model::outcome::OutcomeKind;
use crate::model::source::SenderId;
use crate::model::time::{Timestamp, milliseconds};
use crate::rollup::resolution::{Resolution, Span};
use crate::rollup::sketch::Sketch;
use crate::rollup::sums::{ReadBucket, ReadSketch, SumKey, Sums};
use crate::rollup::{AttemptBatch, Bucket, ScoreDirection, StrategySettings};
use crate::rollup::{Delta, Owner};
use crate::store::postgres::{read_count, sources, storable, stored_count, uncounted};
use crate::store::row::{SenderPlace, attempts_left_out};

/// Deltas that one transaction rolls up.
const DELTAS_PER_ROLL_UP: i64 = 2000;
/// Buckets that one transaction deletes, about, at each resolution.
const BUCKETS_PER_PURGE: i64 = 2000;
/// Age after which this logger rolls up the deltas of another logger, which may retry younger ones.
const SETTLED_AFTER: Duration = Duration::from_secs(60 * 60);

/// Appends what was counted. What is there already stays as it is. Returns the number of attempts
/// whose source or labels were left out.
pub(crate) fn insert(
    conn: &mut PgConnection,
    batch: &AttemptBatch,
    now: Timestamp,
) -> QueryResult<u64> {
    let senders = batch.deltas.iter().map(|delta| delta.sender.as_ref());
    let places = sources::places(conn, senders)?;
    insert_deltas(conn, &batch.deltas, &places)?;
    for StrategySettings {
        strategy,
        threshold,
        direction,
        timeout_ms,
    } in &batch.settings
    {
        diesel::sql_query(SET_STRATEGY)
            .bind::<Text, _>(storable(strategy))
            .bind::<Nullable<Float>, _>(threshold)
            .bind::<Nullable<Bool>, _>(
                direction.map(|direction| direction == ScoreDirection::LowerIsBetter),
            )
            .bind::<Nullable<BigInt>, _>(timeout_ms)
            .bind::<BigInt, _>(now.as_millis())
            .execute(conn)?;
    }
    Ok(batch.senders_left_out + attempts_left_out(&batch.deltas, &places))
}

/// Inserts all deltas by one statement.
fn insert_deltas(
    conn: &mut PgConnection,
    deltas: &[Delta],
    places: &[SenderPlace],
) -> QueryResult<()> {
    if deltas.is_empty() {
        return Ok(());
    }
    let (mut counts, mut latencies, mut scores) = (Vec::new(), Vec::new(), Vec::new());
    for Delta { bucket, .. } in deltas {
        counts.push((
            stored_count(bucket.attempts),
            stored_count(bucket.unobserved),
        ));
        latencies.push(encoded(&bucket.latency));
        scores.push(encoded(&bucket.top_score));
    }
    let (attempts, unobserved): (Vec<i64>, Vec<i64>) = counts.into_iter().unzip();
    let strategies: Vec<_> = deltas
        .iter()
        .map(|delta| storable(&delta.strategy))
        .collect();
    diesel::sql_query(INSERT_DELTAS)
        .bind::<Array<SqlUuid>, _>(deltas.iter().map(|delta| delta.id).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(
            deltas
                .iter()
                .map(|delta| delta.started_at.as_millis())
                .collect::<Vec<_>>(),
        )
        .bind::<Array<Text>, _>(strategies)
        .bind::<Array<Text>, _>(
            deltas
                .iter()
                .map(|delta| delta.kind.as_str())
                .collect::<Vec<_>>(),
        )
        .bind::<Array<BigInt>, _>(attempts)
        .bind::<Array<BigInt>, _>(unobserved)
        .bind::<Array<Nullable<Binary>>, _>(latencies)
        .bind::<Array<Nullable<Binary>>, _>(scores)
        .bind::<Array<BigInt>, _>(
            deltas
                .iter()
                .map(|delta| delta.owner.number())
                .collect::<Vec<_>>(),
        )
        .bind::<Array<BigInt>, _>(places.iter().map(|place| place.id()).collect::<Vec<_>>())
        .execute(conn)
        .map(drop)
}

/// Says that nothing of `owner` is written once more, so that others may add it up.
pub(crate) fn release(conn: &mut PgConnection, owner: Owner) -> QueryResult<()> {
    diesel::sql_query(RELEASE)
        .bind::<BigInt, _>(owner.number())
        .execute(conn)
        .map(drop)
}

/// A node that finds another one at the roll-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IfLocked {
    /// Leaves the work to it.
    Leave,
    Wait,
}

/// Adds some of what was appended, and some failures that are counted from their rows, to their
/// minutes, hours and days. Returns `true` if that was all, or if another node is at it. `own`: of
/// what is young, what may be added up as well; `None` leaves all that was appended as it is.
pub(crate) fn roll_up(
    conn: &mut PgConnection,
    now: Timestamp,
    own: Option<Owner>,
    if_locked: IfLocked,
) -> QueryResult<bool> {
    let lock = match if_locked {
        IfLocked::Leave => LOCK_OR_LEAVE,
        IfLocked::Wait => LOCK,
    };
    let mark: Option<Mark> = diesel::sql_query(lock).get_result(conn).optional()?;
    let Some(Mark { rolled_up_to }) = mark else {
        return Ok(true);
    };
    let mut sums = Sums::default();
    let deltas = own.map_or(Ok(true), |own| roll_up_deltas(conn, now, own, &mut sums))?;
    let rows = uncounted::roll_up(conn, rolled_up_to, &mut sums)?;
    write(sums, conn)?;
    Ok(deltas && rows)
}

/// Moves a chunk of deltas into `sums`, and deletes them. Returns `true` if those were all that may
/// be rolled up.
fn roll_up_deltas(
    conn: &mut PgConnection,
    now: Timestamp,
    own: Owner,
    sums: &mut Sums,
) -> QueryResult<bool> {
    let deltas: Vec<StoredDelta> = diesel::sql_query(SETTLED_DELTAS)
        .bind::<SqlUuid, _>(id_at(now - milliseconds(SETTLED_AFTER)))
        .bind::<BigInt, _>(own.number())
        .bind::<BigInt, _>(DELTAS_PER_ROLL_UP)
        .load(conn)?;
    if deltas.is_empty() {
        return Ok(true);
    }
    let ids: Vec<Uuid> = deltas.iter().map(|delta| delta.delta_id).collect();
    diesel::sql_query(DELETE_DELTAS)
        .bind::<Array<SqlUuid>, _>(&ids)
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
    Ok(i64::try_from(ids.len()).is_ok_and(|count| count < DELTAS_PER_ROLL_UP))
}

/// Adds `sums` to what the table has: one statement reads, and one writes.
fn write(mut sums: Sums, conn: &mut PgConnection) -> QueryResult<()> {
    if sums.0.is_empty() {
        return Ok(());
    }
    let keys = Keys::of(&sums);
    let before: Vec<KeyedBucket> = diesel::sql_query(SAME_BUCKETS)
        .bind::<Array<BigInt>, _>(&keys.resolutions)
        .bind::<Array<BigInt>, _>(&keys.moments)
        .bind::<Array<Text>, _>(&keys.strategies)
        .bind::<Array<Text>, _>(&keys.outcomes)
        .bind::<Array<BigInt>, _>(&keys.sources)
        .load(conn)?;
    for KeyedBucket { resolution, bucket } in before {
        let of_key = Resolution::ALL
            .into_iter()
            .find(|of| of.seconds() == resolution)
            .and_then(|of| {
                sums.0.get_mut(&SumKey {
                    resolution: of,
                    started_at: Timestamp::from_millis(bucket.started_at),
                    strategy: bucket.strategy.clone(),
                    outcome: bucket.outcome.clone(),
                    source_id: bucket.source_id,
                })
            });
        if let Some(sum) = of_key {
            sum.merge(&bucket.decoded());
        }
    }
    // In the order of the keys, which is that of the map.
    let sums = || sums.0.values();
    let attempts: Vec<i64> = sums().map(|sum| stored_count(sum.attempts)).collect();
    let unobserved: Vec<i64> = sums().map(|sum| stored_count(sum.unobserved)).collect();
    let latencies: Vec<_> = sums().map(|sum| encoded(&sum.latency)).collect();
    let scores: Vec<_> = sums().map(|sum| encoded(&sum.top_score)).collect();
    diesel::sql_query(PUT_BUCKETS)
        .bind::<Array<BigInt>, _>(keys.resolutions)
        .bind::<Array<BigInt>, _>(keys.moments)
        .bind::<Array<Text>, _>(keys.strategies)
        .bind::<Array<Text>, _>(keys.outcomes)
        .bind::<Array<BigInt>, _>(keys.sources)
        .bind::<Array<BigInt>, _>(attempts)
        .bind::<Array<BigInt>, _>(unobserved)
        .bind::<Array<Nullable<Binary>>, _>(latencies)
        .bind::<Array<Nullable<Binary>>, _>(scores)
        .execute(conn)
        .map(drop)
}

/// The keys of buckets, column by column, in the order of their map.
#[derive(Default)]
struct Keys {
    resolutions: Vec<i64>,
    moments: Vec<i64>,
    strategies: Vec<String>,
    outcomes: Vec<String>,
    sources: Vec<SenderId>,
}

impl Keys {
    fn of(sums: &Sums) -> Self {
        let mut keys = Self::default();
        for key in sums.0.keys() {
            keys.resolutions.push(key.resolution.seconds());
            keys.moments.push(key.started_at.as_millis());
            keys.strategies.push(key.strategy.clone());
            keys.outcomes.push(key.outcome.clone());
            keys.sources.push(key.source_id);
        }
        keys
    }
}

/// Deletes some buckets of `resolution` that ended before `before`, oldest first. Returns `true` if
/// those were all.
pub(crate) fn expire(
    conn: &mut PgConnection,
    resolution: Resolution,
    before: Timestamp,
) -> QueryResult<bool> {
    let expired = diesel::sql_query(EXPIRE)
        .bind::<BigInt, _>(resolution.seconds())
        .bind::<BigInt, _>(resolution.ended_before(before).as_millis())
        .bind::<BigInt, _>(BUCKETS_PER_PURGE)
        .execute(conn)?;
    Ok(i64::try_from(expired).is_ok_and(|expired| expired < BUCKETS_PER_PURGE))
}

/// Deletes what was counted in spans that begin at `from` or later.
#[cfg(feature = "program")]
pub(crate) fn delete_from(conn: &mut PgConnection, from: Timestamp) -> QueryResult<()> {
    for table in [
        "memory_retrieval_attempts",
        "memory_retrieval_attempts_recent",
    ] {
        diesel::sql_query(format!("DELETE FROM {table} WHERE started_at >= $1"))
            .bind::<BigInt, _>(from.as_millis())
            .execute(conn)?;
    }
    Ok(())
}

/// Returns the start of the oldest day with attempts, or of the oldest attempts that are not rolled
/// up yet.
pub(crate) fn oldest(conn: &mut PgConnection) -> QueryResult<Option<Timestamp>> {
    let Edge { started_at } = diesel::sql_query(OLDEST)
        .bind::<BigInt, _>(Resolution::Day.seconds())
        .get_result(conn)?;
    let uncounted = uncounted::oldest(conn)?;
    Ok(started_at
        .map(Timestamp::from_millis)
        .into_iter()
        .chain(uncounted)
        .min())
}

/// Gives `each` the buckets within `span` that are added up, with or without their sketches. It ends
/// the reading by returning `false`.
pub(crate) fn read(
    conn: &mut PgConnection,
    span: Span,
    sketches: bool,
    mut each: impl FnMut(ReadBucket) -> bool,
) -> QueryResult<()> {
    let buckets = diesel::sql_query(if sketches { BUCKETS } else { COUNTS })
        .bind::<BigInt, _>(span.resolution.seconds())
        .bind::<BigInt, _>(span.from.as_millis())
        .bind::<BigInt, _>(span.to.as_millis())
        .load_iter::<StoredBucket, PgRowByRowLoadingMode>(conn)?;
    for bucket in buckets {
        if bucket?.read().is_some_and(|bucket| !each(bucket)) {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads the deltas that are not rolled up, for all of `from..to` at any resolution.
pub(crate) fn read_recent(
    conn: &mut PgConnection,
    from: Timestamp,
    to: Timestamp,
    mut each: impl FnMut(ReadBucket) -> bool,
) -> QueryResult<()> {
    let buckets = diesel::sql_query(DELTAS)
        .bind::<BigInt, _>(from.as_millis())
        .bind::<BigInt, _>(to.as_millis())
        .load_iter::<StoredBucket, PgRowByRowLoadingMode>(conn)?;
    for bucket in buckets {
        if bucket?.read().is_some_and(|bucket| !each(bucket)) {
            return Ok(());
        }
    }
    uncounted::read(conn, from, to, &mut each)
}

/// Returns the settings by which each strategy was judged last.
pub(crate) fn settings(conn: &mut PgConnection) -> QueryResult<Vec<StrategySettings>> {
    #[derive(QueryableByName)]
    struct Stored {
        #[diesel(sql_type = Text)]
        strategy: String,
        #[diesel(sql_type = Nullable<Float>)]
        confidence_threshold: Option<f32>,
        #[diesel(sql_type = Bool)]
        lower_is_better: bool,
        #[diesel(sql_type = Nullable<BigInt>)]
        timeout_ms: Option<i64>,
    }
    let stored: Vec<Stored> = diesel::sql_query(STRATEGIES).load(conn)?;
    let settings = stored.into_iter().map(|of| StrategySettings {
        strategy: of.strategy.into(),
        threshold: of.confidence_threshold,
        direction: Some(if of.lower_is_better {
            ScoreDirection::LowerIsBetter
        } else {
            ScoreDirection::HigherIsBetter
        }),
        timeout_ms: of.timeout_ms,
    });
    Ok(settings.collect())
}

/// Returns the smallest UUIDv7 of a moment.
fn id_at(at: Timestamp) -> Uuid {
    let milliseconds = u64::try_from(at.as_millis()).unwrap_or(0);
    Uuid::from_u128(u128::from(milliseconds) << 80)
}

/// Returns the bytes of a sketch; NULL for an empty one, so that counts without latencies take no
/// space.
fn encoded(sketch: &Sketch) -> Option<Vec<u8>> {
    (sketch.count() > 0).then(|| sketch.encode())
}

const INSERT_DELTAS: &str = "INSERT INTO memory_retrieval_attempts_recent (delta_id, started_at, \
     strategy, outcome, attempts, unobserved, latency, top_score, owner, source_id) \
     SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING";
// Another process may have set what this process does not know: NULL keeps what is stored. `$3`
// occurs twice, because `excluded` has the value that stands for it in a new row.
const SET_STRATEGY: &str = "INSERT INTO memory_retrieval_strategies AS stored \
     (strategy, confidence_threshold, lower_is_better, timeout_ms, updated_at) \
     VALUES ($1, $2, coalesce($3, FALSE), $4, $5) ON CONFLICT (strategy) DO UPDATE SET \
     confidence_threshold = coalesce(excluded.confidence_threshold, stored.confidence_threshold), \
     lower_is_better = coalesce($3, stored.lower_is_better), \
     timeout_ms = coalesce(excluded.timeout_ms, stored.timeout_ms), \
     updated_at = excluded.updated_at";
const RELEASE: &str = "UPDATE memory_retrieval_attempts_recent SET owner = 0 WHERE owner = $1";
const LOCK: &str = "SELECT rolled_up_to FROM memory_retrieval_rollup WHERE one = 1 FOR UPDATE";
const LOCK_OR_LEAVE: &str =
    "SELECT rolled_up_to FROM memory_retrieval_rollup WHERE one = 1 FOR UPDATE SKIP LOCKED";
const SETTLED_DELTAS: &str = "SELECT delta_id, started_at, strategy, outcome, source_id, attempts, \
     unobserved, latency, top_score FROM memory_retrieval_attempts_recent \
     WHERE delta_id < $1 OR owner = $2 OR owner = 0 ORDER BY delta_id LIMIT $3";
const DELETE_DELTAS: &str =
    "DELETE FROM memory_retrieval_attempts_recent WHERE delta_id = ANY ($1)";
const SAME_BUCKETS: &str = "SELECT resolution, started_at, strategy, outcome, source_id, attempts, \
     unobserved, latency, top_score FROM memory_retrieval_attempts \
     WHERE (resolution, started_at, strategy, outcome, source_id) IN \
     (SELECT * FROM unnest($1, $2, $3, $4, $5))";
const PUT_BUCKETS: &str = "INSERT INTO memory_retrieval_attempts (resolution, started_at, \
     strategy, outcome, source_id, attempts, unobserved, latency, top_score) \
     SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9) \
     ON CONFLICT (resolution, started_at, strategy, outcome, source_id) DO UPDATE SET \
     attempts = excluded.attempts, unobserved = excluded.unobserved, \
     latency = excluded.latency, top_score = excluded.top_score";
// The inner query finds the moment up to which about that many buckets lie; all buckets of that
// moment are deleted with it.
const EXPIRE: &str = "DELETE FROM memory_retrieval_attempts WHERE resolution = $1 \
     AND started_at < $2 AND started_at <= (SELECT max(started_at) FROM (SELECT started_at \
     FROM memory_retrieval_attempts WHERE resolution = $1 ORDER BY started_at LIMIT $3) AS oldest)";
const OLDEST: &str = "SELECT least((SELECT min(started_at) FROM memory_retrieval_attempts \
     WHERE resolution = $1), (SELECT min(started_at) FROM memory_retrieval_attempts_recent)) \
     AS started_at";
const BUCKETS: &str = "SELECT started_at, strategy, outcome, source_id, attempts, unobserved, latency, \
     top_score FROM memory_retrieval_attempts \
     WHERE resolution = $1 AND started_at >= $2 AND started_at < $3";
/// Without sketches, which are twenty times as large as the rest: an index covers these columns.
const COUNTS: &str = "SELECT started_at, strategy, outcome, source_id, attempts, unobserved, \
     NULL::bytea AS latency, NULL::bytea AS top_score FROM memory_retrieval_attempts \
     WHERE resolution = $1 AND started_at >= $2 AND started_at < $3";
/// Scans the table, which the roll-up keeps small.
const DELTAS: &str = "SELECT started_at, strategy, outcome, source_id, attempts, unobserved, latency, \
     top_score FROM memory_retrieval_attempts_recent WHERE started_at >= $1 AND started_at < $2";
const STRATEGIES: &str = "SELECT strategy, confidence_threshold, lower_is_better, timeout_ms \
     FROM memory_retrieval_strategies ORDER BY strategy";

#[derive(QueryableByName)]
struct Mark {
    #[diesel(sql_type = BigInt)]
    rolled_up_to: i64,
}

#[derive(QueryableByName)]
struct Edge {
    #[diesel(sql_type = Nullable<BigInt>)]
    started_at: Option<i64>,
}

#[derive(QueryableByName)]
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
    #[diesel(sql_type = SqlUuid)]
    delta_id: Uuid,
    #[diesel(embed)]
    bucket: StoredBucket,
}

#[derive(QueryableByName)]
struct KeyedBucket {
    #[diesel(sql_type = BigInt)]
    resolution: i64,
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
