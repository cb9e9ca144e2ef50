//! The small tables: the log itself, drops, statuses, the retention; and the deletion of failures.

use std::collections::BTreeSet;

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Nullable, Text, Uuid as SqlUuid};
use uuid::Uuid;

use crate::model::deletion::{Deleted, Deletion};
use crate::model::query_status::{QueryStatus, StatusChange};
use crate::model::stats::DropCounts;
use crate::model::time::Timestamp;
use crate::retention::{Boot, ClockState, Reading, StoredRetention};
use crate::rollup::resolution::Resolution;
use crate::similarity::normalized;
use crate::store::postgres::{read_count, storable, stored_count, uncounted};
use crate::store::snapshot::LogEdge;

/// Statuses that are kept; the oldest are deleted.
const MAX_STATUSES: i64 = 10_000;
/// Ids that one transaction of a deletion looks at.
const IDS_PER_CHUNK: i64 = 20_000;

/// Returns the identity of the log, and the largest id that a row has or had.
pub(crate) fn edge(conn: &mut PgConnection) -> QueryResult<LogEdge> {
    #[derive(QueryableByName)]
    struct Edge {
        #[diesel(sql_type = SqlUuid)]
        log_id: Uuid,
        #[diesel(sql_type = BigInt)]
        starts_after: i64,
        #[diesel(sql_type = BigInt)]
        newest_id: i64,
    }
    let edge: Edge = diesel::sql_query(EDGE).get_result(conn)?;
    Ok(LogEdge {
        log_id: edge.log_id,
        starts_after: edge.starts_after,
        newest_id: edge.newest_id,
    })
}

/// Returns the moment of the oldest row.
pub(crate) fn oldest_row(conn: &mut PgConnection) -> QueryResult<Option<Timestamp>> {
    #[derive(QueryableByName)]
    struct Oldest {
        #[diesel(sql_type = Nullable<BigInt>)]
        created_at: Option<i64>,
    }
    let Oldest { created_at } = diesel::sql_query(OLDEST_ROW).get_result(conn)?;
    Ok(created_at.map(Timestamp::from_millis))
}

/// Deletes at most `limit` rows in `from..to` that a roll-up has seen, the oldest first.
///
/// The ids are read before: a distributed table cannot be joined with a local one in a deletion.
/// Another node may delete some of them meanwhile, and counts those itself.
pub(crate) fn purge(
    conn: &mut PgConnection,
    from: Timestamp,
    to: Timestamp,
    limit: u32,
) -> QueryResult<u64> {
    #[derive(QueryableByName)]
    struct Expired {
        #[diesel(sql_type = SqlUuid)]
        event_id: Uuid,
    }
    // Deletes only rows that a roll-up has seen, because other rows may not be counted yet.
    let rolled_up_to = uncounted::mark(conn)?;
    let expired: Vec<Expired> = diesel::sql_query(EXPIRED)
        .bind::<BigInt, _>(from.as_millis())
        .bind::<BigInt, _>(to.as_millis())
        .bind::<BigInt, _>(rolled_up_to)
        .bind::<BigInt, _>(i64::from(limit))
        .load(conn)?;
    if expired.is_empty() {
        return Ok(0);
    }
    let ids: Vec<Uuid> = expired.into_iter().map(|row| row.event_id).collect();
    let deleted = diesel::sql_query(DELETE_BY_ID)
        .bind::<Array<SqlUuid>, _>(ids)
        .execute(conn)?;
    Ok(deleted as u64)
}

/// Returns the number of rows in `from..to`.
#[cfg(feature = "program")]
pub(crate) fn count_within(
    conn: &mut PgConnection,
    from: Timestamp,
    to: Timestamp,
) -> QueryResult<u64> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        rows: i64,
    }
    let Count { rows } = diesel::sql_query(COUNT_WITHIN)
        .bind::<BigInt, _>(from.as_millis())
        .bind::<BigInt, _>(to.as_millis())
        .get_result(conn)?;
    Ok(read_count(rows))
}

