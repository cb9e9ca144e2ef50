//! The commands that bring something into the database, or take it out.

use std::io::{self, BufRead, IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::settings::Settings;
use super::source::Service;
use super::{Failure, Target};
use crate::actor::FailureLogger;
use crate::clock;
use crate::config::Location;
use crate::handle::LoggerHandle;
use crate::http::{NewFailure, parse_span};
use crate::report::QuestionStatus;
use crate::stats::{DropReason, LogOutcome};
use crate::store::Database;

/// Lines that are sent to a service at a time.
const LINES_PER_POST: usize = 1000;
/// Bytes that are sent to a service at a time, and a line more.
const BYTES_PER_POST: usize = 8 << 20;
/// Bytes of a line at most, so that memory is bounded whatever comes in.
const MAX_LINE_BYTES: usize = 1 << 20;
/// Lines of which it is said what is wrong with them.
const MAX_REASONS: u64 = 10;
/// Rows that are deleted at a time.
const ROWS_PER_PURGE: u32 = 1000;

/// Shows how many lines there were, on a terminal.
fn progress() -> Result<ProgressBar, Failure> {
    if !io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{spinner} {human_pos} lines, {per_sec}")
        .map_err(|error| Failure::Usage(error.to_string()))?;
    Ok(ProgressBar::new_spinner().with_style(style))
}

pub(super) async fn ingest(settings: &Settings, target: &Target) -> Result<(), Failure> {
    let (mut stored, mut bad, mut line_number) = (0_u64, 0_u64, 0_u64);
    let bar = progress()?;
    let tell = |bad: u64, line: u64, reason: &dyn std::fmt::Display| {
        if bad <= MAX_REASONS {
            bar.suspend(|| writeln!(io::stderr(), "line {line}: {reason}")).unwrap_or_default();
        }
    };
    let service = target.url.as_deref().map(|url| Service::new(url, target)).transpose()?;
    let logger = match service {
        Some(_) => None,
        None => Some(FailureLogger::spawn(settings.logger.clone())?),
    };
    let mut lines = io::stdin().lock();
    let mut post: Vec<u8> = Vec::new();
    // The lines that wait in `post`, by their numbers.
    let (mut waiting, mut line) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        let read = read_line(&mut lines, &mut line)?;
        let end = read == Read::End;
        line_number += 1;
        if read == Read::TooLong {
            bad += 1;
            tell(bad, line_number, &format_args!("a line has {MAX_LINE_BYTES} bytes at most"));
        } else if !line.trim_ascii().is_empty() {
            bar.set_position(line_number);
            match serde_json::from_slice::<NewFailure>(line.trim_ascii()) {
                Ok(failure) => match &logger {
                    Some(logger) => log_patiently(logger, &failure).await?,
                    None => {
                        post.extend_from_slice(line.trim_ascii());
                        post.push(b'\n');
                        waiting.push(line_number);
                    }
                },
                Err(error) => {
                    bad += 1;
                    tell(bad, line_number, &error);
                }
            }
        }
        if let Some(service) = &service
            && !waiting.is_empty()
            && (end || waiting.len() == LINES_PER_POST || post.len() >= BYTES_PER_POST)
        {
            let posted = service.post("/v1/failures", std::mem::take(&mut post)).await?;
            stored += posted.accepted;
            let number = |nth: usize| waiting.get(nth).copied().unwrap_or(line_number);
            // A service may be stricter: a line may be too long for it.
            for ((nth, reason), bad) in posted.errors.iter().zip(bad + 1..) {
                tell(bad, number(*nth), reason);
            }
            bad += posted.rejected;
            if let Some((nth, reason)) = posted.stopped {
                bar.finish_and_clear();
                let line = number(nth);
                return Err(Failure::Unreachable(format!(
                    "{stored} failures stored, stopped at line {line}: {reason}"
                )));
            }
            waiting.clear();
        }
        if end {
            break;
        }
    }
    if let Some(logger) = logger {
        stored = logger.shutdown().await?.stats.persisted;
    }
    bar.finish_and_clear();
    writeln!(io::stdout(), "{stored} failures stored, {bad} lines refused")?;
    if bad > 0 { Err(Failure::No(format!("{bad} lines are no failures"))) } else { Ok(()) }
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    Line,
    /// It was skipped.
    TooLong,
    End,
}

/// Reads a line of bounded length.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Read> {
    let most = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    if input.by_ref().take(most).read_until(b'\n', line)? == 0 {
        return Ok(Read::End);
    }
    if line.len() <= MAX_LINE_BYTES || line.ends_with(b"\n") {
        return Ok(Read::Line);
    }
    line.clear();
    loop {
        let piece = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            piece => piece?,
        };
        let found = piece.iter().position(|byte| *byte == b'\n');
        let (length, done) = (piece.len(), piece.is_empty() || found.is_some());
        input.consume(found.map_or(length, |at| at + 1));
        if done {
            return Ok(Read::TooLong);
        }
    }
}

