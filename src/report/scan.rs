//! Reads many failures, as far as time and rows allow.

use diesel::connection::DefaultLoadingMode;
use diesel::deserialize::FromSqlRow;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel::sqlite::Sqlite;
use serde::Serialize;

use super::TimeRange;
use crate::clock;
use crate::error::ReadError;
use crate::store::reader::Deadline;

/// Failures that one question looks at, at most.
pub(super) const MAX_ROWS: u64 = 1_000_000;
/// How often the deadline is looked at.
const ROWS_PER_LOOK: u64 = 1024;

/// How much a question about many failures has looked at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Scanned {
    /// The range that was looked at: what was asked for, or its newer part.
    #[cfg_attr(feature = "http", schema(value_type = crate::report::TimeRangeSchema))]
    pub range: TimeRange,
    /// Failures that were looked at.
    pub failures: u64,
    /// Whether those were all. If not, there were more than a million, or the time was over.
    pub complete: bool,
}

/// Gives `each` the rows of `sql`, whose two parameters are the range, the newest first.
pub(super) fn scan<R>(
    conn: &mut SqliteConnection,
    sql: &str,
    range: TimeRange,
    deadline: Deadline,
    created_at: impl Fn(&R) -> i64,
    mut each: impl FnMut(R),
) -> Result<Scanned, ReadError>
where
    R: QueryableByName<Sqlite> + 'static,
    R: FromSqlRow<diesel::sql_types::Untyped, Sqlite>,
{
    let rows = diesel::sql_query(sql)
        .bind::<BigInt, _>(range.from)
        .bind::<BigInt, _>(range.end(clock::now()))
        .load_iter::<R, DefaultLoadingMode>(conn)?;
    let mut scanned = Scanned { range, failures: 0, complete: true };
    for row in rows {
        let row = row?;
        let at = created_at(&row);
        each(row);
        scanned.failures += 1;
        if scanned.failures == MAX_ROWS || (scanned.failures.is_multiple_of(ROWS_PER_LOOK) && deadline.passed()) {
            scanned.range.from = at;
            scanned.complete = false;
            break;
        }
    }
    Ok(scanned)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        at: i64,
    }

    /// A row for each millisecond of the range, the newest first.
    const EACH_MILLISECOND: &str =
        "WITH RECURSIVE n(at) AS (SELECT ?2 - 1 UNION ALL SELECT at - 1 FROM n WHERE at > ?1) SELECT at FROM n";

    fn scanned(milliseconds: u64, timeout: Duration) -> (u64, Scanned) {
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        let moment = |at| SystemTime::UNIX_EPOCH + Duration::from_millis(at);
        let range = TimeRange::between(moment(1000), moment(1000 + milliseconds)).unwrap();
        let mut given = 0;
        let scanned =
            scan(&mut conn, EACH_MILLISECOND, range, Deadline::after(timeout), |row: &Row| row.at, |_| given += 1);
        (given, scanned.unwrap())
    }

    #[test]
    fn scan_after_its_deadline_ends_and_names_the_part_it_read() {
        let (given, scanned) = scanned(5000, Duration::ZERO);
        assert_eq!((given, scanned.failures, scanned.complete), (1024, 1024, false));
        assert_eq!((scanned.range.from, scanned.range.to), (6000 - 1024, 6000));
    }

    #[test]
    fn scan_within_its_deadline_reads_all_up_to_a_million() {
        for (rows, complete) in [(1, true), (5000, true), (1_000_001, false)] {
            let (given, scanned) = scanned(rows, Duration::from_secs(600));
            let read = rows.min(1_000_000);
            assert_eq!((given, scanned.failures, scanned.complete), (read, read, complete));
            assert_eq!(scanned.range.from, 1000 + i64::from(!complete));
        }
    }
}
