//! Similarity of queries, and search for a part of a text.
//!
//! Two queries are the same text if their [normal forms](normalized) are equal, apart from spaces.
//! They are similar if they are the same text, or if one word of one is that of the other with one
//! typing error. Everything else counts: each word, the order of words, numbers, and words that
//! change the sense. The similarity of two queries depends on these two alone, and on no other
//! query of the log.
//!
//! Similarity is not transitive: `pasword` and `passwrd` are both similar to `password`, but not to
//! each other. A group is what similar texts connect. The reports in memory and the reads in SQL
//! use the same functions, so that both find the same failures.

mod normal;
#[cfg(test)]
mod recall;
mod template;
mod typing;
mod words;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use unicode_normalization::UnicodeNormalization as _;

pub use normal::normalized;
pub(crate) use normal::{squashed, squashed_hash};
pub(crate) use typing::{Word, join};

/// Longest normal form in which a typing error is looked for, in bytes. The limit bounds the memory
/// of a ranking, which holds the normal form of each text.
pub(crate) const MAX_BYTES: usize = 1024;
/// Words of a text in which a typing error is looked for: its first ones.
const MAX_WORDS: usize = 48;

/// Calls `each` with the words of a normal form in which a typing error is believed, each with a
/// hash of all other words and its place among them. Two texts are similar if they have such a hash
/// in common, and both words are [alike](Word::is_like).
pub(crate) fn tolerant_words(normal: &str, state: &RandomState, mut each: impl FnMut(u64, &str)) {
    if normal.len() > MAX_BYTES {
        return;
    }
    let hashes: Vec<u64> = normal.split(' ').map(|word| state.hash_one(word)).collect();
    let grown =
        |hash: u64, word: u64| (hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut after = vec![0_u64];
    for hash in hashes.iter().rev() {
        after.push(grown(after.last().copied().unwrap_or_default(), *hash));
    }
    let (mut before, mut words) = (1_u64, 0);
    let rests = after.iter().rev().skip(1);
    for ((word, hash), after) in normal.split(' ').zip(&hashes).zip(rests) {
        // A cheap test first: most short words end here.
        if word.len() >= 4 && words < MAX_WORDS {
            words += 1;
            each(grown(before, *after) ^ before.rotate_left(31), word);
        }
        before = grown(before, *hash);
    }
}

/// Texts with which others are compared.
#[derive(Default)]
pub(crate) struct Similar {
    texts: HashSet<u64>,
    state: RandomState,
    by_rest: HashMap<u64, Vec<Word>>,
}

impl Similar {
    /// Returns a value with which queries are compared that are similar to one of these.
    pub(crate) fn to<'a>(queries: impl Iterator<Item = &'a str>) -> Self {
        let mut similar = Self::default();
        for query in queries {
            let normal = normalized(query);
            similar.texts.insert(squashed_hash(&normal));
            let Self { state, by_rest, .. } = &mut similar;
            tolerant_words(&normal, state, |rest, word| {
                if let Some(word) = Word::new(word) {
                    by_rest.entry(rest).or_default().push(word);
                }
            });
        }
        similar
    }

    /// Returns `true` if a query is similar to one of the texts.
    pub(crate) fn has(&self, query: &str) -> bool {
        let normal = normalized(query);
        if self.texts.contains(&squashed_hash(&normal)) {
            return true;
        }
        let mut is_similar = false;
        tolerant_words(&normal, &self.state, |rest, word| {
            if !is_similar && let Some(words) = self.by_rest.get(&rest) {
                is_similar = Word::new(word)
                    .is_some_and(|word| words.iter().any(|other| other.is_like(&word)));
            }
        });
        is_similar
    }
}

/// A part of a text that is searched for.
pub(crate) struct Folded(String);

impl Folded {
    /// Folds `part` once, so that a search does not fold it for each row.
    pub(crate) fn new(part: &str) -> Self {
        Self(folded(part))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns `true` if `text` contains `part`, which is [`Folded`].
pub(crate) fn contains(text: &str, part: &str) -> bool {
    if !text.is_ascii() {
        return folded(text).contains(part);
    }
    // Most text is ASCII, whose folded form is its lower case: nothing is copied.
    part.is_empty()
        || text
            .as_bytes()
            .windows(part.len())
            .any(|window| window.eq_ignore_ascii_case(part.as_bytes()))
}

/// Returns text in which upper and lower case, composed and decomposed letters, and wide and narrow
/// ones are the same. Letter by letter, so that `ß` is `ss`, and each sigma is one.
fn folded(text: &str) -> String {
    text.nfkc()
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .nfkc()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_found_in_either_case_of_any_script() {
        for (text, part) in [
            ("Where is the KEY?", "the key"),
            ("Москва", "москва"),
            ("москва", "МОСК"),
            ("ΟΔΟΣ", "οδος"),
            ("οδος 7", "ΟΔΟΣ"),
            ("Straße", "STRASSE"),
            ("strasse", "straße"),
            ("café", "cafe\u{301}"),
            ("CAFE\u{301}", "café"),
            ("ＫＥＹ", "key"),
            ("ﬁnd", "FIND"),
            ("a\0behind", "BEHIND"),
            ("100%_\\", "%_\\"),
            ("anything", ""),
            ("", ""),
        ] {
            assert!(
                contains(text, Folded::new(part).as_str()),
                "{part} in {text}"
            );
        }
        for (text, part) in [
            ("cafe", "café"),
            ("key", "keys"),
            ("", "x"),
            ("Москва", "moskva"),
            ("a", "\0"),
        ] {
            assert!(
                !contains(text, Folded::new(part).as_str()),
                "{part} in {text}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn each_part_is_found_in_upper_and_lower_case(before in ".{0,9}", part in ".{1,9}", after in ".{0,9}") {
            let text = format!("{before} {part} {after}");
            for part in [part.clone(), part.to_lowercase(), part.to_uppercase()] {
                // A combining character makes another letter.
                if folded(&text).contains(&folded(&part)) {
                    proptest::prop_assert!(contains(&text, Folded::new(&part).as_str()));
                }
            }
            proptest::prop_assert!(contains(&text, Folded::new(&text.to_uppercase()).as_str()));
        }
    }
}