/// Deletes one chunk, after `so_far`. All rows must be rolled up, so that their counts stay.
pub(crate) fn delete_chunk(
    conn: &mut PgConnection,
    deletion: &Deletion,
    so_far: Deleted,
) -> QueryResult<Deleted> {
    #[derive(QueryableByName)]
    struct QueryText {
        #[diesel(sql_type = Text)]
        query_text: String,
    }
    let newest = edge(conn)?.newest_id;
    let until = newest.min(so_far.after.saturating_add(IDS_PER_CHUNK));
    let (conversation, query) = match deletion {
        Deletion::Conversation(id) => (Some(storable(id)), None),
        Deletion::Query(query) => (None, Some(storable(query))),
    };
    // The deleted rows themselves say which queries they had, so that no row comes in between.
    let texts: Vec<QueryText> = diesel::sql_query(DELETE_CHUNK)
        .bind::<BigInt, _>(so_far.after)
        .bind::<BigInt, _>(until)
        .bind::<Nullable<Text>, _>(conversation)
        .bind::<Nullable<Text>, _>(query)
        .load(conn)?;
    let ids: BTreeSet<Uuid> = texts
        .iter()
        .map(|text| status_id(&normalized(&text.query_text)))
        .collect();
    let statuses = diesel::sql_query(DELETE_STATUSES)
        .bind::<Array<SqlUuid>, _>(ids.into_iter().collect::<Vec<_>>())
        .execute(conn)?;
    Ok(Deleted {
        rows: so_far.rows + texts.len() as u64,
        statuses: so_far.statuses + statuses as u64,
        after: until,
        is_done: until >= newest,
    })
}

/// Adds `drops` to the minute of `at`.
pub(crate) fn add_drops(
    conn: &mut PgConnection,
    at: Timestamp,
    drops: &DropCounts,
) -> QueryResult<()> {
    for (reason, records) in drops
        .by_reason()
        .into_iter()
        .filter(|(_, records)| *records > 0)
    {
        diesel::sql_query(ADD_DROPS)
            .bind::<BigInt, _>(Resolution::Minute.floor(at).as_millis())
            .bind::<Text, _>(reason.as_str())
            .bind::<BigInt, _>(stored_count(records))
            .execute(conn)?;
    }
    Ok(())
}

/// Deletes the drops of days that ended before a moment.
pub(crate) fn expire_drops(conn: &mut PgConnection, before: Timestamp) -> QueryResult<()> {
    diesel::sql_query(EXPIRE_DROPS)
        .bind::<BigInt, _>(Resolution::Day.ended_before(before).as_millis())
        .execute(conn)
        .map(drop)
}

/// Returns the dropped records of the minutes that begin from `from` up to `to`.
pub(crate) fn drops_within(
    conn: &mut PgConnection,
    from: Timestamp,
    to: Timestamp,
) -> QueryResult<DropCounts> {
    #[derive(QueryableByName)]
    struct Stored {
        #[diesel(sql_type = Text)]
        reason: String,
        #[diesel(sql_type = BigInt)]
        records: i64,
    }
    let stored: Vec<Stored> = diesel::sql_query(DROPS)
        .bind::<BigInt, _>(from.as_millis())
        .bind::<BigInt, _>(to.as_millis())
        .load(conn)?;
    let mut drops = DropCounts::default();
    for Stored { reason, records } in stored {
        drops.add(&reason, read_count(records));
    }
    Ok(drops)
}

/// Sets the status of a query, which is given in lower case and without punctuation.
pub(crate) fn set_status(
    conn: &mut PgConnection,
    query: &str,
    change: StatusChange,
) -> QueryResult<()> {
    // One change at a time, because two nodes would choose the same next number.
    diesel::sql_query(LOCK_LOG).execute(conn)?;
    diesel::sql_query(SET_STATUS)
        .bind::<SqlUuid, _>(status_id(query))
        .bind::<Text, _>(storable(query))
        .bind::<Text, _>(change.status.as_str())
        .bind::<BigInt, _>(change.set_at.as_millis())
        .execute(conn)?;
    diesel::sql_query(KEEP_STATUSES)
        .bind::<BigInt, _>(MAX_STATUSES)
        .execute(conn)
        .map(drop)
}

/// Returns all queries with a status, in the order in which the statuses were set.
pub(crate) fn statuses(conn: &mut PgConnection) -> QueryResult<Vec<(String, StatusChange)>> {
    #[derive(QueryableByName)]
    struct Stored {
        #[diesel(sql_type = Text)]
        query: String,
        #[diesel(sql_type = Text)]
        status: String,
        #[diesel(sql_type = BigInt)]
        set_at: i64,
    }
    let stored: Vec<Stored> = diesel::sql_query(STATUSES)
        .bind::<BigInt, _>(MAX_STATUSES)
        .load(conn)?;
    let statuses = stored.into_iter().rev().filter_map(|row| {
        // Nothing is known of a status of a newer version.
        let change = StatusChange {
            status: QueryStatus::parse(&row.status)?,
            set_at: Timestamp::from_millis(row.set_at),
        };
        Some((row.query, change))
    });
    Ok(statuses.collect())
}

