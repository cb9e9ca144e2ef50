//! Commands that read the log: `list`, `tail`, `stats`, `top`, `calibrate`, `export`, `check`.
//!
//! Each command has three parts: a struct of its flags, the columns of its table, and a function.
//! The function reads one JSON document through [`Client`] and passes it to [`write`], which knows
//! the formats. The document is the same for a file and a service, so that a script can change
//! between `--db` and `--url`.
//!
//! The table is for people, and may change in any version. JSON, JSON lines and CSV have the names
//! of the API. Remarks such as an incomplete list go to standard error, where they cannot damage
//! the output.

#![expect(
    clippy::indexing_slicing,
    reason = "indexing a JSON value returns null for a missing key"
)]

use std::io::{self, Write as _};
use std::time::Duration;

use actix_web::web::Bytes;
use clap::Args;
use futures_util::{Stream, StreamExt as _};
use serde_json::{Value, json};

use failure_logger::{FailureReader, PageRequest, QueryStatus, RetrievalFailureType};

use failure_logger::report::QueryFilter;

use super::change::query_status;
use super::client::{AttemptSelection, Client, Kinds, Layout, Period, Selection, value};
use super::output::{CellKind, Column, Format, Output, column, escaped, sparkline, write};
use super::service::{OpenError, Service};
use super::settings::Settings;
use super::{CommandError, Style, Target};

/// Interval between two reads of the database file for new failures. A tail stream of a service
/// polls at the same interval.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Pause before a tail stream is reopened. The pause does not grow: a single request per second is
/// no load, and a person waits for the stream.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// Parses a share from 0 to 1. A percentage such as 20 is an error, because it would otherwise pass
/// each check.
fn share(text: &str) -> Result<f64, String> {
    let share = text
        .parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a share from 0 to 1, such as 0.2".into())
}

#[derive(Args)]
pub(super) struct List {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    style: Style,
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    selection: Selection,
    /// Maximum number of failures
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

/// Columns of a failure. The texts of unknown length come last, so that the others stay aligned.
const FAILURE: [Column; 8] = [
    column("created_at", "/created_at", CellKind::Text),
    column("type", "/failure_type", CellKind::Text),
    column("strategy", "/retrieval_strategy", CellKind::Text),
    column("score", "/top_score", CellKind::Number),
    column("latency", "/latency_ms", CellKind::Milliseconds),
    column("conversation", "/conversation_id", CellKind::Text),
    column("query", "/query_text", CellKind::Text),
    column("error", "/error_context", CellKind::Text),
];

/// Prints the newest failures, the last one first. A search for a rare text in a log of millions
/// ends at its time budget. The page is then incomplete, and a remark on standard error says so.
pub(super) async fn list(settings: &Settings, list: &List) -> Result<(), CommandError> {
    let client = Client::new(settings, &list.target)?;
    let page = client
        .failures(&list.selection, &list.period, list.limit)
        .await?;
    write(list.style.format(), &page, rows(&page, "/data"), &FAILURE)?;
    if page["complete"] == json!(false) {
        let _ = writeln!(
            io::stderr(),
            "the list is incomplete: the search reached its time budget; narrow it with --since or --strategy"
        );
    }
    Ok(())
}

/// Returns the array at `pointer`, or an empty slice. A document of a later version may lack the
/// array, which is no reason to fail.
fn rows<'v>(document: &'v Value, pointer: &str) -> &'v [Value] {
    document
        .pointer(pointer)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

#[derive(Args)]
pub(super) struct Tail {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    style: Style,
    #[command(flatten)]
    selection: Selection,
    /// Keep running and show new failures as they arrive
    #[arg(short, long)]
    follow: bool,
    /// Number of earlier failures to show first
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=1000))]
    lines: u16,
}

/// Prints the last failures, and with `--follow` the new ones. It runs until a signal, or until the
/// reader of the output is gone. The output is flushed after each failure, since a pipe would hold
/// it back otherwise.
pub(super) async fn tail(settings: &Settings, tail: &Tail) -> Result<(), CommandError> {
    let format = tail.style.format();
    match Client::new(settings, &tail.target)? {
        Client::File(reader) => tail_file(format, tail, &reader).await,
        Client::Service(service) => tail_service(format, tail, &service).await,
    }
}

