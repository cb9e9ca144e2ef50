//! The normal form of a query: what is compared, and by what a group is known.
//!
//! 1. A prompt template around the query is removed ([`template`](super::template)).
//! 2. [`fold`] removes what makes no difference in any script: case, composition, width, and letters
//!    that people write in two ways.
//! 3. The text is split into words by Unicode's rules (UAX #29). A symbol that belongs to a word
//!    stays (`c++`, `.net`, `-5`, `3.11`), all other punctuation goes. In scripts without spaces
//!    (Chinese, Japanese, Thai, Lao, Khmer, Burmese) the letters between two words of another
//!    script are one word, whatever spaces are among them.
//! 4. Polite words at both ends are removed.

use std::hash::{DefaultHasher, Hasher as _};

use unicode_normalization::{IsNormalized, UnicodeNormalization as _, is_nfkc_quick};
use unicode_segmentation::UnicodeSegmentation as _;

use super::template;
use super::words::vocabulary;

/// Longest normal form, in characters. NFKC makes up to 18 characters of one. A longer form ends
/// with a hash of the rest, because the table of statuses holds at most 1024 characters.
const MAX_CHARACTERS: usize = 1000;

/// Returns the normal form of a query: words with one space between them. Two queries whose normal
/// forms differ in nothing but spaces are the same text of a group, unless the space stands between
/// two numbers. A query without a word is folded, and nothing else.
pub fn normalized(query: &str) -> String {
    let folded = fold(template::query_of(query));
    let mut text = words(&folded);
    if text.is_empty() {
        // A query without a word is still a query.
        text = fold(query).split_whitespace().collect::<Vec<_>>().join(" ");
    }
    cut(text)
}

/// Returns the normal form of a phrase of the vocabulary, whose polite words stay.
pub(super) fn phrase(text: &str) -> String {
    tokens(&fold(text)).text
}

fn cut(mut text: String) -> String {
    let Some((end, _)) = text.char_indices().nth(MAX_CHARACTERS) else {
        return text;
    };
    let rest = text.split_off(end);
    // FNV, because the hash is stored and must not change with the version of Rust.
    let hash = rest.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    text.push_str(&format!(" {hash:016x}"));
    text
}

/// Returns a hash of a normal form without its spaces, so that `pass word` and `password` have the
/// same, and `1 2` and `12` have not. It holds within this process alone: `DefaultHasher` may
/// change with the version of Rust, so that it is never stored.
pub(crate) fn squashed_hash(normal: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    for part in squashed_parts(normal) {
        part.bytes().for_each(|byte| hasher.write_u8(byte));
    }
    hasher.finish()
}

/// Returns a normal form without its spaces, but for those between two numbers.
pub(crate) fn squashed(normal: &str) -> String {
    squashed_parts(normal).collect()
}

fn squashed_parts(normal: &str) -> impl Iterator<Item = &str> {
    let mut before: Option<char> = None;
    normal.split(' ').flat_map(move |word| {
        let is_apart = before.is_some_and(char::is_numeric) && word.starts_with(char::is_numeric);
        before = word.chars().next_back().or(before);
        [if is_apart { " " } else { "" }, word]
    })
}

/// Returns a text in which case, composition and width make no difference, nor letters that people
/// write in two ways.
fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let mut folded = String::with_capacity(text.len());
    let mut fold = |character: char| {
        if character.is_ascii() {
            folded.push(character.to_ascii_lowercase());
            return;
        }
        // The lower case of the upper case is the full case folding, but for some letters of
        // Cherokee: `ß` is `ss`, each sigma is one, and `ı` is `i`, as Turkish needs it.
        for upper in character.to_uppercase() {
            for lower in upper.to_lowercase() {
                push_folded(&mut folded, lower);
            }
        }
    };
    match is_nfkc_quick(text.chars()) {
        IsNormalized::Yes => text.chars().for_each(&mut fold),
        IsNormalized::No | IsNormalized::Maybe => text.nfkc().for_each(&mut fold),
    }
    match is_nfkc_quick(folded.chars()) {
        IsNormalized::Yes => folded,
        IsNormalized::No | IsNormalized::Maybe => folded.nfkc().collect(),
    }
}

