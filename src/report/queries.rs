//! Which questions fail most: grouped by their text, and then with those that are nearly the same.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::SystemTime;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Float, Nullable, Text};
use serde::{Deserialize, Serialize};

use super::rates::clipped;
use super::scan::{Scanned, scan};
use super::{FailureReader, TimeRange, moment};
use crate::attempts::ScoreDirection;
use crate::clock;
use crate::error::ReadError;
use crate::record::RetrievalFailureType;
use crate::store::attempts;
use crate::store::marks::{self, Mark};
use crate::store::reader::Deadline;

/// Different texts that are told apart at most; later ones are only counted.
const MAX_TEXTS: usize = 100_000;
/// Words of a text that are compared: more would make long texts costly, and say little.
const MAX_WORDS: usize = 64;
/// Two texts are nearly the same if this share of their words, together, is common to both.
const SAME: f64 = 0.75;
/// Groups with the same rare word that a text is compared with at most: where more have it, it is
/// not rare, and says little.
const MAX_CANDIDATES: usize = 64;
/// Groups that are returned at most.
const MAX_GROUPS: usize = 1000;
/// Parts of the range in which the failures of a group are counted.
const TREND: usize = 16;

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
        .map(|settings| (settings.strategy.to_string(), settings.direction))
        .collect();
    let marks = marks::all(conn)?.into_iter().map(|(question, mark)| (hash(&question), mark)).collect();
    let mut texts = Texts { marks, ..Texts::default() };
    let mut scanned = scan(
        conn,
        QUERIES,
        range,
        deadline,
        |row: &QueryRow| row.created_at,
        |row| {
            if filter.lets_through(&row) {
                let direction = directions.get(&row.retrieval_strategy).copied().unwrap_or_default();
                texts.add(&row, direction, part_of(parts, row.created_at));
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

/// Failing questions, by their normalised text. Texts are held as hashes of their words, so that
/// it is small whatever was asked.
#[derive(Default)]
struct Texts {
    by_hash: HashMap<u64, usize>,
    texts: Vec<TextGroup>,
    ungrouped: u64,
    /// What was said of texts, by their hash.
    marks: HashMap<u64, Mark>,
}

struct TextGroup {
    count: u64,
    /// Different texts that are counted here.
    texts: u64,
    newest_id: i64,
    first_seen: i64,
    last_seen: i64,
    best_score: Option<f32>,
    direction: ScoreDirection,
    trend: [u32; TREND],
    /// What was said last of any of its texts.
    mark: Option<Mark>,
    /// Hashes of the text's words.
    words: Box<[u32]>,
}

impl Texts {
    /// Rows come newest first; `part` is the one of the trend that a row belongs to.
    fn add(&mut self, row: &QueryRow, direction: ScoreDirection, part: usize) {
        let normalized = normalized(&row.query_text);
        let hash = hash(&normalized);
        let at = match self.by_hash.get(&hash) {
            Some(at) => *at,
            None if self.texts.len() == MAX_TEXTS => {
                self.ungrouped += 1;
                return;
            }
            None => {
                self.texts.push(TextGroup {
                    count: 0,
                    texts: 1,
                    newest_id: row.id,
                    first_seen: row.created_at,
                    last_seen: row.created_at,
                    best_score: None,
                    direction,
                    trend: [0; TREND],
                    mark: self.marks.get(&hash).copied(),
                    words: words(&normalized),
                });
                self.by_hash.insert(hash, self.texts.len() - 1);
                self.texts.len() - 1
            }
        };
        let Some(group) = self.texts.get_mut(at) else { return };
        group.count += 1;
        group.first_seen = row.created_at;
        if let Some(failures) = group.trend.get_mut(part) {
            *failures += 1;
        }
        group.best_score = better(direction, group.best_score, row.top_score);
    }

    /// Adds texts that are nearly the same to a more frequent one of them; the largest first.
    ///
    /// Two sets of words that have enough in common share one of the rarest words of each, so only
    /// those that do are compared (prefix filtering, as in Chaudhuri et al., "A Primitive Operator
    /// for Similarity Joins in Data Cleaning", 2006).
    ///
    /// `false`: the time was over, and some groups are in parts.
    fn grouped(self, deadline: Deadline) -> (Vec<TextGroup>, bool) {
        let mut texts = self.texts;
        rank_words(&mut texts);
        texts.sort_by_key(|text| Reverse((text.count, text.last_seen)));
        let mut groups: Vec<TextGroup> = Vec::new();
        let mut by_rare_word: HashMap<u32, Vec<usize>> = HashMap::new();
        let mut in_time = true;
        for (nth, text) in texts.into_iter().enumerate() {
            in_time &= !nth.is_multiple_of(64) || !deadline.passed();
            if !in_time {
                groups.push(text);
                continue;
            }
            let rare = rarest(&text.words);
            let mut candidates = rare.iter().filter_map(|word| by_rare_word.get(word)).flat_map(|groups| {
                // The most frequent ones are first.
                groups.iter().take(MAX_CANDIDATES).copied()
            });
            let same = candidates
                .find(|at| groups.get(*at).is_some_and(|group| are_nearly_the_same(&group.words, &text.words)));
            match same.and_then(|at| groups.get_mut(at)) {
                Some(group) => group.merge(&text),
                None => {
                    for word in rare {
                        by_rare_word.entry(*word).or_default().push(groups.len());
                    }
                    groups.push(text);
                }
            }
        }
        groups.sort_by_key(|group| Reverse((group.count, group.last_seen)));
        (groups, in_time)
    }
}

/// Replaces words by their ranks, from the rarest to the most frequent, in ascending order.
fn rank_words(texts: &mut [TextGroup]) {
    let mut frequency: HashMap<u32, u32> = HashMap::new();
    for word in texts.iter().flat_map(|text| &text.words) {
        *frequency.entry(*word).or_default() += 1;
    }
    let mut by_frequency: Vec<(u32, u32)> = frequency.into_iter().map(|(word, count)| (count, word)).collect();
    by_frequency.sort_unstable();
    let rank: HashMap<u32, u32> = by_frequency.into_iter().zip(0..).map(|((_, word), rank)| (word, rank)).collect();
    for text in texts {
        for word in &mut text.words {
            *word = rank.get(word).copied().unwrap_or_default();
        }
        text.words.sort_unstable();
    }
}

/// So many of the rarest words that a set which has none of them cannot be nearly the same.
fn rarest(words: &[u32]) -> &[u32] {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most MAX_WORDS")]
    let common = (words.len() as f64 * SAME).ceil().max(1.0) as usize;
    words.get(..(words.len() + 1).saturating_sub(common)).unwrap_or(words)
}

impl TextGroup {
    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.texts += other.texts;
        self.first_seen = self.first_seen.min(other.first_seen);
        self.last_seen = self.last_seen.max(other.last_seen);
        self.best_score = better(self.direction, self.best_score, other.best_score);
        for (failures, other) in self.trend.iter_mut().zip(other.trend) {
            *failures += other;
        }
        self.mark = self.mark.into_iter().chain(other.mark).max_by_key(|mark| mark.marked_at);
    }

    /// What holds of the group now, and whether it was resolved and failed again.
    fn status(&self) -> (QuestionStatus, bool) {
        match self.mark {
            Some(Mark { status: QuestionStatus::Resolved, marked_at }) if self.last_seen > marked_at => {
                (QuestionStatus::Open, true)
            }
            Some(mark) => (mark.status, false),
            None => (QuestionStatus::Open, false),
        }
    }
}

fn better(direction: ScoreDirection, one: Option<f32>, other: Option<f32>) -> Option<f32> {
    match (one, other) {
        (Some(one), Some(other)) => Some(direction.better(one, other)),
        (one, other) => one.or(other),
    }
}

/// Whether two sets, in ascending order, have enough words in common.
fn are_nearly_the_same(one: &[u32], other: &[u32]) -> bool {
    let all = (one.len() + other.len()) as f64;
    // c / (all - c) >= SAME
    let enough = (SAME * all / (1.0 + SAME) - 1e-9).ceil();
    let (mut one, mut other) = (one, other);
    let mut common = 0.0;
    while let ([first, rest @ ..], [other_first, other_rest @ ..]) = (one, other) {
        if common + (one.len().min(other.len()) as f64) < enough {
            return false;
        }
        match first.cmp(other_first) {
            std::cmp::Ordering::Less => one = rest,
            std::cmp::Ordering::Greater => other = other_rest,
            std::cmp::Ordering::Equal => {
                common += 1.0;
                (one, other) = (rest, other_rest);
            }
        }
    }
    common >= enough.max(1.0)
}

/// In lower case, words only, one space between them.
pub(crate) fn normalized(query: &str) -> String {
    let mut text = String::with_capacity(query.len());
    for word in query.split(|character: char| !character.is_alphanumeric()).filter(|word| !word.is_empty()) {
        if !text.is_empty() {
            text.push(' ');
        }
        text.extend(word.chars().flat_map(char::to_lowercase));
    }
    // A question without a word is still a question.
    if text.is_empty() { query.trim().to_owned() } else { text }
}

fn words(normalized: &str) -> Box<[u32]> {
    #[expect(clippy::cast_possible_truncation, reason = "some of the hash's bits are enough")]
    let words: BTreeSet<u32> = normalized.split(' ').map(|word| hash(word) as u32).take(MAX_WORDS).collect();
    words.into_iter().collect()
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{migrated, plan};

    fn groups(queries: &[&str]) -> Vec<(u64, u64)> {
        let mut texts = Texts::default();
        for (id, query) in (0..).zip(queries) {
            let row = QueryRow {
                id,
                created_at: -id,
                failure_type: "no_hit".into(),
                retrieval_strategy: "s".into(),
                query_text: (*query).into(),
                top_score: None,
            };
            texts.add(&row, ScoreDirection::default(), 0);
        }
        let (groups, all) = texts.grouped(Deadline::after(std::time::Duration::from_secs(60)));
        assert!(all);
        groups.iter().map(|group| (group.count, group.texts)).collect()
    }

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
    fn case_and_punctuation_make_no_difference() {
        assert_eq!(normalized("  Where's the KEY?! "), "where s the key");
        assert_eq!(normalized("?!"), "?!");
        assert_eq!(groups(&["Where is it?", "where is it", "WHERE  IS IT!"]), [(3, 1)]);
    }

    #[test]
    fn questions_with_most_words_in_common_are_one_group_and_others_are_not() {
        let near = ["how do i reset my password", "how do i reset my password please", "how can i reset my password"];
        assert_eq!(groups(&near[..2]), [(2, 2)]);
        // 5 of 7 words: too few.
        assert_eq!(groups(&[near[0], near[2]]).len(), 2);
        assert_eq!(groups(&["capital of france", "capital of spain"]).len(), 2);
        assert_eq!(groups(&["?", "!"]).len(), 2, "no words, but not the same");
    }

    #[test]
    fn no_two_groups_are_nearly_the_same() {
        // Sentences of a small vocabulary, so that many are near to each other.
        let vocabulary = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let queries: Vec<String> = (0..400_u32)
            .map(|n| {
                let words = vocabulary.iter().enumerate().filter(|(bit, _)| (n * 7) >> bit & 1 == 1);
                words.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
            })
            .filter(|query| !query.is_empty())
            .collect();
        let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
        let mut texts = Texts::default();
        for (id, query) in (0..).zip(&queries) {
            let row = QueryRow {
                id,
                created_at: -id,
                failure_type: String::new(),
                retrieval_strategy: String::new(),
                query_text: (*query).into(),
                top_score: None,
            };
            texts.add(&row, ScoreDirection::default(), 0);
        }
        let all = texts.texts.len();
        let (groups, _) = texts.grouped(Deadline::after(std::time::Duration::from_secs(60)));
        assert!(groups.len() < all / 2, "there is something to be found");
        assert_eq!(groups.iter().map(|group| group.count).sum::<u64>(), queries.len() as u64, "nothing gets lost");
        for (nth, one) in groups.iter().enumerate() {
            let near = groups[nth + 1..].iter().find(|other| are_nearly_the_same(&one.words, &other.words));
            assert!(near.is_none(), "two groups are nearly the same");
        }
    }

    #[test]
    fn sets_are_nearly_the_same_if_three_quarters_of_their_words_are_common() {
        let naive = |one: &[u32], other: &[u32]| {
            let common = one.iter().filter(|word| other.contains(word)).count();
            common > 0 && common as f64 >= SAME * (one.len() + other.len() - common) as f64
        };
        let sets: Vec<Vec<u32>> =
            (0..256_u32).map(|bits| (0..8).filter(|bit| bits >> bit & 1 == 1).collect()).collect();
        for one in &sets {
            for other in &sets {
                assert_eq!(are_nearly_the_same(one, other), naive(one, other), "{one:?} {other:?}");
            }
        }
    }
}