/// Prints failures of a file. The file is polled, because SQLite notifies no other process of a
/// commit. A failure that is committed between the position and the list is printed twice, which is
/// better than never.
async fn tail_file(
    format: Format,
    tail: &Tail,
    reader: &FailureReader,
) -> Result<(), CommandError> {
    // The position is read before the list, so that no failure is missed between the two.
    let mut position = match tail.follow {
        true => Some(
            reader
                .tail(tail.selection.filter(None)?, None, 1)
                .await?
                .position,
        ),
        false => None,
    };
    if tail.lines > 0 {
        let page = reader
            .list(
                tail.selection.filter(None)?,
                PageRequest::newest(usize::from(tail.lines)),
            )
            .await?;
        lines(format, rows(&value(&page)?, "/data"))?;
    }
    while let Some(after) = &mut position {
        actix_rt::time::sleep(POLL_INTERVAL).await;
        let tail_page = reader
            .tail(tail.selection.filter(None)?, Some(*after), 1000)
            .await?;
        *after = tail_page.position;
        if tail_page.replaced {
            report_replacement();
        }
        tail_page
            .failures
            .iter()
            .try_for_each(|failure| line(format, &value(failure)?))?;
    }
    Ok(())
}

/// Prints failures of a service. The order is that of [`tail_file`], with a stream in place of a
/// position.
async fn tail_service(format: Format, tail: &Tail, service: &Service) -> Result<(), CommandError> {
    let query = tail.selection.query(None)?;
    // The stream is opened before the list, so that no failure is missed between the two.
    let mut events = match tail.follow {
        true => Some(Events::begin(service, &query).await?),
        false => None,
    };
    if tail.lines > 0 {
        let mut query = query.clone();
        query.push(("limit", tail.lines.to_string()));
        let page = service.get("/v1/failures", &query).await?;
        lines(format, rows(&page, "/data"))?;
    }
    while let Some(events) = &mut events {
        match events.next().await? {
            Event::Failure(failure) => line(format, &failure)?,
            Event::Replaced => report_replacement(),
        }
    }
    Ok(())
}

/// Prints failures, newest last.
fn lines(format: Format, failures: &[Value]) -> Result<(), CommandError> {
    failures
        .iter()
        .rev()
        .try_for_each(|failure| line(format, failure))
}

/// Tells the person that positions before and after belong to different logs.
fn report_replacement() {
    // A closed standard error does not end the command.
    let _ = writeln!(
        io::stderr(),
        "the log was replaced; the failures of the new log follow"
    );
}

/// Event of a tail stream.
enum Event {
    /// Failure in the JSON of the API.
    Failure(Value),
    /// The database file was replaced, for example by a restore.
    Replaced,
}

/// Tail stream of a service, which is reopened when it ends. The format is that of server-sent
/// events, of which this reader knows the fields `id`, `event` and `data`, each on one line.
/// Comments keep the connection open, and are skipped as unknown fields.
struct Events<'s> {
    /// Service, which the stream needs to reopen itself.
    service: &'s Service,
    /// Parameters of the request, which stay the same in each stream.
    query: &'s [(&'static str, String)],
    /// Body of the response. A box lets the two functions that open it share one type.
    stream: Box<dyn Stream<Item = Result<Bytes, awc::error::PayloadError>> + Unpin>,
    /// Bytes that were received and not read yet. A piece may end in the middle of a line, and of a
    /// character.
    received: Vec<u8>,
    /// Event id to resume after. The id is a position in the log: the service sends the failures
    /// after it.
    last_id: Option<String>,
}

