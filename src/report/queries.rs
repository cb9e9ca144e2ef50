//! Which questions fail most: grouped by their text, and then with those that are nearly the same.

use std::collections::HashMap;
use std::fmt;
use std::time::SystemTime;
#[cfg(feature = "http")]
use std::time::{Duration, Instant};

use diesel::connection::DefaultLoadingMode;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Float, Nullable, Text};
use serde::{Deserialize, Serialize};

use super::grouping::{Asked, TREND, Texts, normalized};
use super::rates::clipped;
use super::scan::{MAX_ROWS, Scanned};
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
    /// `true` if not all failures of the range were looked at: counts are lower bounds then, and groups may be missing.
    pub partial: bool,
    /// `true` if the rest is being looked at: the same request gets more later. Of a library call, always `false`.
    pub in_progress: bool,
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
            let deadline = Deadline::after(patience);
            let mut each_slice = |_: &mut SqliteConnection, _: &Ranking<'_>| Ok(deadline.passed());
            top_queries(conn, &Wanted { range, filter: &filter, limit, now: clock::now() }, &mut each_slice)
        };
        self.pool.run(self.timeout, run).await
    }

    /// The same without haste, for several who wait. `publish` is given what there is by then, after `first` and then at
    /// intervals that double. The work ends early if `is_wanted` says so.
    #[cfg(feature = "http")]
    pub(crate) async fn rank_queries(
        &self,
        range: TimeRange,
        filter: QueryFilter,
        limit: usize,
        first: Duration,
        is_wanted: impl Fn() -> bool + Send + 'static,
        publish: impl Fn(TopQueries) + Send + 'static,
    ) -> Result<TopQueries, ReadError> {
        let run = move |conn: &mut SqliteConnection, deadline: Deadline| {
            let (mut next, mut pause) = (Instant::now() + first, first);
            let mut each_slice = |conn: &mut SqliteConnection, ranking: &Ranking<'_>| {
                if !is_wanted() {
                    return Err(ReadError::TimedOut);
                }
                if Instant::now() >= next {
                    publish(TopQueries { in_progress: true, ..ranking.so_far(conn)? });
                    pause *= 2;
                    next = Instant::now() + pause;
                }
                Ok(deadline.passed())
            };
            top_queries(conn, &Wanted { range, filter: &filter, limit, now: clock::now() }, &mut each_slice)
        };
        self.pool.run(LONGEST_RANKING, run).await
    }
}

impl QueryFilter {
    fn lets_through(&self, row: &QueryRow) -> bool {
        self.failure_type.is_none_or(|wanted| row.failure_type == wanted.as_str())
            && self.strategy.as_deref().is_none_or(|wanted| row.retrieval_strategy == wanted)
    }
}

/// Failures that one statement reads. Between two, others get a turn, and those who wait get what there is.
const SLICE: u64 = 20_000;
/// Longest time of a ranking that several wait for.
#[cfg(feature = "http")]
const LONGEST_RANKING: Duration = Duration::from_secs(120);

const QUERIES: &str = "SELECT id, created_at, failure_type, retrieval_strategy, query_text, top_score \
     FROM memory_retrieval_failures WHERE (created_at, id) < (?1, ?2) \
     ORDER BY created_at DESC, id DESC LIMIT ?3";
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

/// What is ranked.
struct Wanted<'a> {
    range: TimeRange,
    filter: &'a QueryFilter,
    limit: usize,
    now: i64,
}

/// A ranking, as far as failures were read.
struct Ranking<'a> {
    wanted: &'a Wanted<'a>,
    texts: Texts,
    scanned: Scanned,
    /// Everything was read that the groups are made of.
    is_whole: bool,
}

