//! Ranks failing queries: grouped by their text, then with similar ones.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::SystemTime;
#[cfg(feature = "http")]
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::ReadError;
use crate::model::failure::Place;
use crate::model::outcome::{FailuresByType, RetrievalFailureType};
use crate::model::query_status::QueryStatus;
use crate::model::time::{TimeRange, Timestamp};
use crate::report::FailureReader;
use crate::report::facets::{StrategyCount, StrategyNames};
use crate::report::grouping::{FailedText, TREND, TextGroup, Texts};
use crate::report::list::{ListCursor, ListRequest};
use crate::report::rates::clipped;
use crate::report::scan::{MAX_ROWS, Scanned};
use crate::rollup::ScoreDirection;
use crate::similarity::{Folded, contains, normalized, squashed};
use crate::store::reads::{Deadline, Lane};
use crate::store::snapshot::{FailedQuery, Snapshot};
use std::ops::ControlFlow;

/// The queries that failed most often.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct TopQueries {
    /// `true` if not all failures of the range were looked at: counts are lower bounds then, and
    /// groups may be missing.
    pub partial: bool,
    /// `true` if the rest is being looked at: the same request gets more later. Of a library call,
    /// always `false`.
    pub in_progress: bool,
    /// The groups, the largest first.
    #[serde(rename = "data")]
    pub groups: Vec<QueryGroup>,
    /// The page that continues this one. `None`: this is the last one.
    #[cfg_attr(feature = "http", schema(value_type = Option<String>))]
    pub next: Option<ListCursor>,
    /// `true` if there is such a page.
    pub has_more: bool,
    /// Number of groups on all pages.
    pub total: u64,
    /// Number of groups by status, whichever status the filter selects.
    pub statuses: StatusCounts,
    /// The part of the failures that the read visited.
    pub scanned: Scanned,
    /// Failures that belong to no group, because there were more than 100,000 different texts.
    pub ungrouped: u64,
}

/// Number of groups of each status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct StatusCounts {
    /// Groups that need work.
    pub open: u64,
    /// Of these, groups that were resolved and failed since.
    pub reopened: u64,
    /// Groups that were fixed.
    pub resolved: u64,
    /// Groups that need no work.
    pub ignored: u64,
}

/// Queries that are the same apart from case, punctuation, spaces, polite words and a typing error.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct QueryGroup {
    /// Identifies the group: 16 hexadecimal digits that stand for its key.
    pub id: String,
    /// The normal form of the text by which the group is known: of several, the smallest.
    #[serde(skip)]
    pub key: String,
    /// The normal forms of its texts, if there are several, the most frequent first.
    #[serde(skip)]
    pub(crate) members: Vec<String>,
    /// The newest query with the most frequent text, as it was sent.
    pub example: String,
    /// Failures in the group.
    pub count: u64,
    /// Different texts in the group, apart from case, punctuation, spaces and polite words.
    pub texts: u64,
    /// Texts that joined the group after its status was set. If there are any, the group is `open`.
    pub new_texts: u64,
    /// When the first of them failed, of those that were looked at.
    #[serde(serialize_with = "crate::model::time::serialize_moment")]
    #[cfg_attr(feature = "http", schema(value_type = String, format = DateTime))]
    pub first_seen: SystemTime,
    /// When the last one failed.
    #[serde(serialize_with = "crate::model::time::serialize_moment")]
    #[cfg_attr(feature = "http", schema(value_type = String, format = DateTime))]
    pub last_seen: SystemTime,
    /// The best score that any of them found.
    pub best_score: Option<f32>,
    /// Failures by type.
    pub types: FailuresByType,
    /// Failures by strategy, the one with the most failures first.
    pub strategies: Vec<StrategyCount>,
    /// Failures in each of 16 parts of the range, of equal length, the oldest first.
    pub trend: [u32; TREND],
    /// The status that was set last; `open` if a query of the group failed after it was
    /// resolved, or if a text joined the group later.
    pub status: QueryStatus,
    /// `true` if the group was resolved, and failed since.
    pub reopened: bool,
}

/// Order of the groups of failing queries. Equal groups are ordered by their failures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum QueryOrder {
    /// The largest group first.
    #[default]
    Failures,
    /// Reopened groups first, then the largest one.
    Attention,
    /// The group that failed last first.
    LastSeen,
    /// The group that failed for the first time most recently first.
    FirstSeen,
}