/// Appends a letter in lower case, as the variant that stands for all.
fn push_folded(folded: &mut String, letter: char) {
    let variant = match letter {
        // What is not seen: joiners, directions, soft hyphens, variations of emoji.
        '\u{ad}'
        | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}' => return,
        // Arabic: vowel signs and the stretched line.
        '\u{64b}'..='\u{652}' | '\u{670}' | 'ـ' => return,
        'أ' | 'إ' | 'آ' | 'ٱ' => 'ا',
        'ى' | 'ی' => 'ي',
        'ک' => 'ك',
        'ة' => 'ه',
        'ё' => 'е',
        // Greek in capitals has no accent.
        'ά' => 'α',
        'έ' => 'ε',
        'ή' => 'η',
        'ί' => 'ι',
        'ό' => 'ο',
        'ύ' => 'υ',
        'ώ' => 'ω',
        'ΐ' => 'ϊ',
        'ΰ' => 'ϋ',
        // The accent of Russian dictionaries, which is a mark of its own, and the dot of İ.
        '\u{301}' | '\u{307}'
            if folded
                .chars()
                .next_back()
                .is_some_and(|before| before == 'i' || ('а'..='я').contains(&before)) =>
        {
            return;
        }
        '’' | 'ʼ' | '‘' | '′' => '\'',
        '−' | '–' | '‐' | '‑' => '-',
        letter => letter,
    };
    folded.push(variant);
}

/// A normal form while it grows.
#[derive(Default)]
struct Tokens {
    text: String,
    /// The last word consists of letters of scripts without spaces.
    is_run: bool,
    /// A sign between two operands, of which the second one is missing.
    operator: Option<char>,
    /// A sign that belongs to the next word.
    prefix: Option<char>,
    /// End of the last word in the text that is read.
    end: usize,
}

impl Tokens {
    /// Adds a word, or letters to a word of a script without spaces.
    fn push(&mut self, word: impl Iterator<Item = char>, is_run: bool) {
        let operator = self.operator.take();
        if let Some(operator) = operator {
            self.text.push(' ');
            self.text.push(operator);
        }
        let continues = is_run && self.is_run && operator.is_none();
        if !self.text.is_empty() && !continues {
            self.text.push(' ');
        }
        self.text.extend(self.prefix.take());
        self.text.extend(word);
        self.is_run = is_run;
    }
}

fn tokens(folded: &str) -> Tokens {
    let mut tokens = Tokens {
        text: String::with_capacity(folded.len()),
        ..Tokens::default()
    };
    pieces(folded, |at, piece| {
        let end = at + piece.len();
        let Some(first) = piece.chars().next() else {
            return;
        };
        if piece.chars().any(char::is_alphanumeric) {
            let is_run = piece
                .chars()
                .all(|letter| is_without_spaces(letter) || is_mark(letter));
            tokens.push(WordLetters::new(piece), is_run);
            tokens.end = end;
            return;
        }
        let before = folded.get(..at).and_then(|text| text.chars().next_back());
        let after = folded.get(end..).and_then(|text| text.chars().next());
        let is_at_word = tokens.end == at && at > 0;
        let is_digit = |letter: Option<char>| letter.is_some_and(char::is_numeric);
        let begins =
            before.is_none_or(|before| before.is_whitespace() || "([{\"'=,".contains(before));
        match first {
            '+' | '#' if is_at_word => {
                let rest = folded.get(end..).unwrap_or_default();
                let signs = rest.len() - rest.trim_start_matches(['+', '#']).len();
                let follows = rest.get(signs..).and_then(|rest| rest.chars().next());
                if first == '+'
                    && signs == 0
                    && before != Some('+')
                    && follows.is_some_and(char::is_alphanumeric)
                {
                    tokens.operator = Some('+');
                } else {
                    tokens.text.push(first);
                    tokens.is_run = false;
                    tokens.end = end;
                }
            }
            '%' | '€' | '$' | '£' | '¥' | '₹' | '₺' | '₽' | '₩'
                if is_at_word && is_digit(before) =>
            {
                tokens.text.push(first);
                tokens.end = end;
            }
            '€' | '$' | '£' | '¥' | '₹' | '₺' | '₽' | '₩' if is_digit(after) => {
                tokens.prefix = Some(first);
            }
            '.' if begins && after.is_some_and(char::is_alphabetic) => tokens.prefix = Some('.'),
            '-' if begins && is_digit(after) => tokens.prefix = Some('-'),
            '/' | '*' | '^' if is_digit(before) && is_digit(after) => tokens.operator = Some(first),
            '<' | '>' | '=' | '+' | '×' | '÷' | '±' | '≠' | '≤' | '≥'
                if !tokens.text.is_empty() =>
            {
                tokens.operator = Some(first);
            }
            // Emoji, arrows and signs of their own say something; punctuation and marks do not.
            '\u{2190}'..='\u{2bff}' | '\u{1f000}'..='\u{1faff}' | '°' => {
                tokens.push(piece.chars(), false);
            }
            _ => tokens.prefix = None,
        }
    });
    tokens
}

