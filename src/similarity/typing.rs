//! One typing error between two words: a letter replaced, dropped, doubled, or swapped with the
//! next one.
//!
//! The rules say which errors are believed, because two words that are one letter apart may well be
//! two words (`Gambia` and `Zambia`). Each rule depends on one word and the place of the error in
//! it, so that [`join`] finds all pairs among many words without comparing each with each.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::normal::{is_han, is_hiragana, is_kana, is_mark};
use super::words::{is_han_number, vocabulary};

/// Letters of the shortest word in which an error is believed, after the error or before it.
const MIN_LETTERS: usize = 5;
/// Longest such word: bounds the time for one.
const MAX_LETTERS: usize = 128;
/// Letters of a word whose first letter may be replaced (`Gambia` and `Zambia` are two words), or
/// dropped (so are `methanol` and `ethanol`).
const MIN_LETTERS_TO_REPLACE_FIRST: usize = 7;
const MIN_LETTERS_TO_DROP_FIRST: usize = 9;
/// The same for the stem of an Arabic word: one letter of a few makes another word.
const MIN_LETTERS_OF_ARABIC_FOR_FIRST: usize = 10;
/// Letters of an Arabic word in whose article one may be missing.
const MIN_LETTERS_WITH_ARTICLE: usize = 6;
/// Letters between two words of another script of which one of Chinese may be missing, or another:
/// these are several words, and the shorter ones have too few letters for an error.
const MIN_HAN_TO_DROP: usize = 5;
const MIN_HAN_TO_REPLACE: usize = 12;
/// Letters of a word of a script for which nothing was measured, or too many names are one letter
/// apart (Telugu).
const MIN_LETTERS_OF_OTHERS: usize = 14;
/// Words that are compared pair by pair. More of them are joined by their keys.
const MAX_PAIRWISE: usize = 24;

/// A word in which a typing error is believed.
#[derive(Debug)]
pub(crate) struct Word {
    letters: Box<[char]>,
    /// How often the word has parts that change its sense; two similar words have the same.
    sense: u64,
    /// Letters of the Arabic article and what is written with it, before the stem.
    stem: usize,
}

impl Word {
    /// Returns `None` if the word has to agree letter by letter: it is short, has digits or signs,
    /// or changes the sense of a query.
    pub(crate) fn new(text: &str) -> Option<Self> {
        // A word has at least one byte for each letter.
        if text.len() < MIN_LETTERS - 1 {
            return None;
        }
        let letters: Box<[char]> = text.chars().take(MAX_LETTERS + 1).collect();
        let is_tolerant = (MIN_LETTERS - 1..=MAX_LETTERS).contains(&letters.len())
            && letters
                .iter()
                .all(|letter| (letter.is_alphabetic() && !letter.is_numeric()) || is_mark(*letter))
            && !vocabulary().fixed.contains(text);
        is_tolerant.then(|| Self {
            stem: stem(text),
            sense: vocabulary().sense_of(text),
            letters,
        })
    }

    fn letter(&self, at: usize) -> char {
        self.letters.get(at).copied().unwrap_or_default()
    }

    /// Returns `true` if the letter at `at` is one of several equal ones.
    fn is_doubled(&self, at: usize) -> bool {
        let letter = self.letters.get(at);
        (at > 0 && self.letters.get(at - 1) == letter) || self.letters.get(at + 1) == letter
    }

    /// Returns `true` if another letter may stand at `at` by mistake.
    fn may_replace(&self, at: usize) -> bool {
        let letters = self.letters.len() - self.stem;
        let (enough, for_first) = match Script::of(self.letter(at)) {
            Script::Alphabet => (MIN_LETTERS, MIN_LETTERS_TO_REPLACE_FIRST),
            Script::Hangul => (MIN_LETTERS, MIN_LETTERS),
            Script::Arabic => (MIN_LETTERS, MIN_LETTERS_OF_ARABIC_FOR_FIRST),
            Script::Other => (MIN_LETTERS_OF_OTHERS, MIN_LETTERS_OF_OTHERS),
            Script::Han => {
                return letters >= MIN_HAN_TO_REPLACE && vocabulary().may_replace(self.letter(at));
            }
            Script::Kana => return self.stretch(at) >= MIN_LETTERS,
        };
        letters >= if at <= self.stem { for_first } else { enough }
    }

    /// Returns `true` if the word may be one without the letter at `at`, which was typed twice or
    /// was forgotten in the other word.
    fn may_drop(&self, at: usize) -> bool {
        if self.letters.len() < MIN_LETTERS {
            return false;
        }
        if self.is_doubled(at) {
            return true;
        }
        let letters = self.letters.len() - self.stem;
        let (enough, for_first) = match Script::of(self.letter(at)) {
            Script::Alphabet => (MIN_LETTERS, MIN_LETTERS_TO_DROP_FIRST),
            Script::Hangul => (MIN_LETTERS, MIN_LETTERS),
            Script::Arabic if at < self.stem => {
                return self.letters.len() >= MIN_LETTERS_WITH_ARTICLE;
            }
            Script::Arabic => (MIN_LETTERS, MIN_LETTERS_OF_ARABIC_FOR_FIRST),
            Script::Other => (MIN_LETTERS_OF_OTHERS, MIN_LETTERS_OF_OTHERS),
            Script::Han => {
                return letters >= MIN_HAN_TO_DROP && vocabulary().may_drop(self.letter(at));
            }
            Script::Kana => return self.stretch(at) >= MIN_LETTERS,
        };
        match at <= self.stem {
            true => letters >= for_first && !self.is_prefix(at),
            false => letters >= enough,
        }
    }