/// Returns the key of a query's status.
pub(crate) fn status_id(query: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, storable(query).as_bytes())
}

/// Returns the stored retention; defaults if the row is missing. `Lock::Change` locks the row until
/// the transaction ends.
pub(crate) fn retention(conn: &mut PgConnection, lock: Lock) -> QueryResult<StoredRetention> {
    let sql = match lock {
        Lock::None => RETENTION.to_owned(),
        Lock::Change => format!("{RETENTION} FOR UPDATE"),
    };
    let row: Option<StoredRow> = diesel::sql_query(sql).get_result(conn).optional()?;
    Ok(row.map_or_else(StoredRetention::default, StoredRow::read))
}

/// The lock of a row that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    None,
    /// The row is changed afterwards.
    Change,
}

/// Replaces the row. To be called in the transaction that read it.
pub(crate) fn put_retention(
    conn: &mut PgConnection,
    retention: &StoredRetention,
) -> QueryResult<()> {
    let StoredRetention {
        failures_days,
        attempts_days,
        clock,
    } = retention;
    let trusted = StoredReading::of(clock.map(|clock| clock.trusted));
    let ahead = StoredReading::of(clock.and_then(|clock| clock.ahead));
    let behind = StoredReading::of(clock.and_then(|clock| clock.behind));
    diesel::sql_query(PUT_RETENTION)
        .bind::<Nullable<BigInt>, _>(failures_days.map(i64::from))
        .bind::<Nullable<BigInt>, _>(attempts_days.map(i64::from))
        .bind::<Nullable<BigInt>, _>(trusted.at)
        .bind::<Nullable<Text>, _>(trusted.boot)
        .bind::<Nullable<BigInt>, _>(trusted.since_boot)
        .bind::<Nullable<BigInt>, _>(clock.map(|clock| clock.unexplained))
        .bind::<Nullable<BigInt>, _>(ahead.at)
        .bind::<Nullable<Text>, _>(ahead.boot)
        .bind::<Nullable<BigInt>, _>(ahead.since_boot)
        .bind::<Nullable<BigInt>, _>(behind.at)
        .bind::<Nullable<Text>, _>(behind.boot)
        .bind::<Nullable<BigInt>, _>(behind.since_boot)
        .execute(conn)
        .map(drop)
}

/// A reading of the clock in three columns. Boot and time since it are a pair: one without the other
/// proves nothing.
struct StoredReading {
    at: Option<i64>,
    boot: Option<String>,
    since_boot: Option<i64>,
}

impl StoredReading {
    fn of(reading: Option<Reading>) -> Self {
        let boot = reading.and_then(|reading| reading.boot);
        Self {
            at: reading.map(|reading| reading.wall.as_millis()),
            boot: boot.map(|boot| boot.id.to_string()),
            since_boot: boot.map(|boot| boot.since),
        }
    }

    fn read(self) -> Option<Reading> {
        let boot = self
            .boot
            .and_then(|id| id.parse::<Uuid>().ok())
            .zip(self.since_boot)
            .map(|(id, since)| Boot { id, since });
        self.at.map(|wall| Reading {
            wall: Timestamp::from_millis(wall),
            boot,
        })
    }
}

#[derive(QueryableByName)]
struct StoredRow {
    #[diesel(sql_type = Nullable<BigInt>)]
    failures_days: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    attempts_days: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    trusted_at: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    trusted_boot: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    trusted_since_boot: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    trusted_unexplained: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    ahead_at: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    ahead_boot: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    ahead_since_boot: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    behind_at: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    behind_boot: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    behind_since_boot: Option<i64>,
}

impl StoredRow {
    fn read(self) -> StoredRetention {
        let reading = |at, boot, since_boot| {
            StoredReading {
                at,
                boot,
                since_boot,
            }
            .read()
        };
        let trusted = reading(self.trusted_at, self.trusted_boot, self.trusted_since_boot);
        let ahead = reading(self.ahead_at, self.ahead_boot, self.ahead_since_boot);
        let behind = reading(self.behind_at, self.behind_boot, self.behind_since_boot);
        // No logger writes a negative or too large number: the default is safer than 0.
        let days = |days: Option<i64>| days.and_then(|days| u32::try_from(days).ok());
        StoredRetention {
            failures_days: days(self.failures_days),
            attempts_days: days(self.attempts_days),
            clock: trusted.map(|trusted| ClockState {
                trusted,
                unexplained: self.trusted_unexplained.unwrap_or(0),
                ahead,
                behind,
            }),
        }
    }
}

