//! Questions that are nearly the same, brought together.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::QuestionStatus;
use crate::attempts::ScoreDirection;
use crate::store::marks::Mark;

/// Different texts that are told apart at most; later ones are only counted.
const MAX_TEXTS: usize = 100_000;
/// Words of a text that are compared: more would make long texts costly, and say little.
const MAX_WORDS: usize = 64;
/// Two texts are nearly the same if this share of their words, together, is common to both.
const SAME: f64 = 0.75;
/// Groups with the same rare word that a text is compared with at most: where more have it, it is
/// not rare, and says little.
const MAX_CANDIDATES: usize = 64;
/// Parts of the range in which the failures of a group are counted.
pub(super) const TREND: usize = 16;

/// Failing questions, by their normalised text. Texts are held as hashes of their words, so that
/// it is small whatever was asked.
#[derive(Clone, Default)]
pub(super) struct Texts {
    by_hash: HashMap<u64, usize>,
    texts: Vec<TextGroup>,
    pub(super) ungrouped: u64,
    /// What was said of texts, by their hash, and which of them was said later.
    marks: HashMap<u64, (MarkedLast, Box<[u32]>)>,
}

/// A mark, and its place in the order in which marks were set.
type MarkedLast = (usize, Mark);

/// A question that failed.
pub(super) struct Asked<'r> {
    pub(super) id: i64,
    /// When, in Unix milliseconds.
    pub(super) at: i64,
    pub(super) text: &'r str,
    pub(super) score: Option<f32>,
    pub(super) direction: ScoreDirection,
    /// To which part of the trend it belongs. `None`: it is not counted, and only says which texts are frequent.
    pub(super) part: Option<usize>,
}

#[derive(Clone)]
pub(super) struct TextGroup {
    /// Failures of the whole log with the text, and the moment of the newest: groups are made by these, so that they are
    /// the same ones whichever failures are counted.
    weight: (u64, i64),
    pub(super) count: u64,
    /// Different texts that are counted here.
    pub(super) texts: u64,
    pub(super) newest_id: i64,
    pub(super) first_seen: i64,
    pub(super) last_seen: i64,
    pub(super) best_score: Option<f32>,
    direction: ScoreDirection,
    pub(super) trend: [u32; TREND],
    /// What was said last of any of its texts.
    mark: Option<MarkedLast>,
    /// Hashes of the text's words.
    words: Box<[u32]>,
}

impl Texts {
    /// `marks`: the one that was set first comes first.
    pub(super) fn new(marks: Vec<(String, Mark)>) -> Self {
        let marks = marks.into_iter().enumerate();
        let marks = marks.map(|(nth, (question, mark))| (hash(&question), ((nth, mark), words(&question))));
        Self { marks: marks.collect(), ..Self::default() }
    }

    /// Adds a failure; the newest comes first.
    pub(super) fn add(&mut self, asked: &Asked<'_>) {
        let normalized = normalized(asked.text);
        let hash = hash(&normalized);
        let at = match self.by_hash.get(&hash) {
            Some(at) => *at,
            None if self.texts.len() == MAX_TEXTS => {
                self.ungrouped += u64::from(asked.part.is_some());
                return;
            }
            None => {
                self.texts.push(TextGroup {
                    weight: (0, asked.at),
                    count: 0,
                    texts: 0,
                    newest_id: asked.id,
                    first_seen: i64::MAX,
                    last_seen: i64::MIN,
                    best_score: None,
                    direction: asked.direction,
                    trend: [0; TREND],
                    mark: self.marks.get(&hash).map(|(mark, _)| *mark),
                    words: words(&normalized),
                });
                self.by_hash.insert(hash, self.texts.len() - 1);
                self.texts.len() - 1
            }
        };
        let Some(group) = self.texts.get_mut(at) else { return };
        group.weight.0 += 1;
        let Some(part) = asked.part else { return };
        group.count += 1;
        group.texts = 1;
        group.first_seen = group.first_seen.min(asked.at);
        group.last_seen = group.last_seen.max(asked.at);
        if let Some(failures) = group.trend.get_mut(part) {
            *failures += 1;
        }
        group.best_score = better(asked.direction, group.best_score, asked.score);
    }

    /// Each text by itself, the most frequent first: the group that it belongs to has as many failures at least, whatever
    /// else there is.
    pub(super) fn by_themselves(self) -> Vec<TextGroup> {
        let mut texts = self.texts;
        texts.retain(|text| text.count > 0);
        texts.sort_by_key(|text| Reverse((text.count, text.last_seen)));
        texts
    }