impl<'s> Events<'s> {
    /// Opens the stream and waits for its first event id. From then on, a stream that ends resumes
    /// without a gap.
    async fn begin(
        service: &'s Service,
        query: &'s [(&'static str, String)],
    ) -> Result<Self, CommandError> {
        let stream = Box::new(service.open("/v1/tail", query, None).await?);
        let mut events = Self {
            service,
            query,
            stream,
            received: Vec::new(),
            last_id: None,
        };
        while events.last_id.is_none() {
            match events.next_line().await {
                Ok(line) => events.store_event_id(&line),
                Err(cause) => events.reopen(&cause).await?,
            }
        }
        Ok(events)
    }

    /// Returns the next event. An error is permanent: the loop reopens a lost connection by itself.
    ///
    /// `event` precedes `data`, and applies to that data only. A new stream begins without it.
    async fn next(&mut self) -> Result<Event, CommandError> {
        let mut replaced = false;
        loop {
            let line = match self.next_line().await {
                Ok(line) => line,
                Err(cause) => {
                    self.reopen(&cause).await?;
                    replaced = false;
                    continue;
                }
            };
            self.store_event_id(&line);
            if let Some(kind) = line.strip_prefix("event: ") {
                replaced = kind == "replaced";
            } else if let Some(json) = line.strip_prefix("data: ") {
                if replaced {
                    return Ok(Event::Replaced);
                }
                if let Ok(failure) = serde_json::from_str(json) {
                    return Ok(Event::Failure(failure));
                }
            }
        }
    }

    /// Notes the position after this event, for the next stream.
    fn store_event_id(&mut self, line: &str) {
        if let Some(id) = line.strip_prefix("id: ") {
            self.last_id = Some(id.to_owned());
        }
    }

    /// Returns the next line of the stream without its line ending. The error is the reason why the
    /// stream ended.
    async fn next_line(&mut self) -> Result<String, String> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
            }
            match self.stream.next().await {
                Some(Ok(piece)) => self.received.extend_from_slice(&piece),
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("the service closed it".to_owned()),
            }
        }
    }

    /// Opens the stream after the last event. The rest of an incomplete line is discarded, and
    /// arrives once more. Only a permanent error ends the loop: a service that is updated is away
    /// for a while.
    async fn reopen(&mut self, cause: &str) -> Result<(), CommandError> {
        self.received.clear();
        // A closed standard error does not end the command.
        let _ = writeln!(io::stderr(), "the tail stream ended: {cause}; reopening it");
        loop {
            actix_rt::time::sleep(REOPEN_AFTER).await;
            match self
                .service
                .open("/v1/tail", self.query, self.last_id.as_deref())
                .await
            {
                Ok(stream) => {
                    self.stream = Box::new(stream);
                    return Ok(());
                }
                Err(OpenError::Transient(_)) => {}
                Err(OpenError::Permanent(error)) => return Err(error),
            }
        }
    }
}

/// Prints a failure on one line. A table cannot be aligned while it grows, so that it has fixed
/// widths here. CSV has no header to print in the middle of a stream, and falls back to the same
/// form.
fn line(format: Format, failure: &Value) -> Result<(), CommandError> {
    let mut out = Output::new();
    match format {
        Format::Table | Format::Csv => {
            let text = |name: &str| escaped(failure[name].as_str().unwrap_or_default());
            let score = failure["top_score"]
                .as_f64()
                .map(|score| format!(" {score:.3}"))
                .unwrap_or_default();
            let error = match text("error_context") {
                none if none.is_empty() => none,
                error => format!(" ({error})"),
            };
            writeln!(
                out,
                "{} {:<14} {}{score} {}{error}",
                text("created_at"),
                text("failure_type"),
                text("retrieval_strategy"),
                text("query_text")
            )?;
        }
        Format::Json | Format::Jsonl => writeln!(out, "{failure}")?,
    }
    Ok(out.flush()?)
}

#[derive(Args)]
pub(super) struct Stats {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    style: Style,
    #[command(flatten)]
    selection: AttemptSelection,
}

/// Columns of `stats`. The types come from the library, so that a new type gets its column.
fn strategy_columns() -> Vec<Column> {
    let types = RetrievalFailureType::ALL.into_iter().enumerate();
    let types = types.map(|(nth, failure)| Column {
        name: failure.as_str(),
        pointer: format!("/rates/types/{nth}/failures").into(),
        kind: CellKind::Number,
    });
    let mut columns = vec![
        column("strategy", "/retrieval_strategy", CellKind::Text),
        column("attempts", "/rates/attempts", CellKind::Number),
        column("failures", "/rates/failures", CellKind::Number),
        column("unobserved", "/rates/unobserved", CellKind::Number),
        column("rate", "/rates/failure_rate", CellKind::Share),
        column("before", "/previous/failure_rate", CellKind::Share),
    ];
    columns.extend(types);
    columns.extend([
        column("p50", "/rates/latency_ms/p50", CellKind::Milliseconds),
        column("p95", "/rates/latency_ms/p95", CellKind::Milliseconds),
        column("p99", "/rates/latency_ms/p99", CellKind::Milliseconds),
    ]);
    columns
}

