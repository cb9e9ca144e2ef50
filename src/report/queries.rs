//! Which questions fail most: grouped by their text, and then with those that are nearly the same.

use std::collections::HashMap;
use std::fmt;
use std::time::SystemTime;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Float, Nullable, Text};
use serde::{Deserialize, Serialize};

use super::grouping::{Asked, TREND, Texts, normalized};
use super::rates::clipped;
use super::scan::{Scanned, scan};
use super::{FailureReader, TimeRange, moment};
use crate::attempts::ScoreDirection;
use crate::clock;
use crate::error::ReadError;
use crate::record::RetrievalFailureType;
use crate::store::attempts;
use crate::store::marks;
use crate::store::reader::Deadline;

/// Groups that are returned at most.
const MAX_GROUPS: usize = 1000;
/// Characters of a question whose status is set: no query that is stored has more.
pub(crate) const MAX_QUESTION_CHARACTERS: usize = 512;

/// The questions that failed most often.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct TopQueries {
    /// The groups, the largest first.
    pub groups: Vec<QueryGroup>,
    /// What was looked at.
    pub scanned: Scanned,
    /// Failures that belong to no group, because there were more than 100,000 different texts.
    pub ungrouped: u64,
}

/// Questions that are the same but for case, punctuation and a few words.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct QueryGroup {
    /// Identifies the group: that of its most frequent text, in lower case and without punctuation.
    pub key: String,
    /// The newest question with the most frequent text, as it was asked.
    pub example: String,
    /// Failures in the group.
    pub count: u64,
    /// Different texts in the group.
    pub texts: u64,
    /// When the first of them failed, of those that were looked at.
    #[serde(serialize_with = "super::serialize_moment")]
    #[cfg_attr(feature = "http", schema(value_type = String, format = DateTime))]
    pub first_seen: SystemTime,
    /// When the last one failed.
    #[serde(serialize_with = "super::serialize_moment")]
    #[cfg_attr(feature = "http", schema(value_type = String, format = DateTime))]
    pub last_seen: SystemTime,
    /// The best score that any of them found.
    pub best_score: Option<f32>,
    /// Failures in each of 16 parts of the range, of equal length, the oldest first.
    pub trend: [u32; TREND],
    /// What was said of the group last; `open` if one of its questions failed after it was resolved.
    pub status: QuestionStatus,
    /// Whether it was resolved, and failed again.
    pub reopened: bool,
}

/// What people say of a failing question, or of a group of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "snake_case")]
pub enum QuestionStatus {
    /// Something is to be done about it.
    #[default]
    Open,
    /// It is mended. If it fails again, it is open again.
    Resolved,
    /// Nothing is to be done about it, however often it fails.
    Ignored,
}

impl QuestionStatus {
    /// As it is stored: `open`, `resolved` or `ignored`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Resolved => "resolved",
            Self::Ignored => "ignored",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Open, Self::Resolved, Self::Ignored].into_iter().find(|status| status.as_str() == text)
    }
}

impl fmt::Display for QuestionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which failing questions are wanted; default: all.
#[derive(Debug, Clone, Default)]
pub struct QueryFilter {
    /// Only failures of this type.
    pub failure_type: Option<RetrievalFailureType>,
    /// Only failures of this strategy.
    pub strategy: Option<String>,
    /// Only groups with this status.
    pub status: Option<QuestionStatus>,
}

impl FailureReader {
    /// The `limit` (1 to 1000) largest groups of failing questions in `range` that `filter` lets
    /// through. Looks at the newest million failures at most.
    ///
    /// Timeouts and errors say little about a question: ask for [`NoHit`](RetrievalFailureType::NoHit)
    /// or [`LowConfidence`](RetrievalFailureType::LowConfidence) to leave them out.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn top_queries(
        &self,
        range: TimeRange,
        filter: QueryFilter,
        limit: usize,
    ) -> Result<TopQueries, ReadError> {
        if !(1..=MAX_GROUPS).contains(&limit) {
            let value = limit.to_string();
            return Err(ReadError::Invalid { parameter: "limit", value, expected: "1 to 1000 groups" });
        }
        let patience = self.timeout / 2;
        let run = move |conn: &mut SqliteConnection, _| {
            top_queries(conn, range, &filter, limit, clock::now(), Deadline::after(patience))
        };
        self.pool.run(self.timeout, run).await
    }
}

impl QueryFilter {
    fn lets_through(&self, row: &QueryRow) -> bool {
        self.failure_type.is_none_or(|wanted| row.failure_type == wanted.as_str())
            && self.strategy.as_deref().is_none_or(|wanted| row.retrieval_strategy == wanted)
    }
}

