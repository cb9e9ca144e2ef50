//! Groups of similar failing queries.
//!
//! A group is what similar texts connect (the connected components of the graph of all pairs). It
//! is known by its smallest text, so that its id depends on its texts alone, and the id of any of
//! its texts leads to it. Groups are made of the whole log, whatever the range of a request is.
//!
//! A person sets the status of the texts that a group has at that moment. The group has a status as
//! long as all its texts have one. A text that joins later has none: the group is open, and
//! [`TextGroup::new_texts`] counts such texts.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use crate::model::outcome::RetrievalFailureType;
use crate::model::query_status::{QueryStatus, StatusChange};
use crate::model::time::Timestamp;
use crate::report::facets::Facets;
use crate::rollup::ScoreDirection;
use crate::similarity::{MAX_BYTES, Word, join, normalized, squashed_hash, tolerant_words};

/// Maximum number of texts that one read groups. It only counts the failures with further texts.
const MAX_TEXTS: usize = 100_000;
/// Maximum number of queries whose text is remembered, so that a repeated query is normalised once.
const MAX_REMEMBERED: usize = 200_000;
/// Maximum number of texts that are compared in a second spelling.
const MAX_SPELLINGS: usize = 20_000;
/// Texts of a group that get its status, and by which its failures are read: the most frequent.
const MAX_GROUP_TEXTS: usize = 1000;
/// Number of equal parts of the range in which the failures of a group are counted.
pub(crate) const TREND: usize = 16;

/// Failing queries, by their text.
#[derive(Default)]
pub(crate) struct Texts {
    /// Texts by the hash of a query, as it was sent.
    by_query: HashMap<u64, usize>,
    by_hash: HashMap<u64, usize>,
    texts: Vec<TextGroup>,
    /// Other normal forms of texts, which differ in spaces and therefore in their words.
    spellings: Vec<(usize, Box<str>)>,
    by_spelling: HashSet<u64>,
    pub(crate) ungrouped: u64,
    /// Statuses by the hash of their text. Each has its place in the order of changes.
    statuses: HashMap<u64, LastChange>,
    state: RandomState,
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

/// A text, or a group of them.
#[derive(Clone)]
pub(crate) struct TextGroup {
    /// Number of failures with the text, in the range or not, and the moment of the newest.
    weight: (u64, Timestamp),
    pub(crate) count: u64,
    /// Number of different texts in the group that failed in the range.
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
    /// Number of the group, while groups are made.
    group: usize,
    /// Moment of the newest failure of the group, in the range or not.
    newest: Timestamp,
    /// Texts without a status.
    without_status: u64,
    /// The normal form; empty if it is too long to be compared.
    normal: Box<str>,
    /// The normal forms of all texts of a group, the most frequent one first. Empty: it has one.
    pub(crate) members: Vec<Box<str>>,
}

impl Texts {
    /// Returns a value without failures. `statuses` are in the order in which they were set.
    pub(crate) fn new(statuses: Vec<(String, StatusChange)>) -> Self {
        let mut by_hash = HashMap::new();
        // Versions before 0.1.0 stored the query in another form, which is normalised once more.
        // The form of this version prevails.
        for is_current in [false, true] {
            for (nth, (query, change)) in statuses.iter().enumerate() {
                let hash = if is_current {
                    squashed_hash(query)
                } else {
                    squashed_hash(&normalized(query))
                };
                by_hash.insert(hash, (nth, *change));
            }
        }
        Self {
            statuses: by_hash,
            ..Self::default()
        }
    }

    /// Adds a failure. The caller adds the newest failure first.
    pub(crate) fn add(&mut self, failed: &FailedText<'_>) {
        let Some(at) = self.place(failed) else {
            self.ungrouped += u64::from(failed.part.is_some());
            return;
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

    /// Returns the place of the text of a failure. `None`: there are too many texts.
    fn place(&mut self, failed: &FailedText<'_>) -> Option<usize> {
        let query = self.state.hash_one(failed.text);
        if let Some(at) = self.by_query.get(&query) {
            return Some(*at);
        }
        let normal = normalized(failed.text);
        let hash = squashed_hash(&normal);
        let (count, full) = (self.texts.len(), self.texts.len() >= MAX_TEXTS);
        let at = match self.by_hash.entry(hash) {
            Entry::Occupied(at) => *at.get(),
            Entry::Vacant(_) if full => return None,
            Entry::Vacant(at) => *at.insert(count),
        };
        let normal: Box<str> = if normal.len() > MAX_BYTES {
            Box::default()
        } else {
            normal.into()
        };
        if at == count {
            let change = self.statuses.get(&hash).copied();
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
                change,
                group: 0,
                newest: failed.at,
                without_status: u64::from(change.is_none()),
                normal,
                members: Vec::new(),
            });
        } else {
            self.spell(at, normal);
        }
        if self.by_query.len() < MAX_REMEMBERED {
            self.by_query.insert(query, at);
        }
        Some(at)
    }