/// Prints rates and latencies by strategy. The row `all` and the sparkline are for a table only.
/// The JSON has the totals in a field of their own, and a script that sums the rows must not count
/// them twice.
pub(super) async fn stats(settings: &Settings, stats: &Stats) -> Result<(), CommandError> {
    let format = stats.style.format();
    let client = Client::new(settings, &stats.target)?;
    let (summary, series) = (
        client.summary(&stats.selection).await?,
        client.timeseries(&stats.selection).await?,
    );
    let mut strategies = rows(&summary, "/strategies").to_vec();
    if format == Format::Table {
        strategies
            .push(json!({"retrieval_strategy": "all", "rates": summary["total"], "previous": summary["previous"]}));
        let failures: Vec<u64> = rows(&series, "/points")
            .iter()
            .map(|point| point["failures"].as_u64().unwrap_or(0))
            .collect();
        let text = |value: &Value| escaped(value.as_str().unwrap_or_default());
        let mut out = Output::new();
        writeln!(
            out,
            "{} to {}",
            text(&summary["range"]["from"]),
            text(&summary["range"]["to"])
        )?;
        // A long period has more points than a terminal has columns.
        writeln!(out, "failures {}\n", sparkline(&summed(&failures, 72)))?;
        if let Some(since) = purged_before(&summary, &series) {
            writeln!(
                out,
                "counts are complete; failures before {since} were purged\n"
            )?;
        }
    }
    write(format, &summary, &strategies, &strategy_columns())?;
    let unknown = summary["total"]["unknown"].as_u64().unwrap_or(0);
    if format == Format::Table && unknown > 0 {
        let mut out = Output::new();
        writeln!(
            out,
            "\n{unknown} attempts have an unknown outcome and are in no rate: their traces have no \
             documents; switch on content capture"
        )?;
    }
    Ok(())
}

/// Returns the time of the oldest failure in the log if the counts include older ones. Retention
/// deletes failures earlier than their counts. The counts then show failures that `list` cannot
/// print, which looks like an error without an explanation.
fn purged_before(summary: &Value, series: &Value) -> Option<String> {
    let moment = |value: &Value| value.as_str()?.parse::<jiff::Timestamp>().ok();
    let since = moment(&summary["rows_since"]);
    let step = jiff::SignedDuration::from_secs(series["step_seconds"].as_i64()?);
    let is_older = |point: &Value| {
        let end = moment(&point["at"]).and_then(|at| at.checked_add(step).ok());
        point["failures"].as_u64() > Some(0)
            && end.is_some_and(|end| since.is_none_or(|since| end <= since))
    };
    let is_any = rows(series, "/points").iter().any(is_older);
    is_any.then(|| since.map_or_else(|| "now".to_owned(), |since| since.to_string()))
}

/// Sums neighbours so that at most `width` numbers remain.
///
/// The sums keep the total, which an average or a sample would not.
fn summed(numbers: &[u64], width: usize) -> Vec<u64> {
    numbers
        .chunks(numbers.len().div_ceil(width).max(1))
        .map(|chunk| chunk.iter().sum())
        .collect()
}