const QUERIES: &str = "SELECT id, created_at, failure_type, retrieval_strategy, query_text, top_score \
     FROM memory_retrieval_failures WHERE created_at >= ?1 AND created_at < ?2 ORDER BY created_at DESC, id DESC";
const QUERY_TEXT: &str = "SELECT query_text FROM memory_retrieval_failures WHERE id = ?1";

#[derive(QueryableByName)]
struct QueryRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = Text)]
    failure_type: String,
    #[diesel(sql_type = Text)]
    retrieval_strategy: String,
    #[diesel(sql_type = Text)]
    query_text: String,
    #[diesel(sql_type = Nullable<Float>)]
    top_score: Option<f32>,
}

fn top_queries(
    conn: &mut SqliteConnection,
    range: TimeRange,
    filter: &QueryFilter,
    limit: usize,
    now: i64,
    deadline: Deadline,
) -> Result<TopQueries, ReadError> {
    // Failures are kept for less time than attempts: there is a first one.
    let parts = clipped(conn, range, now)?;
    let directions: HashMap<String, ScoreDirection> = attempts::settings(conn)?
        .into_iter()
        .map(|settings| (settings.strategy.to_string(), settings.direction.unwrap_or_default()))
        .collect();
    let mut texts = Texts::new(marks::all(conn)?);
    let mut scanned = scan(
        conn,
        QUERIES,
        range,
        deadline,
        |row: &QueryRow| row.created_at,
        |row| {
            if filter.lets_through(&row) {
                texts.add(&Asked {
                    id: row.id,
                    at: row.created_at,
                    text: &row.query_text,
                    score: row.top_score,
                    direction: directions.get(&row.retrieval_strategy).copied().unwrap_or_default(),
                    part: part_of(parts, row.created_at),
                });
            }
        },
    )?;
    let ungrouped = texts.ungrouped;
    let mut groups = Vec::new();
    let (groups_found, all) = texts.grouped(deadline);
    scanned.complete &= all;
    let wanted = groups_found.into_iter().filter(|group| filter.status.is_none_or(|wanted| group.status().0 == wanted));
    for group in wanted.take(limit) {
        #[derive(QueryableByName)]
        struct Example {
            #[diesel(sql_type = Text)]
            query_text: String,
        }
        let example = diesel::sql_query(QUERY_TEXT).bind::<BigInt, _>(group.newest_id);
        let Some(Example { query_text }) = example.get_result(conn).optional()? else { continue };
        let (status, reopened) = group.status();
        groups.push(QueryGroup {
            key: normalized(&query_text),
            example: query_text,
            count: group.count,
            texts: group.texts,
            first_seen: moment(group.first_seen),
            last_seen: moment(group.last_seen),
            best_score: group.best_score,
            trend: group.trend,
            status,
            reopened,
        });
    }
    Ok(TopQueries { groups, scanned, ungrouped })
}

/// In which of the parts of `range` a moment is.
fn part_of(range: TimeRange, at: i64) -> usize {
    let length = i128::from(range.to) - i128::from(range.from);
    let since = i128::from(at) - i128::from(range.from);
    let part = since * TREND as i128 / length.max(1);
    usize::try_from(part).map_or(0, |part| part.min(TREND - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{migrated, plan};

    #[test]
    fn every_statement_uses_the_index_that_was_meant() {
        let mut conn = migrated();
        let by_time = "SEARCH memory_retrieval_failures USING INDEX memory_retrieval_failures_created_at \
             (created_at>? AND created_at<?)";
        assert_eq!(plan(&mut conn, QUERIES), [by_time]);
        let by_id = "SEARCH memory_retrieval_failures USING INTEGER PRIMARY KEY (rowid=?)";
        assert_eq!(plan(&mut conn, QUERY_TEXT), [by_id]);
    }

    #[test]
    fn ranking_after_its_deadline_is_marked_incomplete() {
        let mut conn = migrated();
        let mut ranked = |rows: u32| {
            diesel::sql_query(format!(
                "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows}) \
                 INSERT INTO memory_retrieval_failures (event_id, turn_index, failure_type, retrieval_strategy, \
                 query_text, query_len, result_count, latency_ms, created_at) \
                 SELECT randomblob(16), n, 'no_hit', 's', 'q', 1, 0, 0, n FROM n",
            ))
            .execute(&mut conn)
            .unwrap();
            let late = Deadline::after(std::time::Duration::ZERO);
            let TopQueries { groups, scanned, .. } =
                top_queries(&mut conn, TimeRange::all(), &QueryFilter::default(), 10, 10_000, late).unwrap();
            (groups.first().map(|group| group.count), scanned.failures, scanned.complete)
        };
        // All rows are read, and there is no time to compare them.
        assert_eq!(ranked(10), (Some(10), 10, false));
        assert_eq!(ranked(2000), (Some(1024), 1024, false));
    }
}