    /// Adds a normal form to a text that has one.
    fn spell(&mut self, at: usize, mut normal: Box<str>) {
        let Some(text) = self.texts.get_mut(at) else {
            return;
        };
        if text.normal == normal || !self.by_spelling.insert(self.state.hash_one(&normal)) {
            return;
        }
        // The smallest one stands for the text, whichever failed first.
        if normal < text.normal {
            std::mem::swap(&mut normal, &mut text.normal);
        }
        if self.spellings.len() < MAX_SPELLINGS {
            self.spellings.push((at, normal));
        }
    }

    /// Returns each text as a group of its own, the most frequent first. Its count is a lower bound
    /// of the count of its real group.
    pub(crate) fn by_themselves(&self) -> Vec<&TextGroup> {
        let mut texts: Vec<&TextGroup> = self.texts.iter().filter(|text| text.count > 0).collect();
        texts.sort_by_key(|text| Reverse((text.count, text.last_seen)));
        texts
    }

    /// Merges similar texts. Returns the groups with failures in the range, the largest first.
    ///
    /// Has no deadline, because a deadline could leave other groups incomplete in each request. The
    /// number of texts bounds the time.
    pub(crate) fn grouped(self) -> Vec<TextGroup> {
        let mut groups = self.merged();
        groups.retain(|group| group.count > 0);
        groups.sort_by_key(|group| Reverse((group.count, group.last_seen)));
        groups
    }

    /// Returns the normal forms of the texts in the group of a text, the most frequent first.
    /// Empty: the text did not fail.
    pub(crate) fn group_of(self, normal: &str) -> Vec<String> {
        let text = self.by_hash.get(&squashed_hash(normal));
        let Some(text) = text.and_then(|at| self.texts.get(*at)) else {
            return Vec::new();
        };
        let wanted = text.normal.clone();
        let mut groups = self.merged().into_iter();
        let group = groups.find(|group| group.members.contains(&wanted));
        group.map_or_else(
            || vec![normal.to_owned()],
            |group| group.shown_members().collect(),
        )
    }

