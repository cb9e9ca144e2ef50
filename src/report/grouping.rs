//! Groups of similar failing queries.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::model::outcome::RetrievalFailureType;
use crate::model::query_status::{QueryStatus, StatusChange};
use crate::model::time::Timestamp;
use crate::report::facets::Facets;
use crate::rollup::ScoreDirection;
use crate::similarity::{SIMILAR_SHARE, are_similar, hash, normalized, words};

/// Maximum number of texts that one read groups. It only counts the failures with further texts.
const MAX_TEXTS: usize = 100_000;
/// Maximum number of groups with the same rare word that a text is compared with. A word of more
/// groups is not rare, and says little about similarity.
const MAX_CANDIDATES: usize = 64;
/// Number of equal parts of the range in which the failures of a group are counted.
pub(crate) const TREND: usize = 16;

/// Failing queries, by their normalised text. It holds hashes of words and not the texts, so that
/// long queries take no more memory than short ones.
#[derive(Default)]
pub(crate) struct Texts {
    by_hash: HashMap<u64, usize>,
    texts: Vec<TextGroup>,
    pub(crate) ungrouped: u64,
    /// Statuses by the hash of their text. Each has its place in the order of changes, and the
    /// words of the text.
    statuses: HashMap<u64, (LastChange, Box<[u32]>)>,
}

/// A status, and its place in the order in which statuses were set.
type LastChange = (usize, StatusChange);

/// A query that failed.
pub(crate) struct FailedText<'r> {
    pub(crate) id: i64,
    /// Moment of the failure.
    pub(crate) at: Timestamp,
    pub(crate) text: &'r str,
    pub(crate) score: Option<f32>,
    pub(crate) direction: ScoreDirection,
    /// `None`: a type of a newer version.
    pub(crate) failure_type: Option<RetrievalFailureType>,
    /// Number of the strategy's name.
    pub(crate) strategy: usize,
    /// Part of the trend that counts the failure. `None`: the failure is outside of the range or
    /// the filter, and only adds to the weight of its text.
    pub(crate) part: Option<usize>,
}

#[derive(Clone)]
pub(crate) struct TextGroup {
    /// Number of failures with the text, in the range or not, and the moment of the newest. Groups
    /// depend on these alone, so that every range and filter gives the same groups.
    weight: (u64, Timestamp),
    pub(crate) count: u64,
    /// Number of different texts in the group.
    pub(crate) texts: u64,
    pub(crate) newest_id: i64,
    pub(crate) first_seen: Timestamp,
    pub(crate) last_seen: Timestamp,
    pub(crate) best_score: Option<f32>,
    direction: ScoreDirection,
    pub(crate) trend: [u32; TREND],
    pub(crate) facets: Facets,
    /// The status that was set last for any text of the group.
    change: Option<LastChange>,
    /// Hashes of the text's words.
    words: Box<[u32]>,
}

impl Texts {
    /// Returns a value without failures. `statuses` are in the order in which they were set.
    pub(crate) fn new(statuses: Vec<(String, StatusChange)>) -> Self {
        let statuses = statuses.into_iter().enumerate();
        let statuses =
            statuses.map(|(nth, (query, change))| (hash(&query), ((nth, change), words(&query))));
        Self {
            statuses: statuses.collect(),
            ..Self::default()
        }
    }

    /// Adds a failure. The caller adds the newest failure first.
    pub(crate) fn add(&mut self, failed: &FailedText<'_>) {
        let normalized = normalized(failed.text);
        let hash = hash(&normalized);
        let at = match self.by_hash.get(&hash) {
            Some(at) => *at,
            None if self.texts.len() == MAX_TEXTS => {
                self.ungrouped += u64::from(failed.part.is_some());
                return;
            }
            None => {
                self.texts.push(TextGroup {
                    weight: (0, failed.at),
                    count: 0,
                    texts: 0,
                    newest_id: failed.id,
                    first_seen: Timestamp::MAX,
                    last_seen: Timestamp::MIN,
                    best_score: None,
                    direction: failed.direction,
                    trend: [0; TREND],
                    facets: Facets::default(),
                    change: self.statuses.get(&hash).map(|(change, _)| *change),
                    words: words(&normalized),
                });
                self.by_hash.insert(hash, self.texts.len() - 1);
                self.texts.len() - 1
            }
        };
        let Some(group) = self.texts.get_mut(at) else {
            return;
        };
        group.weight.0 += 1;
        let Some(part) = failed.part else { return };
        group.count += 1;
        group.texts = 1;
        group.first_seen = group.first_seen.min(failed.at);
        group.last_seen = group.last_seen.max(failed.at);
        if let Some(failures) = group.trend.get_mut(part) {
            *failures += 1;
        }
        group.facets.add(failed.failure_type, failed.strategy);
        group.best_score = better(failed.direction, group.best_score, failed.score);
    }