/// Waits where the buffer is full.
async fn log_patiently(logger: &LoggerHandle, failure: &NewFailure) -> Result<(), Failure> {
    loop {
        match failure.log(logger) {
            LogOutcome::Queued => return Ok(()),
            LogOutcome::Dropped(DropReason::BufferFull) => {
                logger.flush().await?;
            }
            LogOutcome::Dropped(reason) => return Err(Failure::No(format!("the logger takes nothing: {reason}"))),
        }
    }
}

#[derive(Args)]
pub(super) struct Prune {
    /// Age: a number and s, m, h, d or w, as 30d
    #[arg(long, value_name = "SPAN")]
    older_than: String,
    /// Only tell how many there are
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn prune(settings: &Settings, prune: &Prune) -> Result<(), Failure> {
    let age = parse_span(&prune.older_than)
        .map_err(|expected| Failure::Usage(format!("--older-than {}: expected {expected}", prune.older_than)))?;
    let location = existing(settings)?;
    let before = SystemTime::now().checked_sub(age).map_or(0, clock::milliseconds_of);
    let unreachable = |error: crate::error::StoreError| Failure::Unreachable(error.to_string());
    let mut store = Database::new(&location, 1).open()?;
    let mut rows = store.older_than(before).map_err(unreachable)?;
    if prune.dry_run {
        writeln!(io::stdout(), "{rows} failures are older than {}", prune.older_than)?;
        return Ok(());
    }
    let bar = if io::stderr().is_terminal() { ProgressBar::new(rows) } else { ProgressBar::hidden() };
    rows = 0;
    loop {
        let deleted = store.purge(before, ROWS_PER_PURGE).map_err(unreachable)?;
        rows += deleted;
        bar.set_position(rows);
        if deleted < u64::from(ROWS_PER_PURGE) {
            break;
        }
        // Whoever writes gets a turn.
        std::thread::sleep(Duration::from_millis(1));
    }
    bar.finish_and_clear();
    store.close();
    writeln!(io::stdout(), "{rows} failures deleted")?;
    Ok(())
}

#[derive(Args)]
pub(super) struct Mark {
    #[command(flatten)]
    target: Target,
    /// The question, or the `key` of a group from `top --format json`
    question: String,
    /// What is said of it and of those that are nearly the same
    #[arg(value_enum)]
    status: QuestionStatus,
}

pub(super) async fn mark(settings: &Settings, mark: &Mark) -> Result<(), Failure> {
    if let Some(url) = &mark.target.url {
        let body = json!({"question": mark.question, "status": mark.status});
        Service::new(url, &mark.target)?.put("/v1/queries/status", &body).await?;
    } else {
        existing(settings)?;
        let logger = FailureLogger::spawn(settings.logger.clone())?;
        let marked = logger.mark_question(&mark.question, mark.status).await;
        logger.shutdown().await?;
        marked.map_err(|error| Failure::Unreachable(error.to_string()))?;
    }
    Ok(writeln!(io::stdout(), "{}", mark.status)?)
}

/// Where the database is, if there is one: a new one would be of no use.
pub(super) fn existing(settings: &Settings) -> Result<Location, Failure> {
    let location = settings.logger.validate().map_err(|error| Failure::Usage(error.to_string()))?;
    match &location {
        Location::File(path) if !path.exists() => {
            Err(Failure::Unreachable(format!("there is no database {}; name it with --db", path.display())))
        }
        _ => Ok(location),
    }
}

#[derive(Args)]
pub(super) struct Import {
    /// The reference's database file; it is only read
    path: PathBuf,
}

pub(super) async fn import(settings: &Settings, import: &Import) -> Result<(), Failure> {
    use crate::import::ImportError::{NotAReference, Read};
    let path = import.path.display();
    let failed = |error| match error {
        NotAReference { .. } => Failure::Usage(error.to_string()),
        Read(crate::error::ReadError::Inaccessible { .. }) => Failure::Unreachable(error.to_string()),
        error => Failure::Unreachable(format!("{path}: {error}")),
    };
    // Looked at first, by a logger that stores nothing, so that a mistake leaves no empty database behind.
    let nowhere = FailureLogger::spawn(settings.logger.clone().enabled(false))?;
    if let Err(error @ (NotAReference { .. } | Read(_))) = nowhere.import_reference(&import.path).await {
        return Err(failed(error));
    }
    let logger = FailureLogger::spawn(settings.logger.clone())?;
    let report = logger.import_reference(&import.path).await.map_err(failed);
    let duplicates = logger.shutdown().await?.stats.duplicates;
    let report = report?;
    writeln!(
        io::stdout(),
        "{} rows read, {} stored ({duplicates} of them before), {} skipped, {} too old",
        report.read,
        report.stored,
        report.skipped,
        report.too_old
    )?;
    Ok(())
}
