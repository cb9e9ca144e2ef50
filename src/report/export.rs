//! Failures as text, in constant memory however many there are.

use serde::{Deserialize, Serialize};

use crate::error::ReadError;
use crate::model::failure::{Failure, FailureFilter};
use crate::report::FailureReader;
#[cfg(feature = "csv")]
use crate::report::csv;
use crate::report::failures::{self, Cursor, PageRequest};
use crate::store::reads::{Deadline, Lane};
use crate::store::snapshot::Snapshot;

/// Failures of one chunk at most.
const CHUNK: usize = 250;

/// Format of an export. Both formats have the table's columns, times in RFC 3339, and a line feed
/// at the end of each line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// A JSON object a line.
    #[default]
    JsonLines,
    /// Comma-separated values under a line of names. Where a spreadsheet would begin a formula, a
    /// `'` comes first.
    #[cfg(feature = "csv")]
    Csv,
}

/// Failures on their way out, oldest first, piece by piece.
///
/// ```
/// # use std::io::Write as _;
/// # use failure_logger::{FailureFilter, FailureLogger, LoggerConfig};
/// # use failure_logger::report::ExportFormat;
/// # futures_executor::block_on(async {
/// # let logger = FailureLogger::spawn(LoggerConfig::new(":memory:"))?;
/// let mut export = logger.reader().export(FailureFilter::default(), ExportFormat::JsonLines);
/// while let Some(chunk) = export.next_chunk().await? {
///     std::io::stdout().write_all(&chunk)?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
#[must_use = "nothing is read before a call of next_chunk"]
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
    /// Begins CSV with a byte order mark, by which Excel recognises UTF-8. JSON lines never have
    /// one.
    #[cfg(feature = "csv")]
    pub fn with_byte_order_mark(self) -> Self {
        Self {
            has_byte_order_mark: self.format == ExportFormat::Csv,
            ..self
        }
    }

    /// The next lines, those of a few hundred failures. `None`: there are no more.
    ///
    /// # Errors
    ///
    /// See [`ReadError`]. The next call retries the same chunk.
    pub async fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        while let Some(cursor) = self.next {
            let (filter, format, header) = (self.filter.clone(), self.format, !self.begun);
            let time_budget = self.reader.timeout / 2;
            let run = move |snapshot: &mut dyn Snapshot, _| {
                let page = PageRequest::newer_than(cursor, CHUNK);
                let page = failures::list(snapshot, &filter, page, Deadline::after(time_budget))?;
                let end = page.complete && page.failures.len() < CHUNK;
                let lines = format.lines(page.failures.iter().rev(), header)?;
                Ok((lines, page.newer.filter(|_| !end)))
            };
            let (mut lines, next) = self
                .reader
                .reads
                .run(Lane::Heavy, self.reader.timeout, run)
                .await?;
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
    #[cfg_attr(
        not(feature = "csv"),
        expect(unused_variables, reason = "JSON lines have no header")
    )]
    fn lines<'f>(
        self,
        failures: impl Iterator<Item = &'f Failure>,
        header: bool,
    ) -> Result<Vec<u8>, ReadError> {
        match self {
            Self::JsonLines => {
                let mut lines = Vec::new();
                for failure in failures {
                    serde_json::to_writer(&mut lines, failure).map_err(ReadError::export)?;
                    lines.push(b'\n');
                }
                Ok(lines)
            }
            #[cfg(feature = "csv")]
            Self::Csv => csv::lines(failures, header),
        }
    }
}