/// Reads the log slice by slice, the newest failures first. `each_slice` ends the reading by returning `true`.
///
/// Failures outside of the range are read as well: groups are made of the whole log, so that they are the same ones in
/// every range, and none shrinks when the range grows.
fn top_queries(
    conn: &mut SqliteConnection,
    wanted: &Wanted<'_>,
    each_slice: &mut dyn FnMut(&mut SqliteConnection, &Ranking<'_>) -> Result<bool, ReadError>,
) -> Result<TopQueries, ReadError> {
    let Wanted { range, filter, now, .. } = *wanted;
    // Failures are kept for less time than attempts: there is a first one.
    let parts = clipped(conn, range, now)?;
    let directions: HashMap<String, ScoreDirection> = attempts::settings(conn)?
        .into_iter()
        .map(|settings| (settings.strategy.to_string(), settings.direction.unwrap_or_default()))
        .collect();
    let scanned = Scanned { range, failures: 0, complete: false };
    let mut ranking = Ranking { wanted, texts: Texts::new(marks::all(conn)?), scanned, is_whole: false };
    let range_end = range.end(clock::now());
    let mut end = (i64::MAX, i64::MAX);
    let mut all = 0;
    loop {
        let rows = diesel::sql_query(QUERIES)
            .bind::<BigInt, _>(end.0)
            .bind::<BigInt, _>(end.1)
            .bind::<BigInt, _>(i64::try_from(SLICE).unwrap_or(i64::MAX))
            .load_iter::<QueryRow, DefaultLoadingMode>(conn)?;
        let mut read = 0;
        for row in rows {
            let row = row?;
            (read, end) = (read + 1, (row.created_at, row.id));
            let is_in_range = (range.from..range_end).contains(&row.created_at);
            ranking.scanned.failures += u64::from(is_in_range);
            let is_counted = is_in_range && filter.lets_through(&row);
            ranking.texts.add(&Asked {
                id: row.id,
                at: row.created_at,
                text: &row.query_text,
                score: row.top_score,
                direction: directions.get(&row.retrieval_strategy).copied().unwrap_or_default(),
                part: is_counted.then(|| part_of(parts, row.created_at)),
            });
        }
        all += read;
        if read < SLICE {
            (ranking.scanned.complete, ranking.is_whole) = (true, true);
            break;
        }
        if all >= MAX_ROWS {
            // Nothing of the range is missing if it begins later.
            (ranking.scanned.complete, ranking.is_whole) = (range.from > end.0, true);
            break;
        }
        ranking.scanned.range.from = range.from.max(end.0);
        if each_slice(conn, &ranking)? {
            break;
        }
    }
    ranking.scanned.range.from = if ranking.scanned.complete { range.from } else { range.from.max(end.0) };
    ranking.so_far(conn)
}

impl Ranking<'_> {
    /// Groups what was read. Before everything is read, texts stand by themselves: which ones belong together is not known.
    fn so_far(&self, conn: &mut SqliteConnection) -> Result<TopQueries, ReadError> {
        let Wanted { filter, limit, .. } = *self.wanted;
        let texts = self.texts.clone();
        let found = if self.is_whole { texts.grouped() } else { texts.by_themselves() };
        let mut groups = Vec::new();
        let wanted = found.into_iter().filter(|group| filter.status.is_none_or(|wanted| group.status().0 == wanted));
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
        let (partial, ungrouped) = (!self.scanned.complete, self.texts.ungrouped);
        Ok(TopQueries { partial, in_progress: false, groups, scanned: self.scanned, ungrouped })
    }
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
    use crate::report::texts_are_nearly_the_same;
    use crate::store::{migrated, plan};

    #[test]
    fn every_statement_uses_the_index_that_was_meant() {
        let mut conn = migrated();
        let by_time = "SEARCH memory_retrieval_failures USING INDEX memory_retrieval_failures_created_at \
             (created_at<?)";
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
            let filter = QueryFilter::default();
            let wanted = Wanted { range: TimeRange::all(), filter: &filter, limit: 10, now: 10_000 };
            let TopQueries { partial, groups, scanned, .. } =
                top_queries(&mut conn, &wanted, &mut |_, _| Ok(true)).unwrap();
            assert_eq!(partial, !scanned.complete);
            (groups.first().map(|group| group.count), scanned.failures, scanned.complete)
        };
        assert_eq!(ranked(10), (Some(10), 10, true));
        assert_eq!(ranked(19_989), (Some(19_999), 19_999, true));
        assert_eq!(ranked(1), (Some(20_000), 20_000, false));
    }

    #[test]
    fn parts_of_a_ranking_are_lower_bounds_and_the_whole_is_the_same_each_time() {
        let mut conn = migrated();
        // Frequent and rare texts, in groups with others that are similar, over the whole range.
        diesel::sql_query(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 70000) \
             INSERT INTO memory_retrieval_failures (event_id, failure_type, retrieval_strategy, query_text, query_len, \
             created_at) SELECT randomblob(16), 'no_hit', 's', 'how do i reset password number ' || (n * n % 97) || \
             CASE n % 3 WHEN 0 THEN ' please' ELSE '' END, 1, n / 5 FROM n",
        )
        .execute(&mut conn)
        .unwrap();
        let filter = QueryFilter::default();
        let wanted = Wanted { range: TimeRange::all(), filter: &filter, limit: 1000, now: 100_000 };
        let counts = |ranking: &TopQueries| -> HashMap<String, u64> {
            ranking.groups.iter().map(|group| (group.key.clone(), group.count)).collect()
        };
        let mut parts = Vec::new();
        let whole = top_queries(&mut conn, &wanted, &mut |conn, ranking| {
            parts.push(ranking.so_far(conn)?);
            Ok(false)
        })
        .unwrap();
        assert_eq!((whole.partial, whole.scanned.failures, parts.len()), (false, 70_000, 3));
        assert_eq!(whole.groups.iter().map(|group| group.count).sum::<u64>(), 70_000);
        for (part, nth) in parts.iter().zip(1..) {
            assert!(part.partial && part.scanned.failures == nth * SLICE, "{:?}", part.scanned);
            let of_part: u64 = part.groups.iter().map(|group| group.count).sum();
            assert_eq!(of_part, part.scanned.failures);
            for text in &part.groups {
                let mut groups = whole.groups.iter();
                assert!(
                    groups.any(|group| group.count >= text.count && texts_are_nearly_the_same(&group.key, &text.key))
                );
            }
        }
        for _ in 0..3 {
            let again = top_queries(&mut conn, &wanted, &mut |_, _| Ok(false)).unwrap();
            assert_eq!(counts(&again), counts(&whole));
            assert_eq!(again.groups, whole.groups, "also in their order");
        }
        // A ranking that nobody wants ends.
        let ended = top_queries(&mut conn, &wanted, &mut |_, _| Err(ReadError::TimedOut));
        assert!(matches!(ended, Err(ReadError::TimedOut)));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]
        #[test]
        fn groups_are_the_same_in_every_range_and_none_shrinks_when_it_grows(
            rows in proptest::collection::vec((0_i64..1000, "[a-d]( [a-f]){2,6}"), 1..120),
            cuts in proptest::collection::vec(0_i64..1000, 3),
        ) {
            let mut conn = migrated();
            for (at, text) in &rows {
                diesel::sql_query(
                    "INSERT INTO memory_retrieval_failures (event_id, failure_type, retrieval_strategy, query_text, \
                     query_len, created_at) VALUES (randomblob(16), 'no_hit', 's', ?, 1, ?)",
                )
                .bind::<Text, _>(text)
                .bind::<BigInt, _>(at)
                .execute(&mut conn)
                .unwrap();
            }
            let mut cuts = cuts;
            cuts.sort_unstable_by(|one, other| other.cmp(one));
            let mut before: HashMap<String, u64> = HashMap::new();
            for from in cuts.into_iter().chain([0]) {
                let (filter, range) = (QueryFilter::default(), TimeRange { from, to: 1000, until_now: false });
                let wanted = Wanted { range, filter: &filter, limit: 1000, now: 1000 };
                let ranking = top_queries(&mut conn, &wanted, &mut |_, _| Ok(false)).unwrap();
                let counts: HashMap<String, u64> =
                    ranking.groups.iter().map(|group| (group.key.clone(), group.count)).collect();
                proptest::prop_assert_eq!(counts.values().sum::<u64>(), rows.iter().filter(|(at, _)| *at >= from).count() as u64);
                for (key, count) in &before {
                    proptest::prop_assert!(counts.get(key) >= Some(count), "{} from {}", key, from);
                }
                before = counts;
            }
        }
    }
}
