//! Answers for people and for pipes.

use std::io::{self, Write as _};

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;

use super::Failure;

/// How answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// One JSON document
    Json,
    /// A JSON object a line
    Jsonl,
    /// Comma-separated values, with a line of names
    Csv,
}

/// A column: its name, and where in a row its value is.
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) pointer: &'static str,
    pub(super) kind: Kind,
}

/// How a value is shown to people.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Number,
    /// A share, shown in percent.
    Share,
    Milliseconds,
}

pub(super) const fn column(name: &'static str, pointer: &'static str, kind: Kind) -> Column {
    Column { name, pointer, kind }
}

/// Writes `rows`, which are all of `answer` that is of interest in a table.
pub(super) fn write(format: Format, answer: &Value, rows: &[Value], columns: &[Column]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match format {
        Format::Table => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
            table.set_header(columns.iter().map(|column| column.name));
            for (nth, column) in columns.iter().enumerate() {
                if column.kind != Kind::Text
                    && let Some(column) = table.column_mut(nth)
                {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
            for row in rows {
                table.add_row(columns.iter().map(|column| shown(row.pointer(column.pointer), column.kind)));
            }
            writeln!(out, "{table}")?;
        }
        Format::Json => writeln!(out, "{answer:#}")?,
        Format::Jsonl => {
            for row in rows {
                writeln!(out, "{row}")?;
            }
        }
        Format::Csv => {
            let mut lines = csv::Writer::from_writer(Vec::new());
            let failed = |error: csv::Error| Failure::Unreachable(error.to_string());
            lines.write_record(columns.iter().map(|column| column.name)).map_err(failed)?;
            for row in rows {
                let cells = columns.iter().map(|column| match row.pointer(column.pointer) {
                    Some(Value::String(text)) => crate::report::guarded(text),
                    value => plain(value),
                });
                lines.write_record(cells).map_err(failed)?;
            }
            out.write_all(&lines.into_inner().map_err(|error| Failure::Unreachable(error.to_string()))?)?;
        }
    }
    Ok(out.flush()?)
}

/// A value as people read it. What a terminal takes for a command is shown instead of done.
fn shown(value: Option<&Value>, kind: Kind) -> String {
    let number = value.and_then(Value::as_f64);
    match (kind, number) {
        (Kind::Share, Some(share)) => format!("{:.1} %", 100.0 * share),
        (Kind::Milliseconds, Some(ms)) if ms < 10.0 => format!("{ms:.2} ms"),
        (Kind::Milliseconds, Some(ms)) => format!("{ms:.0} ms"),
        (Kind::Number, Some(number)) if number.fract() != 0.0 => format!("{number:.3}"),
        _ => harmless(&plain(value)),
    }
}

/// Text without what a terminal would act on.
pub(super) fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        // Also the marks that turn the direction of writing.
        if character.is_control()
            || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

fn plain(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

/// Numbers as a row of bars.
pub(super) fn sparkline(numbers: &[u64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = numbers.iter().copied().max().unwrap_or(0).max(1);
    numbers
        .iter()
        .map(|number| {
            let height = usize::try_from(number * 7 / most).unwrap_or(7);
            BARS.get(height).copied().unwrap_or('█')
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_told_what_to_do_by_a_question() {
        assert_eq!(harmless("a\u{1b}[31mred\u{202e}b\n"), "a\\u{1b}[31mred\\u{202e}b\\n");
        assert_eq!(harmless("où 🦀?"), "où 🦀?");
    }

    #[test]
    fn people_read_a_formula_as_it_was_written() {
        assert_eq!(shown(Some(&Value::from("=1+1")), Kind::Text), "=1+1");
    }

    #[test]
    fn bars_grow_with_the_numbers() {
        assert_eq!(sparkline(&[0, 1, 7, 14]), "▁▁▄█");
        assert_eq!(sparkline(&[0, 0]), "▁▁");
    }
}
