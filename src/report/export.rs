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
    /// Comma-separated values under a line of names. Text that a spreadsheet would run as a formula
    /// has a `'` before it.
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
}

impl FailureReader {
    /// All failures that `filter` lets through, oldest first, in a format for other programs. Each
    /// piece is a query of its own, so that a slow receiver holds nothing up.
    pub fn export(&self, filter: FailureFilter, format: ExportFormat) -> Export {
        Export { reader: self.clone(), filter, format, next: Some(Cursor::BEGINNING), begun: false }
    }
}

impl Export {
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
            let (lines, next) = self.reader.pool.run(self.reader.timeout, run).await?;
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
    let text = |text: &Option<String>| text.as_deref().map_or_else(String::new, defused);
    let number = |number: Option<f32>| number.map_or_else(String::new, |number| number.to_string());
    [
        failure.id.to_string(),
        failure.event_id.to_string(),
        text(&failure.conversation_id),
        failure.turn_index.to_string(),
        failure.failure_type.to_string(),
        defused(&failure.retrieval_strategy),
        defused(&failure.query_text),
        failure.query_len.to_string(),
        number(failure.top_score),
        number(failure.confidence_threshold),
        failure.result_count.to_string(),
        failure.latency_ms.to_string(),
        text(&failure.edge_types),
        text(&failure.error_context),
        rfc3339(clock::milliseconds_of(failure.created_at)),
    ]
}

/// `text` as a spreadsheet shows it, and does not run it: see OWASP, "CSV Injection".
pub(crate) fn defused(text: &str) -> String {
    // Spreadsheets skip spaces before a formula, and take some full-width characters for it.
    let first = text.trim_start().chars().next();
    let formula = matches!(first, Some('=' | '+' | '-' | '@' | '＝' | '＋' | '－' | '＠'));
    if formula || text.starts_with(['\t', '\r', '\n']) { format!("'{text}") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_spreadsheet_would_run_is_defused_and_other_text_is_not() {
        for formula in ["=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "  =1", "＝1"] {
            assert_eq!(defused(formula), format!("'{formula}"));
        }
        for text in ["", "a=b", "key?", "1-2", "'quoted'"] {
            assert_eq!(defused(text), text);
        }
    }
}
