//! The commands that bring something into the database, or take it out.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;

use super::settings::Settings;
use super::source::Service;
use super::{Failure, Target};
use crate::actor::FailureLogger;
use crate::attempts::{DAY_MS, HOUR_MS};
use crate::clock;
use crate::config::Location;
use crate::error::MarkError;
use crate::http::parse_span;
use crate::report::{QuestionStatus, rfc3339};
use crate::retention::{self, InForce, RetentionClock, cutoff};
use crate::store::Database;
use crate::store::delete::Deletion;

/// Rows that are deleted at a time.
const ROWS_PER_PURGE: u32 = 1000;

#[derive(Args)]
pub(super) struct Purge {
    /// Age: a number and s, m, h, d or w, as 30d [default: the retention in the database, for counts of attempts too]
    #[arg(long, value_name = "SPAN")]
    older_than: Option<String>,
    /// Delete what is dated more than a day ahead of the clock instead, which retention does not reach
    #[arg(long, conflicts_with = "older_than")]
    ahead: bool,
    /// Only tell how many there are
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn purge(settings: &Settings, purge: &Purge) -> Result<(), Failure> {
    let age = purge.older_than.as_deref().map(|text| {
        parse_span(text).map_err(|expected| Failure::Usage(format!("--older-than {text}: expected {expected}")))
    });
    let age = age.transpose()?;
    let location = existing(settings)?;
    let unreachable = |error: crate::error::StoreError| Failure::Unreachable(error.to_string());
    let mut store = Database::new(&location, 1).migrate(settings.logger.migrate).open()?;
    let mut clock = RetentionClock::default();
    let in_force = if purge.dry_run {
        retention::read(&mut *store, &mut clock)
    } else {
        retention::update(&mut *store, &mut clock, |stored| stored)
    };
    let InForce { days, time, wall } = in_force.map_err(unreachable)?;
    let (range, told) = match age {
        // By the later clock, so that one that is behind makes nothing a row of the future.
        None if purge.ahead => (wall.max(time).saturating_add(DAY_MS)..i64::MAX, "dated in the future".to_owned()),
        None if days.failures == 0 => (i64::MIN..i64::MIN, "past the retention: it keeps all".to_owned()),
        None => (i64::MIN..cutoff(time, days.failures), format!("older than the retention of {} days", days.failures)),
        Some(age) => {
            let told = purge.older_than.as_deref().unwrap_or_default();
            (i64::MIN..time.saturating_sub(clock::milliseconds(age)), format!("older than {told}"))
        }
    };
    if !purge.ahead && wall.saturating_sub(time) > HOUR_MS {
        writeln!(
            io::stderr(),
            "the clock says {}, but the retention clock trusts only {}: ages are those of then; \
             a clock that is right is trusted after a day of use",
            rfc3339(wall),
            rfc3339(time)
        )?;
    }
    let mut rows = store.count_within(range.clone()).map_err(unreachable)?;
    if purge.dry_run {
        writeln!(io::stdout(), "{rows} failures are {told}")?;
        return Ok(());
    }
    let bar = if io::stderr().is_terminal() { ProgressBar::new(rows) } else { ProgressBar::hidden() };
    rows = 0;
    loop {
        let deleted = store.purge(range.clone(), ROWS_PER_PURGE).map_err(unreachable)?;
        rows += deleted;
        bar.set_position(rows);
        if deleted < u64::from(ROWS_PER_PURGE) {
            break;
        }
        // Whoever writes gets a turn.
        std::thread::sleep(Duration::from_millis(1));
    }
    bar.finish_and_clear();
    if purge.ahead {
        store.purge_attempts_from(range.start).map_err(unreachable)?;
    } else if age.is_none() {
        while !retention::purge_attempts(&mut *store, days, time).map_err(unreachable)? {}
    }
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
        let logger = FailureLogger::spawn(settings.logger.clone().without_retention())?;
        let marked = logger.mark_question(&mark.question, mark.status).await;
        logger.shutdown().await?;
        marked.map_err(|error| match error {
            MarkError::NotFound => Failure::No(error.to_string()),
            MarkError::TooLong { .. } => Failure::Usage(error.to_string()),
            MarkError::Closed | MarkError::Store(_) => Failure::Unreachable(error.to_string()),
        })?;
    }
    Ok(writeln!(io::stdout(), "{}", mark.status)?)
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(super) struct What {
    /// The failures of this conversation
    #[arg(long, value_name = "ID")]
    conversation: Option<String>,
    /// The failures with exactly this query
    #[arg(long, value_name = "TEXT")]
    query: Option<String>,
}

#[derive(Args)]
pub(super) struct Delete {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    what: What,
}

pub(super) async fn delete(settings: &Settings, delete: &Delete) -> Result<(), Failure> {
    let (name, value) = match &delete.what {
        What { conversation: Some(id), .. } => ("conversation", id.clone()),
        What { query, .. } => ("query", query.clone().unwrap_or_default()),
    };
    let (rows, statuses, is_erased) = if let Some(url) = &delete.target.url {
        let said = Service::new(url, &delete.target)?.delete("/v1/failures", &[(name, value)]).await?;
        let count = |name: &str| said.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
        (count("rows"), count("statuses"), said.get("is_erased") == Some(&true.into()))
    } else {
        existing(settings)?;
        let deletion = if name == "query" { Deletion::Query(value) } else { Deletion::Conversation(value) };
        let logger = FailureLogger::spawn(settings.logger.clone().without_retention())?;
        let deleted = logger.delete(deletion).await;
        logger.shutdown().await?;
        let report = deleted.map_err(|error| Failure::Unreachable(error.to_string()))?;
        (report.rows, report.statuses, report.is_erased)
    };
    writeln!(io::stdout(), "{rows} failures and {statuses} statuses deleted")?;
    if is_erased {
        return Ok(());
    }
    Err(Failure::No("a reader keeps the journal, or the file is shared: deleted text may be left; run it again".into()))
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
    let logger = FailureLogger::spawn(settings.logger.clone().without_retention())?;
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
