//! Dropped records by minute and reason. The counters in memory end with their process.
//!
//! The binds of [`add`] are minute, reason, records, in the order of the columns.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

use crate::model::stats::DropCounts;
use crate::model::time::Timestamp;
use crate::rollup::resolution::Resolution;
use crate::store::sqlite::schema::memory_retrieval_drops::dsl;

/// Adds `drops` to the minute of `at`.
pub(crate) fn add(
    conn: &mut SqliteConnection,
    at: Timestamp,
    drops: &DropCounts,
) -> QueryResult<()> {
    for (reason, records) in drops
        .by_reason()
        .into_iter()
        .filter(|(_, records)| *records > 0)
    {
        diesel::sql_query(
            "INSERT INTO memory_retrieval_drops (started_at, reason, records) VALUES (?, ?, ?) \
             ON CONFLICT (started_at, reason) DO UPDATE SET records = records + excluded.records",
        )
        .bind::<BigInt, _>(Resolution::Minute.floor(at))
        .bind::<Text, _>(reason.as_str())
        .bind::<BigInt, _>(i64::try_from(records).unwrap_or(i64::MAX))
        .execute(conn)?;
    }
    Ok(())
}

/// Forgets what was lost before a moment. After a long outage a row stands for a whole day.
pub(crate) fn expire(conn: &mut SqliteConnection, before: Timestamp) -> QueryResult<usize> {
    diesel::delete(
        dsl::memory_retrieval_drops
            .filter(dsl::started_at.lt(Resolution::Day.ended_before(before).as_millis())),
    )
    .execute(conn)
}

/// Returns `true` if `expire` would delete rows, also rows with a reason of a newer version.
pub(crate) fn any_expired(conn: &mut SqliteConnection, before: Timestamp) -> QueryResult<bool> {
    let expired = dsl::memory_retrieval_drops
        .filter(dsl::started_at.lt(Resolution::Day.ended_before(before).as_millis()));
    diesel::select(diesel::dsl::exists(expired)).get_result(conn)
}

/// Returns the dropped records of the minutes that begin from `from` up to `to`.
pub(crate) fn within(
    conn: &mut SqliteConnection,
    from: Timestamp,
    to: Timestamp,
) -> QueryResult<DropCounts> {
    let stored: Vec<(String, i64)> = dsl::memory_retrieval_drops
        .filter(
            dsl::started_at
                .ge(from.as_millis())
                .and(dsl::started_at.lt(to.as_millis())),
        )
        .select((dsl::reason, dsl::records))
        .load(conn)?;
    let mut drops = DropCounts::default();
    for (reason, records) in stored {
        drops.add(&reason, u64::try_from(records).unwrap_or(0));
    }
    Ok(drops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::{DAY_MS, MINUTE_MS};

    #[test]
    fn drops_are_forgotten_when_the_day_from_their_row_has_ended() {
        let mut conn = crate::store::migrated();
        let start = Timestamp::from_millis(1_000 * MINUTE_MS);
        add(
            &mut conn,
            start + 5,
            &DropCounts {
                too_old: 3,
                ..DropCounts::default()
            },
        )
        .unwrap();
        let mut left = |before| {
            expire(&mut conn, before).unwrap();
            within(&mut conn, Timestamp::EPOCH, Timestamp::MAX)
                .unwrap()
                .too_old
        };
        assert_eq!(
            [start + 6, start + DAY_MS - 1, start + DAY_MS].map(&mut left),
            [3, 3, 0]
        );
    }
}
