//! The statuses that people set for failing queries.
//!
//! `sequence` orders the changes and not `set_at`, because clocks go back. A later status of any
//! text of a group holds for the whole group, so that the order decides what a person sees.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};

use crate::model::query_status::{QueryStatus, StatusChange};
use crate::model::time::Timestamp;
use crate::store::sqlite::schema::memory_retrieval_query_statuses::dsl;

/// Statuses that are kept; the oldest are deleted.
const MAX_STATUSES: i64 = 10_000;
/// Longest query with a status, in bytes: 1024 characters.
const MAX_BYTES: usize = 4096;

/// Sets the status of a query, which is given in its normal form. `open` is
/// stored as well, because another text of the group may have a status.
pub(crate) fn set(
    conn: &mut SqliteConnection,
    query: &str,
    change: StatusChange,
) -> QueryResult<()> {
    let last: Option<i64> = dsl::memory_retrieval_query_statuses
        .select(diesel::dsl::max(dsl::sequence))
        .get_result(conn)?;
    let values = (
        dsl::status.eq(change.status.as_str()),
        dsl::set_at.eq(change.set_at.as_millis()),
        dsl::sequence.eq(last.unwrap_or(0).saturating_add(1)),
    );
    // Not REPLACE, which would empty columns that users added.
    diesel::insert_into(dsl::memory_retrieval_query_statuses)
        .values((dsl::query.eq(query), values))
        .on_conflict(dsl::query)
        .do_update()
        .set(values)
        .execute(conn)?;
    diesel::sql_query(
        "DELETE FROM memory_retrieval_query_statuses WHERE query IN \
         (SELECT query FROM memory_retrieval_query_statuses ORDER BY sequence DESC LIMIT -1 OFFSET ?)",
    )
    .bind::<BigInt, _>(MAX_STATUSES)
    .execute(conn)?;
    Ok(())
}

/// Returns all queries with a status, in the order in which the statuses were set. Bounded,
/// whatever other programs wrote into the table.
pub(crate) fn all(conn: &mut SqliteConnection) -> QueryResult<Vec<(String, StatusChange)>> {
    let stored: Vec<(String, String, i64)> = dsl::memory_retrieval_query_statuses
        .filter(diesel::dsl::sql::<Bool>(&format!(
            "octet_length(query) <= {MAX_BYTES}"
        )))
        .order(dsl::sequence.desc())
        .limit(MAX_STATUSES)
        .select((dsl::query, dsl::status, dsl::set_at))
        .load(conn)?;
    let statuses = stored
        .into_iter()
        .rev()
        .filter_map(|(query, status, set_at)| {
            // Nothing is known of a status of a newer version.
            Some((
                query,
                StatusChange {
                    status: QueryStatus::parse(&status)?,
                    set_at: Timestamp::from_millis(set_at),
                },
            ))
        });
    Ok(statuses.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::migrated;

    #[test]
    fn oldest_statuses_make_room_for_new_ones() {
        let mut conn = migrated();
        diesel::sql_query(
            "WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 9999) \
             INSERT INTO memory_retrieval_query_statuses SELECT 'query ' || n, 'ignored', n, n FROM n",
        )
        .execute(&mut conn)
        .unwrap();
        for set_at in MAX_STATUSES..MAX_STATUSES + 3 {
            let change = StatusChange {
                status: QueryStatus::Resolved,
                set_at: Timestamp::from_millis(set_at),
            };
            set(&mut conn, &format!("query {set_at}"), change).unwrap();
        }
        let statuses = all(&mut conn).unwrap();
        assert_eq!(i64::try_from(statuses.len()).unwrap(), MAX_STATUSES);
        assert_eq!(
            (statuses[0].0.as_str(), statuses[9999].0.as_str()),
            ("query 3", "query 10002")
        );
    }

    #[test]
    fn marks_are_in_the_order_in_which_they_were_set() {
        let mut conn = migrated();
        // The clock went back in between.
        for (query, set_at) in [("one", 9), ("two", 9), ("three", 1), ("one", 0)] {
            set(
                &mut conn,
                query,
                StatusChange {
                    status: QueryStatus::Ignored,
                    set_at: Timestamp::from_millis(set_at),
                },
            )
            .unwrap();
        }
        let statuses: Vec<String> = all(&mut conn)
            .unwrap()
            .into_iter()
            .map(|(query, _)| query)
            .collect();
        assert_eq!(statuses, ["two", "three", "one"]);
    }

    #[test]
    fn a_mark_that_is_too_long_is_not_stored_and_not_loaded() {
        let mut conn = migrated();
        let change = StatusChange {
            status: QueryStatus::Ignored,
            set_at: Timestamp::EPOCH,
        };
        set(&mut conn, &"😀".repeat(1024), change).unwrap();
        assert!(set(&mut conn, &"x".repeat(1025), change).is_err());
        diesel::sql_query("PRAGMA ignore_check_constraints = ON")
            .execute(&mut conn)
            .unwrap();
        set(&mut conn, &"x".repeat(1 << 20), change).unwrap();
        assert_eq!(all(&mut conn).unwrap().len(), 1);
    }
}
