//! Output: tables for a terminal, JSON and CSV for other programs.
//!
//! A command gives the same rows in four formats. [`Column`] says where a value is in a row, so
//! that no command formats a cell by itself. Only the table rounds numbers: programs get what the
//! log holds.
//!
//! Two protections apply to text, because any user of the application may have written it:
//!
//! - a terminal gets no control characters, because these could move the cursor, change the title
//!   or hide text;
//! - CSV gets guards against formulas, because a spreadsheet runs them.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;

use super::CommandError;

/// Format of the output. The default depends on the output: see `Style::format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns for a terminal
    Table,
    /// One JSON document
    Json,
    /// One JSON object per line
    Jsonl,
    /// Comma-separated values with a header line
    Csv,
}

/// Column of a table: its name, the JSON pointer to its value in a row, and its kind.
pub(super) struct Column {
    pub(super) name: &'static str,
    /// Pointer by RFC 6901, such as `/rates/attempts`. A row without that value has an empty cell.
    pub(super) pointer: Cow<'static, str>,
    pub(super) kind: CellKind,
}

/// Kind of the values of a column, which selects how a table shows them. All kinds but text are
/// aligned at the right, so that their digits are below each other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CellKind {
    /// Any other value, as it is.
    Text,
    /// Number, with three decimals unless it is whole.
    Number,
    /// Share from 0 to 1, shown in percent.
    Share,
    /// Milliseconds, with two decimals below 10.
    Milliseconds,
}

/// Returns a column with a constant pointer. It is `const`, so that most tables are constants.
pub(super) const fn column(name: &'static str, pointer: &'static str, kind: CellKind) -> Column {
    Column {
        name,
        pointer: Cow::Borrowed(pointer),
        kind,
    }
}

