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
const MAX_ROWS: u64 = 1_000_000;
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