/// Selects failing queries; default: all.
#[derive(Debug, Clone, Default)]
pub struct QueryFilter {
    /// Only failures of one of these types. Empty: of any.
    pub failure_type: Vec<RetrievalFailureType>,
    /// Only failures of one of these strategies. Empty: of any.
    pub retrieval_strategy: Vec<String>,
    /// Only groups with this status.
    pub status: Option<QueryStatus>,
    /// Only failures whose query contains this text, in upper or lower case of any script.
    pub text: Option<String>,
    /// Order of the groups.
    pub order: QueryOrder,
}

impl FailureReader {
    /// A page of the groups of failing queries in `range` that `filter` lets through, the largest
    /// first. Looks at the newest million failures at most.
    ///
    /// Timeouts and errors say little about a query: ask for
    /// [`NoHit`](RetrievalFailureType::NoHit) or
    /// [`LowConfidence`](RetrievalFailureType::LowConfidence) to leave them out.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn top_queries(
        &self,
        range: TimeRange,
        filter: QueryFilter,
        page: impl Into<ListRequest>,
    ) -> Result<TopQueries, ReadError> {
        let page = page.into();
        page.validate()?;
        let time_budget = self.timeout / 2;
        let run = move |snapshot: &mut dyn Snapshot, _| {
            let deadline = Deadline::after(time_budget);
            let mut each_slice = |_: &mut dyn Snapshot, _: &Ranking<'_>| Ok(deadline.passed());
            top_queries(
                snapshot,
                &Wanted {
                    range,
                    filter: &filter,
                    page,
                    now: Timestamp::now(),
                },
                &mut each_slice,
            )
        };
        self.reads.run(Lane::Heavy, self.timeout, run).await
    }

    /// Ranks the queries for several waiting clients, without their timeout. Calls `publish` with
    /// the partial ranking after `first`, then at intervals that double. Ends early if `is_wanted`
    /// returns `false`.
    #[cfg(feature = "http")]
    pub(crate) async fn rank_queries(
        &self,
        range: TimeRange,
        filter: QueryFilter,
        page: ListRequest,
        first: Duration,
        is_wanted: impl Fn() -> bool + Send + 'static,
        publish: impl Fn(TopQueries) + Send + 'static,
    ) -> Result<TopQueries, ReadError> {
        let run = move |snapshot: &mut dyn Snapshot, deadline: Deadline| {
            let (mut next, mut pause) = (Instant::now() + first, first);
            let mut each_slice = |snapshot: &mut dyn Snapshot, ranking: &Ranking<'_>| {
                if !is_wanted() {
                    return Err(ReadError::TimedOut);
                }
                if Instant::now() >= next {
                    publish(TopQueries {
                        in_progress: true,
                        ..ranking.so_far(snapshot)?
                    });
                    pause *= 2;
                    next = Instant::now() + pause;
                }
                Ok(deadline.passed())
            };
            top_queries(
                snapshot,
                &Wanted {
                    range,
                    filter: &filter,
                    page,
                    now: Timestamp::now(),
                },
                &mut each_slice,
            )
        };
        self.reads.run(Lane::Heavy, LONGEST_RANKING, run).await
    }
}

impl QueryFilter {
    fn lets_through(&self, row: &FailedQuery, text: Option<&Folded>) -> bool {
        let Self {
            failure_type,
            retrieval_strategy,
            status: _,
            text: _,
            order: _,
        } = self;
        (failure_type.is_empty()
            || failure_type
                .iter()
                .any(|wanted| row.failure_type == wanted.as_str()))
            && (retrieval_strategy.is_empty()
                || retrieval_strategy.contains(&row.retrieval_strategy))
            && text.is_none_or(|text| contains(&row.query_text, text.as_str()))
    }
}

impl QueryOrder {
    /// Sorts groups that are in the order of their failures.
    fn sort(self, groups: &mut [&TextGroup]) {
        match self {
            Self::Failures => {}
            Self::Attention => groups.sort_by_key(|group| !group.status().1),
            Self::LastSeen => groups.sort_by_key(|group| Reverse(group.last_seen)),
            Self::FirstSeen => groups.sort_by_key(|group| Reverse(group.first_seen)),
        }
    }
}

impl StatusCounts {
    fn add(&mut self, (status, reopened): (QueryStatus, bool)) {
        match status {
            QueryStatus::Open => self.open += 1,
            QueryStatus::Resolved => self.resolved += 1,
            QueryStatus::Ignored => self.ignored += 1,
        }
        self.reopened += u64::from(reopened);
    }
}

/// Returns the id of the group with this key, or of a text of the group. Every text has an id, and
/// the group has that of one of its texts.
pub(crate) fn group_id(key: &str) -> String {
    let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, squashed(key).as_bytes());
    hash.simple().to_string().chars().take(16).collect()
}