/// Returns the words of a folded text without the polite ones at its ends.
fn words(folded: &str) -> String {
    let mut text = tokens(folded).text;
    let polite = &vocabulary().polite;
    // Each round removes a phrase at an end. A query has few of them, and a text of nothing else
    // stays as it is.
    while let Some(rest) = polite.rest_of(&text) {
        text.truncate(rest.end);
        text.drain(..rest.start);
    }
    text
}

/// Letters of a piece of UAX #29: without apostrophes, with the point of a number.
struct WordLetters<'a> {
    piece: &'a str,
    at: usize,
}

impl<'a> WordLetters<'a> {
    fn new(piece: &'a str) -> Self {
        Self { piece, at: 0 }
    }
}

impl Iterator for WordLetters<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        loop {
            let letter = self.piece.get(self.at..)?.chars().next()?;
            let at = self.at;
            self.at += letter.len_utf8();
            if letter.is_alphanumeric() || is_mark(letter) {
                return Some(letter);
            }
            let (before, after) = (self.piece.get(..at)?, self.piece.get(self.at..)?);
            let is_number =
                before.ends_with(char::is_numeric) && after.starts_with(char::is_numeric);
            let digits = after.chars().take_while(|digit| digit.is_numeric()).count();
            match letter {
                '.' | '٫' if is_number => return Some('.'),
                // A comma before three digits separates thousands.
                ',' if is_number && digits != 3 => return Some('.'),
                _ => {}
            }
        }
    }
}

/// Calls `each` with the pieces of a text between the boundaries of words (UAX #29), and where they
/// begin. Most text is ASCII, whose boundaries are found here in a fifth of the time.
fn pieces<'a>(text: &'a str, mut each: impl FnMut(usize, &'a str)) {
    if !text.is_ascii() {
        return pieces_of_any_script(text, each);
    }
    let bytes = text.as_bytes();
    let is_word = |at: usize| {
        bytes
            .get(at)
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
    };
    let mut at = 0;
    while at < bytes.len() {
        let begin = at;
        if is_word(at) {
            at += 1;
            while is_word(at) || (is_word(at + 1) && joins(bytes, at)) {
                at += 1;
            }
        } else {
            at += 1;
        }
        each(begin, text.get(begin..at).unwrap_or_default());
    }
}

/// Finds the pieces of a text that is not ASCII. Most words are letters between two spaces, and
/// letters of a script without spaces are one piece: both are found without the tables of Unicode.
fn pieces_of_any_script<'a>(text: &'a str, mut each: impl FnMut(usize, &'a str)) {
    let is_run = |letter: char| is_without_spaces(letter);
    let mut begin = 0;
    while let Some(rest) = text.get(begin..).filter(|rest| !rest.is_empty()) {
        let first = rest.chars().next().unwrap_or_default();
        let length = if is_run(first) {
            let end = rest.find(|letter| !is_run(letter) && !is_mark(letter));
            end.unwrap_or(rest.len())
        } else if first.is_whitespace() {
            first.len_utf8()
        } else {
            let end = rest.find(|letter: char| letter.is_whitespace() || is_run(letter));
            end.unwrap_or(rest.len())
        };
        let part = rest.get(..length).unwrap_or_default();
        if is_run(first)
            || first.is_whitespace()
            || part
                .chars()
                .all(|letter| letter.is_alphanumeric() || is_mark(letter))
        {
            each(begin, part);
        } else {
            let bounds = part.split_word_bound_indices();
            bounds.for_each(|(at, piece)| each(begin + at, piece));
        }
        begin += length;
    }
}