    /// Merges similar texts into the most frequent one of each group.
    fn merged(self) -> Vec<TextGroup> {
        let Self {
            mut texts,
            spellings,
            ..
        } = self;
        let normals = texts.iter().map(|text| &*text.normal);
        let normals: Vec<&str> = normals
            .chain(spellings.iter().map(|(_, normal)| &**normal))
            .collect();
        let same = spellings.iter().map(|(text, _)| *text).enumerate();
        let same = same.map(|(nth, text)| (texts.len() + nth, text));
        let groups = connected(&normals, same);
        for (text, group) in texts.iter_mut().zip(groups) {
            text.group = group;
        }
        // The most frequent text of a group comes first, whatever the order of the failures was.
        texts.sort_unstable_by(|one, other| {
            (other.weight, &one.normal).cmp(&(one.weight, &other.normal))
        });
        // In place, because there may be many texts. The first text of a group gets the counts of
        // the others.
        let mut firsts: HashMap<usize, usize> = HashMap::new();
        let mut first = 0;
        for nth in 0..texts.len() {
            let Some((before, [text, ..])) = texts.split_at_mut_checked(nth) else {
                break;
            };
            match firsts.entry(text.group) {
                Entry::Occupied(group) => {
                    if let Some(group) = before.get_mut(*group.get()) {
                        group.merge(text);
                    }
                }
                Entry::Vacant(group) => {
                    group.insert(first);
                    texts.swap(first, nth);
                    first += 1;
                }
            }
        }
        texts.truncate(first);
        texts
    }
}

/// Returns for each query the place of the first query of its group, among these queries.
#[cfg(any(test, feature = "program"))]
pub fn first_of_group(queries: &[String]) -> Vec<usize> {
    let normals: Vec<String> = queries.iter().map(|query| normalized(query)).collect();
    let mut firsts: HashMap<u64, usize> = HashMap::new();
    let mut same = Vec::new();
    for (nth, normal) in normals.iter().enumerate() {
        same.push((nth, *firsts.entry(squashed_hash(normal)).or_insert(nth)));
    }
    let normals = normals.iter().map(|normal| match normal.len() {
        ..=MAX_BYTES => normal.as_str(),
        _ => "",
    });
    connected(&normals.collect::<Vec<_>>(), same.into_iter())
}

/// Returns for each text the place of the first text of its group.
///
/// `same` has pairs that are the same text. Apart from them, exactly the pairs of similar texts are
/// connected. Two such texts have all words but one in
/// common, so that the words of each text without one lead to all candidates, and [`join`] compares
/// those.
fn connected(texts: &[&str], same: impl Iterator<Item = (usize, usize)>) -> Vec<usize> {
    let state = RandomState::new();
    let mut rests: Vec<(u64, u32, u32)> = Vec::new();
    for (text, nth) in texts.iter().zip(0_u32..) {
        tolerant_words(text, &state, |rest, word| {
            let begin = word.as_ptr().addr() - text.as_ptr().addr();
            let begin = u32::try_from(begin).unwrap_or(u32::MAX);
            rests.push((rest, nth, begin));
        });
    }
    rests.sort_unstable();
    let mut groups = Groups((0..texts.len()).collect());
    same.for_each(|(one, other)| groups.join(one, other));
    for candidates in rests.chunk_by(|one, other| one.0 == other.0) {
        if candidates.len() < 2 {
            continue;
        }
        let words = candidates.iter().filter_map(|(_, text, begin)| {
            let normal = texts.get(usize::try_from(*text).ok()?)?;
            let word = normal
                .get(usize::try_from(*begin).ok()?..)?
                .split(' ')
                .next()?;
            Some((*text, Word::new(word)?))
        });
        let words: Vec<(u32, Word)> = words.collect();
        join(&words, |one, other| {
            groups.join(one as usize, other as usize)
        });
    }
    (0..texts.len()).map(|text| groups.first(text)).collect()
}

/// The first member of each group, by way of others (union-find).
struct Groups(Vec<usize>);

impl Groups {
    fn first(&mut self, mut text: usize) -> usize {
        while let Some(next) = self.0.get(text).copied().filter(|next| *next != text) {
            // Halves the way for the next search.
            let after = self.0.get(next).copied().unwrap_or(next);
            if let Some(step) = self.0.get_mut(text) {
                *step = after;
            }
            text = after;
        }
        text
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.first(one), self.first(other));
        if let Some(first) = self.0.get_mut(one.max(other)) {
            *first = one.min(other);
        }
    }
}

impl TextGroup {
    /// Adds a text that is not more frequent.
    fn merge(&mut self, other: &mut Self) {
        self.count += other.count;
        self.texts += other.texts;
        self.first_seen = self.first_seen.min(other.first_seen);
        self.last_seen = self.last_seen.max(other.last_seen);
        self.newest = self.newest.max(other.newest);
        self.without_status += other.without_status;
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
        if self.members.is_empty() {
            self.members.push(self.normal.clone());
        }
        self.members.push(std::mem::take(&mut other.normal));
    }