    /// Adds texts that are nearly the same to a more frequent one of them; the largest first.
    ///
    /// Two sets of words that have enough in common share one of the rarest words of each, so only
    /// those that do are compared (prefix filtering, as in Chaudhuri et al., "A Primitive Operator
    /// for Similarity Joins in Data Cleaning", 2006).
    ///
    /// Takes as long as the number of texts says, which is bounded: a group that were left in parts for lack of time
    /// would be another one in each request.
    pub(super) fn grouped(self) -> Vec<TextGroup> {
        let mut texts = self.texts;
        // A mark holds for the group, also if the text that was marked did not fail in this time: it is
        // grouped like a text that failed, and counts for nothing.
        let marked = self.marks.into_iter().filter(|(hash, _)| !self.by_hash.contains_key(hash));
        texts.extend(marked.map(|(_, (mark, words))| TextGroup::marked(mark, words)));
        rank_words(&mut texts);
        texts.sort_by_key(|text| Reverse(text.weight));
        let mut groups: Vec<TextGroup> = Vec::new();
        let mut by_rare_word: HashMap<u32, Vec<usize>> = HashMap::new();
        for text in texts {
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
        groups.retain(|group| group.count > 0);
        groups.sort_by_key(|group| Reverse((group.count, group.last_seen)));
        groups
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
    /// A text that was marked, and did not fail.
    fn marked(mark: MarkedLast, words: Box<[u32]>) -> Self {
        Self {
            weight: (0, i64::MIN),
            count: 0,
            texts: 0,
            newest_id: 0,
            first_seen: i64::MAX,
            last_seen: i64::MIN,
            best_score: None,
            direction: ScoreDirection::default(),
            trend: [0; TREND],
            mark: Some(mark),
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
        self.mark = self.mark.into_iter().chain(other.mark).max_by_key(|(nth, _)| *nth);
    }

    /// What holds of the group now, and whether it was resolved and failed again.
    pub(super) fn status(&self) -> (QuestionStatus, bool) {
        match self.mark {
            Some((_, Mark { status: QuestionStatus::Resolved, marked_at })) if self.last_seen > marked_at => {
                (QuestionStatus::Open, true)
            }
            Some((_, mark)) => (mark.status, false),
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

/// Whether two texts would be in one group, if one of them is its most frequent.
pub(crate) fn texts_are_nearly_the_same(one: &str, other: &str) -> bool {
    let (one, other) = (normalized(one), normalized(other));
    one == other || are_nearly_the_same(&words(&one), &words(&other))
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

/// In lower case, words only, one space between them; what is so already stays as it is.
pub(crate) fn normalized(query: &str) -> String {
    let mut text = String::with_capacity(query.len());
    let mut between = false;
    // In lower case first, for that may be more than letters.
    for character in query.chars().flat_map(char::to_lowercase) {
        if character.is_alphanumeric() {
            if std::mem::take(&mut between) && !text.is_empty() {
                text.push(' ');
            }
            text.push(character);
        } else {
            between = true;
        }
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

    fn asked(id: i64, text: &str) -> Asked<'_> {
        Asked { id, at: -id, text, score: None, direction: ScoreDirection::default(), part: Some(0) }
    }

    fn groups(queries: &[&str]) -> Vec<(u64, u64)> {
        let mut texts = Texts::default();
        for (id, query) in (0..).zip(queries) {
            texts.add(&asked(id, query));
        }
        let groups = texts.grouped();
        groups.iter().map(|group| (group.count, group.texts)).collect()
    }

    #[test]
    fn case_and_punctuation_make_no_difference() {
        assert_eq!(normalized("  Where's the KEY?! "), "where s the key");
        assert_eq!(normalized("?!"), "?!");
        // A mark is found by a group's key.
        for text in ["  Where's the KEY?! ", "İstanbul ΣΑΣ ﬁ ǅ", "क्षत्रिय", "?!", "e\u{301}"] {
            assert_eq!(normalized(&normalized(text)), normalized(text), "{text}");
        }
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
    fn texts_are_compared_by_their_rarest_words() {
        // More texts have the frequent words than are compared.
        let queries: Vec<String> = (0..8 * MAX_CANDIDATES)
            .flat_map(|n| ["", " please"].map(|end| format!("where is the a{n} b{n} c{n} d{n}{end}")))
            .collect();
        let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
        assert_eq!(groups(&queries), [(2, 2); 8 * MAX_CANDIDATES]);
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
            texts.add(&asked(id, query));
        }
        let all = texts.texts.len();
        let groups = texts.grouped();
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
