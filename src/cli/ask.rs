//! The commands that ask.

#![expect(clippy::indexing_slicing, reason = "a JSON value that is not there is null")]

use std::io::{self, Write as _};
use std::time::Duration;

use actix_web::web::Bytes;
use clap::Args;
use futures_util::{Stream, StreamExt as _};
use serde_json::{Value, json};

use super::output::{Column, Format, Kind, column, harmless, sparkline, write};
use super::settings::Settings;
use super::source::{NotOpened, Service, Source, When, value};
use super::{Failure, Style, Target};
use crate::record::RetrievalFailureType;
use crate::report::{ExportFormat, FailureFilter, FailureReader, PageRequest, QueryFilter, QuestionStatus, TimeRange};

/// How soon to look again for new failures.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How soon to ask again for a stream that ended.
const COME_BACK_AFTER: Duration = Duration::from_secs(1);

/// Which failures are wanted.
#[derive(Args)]
struct Which {
    /// Only failures of this type: no_hit, low_confidence, timeout or error
    #[arg(long = "type", value_name = "TYPE", value_parser = failure_type)]
    failure_type: Option<RetrievalFailureType>,
    /// Only failures of this strategy
    #[arg(long)]
    strategy: Option<String>,
    /// Only failures of this conversation
    #[arg(long)]
    conversation: Option<String>,
    /// Only failures whose query or error contains this
    #[arg(long)]
    text: Option<String>,
}

fn failure_type(text: &str) -> Result<RetrievalFailureType, String> {
    RetrievalFailureType::parse(text).ok_or_else(|| "expected no_hit, low_confidence, timeout or error".into())
}

/// A share of a whole.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a share from 0 to 1, as 0.2".into())
}

impl Which {
    fn filter(&self, when: Option<&When>) -> Result<FailureFilter, Failure> {
        Ok(FailureFilter {
            range: when.map(When::range).transpose()?.flatten(),
            failure_type: self.failure_type,
            strategy: self.strategy.clone(),
            conversation: self.conversation.clone(),
            text: self.text.clone(),
            ..FailureFilter::default()
        })
    }

    fn query(&self, when: Option<&When>) -> Result<Vec<(&'static str, String)>, Failure> {
        let mut query = when.map(When::query).transpose()?.unwrap_or_default();
        let failure_type = self.failure_type.map(|failure| failure.to_string());
        let of = [
            ("failure_type", &failure_type),
            ("strategy", &self.strategy),
            ("conversation", &self.conversation),
            ("text", &self.text),
        ];
        query.extend(of.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
        Ok(query)
    }
}

#[derive(Args)]
pub(super) struct List {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    style: Style,
    #[command(flatten)]
    when: When,
    #[command(flatten)]
    which: Which,
    /// Failures at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

const FAILURE: [Column; 8] = [
    column("created_at", "/created_at", Kind::Text),
    column("type", "/failure_type", Kind::Text),
    column("strategy", "/retrieval_strategy", Kind::Text),
    column("score", "/top_score", Kind::Number),
    column("latency", "/latency_ms", Kind::Milliseconds),
    column("conversation", "/conversation_id", Kind::Text),
    column("query", "/query_text", Kind::Text),
    column("error", "/error_context", Kind::Text),
];

pub(super) async fn list(settings: &Settings, list: &List) -> Result<(), Failure> {
    let page = match Source::new(settings, &list.target)? {
        Source::File(reader) => {
            let filter = list.which.filter(Some(&list.when))?;
            value(&reader.list(filter, PageRequest::newest(usize::from(list.limit))).await?)?
        }
        Source::Service(service) => {
            let mut query = list.which.query(Some(&list.when))?;
            query.push(("limit", list.limit.to_string()));
            service.ask("/v1/failures", &query).await?
        }
    };
    write(list.style.format(), &page, rows(&page, "/failures"), &FAILURE)?;
    if page["complete"] == json!(false) {
        let _ = writeln!(io::stderr(), "the search took too long, and was ended; narrow it with --since or --strategy");
    }
    Ok(())
}

fn rows<'v>(answer: &'v Value, pointer: &str) -> &'v [Value] {
    answer.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

#[derive(Args)]
pub(super) struct Tail {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    style: Style,
    #[command(flatten)]
    which: Which,
    /// Go on with the failures that come
    #[arg(short, long)]
    follow: bool,
    /// Failures to begin with
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=1000))]
    lines: u16,
}