#[derive(Args)]
pub(super) struct Top {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    style: Style,
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    kind: Kinds,
    /// Only groups with this status; see `set-status`
    #[arg(long, value_parser = query_status())]
    status: Option<QueryStatus>,
    /// Maximum number of groups
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

/// Columns of `top`. The id comes first, because it is what `set-status` takes.
const GROUP: [Column; 7] = [
    column("id", "/id", CellKind::Text),
    column("failures", "/count", CellKind::Number),
    column("texts", "/texts", CellKind::Number),
    column("best score", "/best_score", CellKind::Number),
    column("last seen", "/last_seen", CellKind::Text),
    column("status", "/status", CellKind::Text),
    column("query", "/example", CellKind::Text),
];

/// Prints groups of failing queries, ordered by their number of failures. A warning says if the
/// counts are lower bounds, because the read stops at the newest million failures.
pub(super) async fn top(settings: &Settings, top: &Top) -> Result<(), CommandError> {
    // The groups are those of the whole log. The filter selects the failures that are counted in
    // them.
    let filter = QueryFilter {
        failure_type: top.kind.failure_type.clone(),
        retrieval_strategy: top.kind.strategy.clone(),
        status: top.status,
        ..QueryFilter::default()
    };
    let response = Client::new(settings, &top.target)?
        .ranking(&top.period, filter, top.limit)
        .await?;
    if response["partial"] == json!(true) {
        let _ = writeln!(
            io::stderr(),
            "the counts are lower bounds: only the newest {} failures were read; narrow the period with --since",
            response["scanned"]["failures"]
        );
    }
    write(
        top.style.format(),
        &response,
        rows(&response, "/data"),
        &GROUP,
    )
}

#[derive(Args)]
pub(super) struct Calibrate {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    style: Style,
    #[command(flatten)]
    selection: AttemptSelection,
    /// Name of the strategy
    strategy: String,
    /// Print the strictest threshold at which at most this share of attempts fails, 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    rate: Option<f64>,
    /// Print the predicted failure rate at this threshold
    #[arg(long)]
    threshold: Option<f64>,
}

/// Columns of `calibrate`.
const CURVE: [Column; 2] = [
    column("threshold", "/threshold", CellKind::Number),
    column("failure rate", "/failure_rate", CellKind::Share),
];

/// Prints the failure rate at each threshold. A strategy without attempts is an error, because an
/// empty curve looks like a threshold without effect. The usual cause is a misspelt name.
pub(super) async fn calibrate(
    settings: &Settings,
    calibrate: &Calibrate,
) -> Result<(), CommandError> {
    let client = Client::new(settings, &calibrate.target)?;
    let Calibrate {
        selection,
        strategy,
        rate,
        threshold,
        ..
    } = calibrate;
    let response = client
        .calibration(selection, strategy, *rate, *threshold)
        .await?;
    let attempts = response["attempts"].as_u64().unwrap_or(0);
    if attempts == 0 {
        let message = format!(
            "no attempts of {} in this period; list the strategies with `stats`",
            calibrate.strategy
        );
        return Err(CommandError::Failed(message));
    }
    let format = calibrate.style.format();
    if format == Format::Table {
        // A hyphen stands for a rate that does not exist, and 0.0 % for one that is zero.
        let percent = |value: &Value| {
            value
                .as_f64()
                .map_or_else(|| "-".into(), |rate| format!("{:.1} %", 100.0 * rate))
        };
        // The results are printed below the curve, next to the prompt, because the curve is long.
        write(format, &response, rows(&response, "/curve"), &CURVE)?;
        let mut out = Output::new();
        writeln!(
            out,
            "\n{attempts} attempts, {} failed",
            percent(&response["failure_rate"])
        )?;
        // A strategy that is watched without a threshold has none to print.
        if let Some(threshold) = response["confidence_threshold"].as_f64() {
            writeln!(out, "current threshold {threshold:.4}")?;
        }
        if let Some(threshold) = calibrate.threshold {
            writeln!(
                out,
                "at threshold {threshold}: {} would fail",
                percent(&response["failure_rate_at_threshold"])
            )?;
        }
        if let Some(rate) = calibrate.rate {
            match response["threshold_for_failure_rate"].as_f64() {
                Some(threshold) => writeln!(
                    out,
                    "for a failure rate of {:.1} %: threshold {threshold:.4}",
                    100.0 * rate
                )?,
                None => writeln!(
                    out,
                    "for a failure rate of {:.1} %: no threshold, the rate is higher at each",
                    100.0 * rate
                )?,
            }
        }
        return Ok(());
    }
    write(format, &response, rows(&response, "/curve"), &CURVE)
}

#[derive(Args)]
pub(super) struct Export {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    selection: Selection,
    /// Write CSV instead of JSON lines
    #[arg(long)]
    csv: bool,
    /// Start the CSV with a byte order mark, which Excel needs
    #[arg(long, requires = "csv")]
    bom: bool,
    /// Write the counts of attempts instead of failures: one line per day, strategy and outcome.
    /// Database file only
    #[arg(long, conflicts_with_all = ["url", "failure_type", "strategy", "conversation", "text", "bom"])]
    attempts: bool,
}

/// Columns of `export --attempts`. The names are those that `ingest` reads, so that both are kept
/// in step.
const ATTEMPTS: [Column; 8] = [
    column("day", "/day", CellKind::Text),
    column("retrieval_strategy", "/retrieval_strategy", CellKind::Text),
    column("outcome", "/outcome", CellKind::Text),
    column("attempts", "/attempts", CellKind::Number),
    column("unobserved", "/unobserved", CellKind::Number),
    column("latency_p50_ms", "/latency_ms/p50", CellKind::Number),
    column("latency_p95_ms", "/latency_ms/p95", CellKind::Number),
    column("latency_p99_ms", "/latency_ms/p99", CellKind::Number),
];

/// Writes failures or counts of attempts. The failures are written as they are read, so that the
/// memory does not depend on the size of the log. The counts are a small document, and are written
/// at once. `ingest` reads each of the formats.
pub(super) async fn export(settings: &Settings, export: &Export) -> Result<(), CommandError> {
    let client = Client::new(settings, &export.target)?;
    if export.attempts {
        let counts = client.attempt_counts(&export.period).await?;
        let format = if export.csv {
            Format::Csv
        } else {
            Format::Jsonl
        };
        return write(
            format,
            &counts,
            counts.as_array().map(Vec::as_slice).unwrap_or_default(),
            &ATTEMPTS,
        );
    }
    // `--bom` requires `--csv`: clap has rejected the fourth combination.
    let layout = match (export.csv, export.bom) {
        (false, _) => Layout::JsonLines,
        (true, false) => Layout::Csv,
        (true, true) => Layout::CsvForExcel,
    };
    client
        .export(&export.selection, &export.period, layout, |chunk| {
            Ok(Output::new().write_all(chunk)?)
        })
        .await?;
    Ok(io::stdout().flush()?)
}

#[derive(Args)]
pub(super) struct Check {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    selection: AttemptSelection,
    /// Fail with exit code 1 if more than this share of the attempts failed, 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    fail_if_rate_above: Option<f64>,
    /// Minimum number of attempts for a result; with fewer, the exit code is 4
    #[arg(
        long,
        value_name = "N",
        default_value_t = 20,
        requires = "fail_if_rate_above"
    )]
    min_attempts: u64,
    /// Check only this strategy; fail with exit code 1 if it has no attempts
    #[arg(long)]
    strategy: Option<String>,
}

