//! In which conversations retrieval fails.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::SystemTime;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use serde::Serialize;

use super::scan::{Scanned, scan};
use super::{FailureReader, TimeRange, moment};
use crate::error::ReadError;
use crate::store::reader::Deadline;

/// Conversations that are told apart at most.
const MAX_CONVERSATIONS: usize = 100_000;
/// Conversations that are returned at most.
const MAX_RETURNED: usize = 1000;

/// The conversations in which retrieval failed most often.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Conversations {
    /// The conversations, the one with the most failures first.
    pub conversations: Vec<Conversation>,
    /// What was looked at.
    pub scanned: Scanned,
}

/// A conversation in which retrieval failed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Conversation {
    /// Its identifier.
    pub conversation_id: String,
    /// Failures in it.
    pub failures: u64,
    /// The first of them, of those that were looked at.
    #[serde(serialize_with = "super::serialize_moment")]
    #[cfg_attr(feature = "http", schema(value_type = String, format = DateTime))]
    pub first_seen: SystemTime,
    /// The last of them.
    #[serde(serialize_with = "super::serialize_moment")]
    #[cfg_attr(feature = "http", schema(value_type = String, format = DateTime))]
    pub last_seen: SystemTime,
}

impl FailureReader {
    /// The `limit` (1 to 1000) conversations with the most failures in `range`. Looks at the
    /// newest million failures, and tells the first 100,000 conversations apart.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn conversations(&self, range: TimeRange, limit: usize) -> Result<Conversations, ReadError> {
        if !(1..=MAX_RETURNED).contains(&limit) {
            let value = limit.to_string();
            return Err(ReadError::Invalid { parameter: "limit", value, expected: "1 to 1000 conversations" });
        }
        let patience = self.timeout / 2;
        let run = move |conn: &mut SqliteConnection, _| conversations(conn, range, limit, Deadline::after(patience));
        self.pool.run(self.timeout, run).await
    }
}

const CONVERSATIONS: &str = "SELECT created_at, conversation_id FROM memory_retrieval_failures \
     WHERE created_at >= ?1 AND created_at < ?2 ORDER BY created_at DESC, id DESC";

fn conversations(
    conn: &mut SqliteConnection,
    range: TimeRange,
    limit: usize,
    deadline: Deadline,
) -> Result<Conversations, ReadError> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        created_at: i64,
        #[diesel(sql_type = Nullable<Text>)]
        conversation_id: Option<String>,
    }
    // Failures, first and last.
    let mut found: HashMap<String, (u64, i64, i64)> = HashMap::new();
    let mut too_many = false;
    let mut scanned = scan(
        conn,
        CONVERSATIONS,
        range,
        deadline,
        |row: &Row| row.created_at,
        |row| {
            let Some(id) = row.conversation_id else { return };
            if found.len() >= MAX_CONVERSATIONS && !found.contains_key(&id) {
                too_many = true;
                return;
            }
            let (failures, first, _) = found.entry(id).or_insert((0, row.created_at, row.created_at));
            *failures += 1;
            *first = row.created_at;
        },
    )?;
    scanned.complete &= !too_many;
    let mut conversations: Vec<Conversation> = found
        .into_iter()
        .map(|(conversation_id, (failures, first, last))| Conversation {
            conversation_id,
            failures,
            first_seen: moment(first),
            last_seen: moment(last),
        })
        .collect();
    conversations.sort_by(|one, other| {
        (Reverse(one.failures), Reverse(one.last_seen), &one.conversation_id).cmp(&(
            Reverse(other.failures),
            Reverse(other.last_seen),
            &other.conversation_id,
        ))
    });
    conversations.truncate(limit);
    Ok(Conversations { conversations, scanned })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{migrated, plan};

    #[test]
    fn the_statement_uses_the_index_that_was_meant() {
        let by_time = "SEARCH memory_retrieval_failures USING INDEX memory_retrieval_failures_created_at \
             (created_at>? AND created_at<?)";
        assert_eq!(plan(&mut migrated(), CONVERSATIONS), [by_time]);
    }

    #[test]
    fn conversations_after_the_deadline_are_marked_incomplete() {
        let mut conn = migrated();
        diesel::sql_query(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 2000) \
             INSERT INTO memory_retrieval_failures (event_id, conversation_id, turn_index, failure_type, \
             retrieval_strategy, query_text, query_len, result_count, latency_ms, created_at) \
             SELECT randomblob(16), 'c', n, 'no_hit', 's', 'q', 1, 0, 0, n FROM n",
        )
        .execute(&mut conn)
        .unwrap();
        let mut found = |seconds| {
            let deadline = Deadline::after(std::time::Duration::from_secs(seconds));
            let found = conversations(&mut conn, TimeRange::all(), 10, deadline).unwrap();
            (found.conversations[0].failures, found.scanned.complete)
        };
        assert_eq!(found(0), (1024, false));
        assert_eq!(found(600), (2000, true));
    }
}