pub(super) async fn tail(settings: &Settings, tail: &Tail) -> Result<(), Failure> {
    let format = tail.style.format();
    match Source::new(settings, &tail.target)? {
        Source::File(reader) => tail_file(format, tail, &reader).await,
        Source::Service(service) => tail_service(format, tail, &service).await,
    }
}

async fn tail_file(format: Format, tail: &Tail, reader: &FailureReader) -> Result<(), Failure> {
    // Before the list, so that nothing falls between the two.
    let mut position = match tail.follow {
        true => Some(reader.follow(tail.which.filter(None)?, None, 1).await?.position),
        false => None,
    };
    if tail.lines > 0 {
        let page = reader.list(tail.which.filter(None)?, PageRequest::newest(usize::from(tail.lines))).await?;
        lines(format, rows(&value(&page)?, "/failures"))?;
    }
    while let Some(after) = &mut position {
        actix_rt::time::sleep(LOOK_EVERY).await;
        let followed = reader.follow(tail.which.filter(None)?, Some(*after), 1000).await?;
        *after = followed.position;
        if followed.replaced {
            note_replaced();
        }
        followed.failures.iter().try_for_each(|failure| line(format, &value(failure)?))?;
    }
    Ok(())
}

async fn tail_service(format: Format, tail: &Tail, service: &Service) -> Result<(), Failure> {
    let query = tail.which.query(None)?;
    // Before the list, so that nothing falls between the two.
    let mut events = match tail.follow {
        true => Some(Events::begin(service, &query).await?),
        false => None,
    };
    if tail.lines > 0 {
        let mut query = query.clone();
        query.push(("limit", tail.lines.to_string()));
        let page = service.ask("/v1/failures", &query).await?;
        lines(format, rows(&page, "/failures"))?;
    }
    while let Some(events) = &mut events {
        match events.next().await? {
            Event::Failure(failure) => line(format, &failure)?,
            Event::Replaced => note_replaced(),
        }
    }
    Ok(())
}

/// The newest ones last.
fn lines(format: Format, failures: &[Value]) -> Result<(), Failure> {
    failures.iter().rev().try_for_each(|failure| line(format, failure))
}

fn note_replaced() {
    // A closed stderr is no reason to end.
    let _ = writeln!(io::stderr(), "another log has the name now; its failures follow");
}

/// What a service's stream of failures says.
enum Event {
    Failure(Value),
    /// Another log has the name now.
    Replaced,
}

/// A service's stream of failures, which is reopened when it ends.
struct Events<'s> {
    service: &'s Service,
    query: &'s [(&'static str, String)],
    stream: Box<dyn Stream<Item = Result<Bytes, awc::error::PayloadError>> + Unpin>,
    text: Vec<u8>,
    /// The position to resume from.
    last_id: Option<String>,
}

