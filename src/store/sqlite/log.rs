//! Facts about the log as a whole: its identity, and the ids of its rows.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary};
use uuid::Uuid;

use crate::model::time::Timestamp;
use crate::store::snapshot::LogEdge;
use crate::store::sqlite::schema::memory_retrieval_failures as failures;

/// Returns the identity of the log, and the largest id that a row has or had. A tail starts from
/// that id: it must not go back when the newest rows are deleted.
pub(crate) fn edge(conn: &mut SqliteConnection) -> QueryResult<LogEdge> {
    let StoredEdge {
        log_id,
        starts_after,
        newest_id,
    } = diesel::sql_query(EDGE).get_result(conn)?;
    Ok(LogEdge {
        log_id: Uuid::from_slice(&log_id).unwrap_or_default(),
        starts_after,
        newest_id,
    })
}

/// Returns the same, also of a log that an earlier version wrote: such a log has no identity.
pub(crate) fn edge_of_any(conn: &mut SqliteConnection) -> QueryResult<LogEdge> {
    edge(conn).or_else(|_| {
        let newest_id: Option<i64> = failures::table
            .select(diesel::dsl::max(failures::id))
            .first(conn)?;
        Ok(LogEdge {
            log_id: Uuid::nil(),
            starts_after: 0,
            newest_id: newest_id.unwrap_or(0),
        })
    })
}

/// Returns the moment of the oldest row.
pub(crate) fn oldest_row(conn: &mut SqliteConnection) -> QueryResult<Option<Timestamp>> {
    let oldest: Option<i64> = failures::table
        .select(diesel::dsl::min(failures::created_at))
        .first(conn)?;
    Ok(oldest.map(Timestamp::from_millis))
}

/// Both maxima are at the edge of a B-tree.
pub(crate) const EDGE: &str = "SELECT log_id, starts_after, max(largest_deleted_id, \
     coalesce((SELECT max(id) FROM memory_retrieval_failures), 0)) AS newest_id FROM memory_retrieval_log";

#[derive(QueryableByName)]
struct StoredEdge {
    #[diesel(sql_type = Binary)]
    log_id: Vec<u8>,
    #[diesel(sql_type = BigInt)]
    starts_after: i64,
    #[diesel(sql_type = BigInt)]
    newest_id: i64,
}

#[cfg(test)]
mod tests {
    use diesel::connection::SimpleConnection as _;

    use super::*;
    use crate::store::{migrated, plan};

    #[test]
    fn newest_id_deleted_rows_stays() {
        let mut conn = migrated();
        assert_eq!(edge(&mut conn).unwrap().newest_id, 0);
        conn.batch_execute(
            "INSERT INTO memory_retrieval_failures (id, event_id, failure_type, retrieval_strategy, query_text, \
             query_len, created_at) VALUES (7, x'01', 'no_hit', 's', 'q', 1, 0), (9, x'02', 'no_hit', 's', 'q', 1, 0)",
        )
        .unwrap();
        assert_eq!(edge(&mut conn).unwrap().newest_id, 9);
        conn.batch_execute("DELETE FROM memory_retrieval_failures WHERE id = 9")
            .unwrap();
        assert_eq!(edge(&mut conn).unwrap().newest_id, 9);
        conn.batch_execute("DELETE FROM memory_retrieval_failures")
            .unwrap();
        assert_eq!(edge(&mut conn).unwrap().newest_id, 9);
    }

    #[test]
    fn edge_scans_no_row_of_the_failures() {
        let steps = plan(&mut migrated(), EDGE);
        assert!(
            steps
                .iter()
                .any(|step| step == "SEARCH memory_retrieval_failures"),
            "{steps:?}"
        );
        assert!(
            !steps
                .iter()
                .any(|step| step.starts_with("SCAN memory_retrieval_failures")),
            "{steps:?}"
        );
    }
}