    /// Returns `true` if the letters at `at` and after it may stand in each other's place.
    fn may_swap(&self, at: usize) -> bool {
        let numbers = [self.letter(at), self.letter(at + 1)].map(is_han_number);
        self.letters.len() >= MIN_LETTERS && numbers == [false, false]
    }

    /// Returns `true` if the letter at `at` changes the sense of what follows.
    fn is_prefix(&self, at: usize) -> bool {
        let mut text = [0; 4];
        vocabulary()
            .prefixes
            .contains(&*self.letter(at).encode_utf8(&mut text))
    }

    /// Returns the number of letters around `at` in the same script of Japanese: words of a
    /// sentence without spaces, roughly.
    fn stretch(&self, at: usize) -> usize {
        let is_same = |letter: &&char| {
            is_kana(**letter)
                && (is_hiragana(**letter) == is_hiragana(self.letter(at)) || **letter == 'ー')
        };
        let (before, after) = self.letters.split_at(at.min(self.letters.len()));
        before.iter().rev().take_while(is_same).count() + after.iter().take_while(is_same).count()
    }

    /// Returns `true` if the other word is this one with one typing error.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        if self.sense != other.sense {
            return false;
        }
        let (one, two) = if self.letters.len() <= other.letters.len() {
            (self, other)
        } else {
            (other, self)
        };
        let pairs = one.letters.iter().zip(&two.letters);
        let at = pairs.take_while(|(one, two)| one == two).count();
        let rest =
            |word: &'_ Self, from: usize| word.letters.get(from..).unwrap_or_default().to_vec();
        if one.letters.len() + 1 == two.letters.len() {
            return two.may_drop(at) && rest(one, at) == rest(two, at + 1);
        }
        if one.letters.len() != two.letters.len() || at == one.letters.len() {
            return false;
        }
        if rest(one, at + 1) == rest(two, at + 1) {
            return one.may_replace(at) && two.may_replace(at);
        }
        (one.letter(at), one.letter(at + 1)) == (two.letter(at + 1), two.letter(at))
            && rest(one, at + 2) == rest(two, at + 2)
            && one.may_swap(at)
    }
}

/// Scripts by what one letter of them says.
enum Script {
    /// Latin, Greek, Cyrillic, Hebrew, Devanagari, Bengali, Thai and others.
    Alphabet,
    Arabic,
    Hangul,
    Han,
    Kana,
    Other,
}

impl Script {
    fn of(letter: char) -> Self {
        match letter {
            '\u{600}'..='\u{77f}' | '\u{8a0}'..='\u{8ff}' => Self::Arabic,
            '\0'..='\u{5ff}'
            | '\u{900}'..='\u{9ff}'
            | '\u{e00}'..='\u{eff}'
            | '\u{1000}'..='\u{10ff}'
            | '\u{1780}'..='\u{17ff}'
            | '\u{1c80}'..='\u{1cbf}'
            | '\u{1e00}'..='\u{1fff}'
            | '\u{2c60}'..='\u{2c7f}'
            | '\u{a720}'..='\u{a7ff}' => Self::Alphabet,
            '\u{1100}'..='\u{11ff}' | '\u{3130}'..='\u{318f}' | '\u{ac00}'..='\u{d7ff}' => {
                Self::Hangul
            }
            letter if is_han(letter) => Self::Han,
            letter if is_kana(letter) => Self::Kana,
            _ => Self::Other,
        }
    }
}

/// Returns the number of letters before the stem of an Arabic word.
fn stem(text: &str) -> usize {
    if !text.starts_with(|letter| ('\u{600}'..='\u{6ff}').contains(&letter)) {
        return 0;
    }
    let articles = ["ال", "لل", "وال", "بال", "فال", "كال", "ولل"];
    let article = articles.iter().find(|article| text.starts_with(**article));
    article.map_or(0, |article| article.chars().count())
}