    /// Returns each text as a group of its own, the most frequent first. Its count is a lower bound
    /// of the count of its real group.
    pub(crate) fn by_themselves(&self) -> Vec<&TextGroup> {
        let mut texts: Vec<&TextGroup> = self.texts.iter().filter(|text| text.count > 0).collect();
        texts.sort_by_key(|text| Reverse((text.count, text.last_seen)));
        texts
    }

    /// Merges each text into a similar, more frequent one. Returns the groups, the largest first.
    ///
    /// Two similar sets of words have one of the rarest words of each in common. A text is
    /// therefore compared only with groups that share one of its rarest words (prefix filtering, as
    /// in Chaudhuri et al., "A Primitive Operator for Similarity Joins in Data Cleaning", 2006).
    ///
    /// Has no deadline, because a deadline could leave other groups incomplete in each request. The
    /// number of texts bounds the time.
    pub(crate) fn grouped(self) -> Vec<TextGroup> {
        let mut texts = self.texts;
        // A status holds for its group even if the text with the status did not fail in the range.
        // Such a text is therefore grouped, too, with a count of 0.
        let with_status = self
            .statuses
            .into_iter()
            .filter(|(hash, _)| !self.by_hash.contains_key(hash));
        texts.extend(with_status.map(|(_, (change, words))| TextGroup::with_status(change, words)));
        rank_words(&mut texts);
        texts.sort_by_key(|text| Reverse(text.weight));
        // Groups in place, because there may be many texts. The first text of a group gets the
        // counts of the others, and their counts become 0.
        let mut by_rare_word: HashMap<u32, Vec<usize>> = HashMap::new();
        for nth in 0..texts.len() {
            let Some((before, [text, ..])) = texts.split_at_mut_checked(nth) else {
                break;
            };
            let rare = rarest(&text.words);
            let mut candidates = rare
                .iter()
                .filter_map(|word| by_rare_word.get(word))
                .flat_map(|groups| {
                    // The most frequent ones are first.
                    groups.iter().take(MAX_CANDIDATES).copied()
                });
            let same = candidates.find(|at| {
                before
                    .get(*at)
                    .is_some_and(|group| are_similar(&group.words, &text.words))
            });
            match same.and_then(|at| before.get_mut(at)) {
                Some(group) => {
                    group.merge(text);
                    text.count = 0;
                }
                None => {
                    for word in rare {
                        by_rare_word.entry(*word).or_default().push(nth);
                    }
                }
            }
        }
        texts.retain(|text| text.count > 0);
        texts.sort_by_key(|group| Reverse((group.count, group.last_seen)));
        texts
    }
}

/// Replaces words by their ranks, from the rarest to the most frequent, in ascending order.
fn rank_words(texts: &mut [TextGroup]) {
    let mut frequency: HashMap<u32, u32> = HashMap::new();
    for word in texts.iter().flat_map(|text| &text.words) {
        *frequency.entry(*word).or_default() += 1;
    }
    let mut by_frequency: Vec<(u32, u32)> = frequency
        .into_iter()
        .map(|(word, count)| (count, word))
        .collect();
    by_frequency.sort_unstable();
    let rank: HashMap<u32, u32> = by_frequency
        .into_iter()
        .zip(0..)
        .map(|((_, word), rank)| (word, rank))
        .collect();
    for text in texts {
        for word in &mut text.words {
            *word = rank.get(word).copied().unwrap_or_default();
        }
        text.words.sort_unstable();
    }
}

/// Returns the rarest words: so many that a set without any of them cannot be similar.
fn rarest(words: &[u32]) -> &[u32] {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most MAX_WORDS"
    )]
    let common = (words.len() as f64 * SIMILAR_SHARE).ceil().max(1.0) as usize;
    words
        .get(..(words.len() + 1).saturating_sub(common))
        .unwrap_or(words)
}

impl TextGroup {
    /// Returns a text that has a status, and did not fail.
    fn with_status(change: LastChange, words: Box<[u32]>) -> Self {
        Self {
            weight: (0, Timestamp::MIN),
            count: 0,
            texts: 0,
            newest_id: 0,
            first_seen: Timestamp::MAX,
            last_seen: Timestamp::MIN,
            best_score: None,
            direction: ScoreDirection::default(),
            trend: [0; TREND],
            facets: Facets::default(),
            change: Some(change),
            words,
        }
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.texts += other.texts;
        self.first_seen = self.first_seen.min(other.first_seen);
        self.last_seen = self.last_seen.max(other.last_seen);
        self.best_score = better(self.direction, self.best_score, other.best_score);
        for (failures, other) in self.trend.iter_mut().zip(other.trend) {
            *failures += other;
        }
        self.facets.merge(&other.facets);
        self.change = self
            .change
            .into_iter()
            .chain(other.change)
            .max_by_key(|(nth, _)| *nth);
    }