impl<'s> Events<'s> {
    /// Opens the stream, and waits until it has said where it begins: a service that ends then is resumed
    /// from there.
    async fn begin(service: &'s Service, query: &'s [(&'static str, String)]) -> Result<Self, Failure> {
        let stream = Box::new(service.open("/v1/tail", query, None).await?);
        let mut events = Self { service, query, stream, text: Vec::new(), last_id: None };
        while events.last_id.is_none() {
            match events.next_line().await {
                Ok(line) => events.take_id(&line),
                Err(cause) => events.reopen(&cause).await?,
            }
        }
        Ok(events)
    }

    async fn next(&mut self) -> Result<Event, Failure> {
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
            self.take_id(&line);
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

    fn take_id(&mut self, line: &str) {
        if let Some(id) = line.strip_prefix("id: ") {
            self.last_id = Some(id.to_owned());
        }
    }

    /// The next line of the stream, without its end. `Err`: why the stream ended.
    async fn next_line(&mut self) -> Result<String, String> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
            }
            match self.stream.next().await {
                Some(Ok(piece)) => self.text.extend_from_slice(&piece),
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("the service ended the stream".to_owned()),
            }
        }
    }

    async fn reopen(&mut self, cause: &str) -> Result<(), Failure> {
        self.text.clear();
        // A closed stderr is no reason to end.
        let _ = writeln!(io::stderr(), "{cause}; waiting for it to come back");
        loop {
            actix_rt::time::sleep(COME_BACK_AFTER).await;
            match self.service.open("/v1/tail", self.query, self.last_id.as_deref()).await {
                Ok(stream) => {
                    self.stream = Box::new(stream);
                    return Ok(());
                }
                Err(NotOpened::ForNow(_)) => {}
                Err(NotOpened::ForGood(failure)) => return Err(failure),
            }
        }
    }
}

