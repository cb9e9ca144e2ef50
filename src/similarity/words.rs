//! The vocabulary: words that change the sense of a query, that do not matter, or that mark the
//! parts of a prompt template. `words.txt` has them, by language; all languages hold at once,
//! because a query does not tell its language.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::OnceLock;

use super::normal::{is_han, is_kana, is_without_spaces, phrase};

const TEXT: &str = include_str!("words.txt");

/// All words, in their normal form.
#[derive(Default)]
pub(super) struct Vocabulary {
    /// Words that a typing error neither makes nor unmakes.
    pub(super) fixed: HashSet<String>,
    /// Letters within a word that change the sense.
    parts: Vec<String>,
    /// First letters of these, in ascending order.
    firsts: Vec<char>,
    /// Han letters that are neither replaced nor dropped (`true`), or not replaced.
    han: HashMap<char, bool>,
    /// Letters that change the sense when they are put before a word.
    pub(super) prefixes: HashSet<String>,
    pub(super) polite: Polite,
    /// Labels of a prompt template: of the query (`true`), or of another part.
    pub(super) labels: HashMap<String, bool>,
}

/// Returns the vocabulary, which is read once.
pub(super) fn vocabulary() -> &'static Vocabulary {
    static VOCABULARY: OnceLock<Vocabulary> = OnceLock::new();
    VOCABULARY.get_or_init(|| {
        let mut vocabulary = Vocabulary::default();
        let mut parts = HashSet::new();
        let mut polite = HashSet::new();
        for (kind, item) in items() {
            let item = phrase(item);
            match kind {
                "negation" | "number" => drop(vocabulary.fixed.insert(item)),
                "part" | "letter" => match (han_letter(&item), kind) {
                    (Some(letter), "part") => drop(vocabulary.han.insert(letter, true)),
                    (Some(letter), _) => drop(vocabulary.han.entry(letter).or_insert(false)),
                    (None, _) => drop(parts.insert(item)),
                },
                "prefix" => drop(vocabulary.prefixes.insert(item)),
                "polite" => drop(polite.insert(item)),
                "label" => drop(vocabulary.labels.insert(item, true)),
                "stop" => drop(vocabulary.labels.entry(item).or_insert(false)),
                kind => debug_assert!(false, "words.txt has an unknown kind: {kind}"),
            }
        }
        vocabulary.parts = parts.into_iter().collect();
        vocabulary.parts.sort_unstable();
        let firsts = vocabulary
            .parts
            .iter()
            .filter_map(|part| part.chars().next());
        vocabulary.firsts = firsts.collect();
        vocabulary.firsts.dedup();
        vocabulary.polite = Polite::new(polite);
        vocabulary
    })
}

/// Returns the items of the data file with their kinds.
fn items() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = TEXT.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once(": "))
        .flat_map(|(head, items)| {
            let kind = head.split_once(' ').map_or(head, |(_, kind)| kind);
            items.split(',').map(move |item| (kind, item.trim()))
        })
}

impl Vocabulary {
    /// Returns how often a word has each of the letters that change the sense, as one number. Most
    /// words have none.
    pub(super) fn sense_of(&self, word: &str) -> u64 {
        if word.is_ascii() {
            return 0;
        }
        let mut sense = 0_u64;
        for (at, letter) in word.char_indices() {
            let Ok(first) = self.firsts.binary_search(&letter) else {
                continue;
            };
            let rest = word.get(at..).unwrap_or_default();
            for (part, nth) in self.parts.iter().zip(1_u64..) {
                if part.starts_with(letter) && rest.starts_with(part.as_str()) {
                    // The order of parts does not matter, because a word has few.
                    sense =
                        sense.wrapping_add(nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ first as u64);
                }
            }
        }
        sense
    }

    /// Returns `true` if a Han letter may stand in place of another one.
    pub(super) fn may_replace(&self, letter: char) -> bool {
        !is_han_number(letter) && !self.han.contains_key(&letter)
    }

    /// Returns `true` if a query without this Han letter may be the same.
    pub(super) fn may_drop(&self, letter: char) -> bool {
        !is_han_number(letter) && self.han.get(&letter) != Some(&true)
    }
}

fn han_letter(item: &str) -> Option<char> {
    let mut letters = item.chars();
    letters
        .next()
        .filter(|letter| is_han(*letter) && letters.next().is_none())
}

/// Returns `true` if a Han letter is a number.
pub(super) fn is_han_number(letter: char) -> bool {
    "〇一二三四五六七八九十百千万萬亿億兆零两兩壹贰叁".contains(letter)
}

/// Polite phrases, by their first and by their last letter.
#[derive(Default)]
pub(super) struct Polite {
    starts: Vec<(char, Vec<String>)>,
    ends: Vec<(char, Vec<String>)>,
}

impl Polite {
    fn new(phrases: HashSet<String>) -> Self {
        let by = |letter: fn(&str) -> Option<char>| {
            let mut by_letter: HashMap<char, Vec<String>> = HashMap::new();
            for phrase in &phrases {
                if let Some(letter) = letter(phrase) {
                    by_letter.entry(letter).or_default().push(phrase.clone());
                }
            }
            let mut by_letter: Vec<_> = by_letter.into_iter().collect();
            by_letter.sort_unstable();
            for (_, phrases) in &mut by_letter {
                // The longest one first.
                phrases.sort_unstable_by_key(|phrase| std::cmp::Reverse(phrase.len()));
            }
            by_letter
        };
        Self {
            starts: by(|phrase| phrase.chars().next()),
            ends: by(|phrase| phrase.chars().next_back()),
        }
    }

    /// Returns what is left of a normal form without a polite phrase at its beginning or its end.
    /// `None`: it has none, or consists of one.
    pub(super) fn rest_of(&self, text: &str) -> Option<Range<usize>> {
        fn found(phrases: &[(char, Vec<String>)], letter: Option<char>) -> &[String] {
            let letter = letter.unwrap_or_default();
            let found = phrases
                .binary_search_by_key(&letter, |(letter, _)| *letter)
                .ok();
            found
                .and_then(|at| phrases.get(at))
                .map_or(&[], |(_, phrases)| phrases)
        }
        // In scripts without spaces a phrase is a part of a word.
        let is_run = |phrase: &str| {
            phrase
                .chars()
                .all(|letter| is_without_spaces(letter) || is_han(letter) || is_kana(letter))
        };
        for phrase in found(&self.starts, text.chars().next()) {
            if let Some(rest) = text.strip_prefix(phrase.as_str()) {
                let words = rest.trim_start_matches(' ');
                if !words.is_empty() && (words.len() < rest.len() || is_run(phrase)) {
                    return Some(text.len() - words.len()..text.len());
                }
            }
        }
        for phrase in found(&self.ends, text.chars().next_back()) {
            if let Some(rest) = text.strip_suffix(phrase.as_str()) {
                let words = rest.trim_end_matches(' ');
                if !words.is_empty() && (words.len() < rest.len() || is_run(phrase)) {
                    return Some(0..words.len());
                }
            }
        }
        None
    }
}
