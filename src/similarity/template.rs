//! Finds the query in a prompt template.
//!
//! A text tells by itself that it is a template: by a label before a colon (`Question: ... Answer:`),
//! by tags (`<query>...</query>`), by a delimiter after a colon, or by an instruction before a
//! colon. The form alone decides and not what other texts have in common, so that the normal form
//! of a text never depends on the log. An unknown template stays, and each query in it is another
//! text.

use super::normal::phrase;
use super::words::vocabulary;

/// Templates within templates that are looked into.
const MAX_DEPTH: usize = 4;
/// Longest label, and longest instruction before a colon, in bytes.
const MAX_LABEL: usize = 48;
const MAX_INSTRUCTION: usize = 160;
/// Colons that are looked at: a text of nothing else must not take long.
const MAX_COLONS: usize = 32;

/// Tags around a query.
const TAGS: [(&str, &str); 10] = [
    ("<query>", "</query>"),
    ("<question>", "</question>"),
    ("<user_query>", "</user_query>"),
    ("<user_question>", "</user_question>"),
    ("<search_query>", "</search_query>"),
    ("<input>", "</input>"),
    ("<user_input>", "</user_input>"),
    ("[INST]", "[/INST]"),
    ("<|user|>", "<|"),
    ("<|im_start|>user", "<|im_end|>"),
];
const DELIMITERS: [&str; 4] = ["\"\"\"", "```", "'''", "###"];
/// First words of an instruction that ends with a colon.
const INSTRUCTIONS: [&str; 24] = [
    "answer",
    "represent",
    "find",
    "retrieve",
    "search",
    "given",
    "use",
    "using",
    "please",
    "you",
    "respond",
    "reply",
    "rewrite",
    "rephrase",
    "read",
    "beantworte",
    "cevapla",
    "ответь",
    "ответьте",
    "réponds",
    "répondez",
    "responde",
    "based",
    "consider",
];
/// Last words of such an instruction.
const SUBJECTS: [&str; 14] = [
    "question",
    "query",
    "questions",
    "queries",
    "request",
    "passages",
    "retrieval",
    "documents",
    "frage",
    "soru",
    "soruyu",
    "вопрос",
    "pregunta",
    "input",
];
const INSTRUCTIONS_WITHOUT_SPACES: [&str; 2] =
    ["为这个句子生成表示以用于检索相关文章", "请回答以下问题"];

/// Returns the query in a text, or the text if it is no known template.
pub(super) fn query_of(text: &str) -> &str {
    // Most queries are no template.
    if !text.contains([':', '：', '<', '[']) {
        return text;
    }
    let mut query = text;
    for _ in 0..MAX_DEPTH {
        match tagged(query)
            .or_else(|| labelled(query))
            .or_else(|| delimited(query))
        {
            Some(inner) => query = inner,
            None => break,
        }
    }
    query
}

fn with_words(text: &str) -> Option<&str> {
    text.chars().any(char::is_alphanumeric).then_some(text)
}

fn tagged(text: &str) -> Option<&str> {
    TAGS.iter().find_map(|(open, close)| {
        let (_, inner) = text.rsplit_once(open)?;
        let (inner, _) = inner.split_once(close)?;
        with_words(inner)
    })
}

/// What stands before a colon.
#[derive(Clone, Copy, PartialEq)]
enum Label {
    Query,
    Other,
}

/// Returns what follows the last label of a query, up to the next label.
fn labelled(text: &str) -> Option<&str> {
    let mut query: Option<(usize, usize)> = None;
    let mut found = None;
    for (colon, sign) in text.match_indices([':', '：']).take(MAX_COLONS) {
        let Some(before) = text.get(..colon) else {
            continue;
        };
        let begin = segment(before);
        let Some(label) = before.get(begin..).and_then(label) else {
            continue;
        };
        if let Some((from, _)) = query.take() {
            found = text.get(from..begin).and_then(with_words).or(found);
        }
        if label == Label::Query {
            query = Some((colon + sign.len(), begin));
        }
    }
    let last = query
        .and_then(|(from, _)| text.get(from..))
        .and_then(with_words);
    last.or(found)
}

/// Returns where the sentence or line begins that the end of a text is in.
fn segment(text: &str) -> usize {
    let mut end = text.len();
    for (at, letter) in text.char_indices().rev() {
        if text.len() - at > MAX_INSTRUCTION {
            break;
        }
        // A point ends a sentence if a space follows.
        let is_end = match letter {
            '\n' | '\r' | ';' | '。' | '？' | '！' | ':' | '：' => true,
            '.' | '?' | '!' | '>' | '؟' | '।' => text
                .get(end..)
                .is_some_and(|rest| rest.starts_with(char::is_whitespace)),
            _ => false,
        };
        if is_end {
            return end;
        }
        end = at;
    }
    end
}

fn label(segment: &str) -> Option<Label> {
    let segment = segment
        .trim_matches(|letter: char| letter.is_whitespace() || "#*-_>\"'`([".contains(letter));
    if segment.is_empty() || segment.len() > MAX_INSTRUCTION {
        return None;
    }
    let normal = phrase(&segment.replace('_', " "));
    if segment.len() <= MAX_LABEL
        && let Some(is_query) = vocabulary().labels.get(&normal)
    {
        return Some(if *is_query {
            Label::Query
        } else {
            Label::Other
        });
    }
    let is_instruction = INSTRUCTIONS_WITHOUT_SPACES.contains(&normal.as_str())
        || normal.split_once(' ').is_some_and(|(first, rest)| {
            let last = rest.rsplit(' ').next().unwrap_or(rest);
            INSTRUCTIONS.contains(&first) && SUBJECTS.contains(&last)
        });
    is_instruction.then_some(Label::Query)
}

/// Returns what stands between two equal delimiters, of which the first follows a colon.
fn delimited(text: &str) -> Option<&str> {
    DELIMITERS.iter().find_map(|delimiter| {
        let (before, rest) = text.split_once(delimiter)?;
        let (inner, after) = rest.split_once(delimiter)?;
        let is_introduced = before.trim_end().ends_with([':', '：']) && !after.contains(delimiter);
        is_introduced.then_some(inner).and_then(with_words)
    })
}