    /// Returns the normal forms of the most frequent texts of the group. Empty: it has one text.
    pub(crate) fn shown_members(&self) -> impl Iterator<Item = String> + '_ {
        self.members
            .iter()
            .take(MAX_GROUP_TEXTS)
            .map(|text| text.to_string())
    }

    /// Returns the smallest text, by which the group is known. `None`: the group has one text.
    pub(crate) fn smallest(&self) -> Option<&str> {
        self.members.iter().map(|text| &**text).min()
    }

    /// Returns the number of texts that joined the group since its status was set.
    pub(crate) fn new_texts(&self) -> u64 {
        match self.change {
            Some(_) => self.without_status,
            None => 0,
        }
    }

    /// Returns the status of the group now, and `true` if it was resolved and failed since. The
    /// status does not depend on the range.
    pub(crate) fn status(&self) -> (QueryStatus, bool) {
        match self.change {
            Some((
                _,
                StatusChange {
                    status: QueryStatus::Resolved,
                    set_at,
                },
            )) if self.newest > set_at => (QueryStatus::Open, true),
            Some(_) if self.without_status > 0 => (QueryStatus::Open, false),
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

    fn are_similar(one: &str, other: &str) -> bool {
        groups(&[one, other]).len() == 1
    }

    #[test]
    fn different_queries_are_different_groups() {
        for [one, other] in [
            ["sort a list in C++", "sort a list in C#"],
            ["sort a list in C", "sort a list in C#"],
            ["how to use .NET", "how to use net"],
            ["is x > 5", "is x < 5"],
            ["temperature of -5", "temperature of 5"],
            ["python 3.11", "python 3.12"],
            ["python 3.11", "python 311"],
            ["room 1 2", "room 12"],
            ["order 1001", "order 1002"],
            ["why does it start", "why does it not start"],
            ["can i log in", "can't I log in"],
            ["train from Bern to Basel", "train from Basel to Bern"],
            ["where is Zambia", "where is Gambia"],
            ["typical behaviour", "atypical behaviour"],
            ["capital of Austria", "capital of Australia"],
            ["capital of France", "capital of Spain"],
            ["Hund mit Leine", "Hund mit keiner Leine"],
            ["geht der Download", "geht der Download nicht"],
            ["keine Rechnung", "eine Rechnung"],
            ["dosya açılıyor", "dosya açılmıyor"],
            ["κατάλληλος χώρος", "ακατάλληλος χώρος"],
            ["يعمل التطبيق", "لا يعمل التطبيق"],
            ["사용 가능한가요", "사용 불가능한가요"],
            ["할 수 있나요", "할 수 없나요"],
            ["使用できますか", "使用できませんか"],
            ["谁发明了电话", "谁发明了电视"],
            ["湖南省的省会是哪里", "湖北省的省会是哪里"],
            ["如何处理事故", "如何不处理事故"],
            ["เปิดได้ไหม", "เปิดไม่ได้ไหม"],
            ["?", "!"],
            ["what does 😀 mean", "what does 😭 mean"],
        ] {
            assert!(!are_similar(one, other), "{one:?} {other:?}");
        }
    }

    #[test]
    fn same_query_is_one_group_however_it_is_typed() {
        for [one, other] in [
            ["Where is the KEY?", "where  is the key"],
            ["where's the key", "Where’s the key?!"],
            ["reset password", "reset passwrod"],
            ["reset password", "reset pasword"],
            ["reset password", "reset passsword"],
            ["reset password", "reset passwort"],
            [
                "how do i reset my password",
                "How do I reset my password, please?",
            ],
            ["reset the password", "Please reset the pass word"],
            ["straße in münchen", "STRASSE IN MU\u{308}NCHEN"],
            ["İstanbul nerede", "istanbul nerede"],
            ["ISPARTA NEREDE", "ısparta nerede, lütfen"],
            ["ΠΟΥ ΕΙΝΑΙ Η ΟΔΟΣ", "πού είναι η οδός;"],
            ["где ёлка", "Где елка, пожалуйста"],
            ["أين الأردن؟", "اين الاردن"],
            ["비밀번호 재설정", "\u{1107}\u{1175}밀번호재설정 좀"],
            ["ＫＥＹはどこですか？", "keyはどこですか"],
            ["密码怎么重置", "请问 密码怎么重置？"],
            ["รหัสผ่านอยู่ที่ไหน", "รหัสผ่าน อยู่ที่ไหน ครับ"],
            ["price is 1,000 €", "price is 1000 €"],
            [
                "What is the limit?",
                "Question: What is the limit?\nAnswer:",
            ],
            [
                "What is the limit?",
                "Use the context to answer the question: what is the limit",
            ],
            [
                "What is the limit?",
                "Context: a b\n\nQuestion: What is the limit?\nHelpful Answer:",
            ],
            [
                "What is the limit?",
                "Find it. <query>what is the limit</query>",
            ],
            ["?!", " ?! "],
        ] {
            assert!(
                are_similar(one, other),
                "{one:?} {other:?} {:?}",
                [normalized(one), normalized(other)]
            );
        }
    }

    #[test]
    fn queries_behind_one_template_stay_apart() {
        let template =
            |query: &str| format!("You are a helpful bot. Be brief and polite, always. {query}");
        assert!(!are_similar(
            &template("Where is Bern?"),
            &template("Where is Basel?")
        ));
        let labelled = |query: &str| {
            format!("Use the context below.\nContext: none\nQuestion: {query}\nAnswer:")
        };
        assert!(!are_similar(
            &labelled("Where is Bern?"),
            &labelled("Where is Basel?")
        ));
    }

    #[test]
    fn normal_form_of_a_key_is_the_same_text() {
        for text in [
            "  Where's the KEY?! ",
            "İstanbul ΣΑΣ ﬁ ǅ",
            "क्षत्रिय",
            "?!",
            "e\u{301}",
            "sort c++ in .net at -5 °C",
            "请问 密码",
        ] {
            let normal = normalized(text);
            assert_eq!(
                squashed_hash(&normalized(&normal)),
                squashed_hash(&normal),
                "{text} {normal}"
            );
        }
    }

    /// Compares all pairs, each by itself, and connects the similar ones.
    fn naive(queries: &[String]) -> Vec<usize> {
        let mut groups = Groups((0..queries.len()).collect());
        for (nth, one) in queries.iter().enumerate() {
            let similar = crate::similarity::Similar::to([one.as_str()].into_iter());
            for (other, query) in queries.iter().enumerate().skip(nth + 1) {
                if similar.has(query) {
                    groups.join(nth, other);
                }
            }
        }
        (0..queries.len()).map(|nth| groups.first(nth)).collect()
    }

    #[test]
    fn ranking_is_equal_to_a_comparison_of_all_pairs() {
        // Words of few letters, so that many are one error apart, in few and in many texts with the
        // same rest.
        let mut random = 7_u64;
        let mut below = |limit: usize| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            usize::try_from(random >> 33).unwrap_or_default() % limit
        };
        for (letters, rests) in [
            ("ab", 1),
            ("aä", 3),
            ("東京とー", 2),
            ("นอไ่", 2),
            ("않가", 1),
        ] {
            let letters: Vec<char> = letters.chars().collect();
            let queries: Vec<String> = (0..150)
                .map(|_| {
                    let (rest, length) = (below(rests), 4 + below(6));
                    let word = (0..length).map(|_| letters[below(letters.len())]);
                    format!("w{rest} {}", word.collect::<String>())
                })
                .collect();
            let (found, expected) = (first_of_group(&queries), naive(&queries));
            assert!(expected.iter().enumerate().any(|(nth, first)| *first < nth));
            for nth in 0..queries.len() {
                for other in 0..nth {
                    assert_eq!(
                        found[nth] == found[other],
                        expected[nth] == expected[other],
                        "{:?} {:?}",
                        queries[nth],
                        queries[other]
                    );
                }
            }
        }
    }

    #[test]
    fn id_depends_on_the_texts_and_not_on_their_order() {
        let texts = [
            "reset password",
            "reset pasword",
            "reset passwrod",
            "reset pass word",
        ];
        let smallest = |order: &[usize]| {
            let mut all = Texts::default();
            for (id, nth) in (0..).zip(order) {
                all.add(&failed(id, texts[*nth]));
                all.add(&failed(id, "something else"));
            }
            let groups = all.grouped();
            assert_eq!(groups.len(), 2);
            let group = groups.iter().find(|group| group.texts == 3).unwrap();
            group.smallest().unwrap().to_owned()
        };
        let expected = smallest(&[0, 1, 2, 3]);
        for order in [[3, 2, 1, 0], [1, 1, 1, 0], [2, 3, 0, 1]] {
            if order.contains(&2) {
                assert_eq!(smallest(&order), expected);
            }
        }
    }

    #[test]
    fn many_texts_with_one_error_are_one_group_in_little_time() {
        // All pairs of these are 200 million.
        let queries: Vec<String> = (0..20_000_u32)
            .map(|nth| {
                format!(
                    "where is {}{}tion",
                    char::from_u32(0x4e00 + nth % 100).unwrap_or('x'),
                    "abcdefgh".repeat(1 + nth as usize % 9)
                )
            })
            .collect();
        assert_eq!(first_of_group(&queries).len(), queries.len());
        let hostile: Vec<String> = (0..20_000_u32)
            .filter_map(|nth| {
                Some(format!(
                    "abcd{}",
                    char::from_u32(0x400 + nth).filter(|letter| letter.is_alphabetic())?
                ))
            })
            .collect();
        assert_eq!(first_of_group(&hostile).len(), hostile.len());
    }
}
