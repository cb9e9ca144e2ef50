//! The row that says how long rows are kept, and what the retention clock trusts.
//!
//! A reading takes three columns, of which `.._at` is NULL if there is no reading. Boot and time
//! since boot are written and read as a pair, because one without the other proves nothing. The
//! tuples below have their elements by position: [`StoredReading`] is wall clock, boot, time since
//! boot.

use diesel::prelude::*;
use uuid::Uuid;

use crate::model::time::Timestamp;
use crate::retention::{Boot, ClockState, Reading, StoredRetention};
use crate::store::sqlite::schema::memory_retrieval_retention::dsl;

/// Wall clock in Unix milliseconds, id of the boot, milliseconds since it.
type StoredReading = (Option<i64>, Option<String>, Option<i64>);

/// A boot id that is no UUID is unknown: it proves nothing.
fn reading((wall, boot, since): StoredReading) -> Option<Reading> {
    let boot = boot
        .and_then(|id| id.parse::<Uuid>().ok())
        .zip(since)
        .map(|(id, since)| Boot { id, since });
    wall.map(|wall| Reading {
        wall: Timestamp::from_millis(wall),
        boot,
    })
}

fn stored(reading: Option<Reading>) -> StoredReading {
    let boot = reading.and_then(|reading| reading.boot);
    (
        reading.map(|reading| reading.wall.as_millis()),
        boot.map(|boot| boot.id.to_string()),
        boot.map(|boot| boot.since),
    )
}

/// Returns defaults if the row is missing (deleted by hand).
pub(crate) fn read(conn: &mut SqliteConnection) -> QueryResult<StoredRetention> {
    type Stored = (
        Option<i64>,
        Option<i64>,
        StoredReading,
        Option<i64>,
        StoredReading,
        StoredReading,
    );
    let row: Option<Stored> = dsl::memory_retrieval_retention
        .select((
            dsl::failures_days,
            dsl::attempts_days,
            (dsl::trusted_at, dsl::trusted_boot, dsl::trusted_since_boot),
            dsl::trusted_unexplained,
            (dsl::ahead_at, dsl::ahead_boot, dsl::ahead_since_boot),
            (dsl::behind_at, dsl::behind_boot, dsl::behind_since_boot),
        ))
        .first(conn)
        .optional()?;
    let Some((failures, attempts, trusted, unexplained, ahead, behind)) = row else {
        return Ok(StoredRetention::default());
    };
    // No logger writes a negative or too large number: the default is safer than 0.
    let days = |days: Option<i64>| days.and_then(|days| u32::try_from(days).ok());
    Ok(StoredRetention {
        failures_days: days(failures),
        attempts_days: days(attempts),
        clock: reading(trusted).map(|trusted| ClockState {
            trusted,
            unexplained: unexplained.unwrap_or(0),
            ahead: reading(ahead),
            behind: reading(behind),
        }),
    })
}

/// Replaces the row. To be called in the transaction that read it, because several processes update
/// it.
pub(crate) fn write(conn: &mut SqliteConnection, retention: &StoredRetention) -> QueryResult<()> {
    let StoredRetention {
        failures_days,
        attempts_days,
        clock,
    } = retention;
    let trusted = stored(clock.map(|clock| clock.trusted));
    let ahead = stored(clock.and_then(|clock| clock.ahead));
    let behind = stored(clock.and_then(|clock| clock.behind));
    diesel::replace_into(dsl::memory_retrieval_retention)
        .values((
            dsl::one.eq(1),
            dsl::failures_days.eq(failures_days.map(i64::from)),
            dsl::attempts_days.eq(attempts_days.map(i64::from)),
            (
                dsl::trusted_at.eq(trusted.0),
                dsl::trusted_boot.eq(trusted.1),
                dsl::trusted_since_boot.eq(trusted.2),
            ),
            dsl::trusted_unexplained.eq(clock.map(|clock| clock.unexplained)),
            (
                dsl::ahead_at.eq(ahead.0),
                dsl::ahead_boot.eq(ahead.1),
                dsl::ahead_since_boot.eq(ahead.2),
            ),
            (
                dsl::behind_at.eq(behind.0),
                dsl::behind_boot.eq(behind.1),
                dsl::behind_since_boot.eq(behind.2),
            ),
        ))
        .execute(conn)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::RetentionDays;

    #[test]
    fn retention_that_was_written_is_read_unchanged() {
        let mut conn = crate::store::migrated();
        assert_eq!(
            read(&mut conn).unwrap(),
            StoredRetention::default(),
            "a new log"
        );
        let at = |wall, since| Reading {
            wall: Timestamp::from_millis(wall),
            boot: Some(Boot {
                id: Uuid::from_u128(7),
                since,
            }),
        };
        for retention in [
            StoredRetention {
                failures_days: Some(0),
                attempts_days: Some(u32::MAX),
                clock: Some(ClockState {
                    trusted: at(1, 2),
                    unexplained: 7,
                    ahead: Some(at(3, 4)),
                    behind: Some(at(5, 6)),
                }),
            },
            StoredRetention {
                failures_days: None,
                attempts_days: Some(1),
                clock: Some(ClockState::trusting(Reading {
                    wall: Timestamp::from_millis(-1),
                    boot: None,
                })),
            },
        ] {
            write(&mut conn, &retention).unwrap();
            assert_eq!(read(&mut conn).unwrap(), retention);
        }
        diesel::sql_query(
            "UPDATE memory_retrieval_retention SET failures_days = -1, attempts_days = 1 << 40",
        )
        .execute(&mut conn)
        .unwrap();
        assert_eq!(read(&mut conn).unwrap().days(), RetentionDays::default());
    }
}
