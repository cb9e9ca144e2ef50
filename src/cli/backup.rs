//! The commands that copy the database, and bring a copy back.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use super::feed::existing;
use super::settings::Settings;
use crate::config::Location;
use crate::error::StartError;
use crate::store::backup::{self, BackupError, Temporary};

const TICK: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(super) struct Backup {
    /// The new file; one that exists is not overwritten
    target: PathBuf,
}

#[derive(Args)]
pub(super) struct Restore {
    /// A file that `backup` wrote, of this version or an older one
    backup: PathBuf,
}

pub(super) async fn backup(settings: &Settings, Backup { target }: &Backup) -> Result<(), Failure> {
    let source = file(existing(settings)?)?;
    let bar = spinner("copying and checking")?;
    let copy = target.clone();
    let failures =
        unless_interrupted(Temporary::for_backup(target), move |work| backup::back_up(&source, &copy, work)).await?;
    bar.finish_and_clear();
    Ok(writeln!(io::stdout(), "{failures} failures copied to {}", target.display())?)
}

pub(super) async fn restore(settings: &Settings, Restore { backup }: &Restore) -> Result<(), Failure> {
    let target = file(settings.logger.validate().map_err(|error| Failure::Usage(error.to_string()))?)?;
    let bar = spinner("checking and restoring")?;
    let (from, to, migrate) = (backup.clone(), target.clone(), settings.logger.migrate);
    let restored =
        unless_interrupted(Temporary::for_restore(&target), move |work| backup::restore(&from, &to, migrate, work))
            .await?;
    bar.finish_and_clear();
    if let Some(quarantined) = restored.quarantined {
        writeln!(io::stderr(), "the damaged database is {} now", quarantined.display()).unwrap_or_default();
    }
    Ok(writeln!(io::stdout(), "{} failures restored into {}", restored.failures, target.display())?)
}

/// Does `job` on a thread that may block. A signal ends the process, and leaves nothing of the job behind: a
/// transaction that is under way is rolled back by the next process that opens the database.
async fn unless_interrupted<T: Send + 'static>(
    work: Temporary,
    job: impl FnOnce(&Temporary) -> Result<T, BackupError> + Send + 'static,
) -> Result<T, Failure> {
    let work = Arc::new(work);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let job = {
        let work = Arc::clone(&work);
        actix_rt::task::spawn_blocking(move || job(&work))
    };
    tokio::select! {
        done = job => Ok(done.map_err(|error| Failure::Unreachable(error.to_string()))??),
        _ = terminate.recv() => end(&work),
        _ = interrupt.recv() => end(&work),
    }
}

fn end(work: &Temporary) -> ! {
    work.remove();
    std::process::exit(130)
}

fn file(location: Location) -> Result<PathBuf, Failure> {
    match location {
        Location::File(path) => Ok(path),
        Location::Memory => Err(Failure::Usage("database_url = :memory:: expected a file".into())),
    }
}

fn spinner(doing: &'static str) -> Result<ProgressBar, Failure> {
    if !io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{spinner} {msg}, {elapsed}")
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let bar = ProgressBar::new_spinner().with_style(style).with_message(doing);
    bar.enable_steady_tick(TICK);
    Ok(bar)
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Exists(_) | BackupError::Same(_) | BackupError::NoLog { .. } => Self::Usage(error.to_string()),
            BackupError::Target(StartError::Config(error)) => Self::Usage(error.to_string()),
            error => Self::Unreachable(error.to_string()),
        }
    }
}
