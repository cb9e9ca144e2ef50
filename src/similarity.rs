//! Similarity of texts, and search for a part of a text.
//!
//! Two queries are similar if they have the same text after [`normalized`], or if three quarters of
//! all their words are common to both (the Jaccard index). Order and repetition of words do not
//! count. Groups of failing queries are built on this rule, in memory and in SQL, so that both
//! sides call the same function.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use unicode_normalization::UnicodeNormalization as _;

/// Words of a text that are compared. More of them would make long texts costly, and change few
/// groups.
pub(crate) const MAX_WORDS: usize = 64;
/// Two texts are similar if this share of all their words is common to both.
pub(crate) const SIMILAR_SHARE: f64 = 0.75;
/// Returns `true` if two texts are in one group when one of them is its most frequent.
pub(crate) fn texts_are_similar(one: &str, other: &str) -> bool {
    let (one, other) = (normalized(one), normalized(other));
    one == other || are_similar(&words(&one), &words(&other))
}

/// Returns `true` if two sets, in ascending order, have enough words in common.
pub(crate) fn are_similar(one: &[u32], other: &[u32]) -> bool {
    let all = (one.len() + other.len()) as f64;
    // `c / (all - c) >= SIMILAR_SHARE`, solved for the common words `c`: each common word stands in
    // both lists, and counts once in the union. The small subtrahend keeps a rounding error from
    // asking for one word more.
    let enough = (SIMILAR_SHARE * all / (1.0 + SIMILAR_SHARE) - 1e-9).ceil();
    let (mut one, mut other) = (one, other);
    let mut common = 0.0;
    while let ([first, rest @ ..], [other_first, other_rest @ ..]) = (one, other) {
        // Stops as soon as the rest cannot suffice. Most pairs of a ranking end here after some
        // words.
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

/// Returns the text in lower case, words only, with one space between them. A normalised text stays
/// as it is, so that a key of a group can be normalised once more. A query without a word is
/// trimmed and nothing else.
pub fn normalized(query: &str) -> String {
    let mut text = String::with_capacity(query.len());
    let mut between = false;
    // In lower case first, because that may be more than letters.
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
    // A query without a word is still a query.
    if text.is_empty() {
        query.trim().to_owned()
    } else {
        text
    }
}

/// Returns the hashes of the first [`MAX_WORDS`] words, each once, in ascending order. Two words
/// with the same 32 bits count as one, which changes a group at most.
pub(crate) fn words(normalized: &str) -> Box<[u32]> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "some of the hash's bits are enough"
    )]
    let words: BTreeSet<u32> = normalized
        .split(' ')
        .map(|word| hash(word) as u32)
        .take(MAX_WORDS)
        .collect();
    words.into_iter().collect()
}

/// Returns a hash that holds within this process alone: `DefaultHasher` may change with the version
/// of Rust, so that it is never stored.
pub(crate) fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
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
