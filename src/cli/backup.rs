//! The commands that copy the database, and bring a copy back.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::Failure;
use super::feed::existing;
use super::settings::Settings;
use crate::config::Location;
use crate::error::StartError;
use crate::store::backup::{self, BackupError};

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

pub(super) fn backup(settings: &Settings, Backup { target }: &Backup) -> Result<(), Failure> {
    let source = file(existing(settings)?)?;
    let bar = spinner("copying and checking")?;
    let failures = backup::back_up(&source, target)?;
    bar.finish_and_clear();
    Ok(writeln!(io::stdout(), "{failures} failures copied to {}", target.display())?)
}

pub(super) fn restore(settings: &Settings, Restore { backup }: &Restore) -> Result<(), Failure> {
    let target = file(settings.logger.validate().map_err(|error| Failure::Usage(error.to_string()))?)?;
    let bar = spinner("checking and restoring")?;
    let restored = backup::restore(backup, &target)?;
    bar.finish_and_clear();
    if let Some(quarantined) = restored.quarantined {
        writeln!(io::stderr(), "the damaged database is {} now", quarantined.display()).unwrap_or_default();
    }
    Ok(writeln!(io::stdout(), "{} failures restored into {}", restored.failures, target.display())?)
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