const EDGE: &str = "SELECT log_id, starts_after, newest_id FROM memory_retrieval_log WHERE one = 1";
const LOCK_LOG: &str = "SELECT one FROM memory_retrieval_log WHERE one = 1 FOR UPDATE";
const OLDEST_ROW: &str = "SELECT min(created_at) AS created_at FROM memory_retrieval_failures";
#[cfg(feature = "program")]
const COUNT_WITHIN: &str = "SELECT count(*) AS rows FROM memory_retrieval_failures \
     WHERE created_at >= $1 AND created_at < $2";
const EXPIRED: &str = "SELECT event_id FROM memory_retrieval_failures \
     WHERE created_at >= $1 AND created_at < $2 AND id <= $3 ORDER BY created_at, id LIMIT $4";
const DELETE_BY_ID: &str = "DELETE FROM memory_retrieval_failures WHERE event_id = ANY ($1)";
const DELETE_CHUNK: &str = "DELETE FROM memory_retrieval_failures WHERE id > $1 AND id <= $2 \
     AND ($3 IS NULL OR conversation_id = $3) AND ($4 IS NULL OR query_text = $4) \
     RETURNING query_text";
const DELETE_STATUSES: &str =
    "DELETE FROM memory_retrieval_query_statuses WHERE query_id = ANY ($1)";
const ADD_DROPS: &str = "INSERT INTO memory_retrieval_drops AS stored (started_at, reason, records) \
     VALUES ($1, $2, $3) ON CONFLICT (started_at, reason) DO UPDATE SET \
     records = stored.records + excluded.records";
const EXPIRE_DROPS: &str = "DELETE FROM memory_retrieval_drops WHERE started_at < $1";
const DROPS: &str = "SELECT reason, records FROM memory_retrieval_drops \
     WHERE started_at >= $1 AND started_at < $2";
const SET_STATUS: &str = "INSERT INTO memory_retrieval_query_statuses \
     (query_id, query, status, set_at, sequence) VALUES ($1, $2, $3, $4, \
     (SELECT coalesce(max(sequence), 0) + 1 FROM memory_retrieval_query_statuses)) \
     ON CONFLICT (query_id) DO UPDATE SET status = excluded.status, set_at = excluded.set_at, \
     sequence = excluded.sequence";
const KEEP_STATUSES: &str = "DELETE FROM memory_retrieval_query_statuses WHERE query_id IN ( \
     SELECT query_id FROM memory_retrieval_query_statuses ORDER BY sequence DESC OFFSET $1)";
const STATUSES: &str = "SELECT query, status, set_at FROM memory_retrieval_query_statuses \
     ORDER BY sequence DESC LIMIT $1";
const RETENTION: &str = "SELECT failures_days, attempts_days, trusted_at, trusted_boot, \
     trusted_since_boot, trusted_unexplained, ahead_at, ahead_boot, ahead_since_boot, behind_at, \
     behind_boot, behind_since_boot FROM memory_retrieval_retention WHERE one = 1";
const PUT_RETENTION: &str = "INSERT INTO memory_retrieval_retention (one, failures_days, \
     attempts_days, trusted_at, trusted_boot, trusted_since_boot, trusted_unexplained, ahead_at, \
     ahead_boot, ahead_since_boot, behind_at, behind_boot, behind_since_boot) \
     VALUES (1, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT (one) DO UPDATE SET \
     failures_days = excluded.failures_days, attempts_days = excluded.attempts_days, \
     trusted_at = excluded.trusted_at, trusted_boot = excluded.trusted_boot, \
     trusted_since_boot = excluded.trusted_since_boot, \
     trusted_unexplained = excluded.trusted_unexplained, ahead_at = excluded.ahead_at, \
     ahead_boot = excluded.ahead_boot, ahead_since_boot = excluded.ahead_since_boot, \
     behind_at = excluded.behind_at, behind_boot = excluded.behind_boot, \
     behind_since_boot = excluded.behind_since_boot";
