//! Failures as text, in constant memory however many there are.

use serde::{Deserialize, Serialize};

use super::failures::{self, Cursor, Failure, FailureFilter, PageRequest};
use super::{FailureReader, rfc3339};
use crate::clock;
use crate::error::ReadError;
use crate::store::reader::Deadline;

/// Failures of one chunk at most.
const CHUNK: usize = 1000;

/// How failures are written down. Both have the table's columns, times in RFC 3339, and end every
/// line with a line feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// A JSON object a line.
    #[default]
    JsonLines,
    /// Comma-separated values under a line of names. Where a spreadsheet would begin a formula, a `'` comes first.
    Csv,
}

/// Failures on their way out, oldest first, piece by piece.
///
/// ```
/// # use std::io::Write as _;
/// # use failure_logger::{ExportFormat, FailureFilter, FailureLogger, LoggerConfig};
/// # futures_executor::block_on(async {
/// # let logger = FailureLogger::spawn(LoggerConfig::new(":memory:"))?;
/// let mut export = logger.reader().export(FailureFilter::default(), ExportFormat::Csv);
/// while let Some(chunk) = export.next_chunk().await? {
///     std::io::stdout().write_all(&chunk)?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
#[must_use = "nothing is read before it is asked for the next chunk"]
pub struct Export {
    reader: FailureReader,
    filter: FailureFilter,
    format: ExportFormat,
    /// `None`: everything has been read.
    next: Option<Cursor>,
    begun: bool,
    has_byte_order_mark: bool,
}

impl FailureReader {
    /// All failures that `filter` lets through, oldest first, in a format for other programs. Each
    /// piece is a query of its own, so that a slow receiver holds nothing up.
    pub fn export(&self, filter: FailureFilter, format: ExportFormat) -> Export {
        Export {
            reader: self.clone(),
            filter,
            format,
            next: Some(Cursor::BEGINNING),
            begun: false,
            has_byte_order_mark: false,
        }
    }
}

impl Export {
    /// Begins CSV with a byte order mark, by which Excel recognises UTF-8. JSON lines never have one.
    pub fn with_byte_order_mark(self) -> Self {
        Self { has_byte_order_mark: self.format == ExportFormat::Csv, ..self }
    }

    /// The next lines, those of about a thousand failures. `None`: there are no more.
    ///
    /// # Errors
    ///
    /// See [`ReadError`]; the same piece may be asked for again.
    pub async fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        while let Some(cursor) = self.next {
            let (filter, format, header) = (self.filter.clone(), self.format, !self.begun);
            let patience = self.reader.timeout / 2;
            let run = move |conn: &mut diesel::SqliteConnection, _| {
                let page = PageRequest::newer_than(cursor, CHUNK);
                let page = failures::list(conn, &filter, page, Deadline::after(patience))?;
                let end = page.complete && page.failures.len() < CHUNK;
                let lines = format.lines(page.failures.iter().rev(), header)?;
                Ok((lines, page.newer.filter(|_| !end)))
            };
            let (mut lines, next) = self.reader.pool.run(self.reader.timeout, run).await?;
            if header && self.has_byte_order_mark {
                lines.splice(..0, "\u{feff}".bytes());
            }
            (self.next, self.begun) = (next, true);
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
        }
        Ok(None)
    }
}

impl ExportFormat {
    fn lines<'f>(self, failures: impl Iterator<Item = &'f Failure>, header: bool) -> Result<Vec<u8>, ReadError> {
        match self {
            Self::JsonLines => {
                let mut lines = Vec::new();
                for failure in failures {
                    serde_json::to_writer(&mut lines, failure).map_err(failed)?;
                    lines.push(b'\n');
                }
                Ok(lines)
            }
            Self::Csv => {
                // Text in quotes, whatever separator a spreadsheet believes in.
                let mut lines =
                    csv::WriterBuilder::new().quote_style(csv::QuoteStyle::NonNumeric).from_writer(Vec::new());
                if header {
                    lines.write_record(COLUMNS).map_err(failed)?;
                }
                for failure in failures {
                    lines.write_record(cells(failure)).map_err(failed)?;
                }
                lines.into_inner().map_err(failed)
            }
        }
    }
}

fn failed(error: impl std::fmt::Display) -> ReadError {
    ReadError::Export(error.to_string())
}

const COLUMNS: [&str; 15] = [
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
        rfc3339(clock::milliseconds_of(failure.created_at)),
    ]
}

/// `text` with a `'` before each character at which a spreadsheet may begin a formula: see OWASP, "CSV Injection".
///
/// Which separator a spreadsheet believes in is not known. So a formula may begin at the beginning of the text, and
/// behind each separator; spreadsheets skip space and quotes before it. [`without_guards`] is the reverse.
///
/// An empty cell is no text, and `'` is empty text.
pub(crate) fn guarded(text: &str) -> String {
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

/// Text as it was before [`guarded`].
#[cfg_attr(not(feature = "cli"), expect(dead_code, reason = "for `ingest`, which reads an export"))]
pub(crate) fn without_guards(text: &str) -> String {
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
    fn what_a_spreadsheet_would_run_is_guarded_and_other_text_is_not() {
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
        for text in ["a=b", "key?", "1-2", "'quoted'", "a; b", "x - y", "e-mail@example.org"] {
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