impl FailureReader {
    /// Returns the normal forms of the texts in the group of a query, the most frequent first.
    /// Empty: none of the newest million failures is of this text.
    pub(crate) async fn group_of(&self, query: &str) -> Result<Vec<String>, ReadError> {
        let normal = normalized(query);
        let run = move |snapshot: &mut dyn Snapshot, deadline: Deadline| {
            let mut texts = Texts::default();
            let mut end = Place::END;
            for _ in 0..MAX_ROWS / SLICE {
                deadline.check()?;
                let mut read = 0;
                snapshot.queries(end, SLICE, &mut |row| {
                    (read, end) = (read + 1, row.place);
                    texts.add(&FailedText {
                        id: row.place.id,
                        at: row.place.created_at,
                        text: &row.query_text,
                        score: None,
                        direction: ScoreDirection::default(),
                        failure_type: None,
                        strategy: 0,
                        part: None,
                    });
                    ControlFlow::Continue(())
                })?;
                if read < SLICE {
                    break;
                }
            }
            Ok(texts.group_of(&normal))
        };
        self.reads.run(Lane::Heavy, self.timeout, run).await
    }

    /// Returns the key of the group with this id, which is that of one of the newest million
    /// failures, or of a query with a status.
    #[cfg(feature = "http")]
    pub(crate) async fn key_of_group(&self, id: String) -> Result<Option<String>, ReadError> {
        let run = move |snapshot: &mut dyn Snapshot, deadline: Deadline| {
            if let Some((key, _)) = snapshot
                .statuses()?
                .into_iter()
                .find(|(key, _)| group_id(key) == id)
            {
                return Ok(Some(key));
            }
            let mut end = Place::END;
            for _ in 0..MAX_ROWS / SLICE {
                deadline.check()?;
                let (mut read, mut found) = (0, None);
                snapshot.queries(end, SLICE, &mut |row| {
                    (read, end) = (read + 1, row.place);
                    found = Some(normalized(&row.query_text)).filter(|key| group_id(key) == id);
                    if found.is_some() {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                })?;
                if found.is_some() || read < SLICE {
                    return Ok(found);
                }
            }
            Ok(None)
        };
        self.reads.run(Lane::Heavy, self.timeout, run).await
    }
}

/// Failures that one statement reads. Between two statements other reads get a turn, and waiting
/// clients get the partial ranking.
const SLICE: u64 = 20_000;
/// Longest time of a ranking that several wait for.
#[cfg(feature = "http")]
const LONGEST_RANKING: Duration = Duration::from_secs(120);

/// Parameters of a ranking.
struct Wanted<'a> {
    range: TimeRange,
    filter: &'a QueryFilter,
    page: ListRequest,
    now: Timestamp,
}

/// A ranking, as far as failures were read.
struct Ranking<'a> {
    wanted: &'a Wanted<'a>,
    texts: Texts,
    strategies: StrategyNames,
    scanned: Scanned,
    /// Everything was read that the groups are made of.
    is_whole: bool,
}

