//! Failures as comma-separated values that no spreadsheet runs.

use crate::error::ReadError;
use crate::model::failure::Failure;
use crate::model::time::Timestamp;

/// Returns a line for each failure, under a line of names if `header`.
pub(crate) fn lines<'f>(
    failures: impl Iterator<Item = &'f Failure>,
    header: bool,
) -> Result<Vec<u8>, ReadError> {
    // Text stands in quotes, because spreadsheets use different separators.
    let mut lines = csv::WriterBuilder::new()
        .quote_style(csv::QuoteStyle::NonNumeric)
        .from_writer(Vec::new());
    if header {
        lines.write_record(COLUMNS).map_err(ReadError::export)?;
    }
    for failure in failures {
        lines
            .write_record(cells(failure))
            .map_err(ReadError::export)?;
    }
    lines.into_inner().map_err(ReadError::export)
}

const COLUMNS: [&str; 17] = [
    "id",
    "event_id",
    "conversation_id",
    "turn_index",
    "failure_type",
    "retrieval_strategy",
    "query_text",
    "query_len",
    "top_score",
    "confidence_threshold",
    "result_count",
    "latency_ms",
    "edge_types",
    "error_context",
    "created_at",
    "source",
    "labels",
];

fn cells(failure: &Failure) -> [String; COLUMNS.len()] {
    let text = |text: &Option<String>| text.as_deref().map_or_else(String::new, guarded);
    fn number(number: Option<impl ToString>) -> String {
        number.map_or_else(String::new, |number| number.to_string())
    }
    [
        failure.id.to_string(),
        failure.event_id.to_string(),
        text(&failure.conversation_id),
        number(failure.turn_index),
        failure.failure_type.to_string(),
        guarded(&failure.retrieval_strategy),
        guarded(&failure.query_text),
        failure.query_len.to_string(),
        number(failure.top_score),
        number(failure.confidence_threshold),
        number(failure.result_count),
        number(failure.latency_ms),
        text(&failure.edge_types),
        text(&failure.error_context),
        Timestamp::from(failure.created_at).to_string(),
        text(&failure.source),
        if failure.labels.is_empty() {
            String::new()
        } else {
            guarded(&failure.labels.to_json())
        },
    ]
}

/// Returns `text` with a `'` before each character at which a spreadsheet may begin a formula: see
/// OWASP, "CSV Injection".
///
/// The separator of the spreadsheet is unknown. So a formula may begin at the start of the text and
/// behind each separator. Spreadsheets skip space and quotes before it. [`without_guards`] is the
/// reverse.
///
/// An empty cell is no text, and `'` is empty text.
pub fn guarded(text: &str) -> String {
    if is_all_guards(text) {
        return format!("'{text}");
    }
    let mut guarded = String::with_capacity(text.len());
    let mut may_begin = true;
    for character in text.chars() {
        if may_begin && is_formula(character) {
            guarded.push('\'');
        }
        guarded.push(character);
        may_begin = keeps_open(character, may_begin);
    }
    guarded
}

/// Returns the text as it was before [`guarded`].
#[cfg(any(feature = "program", test))]
pub fn without_guards(text: &str) -> String {
    if is_all_guards(text) {
        return text.get(1..).unwrap_or_default().to_owned();
    }
    let mut plain = String::with_capacity(text.len());
    let mut may_begin = true;
    for character in text.chars() {
        if may_begin && is_formula(character) && plain.ends_with('\'') {
            plain.pop();
        }
        plain.push(character);
        may_begin = keeps_open(character, may_begin);
    }
    plain
}

fn is_all_guards(text: &str) -> bool {
    text.bytes().all(|byte| byte == b'\'')
}

fn is_formula(character: char) -> bool {
    matches!(character, '=' | '+' | '-' | '@' | '＝' | '＋' | '－' | '＠')
}

/// Returns `true` if a formula may begin behind `character`.
fn keeps_open(character: char, before: bool) -> bool {
    match character {
        ',' | ';' | '|' | '\t' | '\n' | '\r' => true,
        '\'' | '"' => before,
        character => before && character.is_whitespace(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_are_guarded_and_other_text_is_not() {
        for (text, expected) in [
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1+cmd|' /C calc'!A0", "'-1+cmd|' /C calc'!A0"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "\t'=1"),
            ("\r\n =1", "\r\n '=1"),
            ("  =1", "  '=1"),
            ("＝1", "'＝1"),
            ("price;=1+1;x", "price;'=1+1;x"),
            ("a,\"=1\"", "a,\"'=1\""),
            ("a|-1\t@b", "a|'-1\t'@b"),
            ("'=1", "''=1"),
            ("", "'"),
            ("'", "''"),
        ] {
            assert_eq!(guarded(text), expected);
        }
        for text in [
            "a=b",
            "key?",
            "1-2",
            "'quoted'",
            "a; b",
            "x - y",
            "e-mail@example.org",
        ] {
            assert_eq!(guarded(text), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn guards_can_be_taken_away(text in "[=+@＝a'\";,|\t\r\n -]{0,30}") {
            proptest::prop_assert_eq!(without_guards(&guarded(&text)), text);
        }
    }
}
