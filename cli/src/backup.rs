//! Commands `backup` and `restore`.
//!
//! Both work beside a service that writes. A backup is one read transaction, and so a state of one
//! moment. A restore is one write transaction: other processes see the old log or the new one, and
//! never a mixture. Both check the copy before it counts.
//!
//! A copy of the file by `cp` has neither property: the newest commits are in the journal beside
//! it.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use failure_logger::StartError;
use failure_logger::program::{self, BackupError, DatabaseLocation, Temporary, database_location};

use super::CommandError;
use super::change::existing;
use super::settings::Settings;

/// Interval between two frames of the spinner. Ten frames per second look steady.
const TICK: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(super) struct Backup {
    /// New file; an existing file is not overwritten
    target: PathBuf,
}

#[derive(Args)]
pub(super) struct Restore {
    /// File that `backup` of this version or an older one wrote
    backup: PathBuf,
}

/// Copies the database into a temporary file beside `target`, checks it and renames it. A file at
/// `target` is therefore always a complete backup. An existing file is an error, because the oldest
/// backup may be the only good one.
pub(super) async fn backup(
    settings: &Settings,
    Backup { target }: &Backup,
) -> Result<(), CommandError> {
    existing(settings)?;
    let source = file(settings)?;
    let bar = spinner("copying and checking")?;
    let copy = target.clone();
    let failures = unless_interrupted(Temporary::for_backup(target), move |work| {
        program::back_up(&source, &copy, work)
    })
    .await?;
    bar.finish_and_clear();
    Ok(writeln!(
        io::stdout(),
        "{failures} failures copied to {}",
        target.display()
    )?)
}

/// Replaces the log by that of the backup. The database may be missing or damaged: a damaged file
/// is renamed and reported, and never deleted. Positions of tail streams are of the old log, so
/// that `tail -f` says that the log was replaced.
pub(super) async fn restore(
    settings: &Settings,
    Restore { backup }: &Restore,
) -> Result<(), CommandError> {
    let target = file(settings)?;
    let bar = spinner("checking and restoring")?;
    let (source, config) = (backup.clone(), settings.logger.clone());
    let restored = unless_interrupted(Temporary::for_restore(&target), move |work| {
        program::restore(&source, &config, work)
    })
    .await?;
    bar.finish_and_clear();
    // The path goes to standard error, because the restore has succeeded and its result is on
    // standard output.
    if let Some(quarantined) = restored.quarantined {
        writeln!(
            io::stderr(),
            "the damaged database was quarantined as {}",
            quarantined.display()
        )
        .unwrap_or_default();
    }
    Ok(writeln!(
        io::stdout(),
        "{} failures restored into {}",
        restored.failures,
        target.display()
    )?)
}

/// Runs `job` on a blocking thread. SIGTERM and SIGINT remove its temporary files and exit. SQLite
/// rolls back an open transaction when a process next opens the database. The process exits at
/// once, because the copy of a large file cannot be cancelled from outside.
async fn unless_interrupted<T: Send + 'static>(
    work: Temporary,
    job: impl FnOnce(&Temporary) -> Result<T, BackupError> + Send + 'static,
) -> Result<T, CommandError> {
    // The job and the signal share the temporary files. They are removed when both have ended.
    let work = Arc::new(work);
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let job = {
        let work = Arc::clone(&work);
        actix_rt::task::spawn_blocking(move || job(&work))
    };
    tokio::select! {
        result = job => Ok(result.map_err(|error| CommandError::Unreachable(error.to_string()))??),
        _ = terminate.recv() => abort(&work),
        _ = interrupt.recv() => abort(&work),
    }
}

/// Removes what the command has made. `exit` runs no destructors, so that the value cannot do it
/// itself.
fn abort(work: &Temporary) -> ! {
    work.remove();
    // 128 + SIGINT, as a shell reports an interrupted command.
    std::process::exit(130)
}

/// Returns the path of the database, which need not exist: a restore may create it.
fn file(settings: &Settings) -> Result<PathBuf, CommandError> {
    match database_location(&settings.logger) {
        Ok(DatabaseLocation::File(path)) => Ok(path),
        Ok(DatabaseLocation::Server(url)) => Err(CommandError::Usage(format!(
            "database_url = {url}: expected a file; use the tools of the server, such as pg_dump"
        ))),
        Ok(DatabaseLocation::Memory) => Err(CommandError::Usage(
            "database_url = :memory:: expected a file; set --db".into(),
        )),
        Err(error) => Err(CommandError::Usage(error.to_string())),
    }
}

/// Returns a spinner, which is hidden unless standard error is a terminal. The length of the work
/// is unknown, so that the time is shown in place of a bar.
fn spinner(activity: &'static str) -> Result<ProgressBar, CommandError> {
    if !io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{spinner} {msg}, {elapsed}")
        .map_err(|error| CommandError::Usage(error.to_string()))?;
    let bar = ProgressBar::new_spinner()
        .with_style(style)
        .with_message(activity);
    bar.enable_steady_tick(TICK);
    Ok(bar)
}

impl From<BackupError> for CommandError {
    fn from(error: BackupError) -> Self {
        match error {
            // The caller named a wrong file. All other errors are those of a disk or a database.
            BackupError::Exists(_) | BackupError::Same(_) | BackupError::NoLog { .. } => {
                Self::Usage(error.to_string())
            }
            BackupError::Target(StartError::Config(error)) => Self::Usage(error.to_string()),
            error => Self::Unreachable(error.to_string()),
        }
    }
}
