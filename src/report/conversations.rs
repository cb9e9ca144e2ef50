//! In which conversations retrieval fails.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::SystemTime;

use serde::Serialize;

use crate::error::ReadError;
use crate::model::time::{TimeRange, Timestamp};
use crate::report::FailureReader;
use crate::report::list::{ListCursor, ListRequest};
use crate::report::scan::Scanned;
use crate::store::reads::{Deadline, Lane};
use crate::store::snapshot::Snapshot;

/// Conversations that one read distinguishes.
const MAX_CONVERSATIONS: usize = 100_000;

/// The conversations in which retrieval failed most often.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Conversations {
    /// The conversations, the one with the most failures first.
    #[serde(rename = "data")]
    pub conversations: Vec<Conversation>,
    /// The page that continues this one. `None`: this is the last one.
    #[cfg_attr(feature = "http", schema(value_type = Option<String>))]
    pub next: Option<ListCursor>,
    /// `true` if there is such a page.
    pub has_more: bool,
    /// The part of the failures that the read visited.
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
    #[serde(serialize_with = "crate::model::time::serialize_moment")]
    #[cfg_attr(feature = "http", schema(value_type = String, format = DateTime))]
    pub first_seen: SystemTime,
    /// The last of them.
    #[serde(serialize_with = "crate::model::time::serialize_moment")]
    #[cfg_attr(feature = "http", schema(value_type = String, format = DateTime))]
    pub last_seen: SystemTime,
}

impl FailureReader {
    /// A page of the conversations with failures in `range`, the one with the most first. Looks at
    /// the newest million failures, and tells the first 100,000 conversations apart.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn conversations(
        &self,
        range: TimeRange,
        page: impl Into<ListRequest>,
    ) -> Result<Conversations, ReadError> {
        let page = page.into();
        page.validate()?;
        let time_budget = self.timeout / 2;
        let run = move |snapshot: &mut dyn Snapshot, _| {
            conversations(snapshot, range, page, Deadline::after(time_budget))
        };
        self.reads.run(Lane::Heavy, self.timeout, run).await
    }
}

fn conversations(
    snapshot: &mut dyn Snapshot,
    range: TimeRange,
    page: ListRequest,
    deadline: Deadline,
) -> Result<Conversations, ReadError> {
    // Failures, first and last.
    let mut found: HashMap<String, (u64, Timestamp, Timestamp)> = HashMap::new();
    let mut too_many = false;
    let mut scanned = Scanned {
        range,
        failures: 0,
        complete: true,
    };
    snapshot.conversations(
        range.from..range.end(Timestamp::now()),
        &mut |created_at, conversation_id| {
            if let Some(id) = conversation_id {
                if found.len() >= MAX_CONVERSATIONS && !found.contains_key(&id) {
                    too_many = true;
                } else {
                    let (failures, first, _) =
                        found.entry(id).or_insert((0, created_at, created_at));
                    *failures += 1;
                    *first = created_at;
                }
            }
            scanned.next(created_at, deadline)
        },
    )?;
    scanned.complete &= !too_many;
    let mut conversations: Vec<Conversation> = found
        .into_iter()
        .map(|(conversation_id, (failures, first, last))| Conversation {
            conversation_id,
            failures,
            first_seen: first.into(),
            last_seen: last.into(),
        })
        .collect();
    conversations.sort_by(|one, other| {
        (
            Reverse(one.failures),
            Reverse(one.last_seen),
            &one.conversation_id,
        )
            .cmp(&(
                Reverse(other.failures),
                Reverse(other.last_seen),
                &other.conversation_id,
            ))
    });
    let log_id = snapshot.log_of_any_version()?.log_id;
    let (conversations, next) = page.cut(conversations.into_iter(), log_id)?;
    Ok(Conversations {
        conversations,
        next,
        has_more: next.is_some(),
        scanned,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryLog;

    #[test]
    fn conversations_after_the_deadline_are_marked_incomplete() {
        let mut log = MemoryLog::default();
        (1..=2000).map(Timestamp::from_millis).for_each(|at| {
            log.fail(at, |failure| failure.conversation_id = Some("c".into()));
        });
        let mut found = |seconds| {
            let deadline = Deadline::after(std::time::Duration::from_secs(seconds));
            let found = conversations(&mut log, TimeRange::all(), 10.into(), deadline).unwrap();
            (found.conversations[0].failures, found.scanned.complete)
        };
        assert_eq!(found(0), (1024, false));
        assert_eq!(found(600), (2000, true));
    }
}