/// Calls `same` with pairs of texts until all those are connected whose words are alike.
pub(crate) fn join(words: &[(u32, Word)], mut same: impl FnMut(u32, u32)) {
    let all: Vec<&(u32, Word)> = words.iter().collect();
    if words.len() <= MAX_PAIRWISE {
        return join_pairs(&all, &mut same);
    }
    // An error is in the first half of a word or in the second one, so that two words that are
    // alike have the other half in common. Few words have half of their letters in common.
    let state = RandomState::new();
    let mut halves: Vec<(u64, u32)> = Vec::new();
    for ((_, word), nth) in words.iter().zip(0_u32..) {
        // Of two words of different lengths, the shorter one says what a half is.
        for length in [word.letters.len(), word.letters.len() - 1] {
            let half = length / 2;
            let first = word.letters.get(..half);
            let last = word.letters.get(word.letters.len() - (length - half - 1)..);
            halves.push((state.hash_one((length, 0, first)), nth));
            halves.push((state.hash_one((length, 1, last)), nth));
        }
    }
    halves.sort_unstable();
    for half in halves.chunk_by(|one, other| one.0 == other.0) {
        let words = half
            .iter()
            .filter_map(|(_, nth)| all.get(*nth as usize).copied());
        match half.len() {
            0 | 1 => {}
            2..=MAX_PAIRWISE => join_pairs(&words.collect::<Vec<_>>(), &mut same),
            _ => Keys::of(words.collect()).join(&mut same),
        }
    }
}

fn join_pairs(words: &[&(u32, Word)], same: &mut impl FnMut(u32, u32)) {
    for (nth, (text, word)) in words.iter().enumerate() {
        for (other_text, other) in words.iter().skip(nth + 1) {
            if word.is_like(other) {
                same(*text, *other_text);
            }
        }
    }
}

/// Hashes of the words before and after each letter.
///
/// Two words that are alike have a key in common: what is left without the letter that was replaced
/// or dropped, or with two letters in order. And because each rule depends on one word, all words
/// with the same key are alike: the time grows with the number of words and not with that of pairs.
struct Keys<'a> {
    words: Vec<&'a (u32, Word)>,
    hashes: Vec<[Box<[u64]>; 2]>,
    state: RandomState,
}

impl<'a> Keys<'a> {
    fn of(words: Vec<&'a (u32, Word)>) -> Self {
        let state = RandomState::new();
        let grown = |hash: u64, letter: char| {
            (hash.rotate_left(5) ^ u64::from(letter)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                ^ (hash >> 29)
        };
        let seeds = (state.hash_one(1), state.hash_one(2));
        let hashes = words.iter().map(|(_, word)| {
            let mut before = vec![seeds.0 ^ word.sense];
            let mut after = vec![seeds.1];
            for letter in &word.letters {
                before.push(grown(before.last().copied().unwrap_or_default(), *letter));
            }
            for letter in word.letters.iter().rev() {
                after.push(grown(after.last().copied().unwrap_or_default(), *letter));
            }
            after.reverse();
            [before.into(), after.into()]
        });
        Self {
            hashes: hashes.collect(),
            words,
            state,
        }
    }

    /// Returns the hash of the letters up to `until` and from `from`, with what is between.
    fn key(&self, nth: usize, until: usize, from: usize, between: (char, char)) -> u64 {
        let hash = |hashes: &[u64], at: usize| hashes.get(at).copied().unwrap_or_default();
        let (before, after) = self
            .hashes
            .get(nth)
            .map(|[before, after]| (hash(before, until), hash(after, from)))
            .unwrap_or_default();
        self.state.hash_one((before, after, until, between))
    }

    fn join(&self, same: &mut impl FnMut(u32, u32)) {
        let longest = self.words.iter().map(|(_, word)| word.letters.len()).max();
        let mut seen: HashMap<u64, usize> = HashMap::new();
        // One place after the other, so that the keys of one place are in memory.
        for at in 0..longest.unwrap_or_default() {
            for is_swap in [false, true] {
                seen.clear();
                for (nth, (text, word)) in self.words.iter().enumerate() {
                    let key = if is_swap {
                        if at + 1 >= word.letters.len() || !word.may_swap(at) {
                            continue;
                        }
                        let (one, other) = (word.letter(at), word.letter(at + 1));
                        self.key(nth, at, at + 2, (one.min(other), one.max(other)))
                    } else {
                        if at >= word.letters.len() || !word.may_replace(at) {
                            continue;
                        }
                        self.key(nth, at, at + 1, ('\0', '\0'))
                    };
                    let first = *seen.entry(key).or_insert(nth);
                    self.verify(first, nth, *text, same);
                }
            }
            // Words without a letter: those that are one shorter have the key as they are.
            seen.clear();
            for (nth, (_, word)) in self.words.iter().enumerate() {
                if at <= word.letters.len() {
                    seen.entry(self.key(nth, at, at, ('\0', '\0')))
                        .or_insert(nth);
                }
            }
            for (nth, (text, word)) in self.words.iter().enumerate() {
                if at < word.letters.len()
                    && word.may_drop(at)
                    && let Some(shorter) = seen.get(&self.key(nth, at, at + 1, ('\0', '\0')))
                {
                    self.verify(*shorter, nth, *text, same);
                }
            }
        }
    }

    /// Two different words may have the same hash.
    fn verify(&self, first: usize, nth: usize, text: u32, same: &mut impl FnMut(u32, u32)) {
        if first != nth
            && let (Some((other, one)), Some((_, word))) =
                (self.words.get(first), self.words.get(nth))
            && (one.letters == word.letters || one.is_like(word))
        {
            same(*other, text);
        }
    }
}