/// Writes `document` as JSON, or its `rows` in any other format. `document` and `rows` differ: a
/// document has fields beside its rows, such as a cursor or totals.
pub(super) fn write(
    format: Format,
    document: &Value,
    rows: &[Value],
    columns: &[Column],
) -> Result<(), CommandError> {
    let mut out = Output::new();
    match format {
        Format::Table => {
            let mut table = Table::new();
            table
                .load_style(presets::NOTHING)
                .set_content_arrangement(ContentArrangement::Dynamic);
            table.set_header(columns.iter().map(|column| column.name));
            for (nth, column) in columns.iter().enumerate() {
                if column.kind != CellKind::Text
                    && let Some(column) = table.column_mut(nth)
                {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
            for row in rows {
                table.add_row(
                    columns
                        .iter()
                        .map(|column| cell(row.pointer(&column.pointer), column.kind)),
                );
            }
            writeln!(out, "{table}")?;
        }
        // The alternate form is indented for people, and is still one document.
        Format::Json => writeln!(out, "{document:#}")?,
        Format::Jsonl => {
            for row in rows {
                writeln!(out, "{row}")?;
            }
        }
        Format::Csv => {
            let mut lines = csv::Writer::from_writer(Vec::new());
            let failed = |error: csv::Error| CommandError::Unreachable(error.to_string());
            lines
                .write_record(columns.iter().map(|column| column.name))
                .map_err(failed)?;
            for row in rows {
                let cells = columns
                    .iter()
                    .map(|column| match row.pointer(&column.pointer) {
                        // Only text can begin a formula. A guard before a negative number would
                        // turn it into text.
                        Some(Value::String(text)) => failure_logger::program::guarded(text),
                        value => plain(value),
                    });
                lines.write_record(cells).map_err(failed)?;
            }
            out.write_all(
                &lines
                    .into_inner()
                    .map_err(|error| CommandError::Unreachable(error.to_string()))?,
            )?;
        }
    }
    Ok(out.flush()?)
}

/// Formats a value for a table and escapes terminal control characters. A share is multiplied by
/// 100 here only, so that no percentage gets into JSON.
fn cell(value: Option<&Value>, kind: CellKind) -> String {
    let number = value.and_then(Value::as_f64);
    match (kind, number) {
        (CellKind::Share, Some(share)) => format!("{:.1} %", 100.0 * share),
        (CellKind::Milliseconds, Some(ms)) if ms < 10.0 => format!("{ms:.2} ms"),
        (CellKind::Milliseconds, Some(ms)) => format!("{ms:.0} ms"),
        (CellKind::Number, Some(number)) if number.fract() != 0.0 => format!("{number:.3}"),
        _ => escaped(&plain(value)),
    }
}

/// Standard output. Escapes control characters in every format if it is a terminal, because a
/// stored query may hold escape sequences. A file or a pipe gets the bytes unchanged, because a
/// program may need them.
pub(super) struct Output {
    out: io::StdoutLock<'static>,
    is_terminal: bool,
    /// The first bytes of a character whose other bytes come with the next write. A service's
    /// export is written as it comes.
    partial: Vec<u8>,
}

impl Output {
    /// Locks standard output until the value is dropped. A second value in the same thread does not
    /// block.
    pub(super) fn new() -> Self {
        let out = io::stdout().lock();
        Self {
            is_terminal: out.is_terminal(),
            out,
            partial: Vec::new(),
        }
    }
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_terminal {
            return self.out.write(bytes);
        }
        let text = complete_text(&mut self.partial, bytes);
        self.out.write_all(escaped_lines(&text).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Returns the text of `partial` and `bytes`, without the first bytes of a last character that is
/// not complete. These are left in `partial`. Bytes that are no text become U+FFFD.
fn complete_text(partial: &mut Vec<u8>, bytes: &[u8]) -> String {
    partial.extend_from_slice(bytes);
    let last = partial
        .utf8_chunks()
        .last()
        .map_or(&[][..], |chunk| chunk.invalid());
    let is_incomplete = str::from_utf8(last).is_err_and(|error| error.error_len().is_none());
    let length = partial.len() - if is_incomplete { last.len() } else { 0 };
    let complete: Vec<u8> = partial.drain(..length).collect();
    String::from_utf8_lossy(&complete).into_owned()
}

/// Escapes control characters but keeps line feeds and tabs. Messages of several lines and tables
/// consist of these two.
pub(super) fn escaped_lines(text: &str) -> String {
    text.split('\n')
        .map(|line| line.split('\t').map(escaped).collect::<Vec<_>>().join("\t"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Escapes control characters and the marks that change the direction of text.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        // Directional marks can make a terminal show a text in another order than it is stored.
        if character.is_control()
            || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// Returns a string without quotes, `null` as an empty text, and other values as JSON. Text and CSV
/// have no null, and a quoted text would look like a part of the value.
fn plain(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

/// Draws numbers as a row of bars, scaled to the largest. Zero is the lowest bar and not a space,
/// so that the length of the period is visible.
pub(super) fn sparkline(numbers: &[u64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let largest = numbers.iter().copied().max().unwrap_or(0).max(1);
    numbers
        .iter()
        .map(|number| {
            let height = usize::try_from(number * 7 / largest).unwrap_or(7);
            BARS.get(height).copied().unwrap_or('█')
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_text_has_no_control_characters() {
        assert_eq!(
            escaped("a\u{1b}[31mred\u{202e}b\n"),
            "a\\u{1b}[31mred\\u{202e}b\\n"
        );
        assert_eq!(escaped("où 🦀?"), "où 🦀?");
    }

    #[test]
    fn text_split_anywhere_is_the_same_text() {
        let text = "où 🦀 \u{1b}?".as_bytes();
        for split in 0..=text.len() {
            let mut partial = Vec::new();
            let (front, back) = text.split_at(split);
            let joined = complete_text(&mut partial, front) + &complete_text(&mut partial, back);
            assert_eq!(joined.as_bytes(), text, "split at {split}");
            assert_eq!(partial, b"");
        }
        let mut partial = Vec::new();
        assert_eq!(complete_text(&mut partial, b"a\xff\xf0\x9f"), "a\u{fffd}");
        assert_eq!(complete_text(&mut partial, b"b"), "\u{fffd}b");
    }

    #[test]
    fn table_cell_shows_a_formula_unchanged() {
        assert_eq!(cell(Some(&Value::from("=1+1")), CellKind::Text), "=1+1");
    }

    #[test]
    fn sparkline_bars_scale_with_the_numbers() {
        assert_eq!(sparkline(&[0, 1, 7, 14]), "▁▁▄█");
        assert_eq!(sparkline(&[0, 0]), "▁▁");
    }
}