/// Reads the log slice by slice, the newest failures first. `each_slice` ends the reading by
/// returning `true`.
///
/// Failures outside of the range are read as well: groups are made of the whole log, so that they
/// are the same ones in every range, and none shrinks when the range grows.
fn top_queries(
    snapshot: &mut dyn Snapshot,
    wanted: &Wanted<'_>,
    each_slice: &mut dyn FnMut(&mut dyn Snapshot, &Ranking<'_>) -> Result<bool, ReadError>,
) -> Result<TopQueries, ReadError> {
    let Wanted {
        range, filter, now, ..
    } = *wanted;
    // Failures are kept for less time than attempts: there is a first one.
    let parts = clipped(snapshot, range, now)?;
    let directions: HashMap<String, ScoreDirection> = snapshot
        .strategies()?
        .into_iter()
        .map(|settings| {
            (
                settings.strategy.to_string(),
                settings.direction.unwrap_or_default(),
            )
        })
        .collect();
    let scanned = Scanned {
        range,
        failures: 0,
        complete: false,
    };
    let mut ranking = Ranking {
        wanted,
        texts: Texts::new(snapshot.statuses()?),
        strategies: StrategyNames::default(),
        scanned,
        is_whole: false,
    };
    let range_end = range.end(Timestamp::now());
    let text = filter.text.as_deref().filter(|text| !text.is_empty());
    let text = text.map(Folded::new);
    let mut end = Place::END;
    let mut all = 0;
    loop {
        let mut read = 0;
        snapshot.queries(end, SLICE, &mut |row| {
            (read, end) = (read + 1, row.place);
            let at = row.place.created_at;
            let is_in_range = (range.from..range_end).contains(&at);
            ranking.scanned.failures += u64::from(is_in_range);
            let is_counted = is_in_range && filter.lets_through(&row, text.as_ref());
            ranking.texts.add(&FailedText {
                id: row.place.id,
                at,
                text: &row.query_text,
                score: row.top_score,
                direction: directions
                    .get(&row.retrieval_strategy)
                    .copied()
                    .unwrap_or_default(),
                failure_type: RetrievalFailureType::parse(&row.failure_type),
                strategy: ranking.strategies.number(&row.retrieval_strategy),
                part: is_counted.then(|| part_of(parts, at)),
            });
            ControlFlow::Continue(())
        })?;
        all += read;
        if read < SLICE {
            (ranking.scanned.complete, ranking.is_whole) = (true, true);
            break;
        }
        if all >= MAX_ROWS {
            // Nothing of the range is missing if it begins later.
            (ranking.scanned.complete, ranking.is_whole) = (range.from > end.created_at, true);
            break;
        }
        ranking.scanned.range.from = range.from.max(end.created_at);
        if each_slice(snapshot, &ranking)? {
            break;
        }
    }
    ranking.scanned.range.from = if ranking.scanned.complete {
        range.from
    } else {
        range.from.max(end.created_at)
    };
    ranking.finished(snapshot)
}

impl Ranking<'_> {
    /// Lists what was read. Before everything is read, texts stand by themselves: which ones belong
    /// together is not known.
    fn so_far(&self, snapshot: &mut dyn Snapshot) -> Result<TopQueries, ReadError> {
        self.list(snapshot, &self.texts.by_themselves())
    }

    /// Groups what was read, if that is everything. In place: there may be many texts.
    fn finished(mut self, snapshot: &mut dyn Snapshot) -> Result<TopQueries, ReadError> {
        if !self.is_whole {
            return self.so_far(snapshot);
        }
        let ungrouped = self.texts.ungrouped;
        let groups = std::mem::take(&mut self.texts).grouped();
        self.texts.ungrouped = ungrouped;
        self.list(snapshot, &groups.iter().collect::<Vec<_>>())
    }

    fn list(
        &self,
        snapshot: &mut dyn Snapshot,
        found: &[&TextGroup],
    ) -> Result<TopQueries, ReadError> {
        let Wanted { filter, page, .. } = *self.wanted;
        let mut groups = Vec::new();
        let mut statuses = StatusCounts::default();
        for group in found {
            statuses.add(group.status());
        }
        let mut wanted: Vec<&TextGroup> = found
            .iter()
            .filter(|group| {
                filter
                    .status
                    .is_none_or(|wanted| group.status().0 == wanted)
            })
            .copied()
            .collect();
        filter.order.sort(&mut wanted);
        let total = wanted.len() as u64;
        let log_id = snapshot.log_of_any_version()?.log_id;
        let (wanted, next) = page.cut(wanted.into_iter(), log_id)?;
        for group in wanted {
            let Some(query_text) = snapshot.query_text(group.newest_id)? else {
                continue;
            };
            let (status, reopened) = group.status();
            let key = match group.smallest() {
                Some(smallest) => smallest.to_owned(),
                None => normalized(&query_text),
            };
            groups.push(QueryGroup {
                id: group_id(&key),
                key,
                members: group.shown_members().collect(),
                example: query_text,
                count: group.count,
                texts: group.texts,
                new_texts: group.new_texts(),
                first_seen: group.first_seen.into(),
                last_seen: group.last_seen.into(),
                best_score: group.best_score,
                types: group.facets.types(),
                strategies: group.facets.strategies(&self.strategies),
                trend: group.trend,
                status,
                reopened,
            });
        }
        let (partial, ungrouped) = (!self.scanned.complete, self.texts.ungrouped);
        Ok(TopQueries {
            partial,
            in_progress: false,
            groups,
            next,
            has_more: next.is_some(),
            total,
            statuses,
            scanned: self.scanned,
            ungrouped,
        })
    }
}