    /// Returns the status of the group now, and `true` if it was resolved and failed since.
    pub(crate) fn status(&self) -> (QueryStatus, bool) {
        match self.change {
            Some((
                _,
                StatusChange {
                    status: QueryStatus::Resolved,
                    set_at,
                },
            )) if self.last_seen > set_at => (QueryStatus::Open, true),
            Some((_, change)) => (change.status, false),
            None => (QueryStatus::Open, false),
        }
    }
}

fn better(direction: ScoreDirection, one: Option<f32>, other: Option<f32>) -> Option<f32> {
    match (one, other) {
        (Some(one), Some(other)) => Some(direction.better(one, other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(id: i64, text: &str) -> FailedText<'_> {
        FailedText {
            id,
            at: Timestamp::from_millis(-id),
            text,
            score: None,
            direction: ScoreDirection::default(),
            failure_type: None,
            strategy: 0,
            part: Some(0),
        }
    }

    fn groups(queries: &[&str]) -> Vec<(u64, u64)> {
        let mut texts = Texts::default();
        for (id, query) in (0..).zip(queries) {
            texts.add(&failed(id, query));
        }
        let groups = texts.grouped();
        groups
            .iter()
            .map(|group| (group.count, group.texts))
            .collect()
    }

    #[test]
    fn case_and_punctuation_make_no_difference() {
        assert_eq!(normalized("  Where's the KEY?! "), "where s the key");
        assert_eq!(normalized("?!"), "?!");
        // The key of a group finds a status, so that normalizing it once more must not change it.
        for text in [
            "  Where's the KEY?! ",
            "İstanbul ΣΑΣ ﬁ ǅ",
            "क्षत्रिय",
            "?!",
            "e\u{301}",
        ] {
            assert_eq!(normalized(&normalized(text)), normalized(text), "{text}");
        }
        assert_eq!(
            groups(&["Where is it?", "where is it", "WHERE  IS IT!"]),
            [(3, 1)]
        );
    }

    #[test]
    fn queries_with_most_words_in_common_are_one_group() {
        let near = [
            "how do i reset my password",
            "how do i reset my password please",
            "how can i reset my password",
        ];
        assert_eq!(groups(&near[..2]), [(2, 2)]);
        // 5 of 7 words: too few.
        assert_eq!(groups(&[near[0], near[2]]).len(), 2);
        assert_eq!(groups(&["capital of france", "capital of spain"]).len(), 2);
        assert_eq!(groups(&["?", "!"]).len(), 2, "no words, but not the same");
    }

    #[test]
    fn texts_are_compared_by_their_rarest_words() {
        // More texts have the frequent words than one text is compared with.
        let queries: Vec<String> = (0..8 * MAX_CANDIDATES)
            .flat_map(|n| {
                ["", " please"].map(|end| format!("where is the a{n} b{n} c{n} d{n}{end}"))
            })
            .collect();
        let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
        assert_eq!(groups(&queries), [(2, 2); 8 * MAX_CANDIDATES]);
    }

    #[test]
    fn no_two_groups_are_similar() {
        // Sentences of a small vocabulary, so that many of them are similar.
        let vocabulary = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let queries: Vec<String> = (0..400_u32)
            .map(|n| {
                let words = vocabulary
                    .iter()
                    .enumerate()
                    .filter(|(bit, _)| (n * 7) >> bit & 1 == 1);
                words.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
            })
            .filter(|query| !query.is_empty())
            .collect();
        let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
        let mut texts = Texts::default();
        for (id, query) in (0..).zip(&queries) {
            texts.add(&failed(id, query));
        }
        let all = texts.texts.len();
        let groups = texts.grouped();
        assert!(groups.len() < all / 2, "there is something to be found");
        assert_eq!(
            groups.iter().map(|group| group.count).sum::<u64>(),
            queries.len() as u64,
            "nothing gets lost"
        );
        for (nth, one) in groups.iter().enumerate() {
            let near = groups[nth + 1..]
                .iter()
                .find(|other| are_similar(&one.words, &other.words));
            assert!(near.is_none(), "two groups are similar");
        }
    }

    #[test]
    fn sets_that_share_three_quarters_of_their_words_are_similar() {
        let naive = |one: &[u32], other: &[u32]| {
            let common = one.iter().filter(|word| other.contains(word)).count();
            common > 0 && common as f64 >= SIMILAR_SHARE * (one.len() + other.len() - common) as f64
        };
        let sets: Vec<Vec<u32>> = (0..256_u32)
            .map(|bits| (0..8).filter(|bit| bits >> bit & 1 == 1).collect())
            .collect();
        for one in &sets {
            for other in &sets {
                assert_eq!(
                    are_similar(one, other),
                    naive(one, other),
                    "{one:?} {other:?}"
                );
            }
        }
    }
}
