//! Command `copy`: the log of one database into another one.
//!
//! The library copies, resumes and compares. The command names both databases, shows the progress
//! and prints the sums, so that an operator sees that nothing is missing before the old database
//! goes.

use std::io::{self, IsTerminal as _, Write as _};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use failure_logger::program::{
    self, CopiedTable, CopyError, CopyPhase, CopyReport, without_password,
};

use super::output::{self, CellKind, Column, column};
use super::settings::Settings;
use super::{CommandError, Style};

const COLUMNS: [Column; 6] = [
    column("table", "/table", CellKind::Text),
    column("rows", "/rows", CellKind::Number),
    column("sum", "/sum", CellKind::Text),
    column("rows of the copy", "/rows_of_copy", CellKind::Number),
    column("sum of the copy", "/sum_of_copy", CellKind::Text),
    column("written", "/written", CellKind::Number),
];

#[derive(Args)]
pub(super) struct Copy {
    #[command(flatten)]
    style: Style,
    /// Database to copy, which is only read: a file or a postgres:// URL [default: that of --db]
    #[arg(long, value_name = "DATABASE")]
    from: Option<String>,
    /// Database to copy to: an empty one, or an earlier copy of the same log
    #[arg(long, value_name = "DATABASE")]
    to: String,
}

/// Copies a log and compares both databases. A command that was interrupted resumes when it runs
/// once more, and one that has nothing to do changes nothing.
pub(super) async fn copy(settings: &Settings, copy: &Copy) -> Result<(), CommandError> {
    let (config, from, to) = (settings.logger.clone(), copy.from.clone(), copy.to.clone());
    let bar = bar()?;
    let shown = bar.clone();
    let report = actix_rt::task::spawn_blocking(move || {
        let mut last = CopyPhase::Copying;
        program::copy(&config, from, to, &mut |phase, rows, all| {
            if phase != last {
                shown.reset();
                last = phase;
            }
            shown.set_message(match phase {
                CopyPhase::Copying => "copying",
                CopyPhase::Comparing => "comparing",
            });
            shown.set_length(all);
            shown.set_position(rows);
        })
    })
    .await
    .map_err(|error| CommandError::Unreachable(error.to_string()))??;
    bar.finish_and_clear();
    print(copy, &report)?;
    if !report.is_equal() {
        return Err(CommandError::Failed(
            "the copy is not equal to its source: another program writes to it; stop that program, \
             and run the command once more"
                .into(),
        ));
    }
    let total = |of: fn(&CopiedTable) -> u64| report.tables.iter().map(of).sum::<u64>();
    writeln!(
        io::stderr(),
        "{}: equal to its source, {} rows, {} of them written now",
        without_password(&copy.to),
        total(|table| table.target.rows),
        total(|table| table.written)
    )
    .unwrap_or_default();
    Ok(())
}

fn print(copy: &Copy, report: &CopyReport) -> Result<(), CommandError> {
    let row = |table: &CopiedTable| {
        let [source, target] = [table.source, table.target];
        json!({
            "table": table.table,
            "rows": source.rows,
            "sum": source.digits(),
            "rows_of_copy": target.rows,
            "sum_of_copy": target.digits(),
            "written": table.written,
        })
    };
    let rows: Vec<Value> = report.tables.iter().map(row).collect();
    let document = json!({"tables": rows, "is_equal": report.is_equal()});
    output::write(copy.style.format(), &document, &rows, &COLUMNS)
}

/// Returns a bar, which is hidden unless standard error is a terminal.
fn bar() -> Result<ProgressBar, CommandError> {
    if !io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let template = "{msg} {wide_bar} {human_pos} of {human_len} rows, {eta}";
    let style = ProgressStyle::with_template(template)
        .map_err(|error| CommandError::Usage(error.to_string()))?;
    Ok(ProgressBar::new(0).with_style(style))
}

impl From<CopyError> for CommandError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Config(_)
            | CopyError::Memory
            | CopyError::Same
            | CopyError::Occupied { .. }
            | CopyError::Newer { .. } => Self::Usage(error.to_string()),
            CopyError::Missing(_)
            | CopyError::Start(_)
            | CopyError::Source(_)
            | CopyError::Target(_) => Self::Unreachable(error.to_string()),
        }
    }
}