/// In which of the parts of `range` a moment is.
fn part_of(range: TimeRange, at: Timestamp) -> usize {
    let (since, length) = (at - range.from, range.to - range.from);
    let part = i128::from(since) * TREND as i128 / i128::from(length.max(1));
    usize::try_from(part).map_or(0, |part| part.min(TREND - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::similarity::Similar;
    use crate::store::memory::MemoryLog;

    #[test]
    fn ranking_after_its_deadline_is_marked_incomplete() {
        let (mut log, mut failures) = (MemoryLog::default(), 0);
        let mut ranked = |rows: i64| {
            (1..=rows).for_each(|at| log.fail(Timestamp::from_millis(failures + at), |_| {}));
            failures += rows;
            let filter = QueryFilter::default();
            let wanted = Wanted {
                range: TimeRange::all(),
                filter: &filter,
                page: 10.into(),
                now: Timestamp::from_millis(100_000),
            };
            let TopQueries {
                partial,
                groups,
                scanned,
                ..
            } = top_queries(&mut log, &wanted, &mut |_, _| Ok(true)).unwrap();
            assert_eq!(partial, !scanned.complete);
            (
                groups.first().map(|group| group.count),
                scanned.failures,
                scanned.complete,
            )
        };
        assert_eq!(ranked(10), (Some(10), 10, true));
        assert_eq!(ranked(19_989), (Some(19_999), 19_999, true));
        assert_eq!(ranked(1), (Some(20_000), 20_000, false));
    }

    #[test]
    fn partial_rankings_are_lower_bounds_and_whole_ones_are_equal() {
        let mut log = MemoryLog::default();
        // Frequent and rare texts, in groups with others that are similar, over the whole range.
        for nth in 1..=70_000 {
            let please = if nth % 3 == 0 { " please" } else { "" };
            let text = format!("how do i reset password number {}{please}", nth * nth % 97);
            log.fail(Timestamp::from_millis(nth / 5), |failure| {
                failure.query_text = text;
            });
        }
        let filter = QueryFilter::default();
        let wanted = Wanted {
            range: TimeRange::all(),
            filter: &filter,
            page: 1000.into(),
            now: Timestamp::from_millis(100_000),
        };
        let counts = |ranking: &TopQueries| -> HashMap<String, u64> {
            ranking
                .groups
                .iter()
                .map(|group| (group.key.clone(), group.count))
                .collect()
        };
        let mut parts = Vec::new();
        let whole = top_queries(&mut log, &wanted, &mut |snapshot, ranking| {
            parts.push(ranking.so_far(snapshot)?);
            Ok(false)
        })
        .unwrap();
        assert_eq!(
            (whole.partial, whole.scanned.failures, parts.len()),
            (false, 70_000, 3)
        );
        assert_eq!(
            whole.groups.iter().map(|group| group.count).sum::<u64>(),
            70_000
        );
        for (part, nth) in parts.iter().zip(1..) {
            assert!(
                part.partial && part.scanned.failures == nth * SLICE,
                "{:?}",
                part.scanned
            );
            let of_part: u64 = part.groups.iter().map(|group| group.count).sum();
            assert_eq!(of_part, part.scanned.failures);
            for text in &part.groups {
                let mut groups = whole.groups.iter();
                assert!(groups.any(|group| group.count >= text.count
                    && Similar::to([group.key.as_str()].into_iter()).has(&text.key)));
            }
        }
        for _ in 0..3 {
            let again = top_queries(&mut log, &wanted, &mut |_, _| Ok(false)).unwrap();
            assert_eq!(counts(&again), counts(&whole));
            assert_eq!(again.groups, whole.groups, "also in their order");
        }
        // A ranking without clients ends.
        let ended = top_queries(&mut log, &wanted, &mut |_, _| Err(ReadError::TimedOut));
        assert!(matches!(ended, Err(ReadError::TimedOut)));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]
        #[test]
        fn groups_are_equal_in_every_range_and_never_shrink_as_it_grows(
            rows in proptest::collection::vec((0_i64..1000, "[a-d]( [a-f]){2,6}"), 1..120),
            cuts in proptest::collection::vec(0_i64..1000, 3),
        ) {
            let mut log = MemoryLog::default();
            for (at, text) in &rows {
                log.fail(Timestamp::from_millis(*at), |failure| failure.query_text = text.clone());
            }
            let mut cuts = cuts;
            cuts.sort_unstable_by(|one, other| other.cmp(one));
            let mut before: HashMap<String, u64> = HashMap::new();
            for from in cuts.into_iter().chain([0]) {
                let now = Timestamp::from_millis(1000);
                let (filter, range) = (
                    QueryFilter::default(),
                    TimeRange { from: Timestamp::from_millis(from), to: now, until_now: false },
                );
                let wanted = Wanted { range, filter: &filter, page: 1000.into(), now };
                let ranking = top_queries(&mut log, &wanted, &mut |_, _| Ok(false)).unwrap();
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