/// Checks readiness and failure rate. The exit code is the result, so that cron, a pipeline or a
/// monitoring system needs no parser:
///
/// - 0: the service is ready, and the rate is at most `--fail-if-rate-above`;
/// - 1: the rate is higher, the service is not ready, or the strategy has no attempts;
/// - 3: the log cannot be read;
/// - 4: there are fewer attempts than `--min-attempts`. A rate of two attempts says nothing, and
///   must neither pass nor fail a release.
///
/// Without flags, only the readiness of a service decides. A file is checked by a read of its
/// summary.
pub(super) async fn check(settings: &Settings, check: &Check) -> Result<(), CommandError> {
    let client = Client::new(settings, &check.target)?;
    if let Client::Service(service) = &client {
        service.ready().await?;
        if check.fail_if_rate_above.is_none() && check.strategy.is_none() {
            writeln!(io::stdout(), "ready")?;
            return Ok(());
        }
    }
    // The read itself checks a file: one that is damaged or missing has exit code 3.
    let summary = client.summary(&check.selection).await?;
    let rates = match &check.strategy {
        None => &summary["total"],
        Some(strategy) => {
            let found = rows(&summary, "/strategies")
                .iter()
                .find(|row| row["retrieval_strategy"] == strategy.as_str());
            &found.ok_or_else(|| CommandError::Failed(format!("no attempts of {strategy}")))?["rates"]
        }
    };
    let count = |name: &str| rates[name].as_u64().unwrap_or(0);
    let (attempts, min_attempts) = (count("attempts"), check.min_attempts);
    let rate = rates["failure_rate"].as_f64();
    let result = match rate {
        Some(rate) => format!("{:.2} % of {attempts} attempts failed", 100.0 * rate),
        None if count("unknown") > 0 => format!(
            "no failure rate: {} attempts have an unknown outcome, and no success is known",
            count("unknown")
        ),
        None if attempts > 0 => {
            format!("no failure rate: {attempts} failures were logged without attempts")
        }
        None => "no attempts".to_owned(),
    };
    match (check.fail_if_rate_above, rate) {
        // The order of the arms is that of the certainty: no rate, too few attempts, then the
        // limit.
        (Some(_), None) => Err(CommandError::Inconclusive(result)),
        (Some(_), Some(_)) if attempts < min_attempts => Err(CommandError::Inconclusive(format!(
            "{result}, fewer than --min-attempts {min_attempts}"
        ))),
        (Some(limit), Some(rate)) if rate > limit => Err(CommandError::Failed(format!(
            "{result}, more than {:.2} %",
            100.0 * limit
        ))),
        _ => Ok(writeln!(io::stdout(), "{result}")?),
    }
}