/// Returns `true` if the byte at `at` stands within a word: a point or an apostrophe between two
/// letters or two digits, a colon between two letters, a comma or semicolon between two digits.
fn joins(bytes: &[u8], at: usize) -> bool {
    let byte = |at: usize| bytes.get(at).copied().unwrap_or_default();
    let (before, after) = (byte(at - 1), byte(at + 1));
    let letters = before.is_ascii_alphabetic() && after.is_ascii_alphabetic();
    let digits = before.is_ascii_digit() && after.is_ascii_digit();
    match byte(at) {
        b'.' | b'\'' => letters || digits,
        b':' => letters,
        b',' | b';' => digits,
        _ => false,
    }
}

/// Returns `true` for a letter of a script that has no spaces between words.
pub(super) fn is_without_spaces(letter: char) -> bool {
    matches!(letter,
        // Thai and Lao, Burmese, Khmer.
        '\u{e00}'..='\u{e4f}' | '\u{e80}'..='\u{eff}' | '\u{1000}'..='\u{109f}'
        | '\u{1780}'..='\u{17d3}' | '\u{17dc}'..='\u{17dd}')
        || is_han(letter)
        || is_kana(letter)
}

pub(super) fn is_han(letter: char) -> bool {
    matches!(letter, '々' | '〆' | '〇' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}'
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

pub(super) fn is_hiragana(letter: char) -> bool {
    matches!(letter, '\u{3041}'..='\u{309f}')
}

/// Returns `true` for a letter of Hiragana or Katakana, and for the long vowel of both.
pub(super) fn is_kana(letter: char) -> bool {
    is_hiragana(letter) || matches!(letter, '\u{30a1}'..='\u{30fa}' | '\u{30fc}'..='\u{30ff}')
}

/// Returns `true` for marks that belong to the letter before, such as vowel signs of India and
/// tones of Thailand, which are no letters to Rust.
pub(super) fn is_mark(letter: char) -> bool {
    matches!(letter, '\u{300}'..='\u{36f}' | '\u{483}'..='\u{489}' | '\u{591}'..='\u{5c7}'
        | '\u{610}'..='\u{61a}' | '\u{64b}'..='\u{65f}' | '\u{900}'..='\u{903}'
        | '\u{93a}'..='\u{94f}' | '\u{951}'..='\u{957}' | '\u{981}'..='\u{983}'
        | '\u{9bc}'..='\u{9cd}' | '\u{9d7}' | '\u{9fe}' | '\u{a01}'..='\u{a03}'
        | '\u{a3c}'..='\u{a51}' | '\u{a70}'..='\u{a75}' | '\u{a81}'..='\u{a83}'
        | '\u{abc}'..='\u{acd}' | '\u{b01}'..='\u{b03}' | '\u{b3c}'..='\u{b57}'
        | '\u{b82}' | '\u{bbe}'..='\u{bcd}' | '\u{bd7}' | '\u{c00}'..='\u{c04}'
        | '\u{c3c}'..='\u{c56}' | '\u{c81}'..='\u{c83}' | '\u{cbc}'..='\u{cd6}'
        | '\u{d00}'..='\u{d03}' | '\u{d3b}'..='\u{d4d}' | '\u{d57}' | '\u{d81}'..='\u{d83}'
        | '\u{dca}'..='\u{df3}' | '\u{e31}' | '\u{e34}'..='\u{e3a}' | '\u{e47}'..='\u{e4e}'
        | '\u{eb1}' | '\u{eb4}'..='\u{ebc}' | '\u{ec8}'..='\u{ece}' | '\u{102b}'..='\u{103e}'
        | '\u{1056}'..='\u{109d}' | '\u{17b4}'..='\u{17d3}' | '\u{3099}'..='\u{309a}')
}