/// A failure on a line of its own.
fn line(format: Format, failure: &Value) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match format {
        Format::Table | Format::Csv => {
            let text = |name: &str| harmless(failure[name].as_str().unwrap_or_default());
            let score = failure["top_score"].as_f64().map(|score| format!(" {score:.3}")).unwrap_or_default();
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
    when: When,
}

const STRATEGY: [Column; 13] = [
    column("strategy", "/strategy", Kind::Text),
    column("attempts", "/rates/attempts", Kind::Number),
    column("failures", "/rates/failures", Kind::Number),
    column("unobserved", "/rates/unobserved", Kind::Number),
    column("rate", "/rates/failure_rate", Kind::Share),
    column("before", "/previous/failure_rate", Kind::Share),
    column("no_hit", "/rates/types/0/failures", Kind::Number),
    column("low_confidence", "/rates/types/1/failures", Kind::Number),
    column("timeout", "/rates/types/2/failures", Kind::Number),
    column("error", "/rates/types/3/failures", Kind::Number),
    column("p50", "/rates/latency_ms/p50", Kind::Milliseconds),
    column("p95", "/rates/latency_ms/p95", Kind::Milliseconds),
    column("p99", "/rates/latency_ms/p99", Kind::Milliseconds),
];

pub(super) async fn stats(settings: &Settings, stats: &Stats) -> Result<(), Failure> {
    let format = stats.style.format();
    let (summary, series) = match Source::new(settings, &stats.target)? {
        Source::File(reader) => {
            let range = stats.when.range_or_a_day()?;
            (value(&reader.summary(range).await?)?, value(&reader.timeseries(range, None).await?)?)
        }
        Source::Service(service) => {
            let query = stats.when.query()?;
            (service.ask("/v1/summary", &query).await?, service.ask("/v1/timeseries", &query).await?)
        }
    };
    let mut strategies = rows(&summary, "/strategies").to_vec();
    if format == Format::Table {
        strategies.push(json!({"strategy": "all", "rates": summary["total"], "previous": summary["previous"]}));
        let failures: Vec<u64> =
            rows(&series, "/points").iter().map(|point| point["failures"].as_u64().unwrap_or(0)).collect();
        let text = |value: &Value| harmless(value.as_str().unwrap_or_default());
        let mut out = io::stdout().lock();
        writeln!(out, "{} to {}", text(&summary["range"]["from"]), text(&summary["range"]["to"]))?;
        writeln!(out, "failures {}\n", sparkline(&thinned(&failures, 72)))?;
        if let Some(since) = deleted_before(&summary, &series) {
            writeln!(out, "counts are complete; failures older than {since} were deleted from the log\n")?;
        }
    }
    write(format, &summary, &strategies, &STRATEGY)
}

/// The moment of the oldest failure in the log, if older ones are counted.
fn deleted_before(summary: &Value, series: &Value) -> Option<String> {
    let moment = |value: &Value| value.as_str()?.parse::<jiff::Timestamp>().ok();
    let since = moment(&summary["rows_since"]);
    let step = jiff::SignedDuration::from_secs(series["step_seconds"].as_i64()?);
    let is_older = |point: &Value| {
        let end = moment(&point["at"]).and_then(|at| at.checked_add(step).ok());
        point["failures"].as_u64() > Some(0) && end.is_some_and(|end| since.is_none_or(|since| end <= since))
    };
    let is_any = rows(series, "/points").iter().any(is_older);
    is_any.then(|| since.map_or_else(|| "now".to_owned(), |since| since.to_string()))
}

/// At most `width` numbers, by adding up neighbours.
fn thinned(numbers: &[u64], width: usize) -> Vec<u64> {
    numbers.chunks(numbers.len().div_ceil(width).max(1)).map(|chunk| chunk.iter().sum()).collect()
}

#[derive(Args)]
pub(super) struct Top {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    style: Style,
    #[command(flatten)]
    when: When,
    /// Only failures of this type: no_hit, low_confidence, timeout or error
    #[arg(long = "type", value_name = "TYPE", value_parser = failure_type)]
    failure_type: Option<RetrievalFailureType>,
    /// Only failures of this strategy
    #[arg(long)]
    strategy: Option<String>,
    /// Only questions with this status; see `mark`
    #[arg(long, value_enum)]
    status: Option<QuestionStatus>,
    /// Groups at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

/// Asks until the service has looked at all failures.
async fn whole_ranking(service: &Service, query: &[(&'static str, String)]) -> Result<Value, Failure> {
    loop {
        let ranking = service.ask("/v1/queries", query).await?;
        if ranking["in_progress"] != json!(true) && ranking["status"] != json!("working") {
            return Ok(ranking);
        }
        actix_rt::time::sleep(LOOK_EVERY).await;
    }
}

const GROUP: [Column; 6] = [
    column("failures", "/count", Kind::Number),
    column("texts", "/texts", Kind::Number),
    column("best score", "/best_score", Kind::Number),
    column("last seen", "/last_seen", Kind::Text),
    column("status", "/status", Kind::Text),
    column("question", "/example", Kind::Text),
];

pub(super) async fn top(settings: &Settings, top: &Top) -> Result<(), Failure> {
    let answer = match Source::new(settings, &top.target)? {
        Source::File(reader) => {
            let range = top.when.range_or_a_day()?;
            let limit = usize::from(top.limit);
            let Top { failure_type, status, .. } = *top;
            let filter = QueryFilter { failure_type, strategy: top.strategy.clone(), status };
            value(&reader.top_queries(range, filter, limit).await?)?
        }
        Source::Service(service) => {
            let mut query = top.when.query()?;
            query.push(("limit", top.limit.to_string()));
            query.extend(top.failure_type.map(|failure| ("failure_type", failure.to_string())));
            query.extend(top.strategy.clone().map(|strategy| ("strategy", strategy)));
            query.extend(top.status.map(|status| ("status", status.to_string())));
            whole_ranking(&service, &query).await?
        }
    };
    if answer["partial"] == json!(true) {
        let _ = writeln!(
            io::stderr(),
            "at least: only the newest {} failures were looked at",
            answer["scanned"]["failures"]
        );
    }
    write(top.style.format(), &answer, rows(&answer, "/groups"), &GROUP)
}

#[derive(Args)]
pub(super) struct Calibrate {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    style: Style,
    #[command(flatten)]
    when: When,
    /// The strategy
    strategy: String,
    /// Find the strictest threshold at which no more than this share fails, 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    rate: Option<f64>,
    /// Foretell the failure rate at this threshold
    #[arg(long)]
    threshold: Option<f64>,
}

const CURVE: [Column; 2] =
    [column("threshold", "/threshold", Kind::Number), column("failure rate", "/failure_rate", Kind::Share)];

pub(super) async fn calibrate(settings: &Settings, calibrate: &Calibrate) -> Result<(), Failure> {
    let answer = match Source::new(settings, &calibrate.target)? {
        Source::File(reader) => {
            let range = calibrate.when.range_or_a_day()?;
            let calibration = reader.calibration(calibrate.strategy.as_str(), range).await?;
            let mut answer = value(&calibration)?;
            answer["failure_rate_at_threshold"] =
                calibrate.threshold.and_then(|threshold| calibration.failure_rate_at(threshold)).into();
            answer["threshold_for_failure_rate"] =
                calibrate.rate.and_then(|rate| calibration.threshold_for(rate)).into();
            answer
        }
        Source::Service(service) => {
            let mut query = calibrate.when.query()?;
            query.push(("strategy", calibrate.strategy.clone()));
            query.extend(calibrate.rate.map(|rate| ("failure_rate", rate.to_string())));
            query.extend(calibrate.threshold.map(|threshold| ("threshold", threshold.to_string())));
            service.ask("/v1/calibration", &query).await?
        }
    };
    let attempts = answer["attempts"].as_u64().unwrap_or(0);
    if attempts == 0 {
        let unknown = format!("no attempts of {} were observed then; see `stats` for the others", calibrate.strategy);
        return Err(Failure::No(unknown));
    }
    let format = calibrate.style.format();
    if format == Format::Table {
        let percent =
            |value: &Value| value.as_f64().map_or_else(|| "-".into(), |rate| format!("{:.1} %", 100.0 * rate));
        // Below the curve, where it is seen.
        write(format, &answer, rows(&answer, "/curve"), &CURVE)?;
        let mut out = io::stdout().lock();
        writeln!(out, "\n{attempts} attempts, {} failed", percent(&answer["failure_rate"]))?;
        if let Some(threshold) = answer["confidence_threshold"].as_f64() {
            writeln!(out, "present threshold {threshold:.4}")?;
        }
        if let Some(threshold) = calibrate.threshold {
            writeln!(out, "at {threshold}: {} would fail", percent(&answer["failure_rate_at_threshold"]))?;
        }
        if let Some(rate) = calibrate.rate {
            match answer["threshold_for_failure_rate"].as_f64() {
                Some(threshold) => writeln!(out, "for {:.1} %: {threshold:.4}", 100.0 * rate)?,
                None => writeln!(out, "for {:.1} %: none, more fail at any threshold", 100.0 * rate)?,
            }
        }
        return Ok(());
    }
    write(format, &answer, rows(&answer, "/curve"), &CURVE)
}

#[derive(Args)]
pub(super) struct Export {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    when: When,
    #[command(flatten)]
    which: Which,
    /// CSV instead of JSON lines
    #[arg(long)]
    csv: bool,
    /// Begin CSV with a byte order mark, for Excel
    #[arg(long, requires = "csv")]
    bom: bool,
    /// The counts of attempts instead of failures: one line for each day, strategy and outcome. From a file only
    #[arg(long, conflicts_with_all = ["url", "failure_type", "strategy", "conversation", "text", "bom"])]
    attempts: bool,
}

const ATTEMPTS: [Column; 8] = [
    column("day", "/day", Kind::Text),
    column("retrieval_strategy", "/retrieval_strategy", Kind::Text),
    column("outcome", "/outcome", Kind::Text),
    column("attempts", "/attempts", Kind::Number),
    column("unobserved", "/unobserved", Kind::Number),
    column("latency_p50_ms", "/latency_ms/p50", Kind::Number),
    column("latency_p95_ms", "/latency_ms/p95", Kind::Number),
    column("latency_p99_ms", "/latency_ms/p99", Kind::Number),
];

pub(super) async fn export(settings: &Settings, export: &Export) -> Result<(), Failure> {
    let format = if export.csv { ExportFormat::Csv } else { ExportFormat::JsonLines };
    match Source::new(settings, &export.target)? {
        Source::File(reader) if export.attempts => {
            let counts = reader.attempt_counts(export.when.range()?.unwrap_or(TimeRange::all())).await?;
            let counts = value(&counts)?;
            let format = if export.csv { Format::Csv } else { Format::Jsonl };
            return write(format, &counts, counts.as_array().map(Vec::as_slice).unwrap_or_default(), &ATTEMPTS);
        }
        Source::File(reader) => {
            let mut chunks = reader.export(export.which.filter(Some(&export.when))?, format);
            if export.bom {
                chunks = chunks.with_byte_order_mark();
            }
            while let Some(chunk) = chunks.next_chunk().await? {
                io::stdout().write_all(&chunk)?;
            }
        }
        Source::Service(service) => {
            let mut query = export.which.query(Some(&export.when))?;
            query.extend(export.csv.then(|| ("format", "csv".to_owned())));
            query.extend(export.bom.then(|| ("bom", "true".to_owned())));
            let mut response = service.open("/v1/export", &query, None).await?;
            while let Some(piece) = response.next().await {
                io::stdout().write_all(&piece.map_err(|error| service.unreachable(error))?)?;
            }
        }
    }
    Ok(io::stdout().flush()?)
}

#[derive(Args)]
pub(super) struct Check {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    when: When,
    /// Say no if more than this share of the attempts failed, 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    fail_if_rate_above: Option<f64>,
    /// With fewer attempts, the rate says nothing: end with exit code 4
    #[arg(long, value_name = "N", default_value_t = 20, requires = "fail_if_rate_above")]
    min_attempts: u64,
    /// Look at this strategy only; say no if there is none of this name
    #[arg(long)]
    strategy: Option<String>,
}

pub(super) async fn check(settings: &Settings, check: &Check) -> Result<(), Failure> {
    let summary = match Source::new(settings, &check.target)? {
        Source::File(reader) => value(&reader.summary(check.when.range_or_a_day()?).await?)?,
        Source::Service(service) => {
            service.ready().await?;
            if check.fail_if_rate_above.is_none() && check.strategy.is_none() {
                writeln!(io::stdout(), "ready")?;
                return Ok(());
            }
            service.ask("/v1/summary", &check.when.query()?).await?
        }
    };
    let rates = match &check.strategy {
        None => &summary["total"],
        Some(strategy) => {
            let found = rows(&summary, "/strategies").iter().find(|of| of["strategy"] == strategy.as_str());
            &found.ok_or_else(|| Failure::No(format!("no attempts of {strategy}")))?["rates"]
        }
    };
    let count = |name: &str| rates[name].as_u64().unwrap_or(0);
    let (attempts, least) = (count("attempts"), check.min_attempts);
    let rate = rates["failure_rate"].as_f64();
    let said = match rate {
        Some(rate) => format!("{:.2} % of {attempts} attempts failed", 100.0 * rate),
        None if attempts > 0 => format!("{attempts} failures were logged, and no attempts: there is no rate"),
        None => "no attempts".to_owned(),
    };
    match (check.fail_if_rate_above, rate) {
        (Some(_), None) => Err(Failure::Unknown(said)),
        (Some(_), Some(_)) if attempts < least => {
            Err(Failure::Unknown(format!("{said}, fewer than {least} (--min-attempts)")))
        }
        (Some(limit), Some(rate)) if rate > limit => {
            Err(Failure::No(format!("{said}, more than {:.2} %", 100.0 * limit)))
        }
        _ => Ok(writeln!(io::stdout(), "{said}")?),
    }
}
